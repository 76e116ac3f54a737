"""The module of each task of several, made from plain data."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from ..functional.task_sampling import about_task, check_task_names
from .base import LMModule
from .student import task_class
from .task_adapters import without_adapters

__all__ = ["arguments_of_model", "check_rate", "check_weights", "make_tasks"]

#: Arguments of the whole, which a task takes over.
_SHARED = ("pretrained", "dropout")


def make_tasks(
    specs: Mapping[str, Any], model: str | dict[str, Any], shared: Mapping[str, Any]
) -> dict[str, LMModule]:
    """Make the module of each task.

    Args:
        specs: `class_path` and `init_args` of each, by name.
        model: of all tasks. Where it is a config, a task may have one of its own, of the same
            encoder, with the names of its classes.
        shared: arguments of the whole.

    Raises:
        TypeError: that is no plain data.
        ValueError: there is no such task module, or no such argument; or it is one of the whole.
    """
    if not isinstance(specs, Mapping):
        raise TypeError(
            "tasks must be a dictionary from the name of each to its class_path and init_args, "
            f"got {specs!r}"
        )
    check_task_names(specs)
    made = {}
    for name, spec in specs.items():
        with about_task(name):
            made[name] = _make(name, spec, model, shared)
    return made


def arguments_of_model(
    arguments: Mapping[str, Any], model: Any, pretrained: bool | None
) -> dict[str, Any]:
    """Return what of the arguments to change so that all tasks are of another model.

    Args:
        arguments: of the module, as its hyper-parameters have them.
        model: name, folder or config of the first task; a config may have `tasks`, by name what
            the config of each says otherwise.
        pretrained: whether it brings its weights; `None` leaves what is said.
    """
    if not isinstance(model, Mapping):
        return without_adapters(LMModule.arguments_for(arguments, model, pretrained), arguments)
    config = {key: value for key, value in model.items() if key != "tasks"}
    own, tasks = model.get("tasks", {}), {}
    for name, spec in arguments["tasks"].items():
        given = {**(spec.get("init_args") or {}), "model": {**config, **own.get(name, {})}}
        tasks[name] = {**spec, "init_args": given}
    changed = LMModule.arguments_for(arguments, config, pretrained)
    return without_adapters({**changed, "tasks": tasks}, arguments)


def check_rate(rate: float | None) -> None:
    """Check the learning rate of what is a task's own.

    Raises:
        TypeError: it is no number.
        ValueError: it is not above 0.
    """
    if isinstance(rate, bool) or not isinstance(rate, int | float | None):
        raise TypeError(f"task_learning_rate must be a number, got {rate!r}")
    if rate is not None and not 0 < rate < float("inf"):
        raise ValueError(
            f"task_learning_rate must be above 0, got {rate}; leave it out for that of the encoder"
        )


def check_weights(weights: Mapping[str, float] | None, names: list[str]) -> dict[str, float]:
    """Return the weight of each task's loss, 1 where none is given.

    Raises:
        TypeError: they are no dictionary.
        ValueError: a task is unknown, or a weight not above 0.
    """
    if weights is not None and not isinstance(weights, Mapping):
        raise TypeError(f"weights must be a dictionary from tasks to numbers, got {weights!r}")
    given = dict(weights or {})
    for name, weight in given.items():
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"weights has {name!r}, and the tasks are {', '.join(names)}{hint}")
        if not 0 < weight < float("inf"):
            raise ValueError(
                f"the weight of a task must be above 0, got {weight} for {name!r}; leave a task "
                "out that is not to be trained"
            )
    return {name: float(given.get(name, 1.0)) for name in names}


def _make(name: str, spec: Any, model: str | dict[str, Any], shared: Mapping[str, Any]) -> LMModule:
    if not isinstance(spec, Mapping) or "class_path" not in spec:
        raise TypeError(
            f"task {name!r} must be a dictionary with the class_path and init_args of a task "
            f"module, such as SequenceClassificationModule; got {spec!r}"
        )
    cls = task_class(str(spec["class_path"]), "its")
    given, known = dict(spec.get("init_args") or {}), inspect.signature(cls).parameters
    if "model" not in known or "tasks" in known:
        raise ValueError(f"a {cls.__name__} cannot be one task of several")
    own = given.pop("model", model)
    if own != model and not (isinstance(own, dict) and isinstance(model, dict)):
        raise ValueError(
            f"its model is {own!r} and that of the others {model!r}: all tasks share one encoder, "
            "so the model is given once, to the module of all"
        )
    whole = set(inspect.signature(LMModule).parameters) - {"model"}
    for argument in given:
        if argument in whole:
            raise ValueError(
                f"{argument} is of the whole training, not of one task: give it to the module of "
                "all tasks"
            )
        if argument not in known:
            near = difflib.get_close_matches(argument, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{cls.__name__} has no argument {argument!r}{hint}")
    taken = {word: shared[word] for word in _SHARED if word in known}
    return cls(**{"model": own, **taken, **given})
