"""Adapters of the tasks of a module, beside the encoder that all of them share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from torch import nn

from ..surgery.adapter_fusion import AdapterFusion
from ..surgery.task_adapter import TaskAdapter, task_adapter_parameters, use_task
from ..surgery.task_aggregation import TaskAggregation, aggregated_tasks
from .task_networks import head_parameters, known_task

if TYPE_CHECKING:
    from .multi_task import MultiTaskModule

__all__ = [
    "activate",
    "adapters_from",
    "add_adapters",
    "check_aggregated",
    "check_recomputed",
    "follow",
    "own_weights",
    "shared_weights",
    "without_adapters",
]

_OWN = sorted(field.name for field in fields(TaskAdapter) if field.name != "names")
_WORDS = sorted([*_OWN, "aggregate"])


def adapters_from(
    settings: int | Mapping[str, Any] | None, names: Sequence[str]
) -> TaskAdapter | None:
    """Make the surgery that an argument asks for; `None` where it asks for none.

    Args:
        settings: the size of the adapters, or arguments of `TaskAdapter` and `aggregate`, whether
            each task attends to the adapters of all.
        names: of the tasks.

    Raises:
        TypeError: it is neither, there is no such argument, or one is of another type.
        ValueError: an argument lies outside its range.
    """
    if settings is None:
        return None
    if isinstance(settings, bool) or not isinstance(settings, int | Mapping):
        raise TypeError(
            "task_adapters must be the size of the adapters, or a dictionary of size, kind, "
            f"activation, scale, dropout, freeze and aggregate; got {settings!r}"
        )
    given = _as_dictionary(settings)
    if unknown := [word for word in given if word not in _WORDS]:
        raise TypeError(f"task_adapters has no {unknown[0]!r}; there are {', '.join(_WORDS)}")
    if not isinstance(aggregate := given.pop("aggregate", False), bool):
        raise TypeError(f"aggregate of task_adapters must be true or false, got {aggregate!r}")
    if aggregate:
        TaskAggregation(names)  # names that it refuses are an error now
    return TaskAdapter(names, **given)


def add_adapters(module: MultiTaskModule) -> None:
    """Put in the adapters of the tasks that a module asks for, and what mixes them."""
    if module.task_adapters is not None:
        module.operate(module.task_adapters)
        if _aggregates(module):
            module.operate(TaskAggregation(module.task_adapters.names))


def check_aggregated(module: MultiTaskModule) -> None:
    """Check that a base whose adapters are mixed for a task is trained so.

    Args:
        module: with its network built.

    Raises:
        ValueError: it would be without the mixtures of its other tasks, or is of other tasks.
    """
    own = module.tasks if _aggregates(module) else ()
    if mixed := [name for name in aggregated_tasks(module.ledger) if name not in own]:
        raise ValueError(
            f"the model is an export of {', '.join(mixed)}, which attends to the adapters of "
            "several tasks: give task_adapters the settings of that run, with aggregate: true, and "
            "the same tasks"
        )


def activate(module: MultiTaskModule, name: str) -> None:
    """Let the adapters of a task be the active ones, where tasks have adapters."""
    if module.task_adapters is not None:
        use_task(module.network, module.task_adapters.names, name)


def without_adapters(changed: dict[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return what changes of arguments so that adapters of tasks come with a ledger alone.

    Args:
        changed: what changes beside.
        arguments: as they were.
    """
    return changed if arguments.get("task_adapters") is None else {**changed, "task_adapters": None}


@contextmanager
def follow(module: MultiTaskModule, surgery: object) -> Iterator[None]:
    """Know the adapters of the tasks, and let them learn when the encoder was frozen, as heads do.

    Args:
        module: of several tasks.
        surgery: what is done inside.

    Raises:
        ValueError: the surgery mixes adapters of tasks, of which only one is active.
    """
    tasks = module.task_adapters.names if module.task_adapters is not None else ()
    if isinstance(surgery, AdapterFusion) and (mixed := set(surgery.names) & set(tasks)):
        raise ValueError(
            f"AdapterFusion mixes {', '.join(sorted(mixed))}, which are adapters of tasks: in a "
            "module of several tasks only that of the batch's task is active. Give task_adapters "
            "aggregate: true, or train adapters with AdapterCallback, each alone, and fuse those"
        )
    yield
    if isinstance(surgery, TaskAdapter) and set(surgery.names) == set(module.tasks):
        module.task_adapters, tasks = surgery, surgery.names
        if module.hparams["task_adapters"] is None:
            module.hparams["task_adapters"] = {word: getattr(surgery, word) for word in _OWN}
    if isinstance(surgery, TaskAggregation) and tasks:
        settings = _as_dictionary(module.hparams["task_adapters"])
        module.hparams["task_adapters"] = {**settings, "aggregate": True}
    for name in tasks:
        for parameter in task_adapter_parameters(module.network, name):
            parameter.requires_grad_(True)


def own_weights(module: MultiTaskModule, name: str) -> list[nn.Parameter]:
    """Return what is trainable of the head and of the adapters of a task, without what is tied."""
    head = head_parameters(module.tasks[known_task(module, name)].network)
    return [*head, *_adapter_weights(module, name)]


def shared_weights(module: MultiTaskModule) -> list[nn.Parameter]:
    """Return what is trainable of the encoder and of no task's adapters."""
    own = {id(p) for name in module.tasks for p in _adapter_weights(module, name)}
    encoder = module.network.base_model.parameters()
    return [p for p in encoder if p.requires_grad and id(p) not in own]


def check_recomputed(module: MultiTaskModule, tasks: int) -> None:
    """Check that no layer is computed again when another task's adapter is active.

    Args:
        module: with its network built.
        tasks: how many of them are in a batch.

    Raises:
        ValueError: one would be, in the backward pass of a batch of several tasks.
    """
    if module.task_adapters is None or tasks < 2 or not module.training:
        return
    if any(getattr(layer, "gradient_checkpointing", False) for layer in module.network.modules()):
        raise ValueError(
            "with gradient checkpointing layers are computed again in the backward pass, where of "
            "a batch of several tasks the adapters of the last one are active: give the "
            "MultiTaskDataModule batches='one', or call network.gradient_checkpointing_disable()"
        )


def _as_dictionary(settings: int | Mapping[str, Any]) -> dict[str, Any]:
    return {"size": settings} if isinstance(settings, int) else dict(settings)


def _aggregates(module: MultiTaskModule) -> bool:
    settings = module.hparams["task_adapters"]
    return settings is not None and bool(_as_dictionary(settings).get("aggregate", False))


def _adapter_weights(module: MultiTaskModule, name: str) -> list[nn.Parameter]:
    if module.task_adapters is None:
        return []
    found = task_adapter_parameters(module.network, name)
    return [parameter for parameter in found if parameter.requires_grad]
