"""What is said of weights that start at random, unless a checkpoint is about to replace them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from transformers import PretrainedConfig

__all__ = ["are_other_classes", "building", "checkpoint_follows", "fresh_weights_of", "say_fresh"]

_follows: ContextVar[bool] = ContextVar("checkpoint_follows", default=False)
_task: ContextVar[str | None] = ContextVar("task", default=None)


@contextmanager
def checkpoint_follows(follows: bool = True) -> Iterator[None]:
    """Let what is built inside say nothing of weights that start at random.

    Args:
        follows: whether a checkpoint is to be loaded into it; if not, this changes nothing.
    """
    token = _follows.set(_follows.get() or follows)
    try:
        yield
    finally:
        _follows.reset(token)


@contextmanager
def building(task: str) -> Iterator[None]:
    """Let what is said inside name one of several tasks."""
    token = _task.set(task)
    try:
        yield
    finally:
        _task.reset(token)


def are_other_classes(known: Mapping[Any, str], config: PretrainedConfig) -> bool:
    """Whether a config names other classes than those that its head was made for."""
    now = {str(name) for name in (config.id2label or {}).values()}
    before = {str(name) for name in known.values()}
    generic = all(name.startswith("LABEL_") for name in before)
    return bool(before) and not generic and before != now


def fresh_weights_of(
    model: str, missing: Collection[str], replaced: Collection[str], classes: Mapping[Any, str]
) -> str:
    """Return what is said of the weights of a folder that start at random, and why.

    Args:
        model: a hub name or a folder.
        missing: names of those that it does not have.
        replaced: names of those that it has otherwise, of other classes or of another shape.
        classes: that its head was made for, where these are others than those of the data.

    Example:
        >>> fresh_weights_of("it", [], ["classifier.bias"], {0: "no", 1: "yes"})
        "it has a head for 2 other classes ('no', 'yes'), so classifier.bias start at random"
    """
    said = []
    if missing:
        said.append(f"{model} has no weights for {', '.join(sorted(missing))}: these")
    if other := sorted(set(replaced) - set(missing)):
        some = ", ".join(map(repr, list(classes.values())[:10])) + " ..." * (len(classes) > 10)
        has = f"a head for {len(classes)} other classes ({some})" if classes else "other shapes"
        said.append(f"{model} has {has}, so {', '.join(other)}")
    return "; ".join(f"{each} start at random" for each in said)


def say_fresh(message: str) -> None:
    """Say on rank 0 which weights start at random, unless `checkpoint_follows`."""
    if not _follows.get():
        rank_zero_info(message if (task := _task.get()) is None else f"task {task!r}: {message}")
