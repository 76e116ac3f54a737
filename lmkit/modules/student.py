"""The task module that a distillation trains, as plain data and back."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import Any

from .base import LMModule

__all__ = ["student_from_spec", "student_to_spec"]

_PACKAGE = __package__ or ""


def student_to_spec(student: LMModule | Mapping[str, Any]) -> dict[str, Any]:
    """Write a task module as plain data: its class and its arguments.

    Args:
        student: a module whose network is not built yet; or such data already.

    Raises:
        TypeError: it is neither.
        ValueError: its network is built, so that it is more than its arguments.
    """
    if isinstance(student, LMModule):
        if student.ledger or hasattr(student, "network"):
            raise ValueError(
                "the student must be a module that was just made: its network is built already, "
                "and a checkpoint could not say how. Export it, and give the folder as its model"
            )
        cls = type(student)
        inside = cls.__module__.startswith(f"{_PACKAGE}.")
        home = _PACKAGE if inside else cls.__module__
        known = inspect.signature(cls).parameters
        arguments = {name: value for name, value in student.hparams.items() if name in known}
        return {"class_path": f"{home}.{cls.__qualname__}", "init_args": arguments}
    if isinstance(student, Mapping) and "class_path" in student:
        arguments = dict(student.get("init_args") or {})
        return {"class_path": str(student["class_path"]), "init_args": arguments}
    raise TypeError(
        "student must be a task module, such as SequenceClassificationModule(...), or a dictionary "
        f"of its class_path and init_args; got {student!r}"
    )


def student_from_spec(spec: Mapping[str, Any]) -> LMModule:
    """Make the task module that plain data say.

    Raises:
        ValueError: there is no such module, or it is no task module.
    """
    path = str(spec["class_path"])
    module, _, name = path.rpartition(".")
    # A class from elsewhere counts where it is imported: a checkpoint must not import code.
    home = sys.modules.get(_PACKAGE if not module or module.startswith("lmkit.") else module)
    cls = getattr(home, name, None)
    if not (isinstance(cls, type) and issubclass(cls, LMModule)) or cls is LMModule:
        raise ValueError(
            f"the student's class_path {path!r} names no task module of lmkit.modules, nor one "
            "that is imported"
        )
    made: LMModule = cls(**dict(spec["init_args"]))
    if made.task_module is not made:
        raise ValueError(f"the student must be a task module itself, got a {name}")
    return made
