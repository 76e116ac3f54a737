"""The options of a chain and of its stages: read from words, and what files they name."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

__all__ = ["find_missing", "flag_of", "options_of", "take"]

_FILES = re.compile(r"(train|val|test|predict|unlabelled)_file")


def find_missing(printed: str, made_in: Path) -> str:
    """Return what is said of the first file of a stage's data that is not there, or nothing.

    Args:
        printed: the config of the stage, as `--print_config` prints it.
        made_in: the folder of the chain, in which files may be made yet.
    """
    import yaml

    root = made_in.resolve()
    for option, name in _files(yaml.safe_load(printed).get("data")):
        path = Path(name).expanduser()
        if "://" in name or glob.has_magic(name) or path.resolve().is_relative_to(root):
            continue
        if not path.exists():
            return f"{option}: no file or folder {path}"
    return ""


def _files(said: Any) -> Iterator[tuple[str, str]]:
    """Yield the options that name files of the data, at any depth, and each file."""
    if isinstance(said, list):
        for each in said:
            yield from _files(each)
    if isinstance(said, dict):
        for key, value in said.items():
            if _FILES.fullmatch(str(key)):
                names = value if isinstance(value, list) else [value]
                yield from ((str(key), str(name)) for name in names if name)
            else:
                yield from _files(value)


def options_of(words: Sequence[str]) -> dict[str, list[str]]:
    """Return the values of options by name, of `--key value` and `--key=value` alike."""
    found: dict[str, list[str]] = {}
    key = None
    for word in words:
        if word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            found.setdefault(key, [])
            if equals:
                found[key].append(value)
                key = None
        elif key is None:
            raise ValueError(f"{word!r} stands behind no option")
        else:
            found[key].append(word)
            key = None
    if lone := [key for key, values in found.items() if not values]:
        raise ValueError(f"--{lone[0]} needs a value")
    return found


def flag_of(key: str, value: Any) -> str:
    """Return an option as a word; one that is true or false is a switch."""
    return f"--{'' if value else 'no_'}{key}" if isinstance(value, bool) else f"--{key}={value}"


def take(given: dict[str, list[str]], key: str) -> str | None:
    """Take the last value of an option out of those that are given, if it is there."""
    values = given.pop(key, None)
    return values[-1] if values else None
