"""Settings of train.py that have another name now: on the command line, in configs and in files of one setting."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from mois.cli.old_options import say_new_name, table_of, with_new_options
from mois.cli.settings import CONFIGS, read_settings, with_null_fields
from mois.errors import DataError
from mois.files.text import as_yaml, read_text
from mois.sharing.old_settings import REGROUPED, current_name


class TrainingNames:
    """The current names of the settings of train.py.

    Args:
        arguments: Command line without the program's name. It names the classes of data and adapter.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self.classes: dict[str, str | None] = {regrouped.key: None for regrouped in REGROUPED}
        for setting in read_settings(arguments):
            key = setting.key.removesuffix(".class_path")
            if key in self.classes and isinstance(setting.value, str):
                self.classes[key] = setting.value

    def arguments(self, words: Sequence[str]) -> list[str]:
        """Return a command line with the current names of its settings."""
        return with_null_fields(list(self._without_old_files(list(with_new_options(words, self.option)))))

    def option(self, name: str, value: Any) -> str:
        """Return the current name of an option."""
        return current_name(name, self.classes)

    def config(self, text: str) -> str:
        """Return a config, a YAML text, with the current names of its settings."""
        config = table_of(text)
        return yaml.safe_dump(config, sort_keys=False, allow_unicode=True) if self._rename(config, "") else text

    def _without_old_files(self, words: Sequence[str]) -> Iterator[str]:
        """Yield the words; in the place of a file with old names (`--data FILE`) stands its content with the new."""
        before = ""
        for word in words:
            name, equals, value = (
                word.removeprefix("--").partition("=") if word.startswith("--") else (before, "", word)
            )
            content = self._renamed_file(name, value)
            if content is not None:
                word = f"--{name}={content}" if equals else content
            before = name if word.startswith("--") and not equals else ""
            yield word

    def _renamed_file(self, name: str, value: str) -> str | None:
        """Return the content of a setting's file with current names, as JSON; None where it has no old name."""
        if not name or name in CONFIGS or not re.search(r"\.(ya?ml|json)$", value):
            return None
        try:
            content = table_of(read_text(Path(value), plain=True))
        except (DataError, OSError):
            return None  # the parser says what is wrong
        return as_yaml(content) if self._rename(content, name) else None

    def _rename(self, settings: dict[str, Any], place: str) -> bool:
        """Give settings their current names; return whether one of them had an old name.

        Args:
            settings: A table of settings; it is changed.
            place: Setting that the table belongs to, such as "data"; "" for a whole config.
        """
        renamed = False
        for regrouped in REGROUPED:
            chosen = _at(settings, place, regrouped.key)
            if chosen is None or not regrouped.takes(chosen.get("class_path", self.classes[regrouped.key])):
                continue
            bare = not chosen.keys() & {"class_path", "init_args"}  # a file may hold the arguments alone
            init_args = chosen if bare else chosen.get("init_args")
            if not isinstance(init_args, dict) or not init_args.keys() & regrouped.fields.keys():
                continue
            for name in regrouped.fields:
                if init_args.get(name) is not None:
                    say_new_name(f"{regrouped.key}.init_args.{name}", regrouped.setting(name))
            current = regrouped.with_group(init_args)
            init_args.clear()
            init_args.update(current)
            renamed = True
        return renamed


def _at(settings: dict[str, Any], place: str, key: str) -> dict[str, Any] | None:
    """Return the table of a setting within the settings of a place; None if there is none."""
    inside = f"{key}.".removeprefix(f"{place}." if place else "")
    if place and inside == f"{key}.":
        return None
    table: Any = settings
    for part in inside.split(".")[:-1]:
        table = table.get(part) if isinstance(table, dict) else None
    return table if isinstance(table, dict) else None
