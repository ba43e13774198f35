"""The parsers of all command lines. `usage.py` writes the message for each mistake."""

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
    """A mistake in a command line or a config.

    Attributes:
        parser: The parser that refused; it knows all options.
    """

    def __init__(self, message: str, parser: ArgumentParser) -> None:
        super().__init__(message)
        self.parser = parser


class OneLineParser(ArgumentParser):
    """Parser that raises `UsageError` instead of printing its usage and ending the program.

    Attributes:
        with_new_keys: Returns the YAML text of a config with the current names of its settings.
    """

    with_new_keys: Callable[[str], str] = staticmethod(str)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the message. The inner parsers of jsonargparse try several types, and keep their own errors."""
        if not self.exit_on_error:
            super().error(message, ex)
        raise UsageError(message, getattr(ex, "subcommand_parser", None) or self) from ex

    def _load_config_parser_mode(self, content: str, *args: Any, **kwargs: Any) -> Any:
        return super()._load_config_parser_mode(self.with_new_keys(content), *args, **kwargs)


@contextmanager
def command_line(arguments: Sequence[str], short: str = "") -> Iterator[None]:
    """Turn mistakes in these arguments, and errors of their command, into one line (`mois.cli.messages`).

    Args:
        arguments: Words of the command line.
        short: How the command is typed without the names of options, such as `mois try BUNDLE SCAN...`, or "".
    """
    with one_line_errors():
        refuse_foreign_packages()
        check_settings(arguments)
        try:
            yield
        except UsageError as error:
            raise ValueError(explain_usage(str(error), error.parser, arguments, short)) from error


def as_options(text: str, **options: str) -> str:
    """Return a message of a datamodule with the options of a command instead of the keys of a config.

    Args:
        text: Message such as "set data.init_args.root to a folder".
        options: Option for each key of `data.init_args`, such as root="--data".
    """
    return re.sub(r"\bdata\.init_args\.(?:split\.)?(\w+)", lambda key: options.get(key[1], key[0]), text)
