"""The data module of each task, as plain data and back, and whether they go together."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Mapping
from contextvars import Context
from typing import Any

from lightning.pytorch import LightningDataModule

from ..tokenization import tokenizer_digest
from .base import LMDataModule
from .task import TaskDataModule

__all__ = ["check_tokenizers", "data_from_spec", "data_to_spec"]

_PACKAGE = __package__ or ""


def data_to_spec(data: Any) -> dict[str, Any]:
    """Write a data module as plain data: its class and its arguments.

    Args:
        data: a data module of lmkit, or such data already.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(data, LightningDataModule):
        cls = type(data)
        home = _PACKAGE if cls.__module__.startswith(f"{_PACKAGE}.") else cls.__module__
        known = inspect.signature(cls).parameters
        arguments = {name: value for name, value in data.hparams.items() if name in known}
        return {"class_path": f"{home}.{cls.__qualname__}", "init_args": arguments}
    if isinstance(data, Mapping) and "class_path" in data:
        arguments = dict(data.get("init_args") or {})
        return {"class_path": str(data["class_path"]), "init_args": arguments}
    raise TypeError(
        "the data of a task are a data module, such as SequenceClassificationDataModule(...), or a "
        f"dictionary of its class_path and init_args; got {data!r}"
    )


def data_from_spec(
    spec: Mapping[str, Any], shared: Mapping[str, Any]
) -> TaskDataModule | LMDataModule:
    """Make the data module that plain data say.

    Args:
        spec: `class_path` and `init_args`.
        shared: arguments for those that it does not give itself, or gives as `None`.

    Raises:
        ValueError: there is no such data module, or it has no such argument.
    """
    path = str(spec["class_path"])
    module, _, name = path.rpartition(".")
    # A class from elsewhere counts where it is imported: a checkpoint must not import code.
    home = sys.modules.get(_PACKAGE if not module or module.startswith("lmkit.") else module)
    cls = getattr(home, name, None)
    if not (isinstance(cls, type) and issubclass(cls, TaskDataModule | LMDataModule)):
        near = difflib.get_close_matches(name, [n for n in dir(home) if "DataModule" in n], n=1)
        raise ValueError(
            f"class_path {path!r} names no data module of lmkit.datamodules, nor one that is "
            "imported and derives from those" + (f"; did you mean {near[0]!r}?" if near else "")
        )
    given = {name: value for name, value in spec["init_args"].items() if value is not None}
    known = inspect.signature(cls).parameters
    for argument in given:
        if argument not in known:
            near = difflib.get_close_matches(argument, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{name} has no argument {argument!r}{hint}")
    more = {name: value for name, value in shared.items() if value is not None}
    # In a context of its own: see `lmkit.modules.checks.keep_arguments`.
    made: TaskDataModule | LMDataModule = Context().run(lambda: cls(**{**more, **given}))
    return made


def check_tokenizers(tasks: Mapping[str, TaskDataModule | LMDataModule]) -> None:
    """Check that the tasks that are set up have one tokenizer.

    Args:
        tasks: the data modules by name.

    Raises:
        ValueError: they have different ones; names the tasks.
    """
    found = {name: data.tokenizer for name, data in tasks.items() if data.tokenizer is not None}
    marks = {name: tokenizer_digest(tokenizer) for name, tokenizer in found.items()}
    first = next(iter(marks), "")
    if others := [name for name, mark in marks.items() if mark != marks[first]]:
        raise ValueError(
            f"the tasks {first!r} and {', '.join(map(repr, others))} have different tokenizers, "
            "and one encoder reads them all: give the data one tokenizer (a hub name or a folder), "
            "and the tasks none of their own"
        )
