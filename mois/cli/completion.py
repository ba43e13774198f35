"""`mois completion`: the script by which a shell completes the commands of `mois` and their options."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from mois.cli.messages import say

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

SCRIPT = """_mois() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words=
    case "${{COMP_WORDS[1]}} ${{COMP_WORDS[2]}}" in
{cases}
    esac
    [ "$COMP_CWORD" -eq 1 ] && words="{commands}"
    case "$before" in --config|--training|configs) words="{configs}" ;; esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    case "$word" in -*) ;; *) COMPREPLY+=($(compgen -f -- "$word")) ;; esac
}}
complete -o filenames -F _mois mois"""
"""For bash. zsh runs it too, after `bashcompinit`."""

ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"


def completion(shell: Literal["bash", "zsh"]) -> None:
    """Print a script that completes commands and options in your shell.

    In bash: `mois completion bash > ~/.mois_completion`, and the line `. ~/.mois_completion` in ~/.bashrc. In zsh the
    same with zsh and ~/.zshrc. The script is a list of words: it starts no program, so it answers at once.

    Args:
        shell: The shell; the word after `mois completion`.
    """
    from mois.cli.shipped_configs import config_names

    options = dict(_options())
    firsts = sorted({command.partition(" ")[0] for command in options})
    cases = [f'        "{command}"*) words="{words}" ;;' for command, words in _cases(options)]
    script = SCRIPT.format(cases="\n".join(cases), commands=" ".join(firsts), configs=" ".join(config_names()))
    say((ZSH if shell == "zsh" else "") + script)


def _cases(options: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
    """Yield the beginning of a command line and the words that may follow; commands of two words go first."""
    for command in sorted(options, key=lambda name: -name.count(" ")):
        yield f"{command}" if " " in command else f"{command} ", " ".join(options[command])
    for first in sorted({command.partition(" ")[0] for command in options if " " in command}):
        seconds = [command.partition(" ")[2] for command in options if command.startswith(f"{first} ")]
        yield f"{first} ", " ".join(seconds)


def _options() -> Iterator[tuple[str, list[str]]]:
    """Yield each command, of one word or two, with its options."""
    from jsonargparse import auto_parser, capture_parser

    from mois.cli.commands import components
    from mois.cli.train import MoisCLI
    from mois.cli.usage import TRAINING

    training = capture_parser(lambda: MoisCLI(["fit"]))
    yield from ((name, words) for name, words in _of_parser(training) if name in TRAINING)
    yield from _of_parser(auto_parser(components(), as_positional=False))


def _of_parser(parser: ArgumentParser, command: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yield each command of a parser with its options."""
    from mois.cli.usage import subparsers

    inner = subparsers(parser)
    for name, one in inner.items():
        yield from _of_parser(one, f"{command} {name}".strip())
    if not inner:
        words = [word for action in parser._actions for word in action.option_strings]
        yield command, [word for word in words if word.startswith("--") and not word.endswith("+")]
