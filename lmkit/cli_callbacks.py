"""Options of a config's callbacks and losses on the command line, by the name of the class."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

__all__ = ["configs_of", "parsed_value", "place_callback_options", "with_config"]


class _List(NamedTuple):
    """A list of classes and their arguments in a config.

    Attributes:
        option: its name on the command line.
        section: of the config, and what stands between it and the list.
        what: one of them is.
    """

    option: str
    section: tuple[str, ...]
    what: str

    def value_in(self, config: Any) -> Any:
        """Return what a config has there, `None` for nothing."""
        for name in self.section:
            config = config.get(name) if isinstance(config, dict) else None
        return config


_LISTS = (
    _List("--trainer.callbacks", ("trainer", "callbacks"), "callback"),
    _List("--model.losses", ("model", "init_args", "losses"), "loss"),
)


def place_callback_options(words: Sequence[str]) -> list[str]:
    """Let `--trainer.callbacks.CLASS.ARG=VALUE` change the callback of that class.

    And `--model.losses.CLASS.ARG=VALUE` a loss of a module that has several. The parser knows
    `--trainer.callbacks.ARG=VALUE` alone, which is about the last callback. A callback that the
    command line adds gets its options right behind the word that adds it; those of a config are
    written into a further config, behind the last one.

    Args:
        words: the command and its options.

    Returns:
        Words that the parser understands.

    Raises:
        ValueError: the option has no value, or there is no such callback, or more than one.

    Example:
        >>> place_callback_options(["fit", "--trainer.callbacks+=LoRACallback",
        ...                         "--trainer.callbacks.LoRACallback.rank=4"])
        ['fit', '--trainer.callbacks+=LoRACallback', '--trainer.callbacks.rank=4']
    """
    rest = list(words)
    for place in _LISTS:
        rest = _place(place, rest)
    return rest


def _place(entries: _List, words: Sequence[str]) -> list[str]:
    rest, options = _take(entries, words)
    if not options:
        return rest
    known, changed = _configured(entries, rest), False
    for owner, name, value in options:
        in_config = [entry for entry in known if _class(entry) == owner]
        added = [place for place in range(len(rest)) if _added(entries, rest, place) == owner]
        if len(in_config) + len(added) > 1:
            raise ValueError(
                f"there is more than one {owner}, and {entries.option}.{owner}.{name} could be "
                "of any; write it into the config"
            )
        if added:
            behind = added[0] + (1 if "=" in rest[added[0]] else 2)
            rest.insert(behind, f"{entries.option}.{name}={value}")
        elif in_config:
            in_config[0].setdefault("init_args", {})[name] = parsed_value(value)
            changed = True
        else:
            raise ValueError(_absent(entries, owner, known, rest))
    if changed:
        more: Any = known
        for key in reversed(entries.section):
            more = {key: more}
        rest = with_config(rest, more)
    return rest


def with_config(words: Sequence[str], config: Any) -> list[str]:
    """Return a command line with a further config behind the last one."""
    last = max(place for place in range(len(words)) if _is_config(words[place]))
    behind = last + (1 if "=" in words[last] else 2)
    return [*words[:behind], "--config", json.dumps(config, default=str), *words[behind:]]


def _take(entries: _List, words: Sequence[str]) -> tuple[list[str], list[tuple[str, str, str]]]:
    """Take out the options of callbacks: class, argument and value of each."""
    rest: list[str] = []
    options = []
    left = iter(words)
    for word in left:
        option, equals, value = word.partition("=")
        match = re.fullmatch(rf"{re.escape(entries.option)}\.([A-Z]\w*)\.(\w+)", option)
        if match is None:
            rest.append(word)
            continue
        if not equals and (value := next(left, "")) == "":
            raise ValueError(f"{option} needs a value, as in {option}=4")
        options.append((match[1], match[2], value))
    return rest, options


def _configured(entries: _List, words: Sequence[str]) -> list[dict[str, Any]]:
    """Return the entries of the last config that has some, each with its `class_path`."""
    found: Any = []
    for config in configs_of(words):
        found = entries.value_in(config) or found
    found = found if isinstance(found, list) else [found]
    return [{"class_path": entry} if isinstance(entry, str) else entry for entry in found]


def configs_of(words: Sequence[str]) -> Iterator[Any]:
    """Yield what stands in the configs of a command line, in order."""
    for place, word in enumerate(words):
        if _is_config(word):
            _, equals, value = word.partition("=")
            text = value if equals else "".join(words[place + 1 : place + 2])
            is_text = text.lstrip().startswith("{")
            yield yaml.safe_load(text if is_text else Path(text).read_text(encoding="utf-8"))


def _is_config(word: str) -> bool:
    return word.partition("=")[0] in ("-c", "--config")


def _class(entry: dict[str, Any]) -> str:
    return str(entry.get("class_path", "")).rsplit(".", 1)[-1]


def _added(entries: _List, words: Sequence[str], place: int) -> str | None:
    """Return the class that the word at a place adds, if it adds one."""
    option, equals, value = words[place].partition("=")
    if option != f"{entries.option}+":
        return None
    return (value if equals else "".join(words[place + 1 : place + 2])).rsplit(".", 1)[-1]


def parsed_value(value: str) -> Any:
    """Return the value of an option as YAML has it."""
    parsed = yaml.safe_load(value)
    if isinstance(parsed, str):
        try:
            return float(parsed)  # YAML takes 1e-3 for text
        except ValueError:
            pass
    return parsed


def _absent(
    entries: _List, owner: str, known: Sequence[dict[str, Any]], words: Sequence[str]
) -> str:
    added = [name for place in range(len(words)) if (name := _added(entries, words, place))]
    names = [*map(_class, known), *added]
    near = difflib.get_close_matches(owner, names, n=1)
    return (
        f"there is no {entries.what} {owner}"
        + (f", did you mean {near[0]}?" if near else "")
        + f"; there are {', '.join(names) or 'none'}; {entries.option}+={owner} adds one"
    )
