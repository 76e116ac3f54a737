"""Options of the callbacks of a config on the command line, by the name of the class."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

__all__ = ["place_callback_options"]

_ADDS = "--trainer.callbacks+"
_OPTION = re.compile(r"--trainer\.callbacks\.([A-Z]\w*)\.(\w+)")


def place_callback_options(words: Sequence[str]) -> list[str]:
    """Let `--trainer.callbacks.CLASS.ARG=VALUE` change the callback of that class.

    The parser knows `--trainer.callbacks.ARG=VALUE` alone, which is about the last callback. A
    callback that the command line adds gets its options right behind the word that adds it; those
    of a config are written into a further config, behind the last one.

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
    rest, options = _take(words)
    if not options:
        return rest
    callbacks, changed = _configured(rest), False
    for owner, name, value in options:
        in_config = [entry for entry in callbacks if _class(entry) == owner]
        added = [place for place in range(len(rest)) if _added(rest, place) == owner]
        if len(in_config) + len(added) > 1:
            raise ValueError(
                f"there is more than one {owner}, and --trainer.callbacks.{owner}.{name} could be "
                "of any; write it into the config"
            )
        if added:
            behind = added[0] + (1 if "=" in rest[added[0]] else 2)
            rest.insert(behind, f"--trainer.callbacks.{name}={value}")
        elif in_config:
            in_config[0].setdefault("init_args", {})[name] = _parsed(value)
            changed = True
        else:
            raise ValueError(_absent(owner, callbacks, rest))
    if changed:
        more = json.dumps({"trainer": {"callbacks": callbacks}}, default=str)
        last = max(place for place in range(len(rest)) if _is_config(rest[place]))
        behind = last + (1 if "=" in rest[last] else 2)
        rest[behind:behind] = ["--config", more]
    return rest


def _take(words: Sequence[str]) -> tuple[list[str], list[tuple[str, str, str]]]:
    """Take out the options of callbacks: class, argument and value of each."""
    rest: list[str] = []
    options = []
    left = iter(words)
    for word in left:
        option, equals, value = word.partition("=")
        match = _OPTION.fullmatch(option)
        if match is None:
            rest.append(word)
            continue
        if not equals and (value := next(left, "")) == "":
            raise ValueError(f"{option} needs a value, as in {option}=4")
        options.append((match[1], match[2], value))
    return rest, options


def _configured(words: Sequence[str]) -> list[dict[str, Any]]:
    """Return the callbacks of the last config that has some, each with its `class_path`."""
    found: Any = []
    for place, word in enumerate(words):
        if not _is_config(word):
            continue
        _, equals, value = word.partition("=")
        text = value if equals else "".join(words[place + 1 : place + 2])
        is_text = text.lstrip().startswith("{")
        config = yaml.safe_load(text if is_text else Path(text).read_text(encoding="utf-8"))
        trainer = config.get("trainer") if isinstance(config, dict) else None
        if isinstance(trainer, dict) and trainer.get("callbacks"):
            found = trainer["callbacks"]
    entries = found if isinstance(found, list) else [found]
    return [{"class_path": entry} if isinstance(entry, str) else entry for entry in entries]


def _is_config(word: str) -> bool:
    return word.partition("=")[0] in ("-c", "--config")


def _class(entry: dict[str, Any]) -> str:
    return str(entry.get("class_path", "")).rsplit(".", 1)[-1]


def _added(words: Sequence[str], place: int) -> str | None:
    """Return the class that the word at a place adds, if it adds one."""
    option, equals, value = words[place].partition("=")
    if option != _ADDS:
        return None
    return (value if equals else "".join(words[place + 1 : place + 2])).rsplit(".", 1)[-1]


def _parsed(value: str) -> Any:
    parsed = yaml.safe_load(value)
    if isinstance(parsed, str):
        try:
            return float(parsed)  # YAML takes 1e-3 for text
        except ValueError:
            pass
    return parsed


def _absent(owner: str, callbacks: Sequence[dict[str, Any]], words: Sequence[str]) -> str:
    added = [name for place in range(len(words)) if (name := _added(words, place))]
    known = [*map(_class, callbacks), *added]
    near = difflib.get_close_matches(owner, known, n=1)
    return (
        f"there is no callback {owner}"
        + (f", did you mean {near[0]}?" if near else "")
        + f"; there are {', '.join(known) or 'none'}; --trainer.callbacks+={owner} adds one"
    )
