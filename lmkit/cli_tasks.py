"""Options of one task of several on the command line, by the name of the task."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Sequence
from typing import Any

from .cli_callbacks import configs_of, parsed_value, with_config

__all__ = ["keep_adapter_size", "place_task_options"]

_OPTION = re.compile(
    r"--(?P<section>model|data)\.(?:init_args\.)?tasks\.(?P<task>[\w-]+)\.(?:init_args\.)?(?P<name>\w+)"
)


_ADAPTERS = ("--model.task_adapters", "--model.init_args.task_adapters")


def place_task_options(words: Sequence[str]) -> list[str]:
    """Let `--data.tasks.TASK.ARG=VALUE` and `--model.tasks.TASK.ARG=VALUE` change one task.

    The parser would take such an option for all that there is of the task. So it is written into
    the tasks that the configs have, and these into a further config, behind the last one.

    Args:
        words: the command and its options.

    Returns:
        Words that the parser understands.

    Raises:
        ValueError: the option has no value, or there is no such task.

    Example:
        >>> config = '{"data": {"init_args": {"tasks": {"ner": {"class_path": "A"}}}}}'
        >>> place_task_options(["fit", "-c", config, "--data.tasks.ner.batch_size=4"])[-1]
        '{"data": {"init_args": {"tasks": {"ner": {"class_path": "A", "init_args": \
{"batch_size": 4}}}}}}'
    """
    rest: list[str] = []
    changed: dict[str, dict[str, Any]] = {}
    left = iter(words)
    for word in left:
        option, equals, value = word.partition("=")
        match = _OPTION.fullmatch(option)
        if match is None:
            rest.append(word)
            continue
        if not equals and (value := next(left, "")) == "":
            raise ValueError(f"{option} needs a value, as in {option}=4")
        section, name = match["section"], match["task"]
        if section not in changed:
            changed[section] = _configured(section, words)
        tasks = changed[section]
        if name not in tasks:
            near = difflib.get_close_matches(name, tasks, n=1)
            hint = f", did you mean {near[0]}?" if near else ""
            raise ValueError(
                f"{option}: there is no task {name}{hint}; there are {', '.join(tasks) or 'none'}"
            )
        key = match["name"]
        place = tasks[name] if key == "class_path" else tasks[name].setdefault("init_args", {})
        place[key] = parsed_value(value)
    for section, tasks in changed.items():
        rest = with_config(rest, {section: {"init_args": {"tasks": tasks}}})
    return rest


def keep_adapter_size(words: Sequence[str]) -> list[str]:
    """Let `--model.task_adapters.aggregate=true` leave the size that was given as a number alone.

    The parser would put a dictionary of this word alone in the place of the number.

    Args:
        words: the command and its options.

    Example:
        >>> keep_adapter_size(["--model.task_adapters=8", "--model.task_adapters.aggregate=true"])
        ['--model.task_adapters.size=8', '--model.task_adapters.aggregate=true']
    """
    within = tuple(f"{option}." for option in _ADAPTERS)
    inner = [n for n, word in enumerate(words) if word.startswith(within)]
    if not inner or any(".size" in words[n].partition("=")[0] for n in inner):
        return list(words)
    size: Any = None
    for config in configs_of(words):
        for key in ("model", "init_args", "task_adapters"):
            config = config.get(key) if isinstance(config, dict) else None
        size = size if config is None else config
    before = [n for n in range(inner[0]) if words[n].partition("=")[0] in _ADAPTERS]
    given: set[int] = set()
    if before:
        _, equals, value = words[before[-1]].partition("=")
        size = parsed_value(value if equals else words[before[-1] + 1])
        given = {before[-1]} if equals else {before[-1], before[-1] + 1}
    if isinstance(size, bool) or not isinstance(size, int):
        return list(words)
    rest = [word for n, word in enumerate(words[: inner[0]]) if n not in given]
    return [*rest, f"{_ADAPTERS[0]}.size={size}", *words[inner[0] :]]


def _configured(section: str, words: Sequence[str]) -> dict[str, Any]:
    """Return the tasks of the last config that has some."""
    found: dict[str, Any] = {}
    for config in configs_of(words):
        for key in (section, "init_args", "tasks"):
            config = config.get(key) if isinstance(config, dict) else None
        found = config or found
    return copy.deepcopy(found)
