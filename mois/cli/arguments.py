"""The parsers of all command lines: they hand every mistake to `usage.py`, which writes the message."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from mois.cli.messages import one_line_errors
from mois.cli.settings import check_settings
from mois.cli.usage import explain_usage
from mois.machine.own_packages import refuse_foreign_packages


class UsageError(ValueError):
    """A command line or a config that cannot be right.

    Attributes:
        parser: The parser that refused it, which knows what there is.
    """

    def __init__(self, message: str, parser: ArgumentParser) -> None:
        super().__init__(message)
        self.parser = parser


class OneLineParser(ArgumentParser):
    """A parser that raises `UsageError` where jsonargparse prints its usage and exits.

    Attributes:
        with_new_keys: Takes the YAML text of a config, and returns it with the current names of its settings.
    """

    with_new_keys: Callable[[str], str] = staticmethod(str)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the message (jsonargparse's own inner parsers, which try one type after the other, keep their way)."""
        if not self.exit_on_error:
            super().error(message, ex)
        raise UsageError(message, getattr(ex, "subcommand_parser", None) or self) from ex

    def _load_config_parser_mode(self, content: str, *args: Any, **kwargs: Any) -> Any:
        return super()._load_config_parser_mode(self.with_new_keys(content), *args, **kwargs)


@contextmanager
def command_line(arguments: Sequence[str]) -> Iterator[None]:
    """End in one line what is wrong with these arguments, or with what they start (`mois.cli.messages`)."""
    with one_line_errors():
        refuse_foreign_packages()
        check_settings(arguments)
        try:
            yield
        except UsageError as error:
            raise ValueError(explain_usage(str(error), error.parser, arguments)) from error


def as_options(text: str, **options: str) -> str:
    """Return a message of a datamodule in the words of a command that has options for its keys.

    Args:
        text: Such as "set data.init_args.root to a folder".
        options: What a key of `data.init_args` is called there, such as root="--data".
    """
    return re.sub(r"\bdata\.init_args\.(?:split\.)?(\w+)", lambda key: options.get(key[1], key[0]), text)
