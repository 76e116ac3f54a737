"""The task module that a distillation trains, as plain data and back."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from ..functional.layer_map import spread_layers
from ..surgery.layers import keep_layers
from ..surgery.structured_pruning import removal
from .base import LMModule
from .captures import depth_of
from .frozen_base import describe_base

__all__ = [
    "build_student",
    "student_from_spec",
    "student_of_model",
    "student_to_spec",
    "task_class",
]

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
    cls = task_class(str(spec["class_path"]), "the student's")
    made: LMModule = cls(**dict(spec["init_args"]))
    if made.task_module is not made:
        raise ValueError(f"the student must be a task module itself, got a {cls.__name__}")
    return made


def task_class(path: str, owner: str) -> type[LMModule]:
    """Return the class of a task module.

    Args:
        path: its `class_path`.
        owner: whose it is, as messages begin.

    Raises:
        ValueError: there is no such module, or it is no task module.
    """
    module, _, name = path.rpartition(".")
    # A class from elsewhere counts where it is imported: a checkpoint must not import code.
    home = sys.modules.get(_PACKAGE if not module or module.startswith("lmkit.") else module)
    cls = getattr(home, name, None)
    if not (isinstance(cls, type) and issubclass(cls, LMModule)) or cls is LMModule:
        near = difflib.get_close_matches(name, getattr(home, "__all__", []), n=1)
        raise ValueError(
            f"{owner} class_path {path!r} names no task module of lmkit.modules, nor one that is "
            f"imported{f'; did you mean {near[0]!r}?' if near else ''}"
        )
    return cls


def student_of_model(student: Any, model: Any, pretrained: bool | None) -> dict[str, Any]:
    """Return a student as plain data, of another model."""
    spec = student_to_spec(student)
    changed = LMModule.arguments_for(spec["init_args"], model, pretrained)
    return {**spec, "init_args": {**spec["init_args"], **changed}}


def build_student(module: LMModule, task: LMModule, layers: Any) -> None:
    """Build the network of a student, cut it down, and share it with the module that trains it.

    Args:
        module: trains the student; gets `network`, `base` and `tokenizer`.
        task: the student.
        layers: which of its model's layers to keep, or how many; `None` for all.

    Raises:
        ValueError: there are no such layers.
    """
    if hasattr(task, "network"):
        del task.network
    task._trainer, task.tokenizer = module._trainer, module.tokenizer or task.tokenizer
    task.hparams.update({name: module.hparams[name] for name in ("model", "pretrained")})
    task.configure_model()
    if layers is not None:
        try:
            _cut_down(task, _layers_to_keep(task.network, layers))
        except ValueError as error:
            raise ValueError(f"student_layers={layers!r}: {error}") from error
    module.base, module._ledger = task.base, task.ledger
    module.network, module.tokenizer = task.network, task.tokenizer


def _cut_down(task: LMModule, kept: Any) -> None:
    """Keep some layers; of a model that surgeries have made, as one more of these."""
    if task.ledger:
        task.operate(removal(task.network, {}, kept))
        return
    keep_layers(task.network, kept)
    if "fresh" in task.base:
        loaded = set(task.network.state_dict()) - set(task.base["fresh"])
        task.base = task.base | describe_base(task.network, loaded)


def _layers_to_keep(network: PreTrainedModel, layers: Any) -> Any:
    """Turn how many layers to keep into which.

    Args:
        network: as it was built.
        layers: how many, a list of which, or a dictionary of either by stack.
    """
    if isinstance(layers, int):
        stacks = ("encoder", "decoder") if network.config.is_encoder_decoder else ("",)
        named: Mapping[str, Any] = dict.fromkeys(stacks, layers)
    elif isinstance(layers, Mapping):
        named = layers
    else:
        return list(layers)
    made = {
        stack: spread_layers(chosen, depth_of(network, stack))
        if isinstance(chosen, int)
        else list(chosen)
        for stack, chosen in named.items()
    }
    return made.get("", made)
