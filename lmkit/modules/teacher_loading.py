"""Loading a teacher: from a checkpoint, a folder or the hub, as a module of the student's task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..tokenization import load_tokenizer
from .base import LMModule
from .network import named_config

__all__ = ["is_checkpoint", "load_teacher"]

# The names of their weights are alike, so that one would load as another.
_HEADS = (
    "ForMultipleChoice",
    "ForQuestionAnswering",
    "ForSequenceClassification",
    "ForTokenClassification",
)


def is_checkpoint(name: str) -> bool:
    """Whether a teacher is named by a file."""
    return Path(name).is_file() or Path(name).suffix == ".ckpt"


def load_teacher(name: str, student: LMModule) -> LMModule:
    """Load the module of a teacher, of the student's task.

    Args:
        name: a checkpoint of lmkit, a folder, or a hub name.
        student: with its network built.

    Raises:
        ValueError: there is no such teacher, or it is of another task.
    """
    module = _load(name, student)
    _settle_task(name, module, student)
    return module


def _load(name: str, student: LMModule) -> LMModule:
    cls = type(student)
    if is_checkpoint(name):
        try:
            module = LMModule.load_from_checkpoint(name).task_module
        except FileNotFoundError as error:
            raise ValueError(f"there is no teacher at {name}") from error
        if type(module) is not cls:
            raise ValueError(
                f"the teacher {name} is a {type(module).__name__} and the student a "
                f"{cls.__name__}: they have to be of one task"
            )
        return module
    # Its classes and thresholds are its own; what only training needs has no meaning here.
    settings = {k: v for k, v in student.hparams.items() if k in ("pooling", "sentence_objective")}
    try:
        module = cls(model=name, **settings)
        module.tokenizer = _tokenizer_of(name)
        module.configure_model()
        if module.base.get("fresh"):
            _take_classes(module, student)
    except ValueError as error:
        raise ValueError(f"the teacher {name!r} cannot be loaded: {error}") from error
    return module


def _take_classes(module: LMModule, student: LMModule) -> None:
    """Give a teacher without a trained head one of the student's classes, so that it can be run."""
    theirs, names = student.network.config, ("id2label", "label2id", "problem_type")
    settings = {name: getattr(theirs, name) for name in names}
    named = module.hparams["model"], module.hparams["pretrained"], module.tokenizer
    module.network, _ = module.build(module.auto_class, *named, settings)


def _settle_task(name: str, module: LMModule, student: LMModule) -> None:
    """Check that a teacher tells classes, labels or values as the student does.

    A folder that does not say which is taken to be of the student's kind.
    """
    config = module.network.config
    if config.problem_type is None:
        config.problem_type = student.network.config.problem_type
    ours, theirs = (getattr(each, "task", None) for each in (student, module))
    saved = "" if is_checkpoint(name) else (named_config(name).architectures or [""])[0]
    other = [head for head in _HEADS if saved.endswith(head)]
    if other and not type(module.network).__name__.endswith(other[0]):
        ours, theirs = type(student).__name__, saved
    if ours != theirs:
        raise ValueError(
            f"the teacher {name} is for {theirs} and the student for {ours}: they have to be of "
            "one task"
        )


def _tokenizer_of(name: str) -> Any:
    try:
        return load_tokenizer(name)
    except ValueError:
        return None  # a folder of weights alone; the data's is taken for its own
