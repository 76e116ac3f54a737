"""A teacher: a trained model that is run and never trained, and held by nothing that is saved."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig

from ..tokenization import load_tokenizer, vocabulary_digest
from ..types import Batch
from .attention import MAPS, use_fast_attention
from .base import LMModule
from .captures import Place, Taps, depth_of, width_of
from .checkpoint_io import read_checkpoint
from .frozen_base import fingerprint
from .network import named_config
from .network_inputs import check_packing
from .scores import Scores
from .word_predictions import label_list

__all__ = [
    "Teacher",
    "TeacherFacts",
    "TeacherShape",
    "class_order",
    "is_checkpoint",
    "teacher_facts",
    "teacher_shape",
]

# The names of their weights are alike, so that one would load as another.
_HEADS = (
    "ForMultipleChoice",
    "ForQuestionAnswering",
    "ForSequenceClassification",
    "ForTokenClassification",
)
_PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}


class TeacherFacts(NamedTuple):
    """What is to be known of a teacher without having it in memory; plain data.

    Attributes:
        name: the folder, checkpoint or hub name.
        fingerprint: hash of its weights.
        labels: names of its classes in order; empty of a language model.
        vocabulary: rows of its language-model head; 0 without one.
        tokenizer: hash of its tokenizer's vocabulary, "" where it has none.
        fresh: names of weights that it has from nowhere.
    """

    name: str
    fingerprint: str
    labels: list[str]
    vocabulary: int
    tokenizer: str
    fresh: list[str]


class TeacherShape(NamedTuple):
    """How large a teacher is.

    Attributes:
        depths: layers of each stack, by `"encoder"` and `"decoder"`, or `""`.
        widths: of the hidden states of each stack.
    """

    depths: dict[str, int]
    widths: dict[str, int]


class Teacher:
    """A trained task module that says what a student is to learn.

    It is no part of the module that holds it: no optimizer, no checkpoint and no wrapper for
    several devices sees it. It stays in evaluation mode, and has no gradients.

    Args:
        name: a checkpoint of lmkit, the folder of an export or of `save_pretrained`, or a hub name.
        student: the task module that is to learn from it; the teacher is of the same task.
        precision: of its weights, `"fp32"` or `"bf16"`.

    Raises:
        ValueError: there is no such teacher, or it is of another task.
    """

    def __init__(self, name: str, student: LMModule, precision: str = "fp32") -> None:
        self.name = name
        self.module = _load(name, student)
        _settle_task(name, self.module, student)
        self.facts = teacher_facts(name, self.module)
        self._taps: dict[frozenset[Place], Taps] = {}
        self.module.eval().requires_grad_(False).to(_PRECISIONS[precision])

    @property
    def network(self) -> nn.Module:
        """The teacher's network."""
        return self.module.network

    def attend(self, maps: bool) -> None:
        """Choose the fastest attention, or that which shows its maps."""
        use_fast_attention(self.module.network, *([MAPS] if maps else []))

    def check_packing(self, longest: int) -> None:
        """Raise `ValueError` if texts that share a row of up to `longest` tokens see each other."""
        kind = cast(Any, self.module.network).dtype
        self.module.float()  # the rounding of bfloat16 is no sight of another text
        try:
            check_packing(self.module.network, longest, self.module.is_causal)
        except ValueError as error:
            raise ValueError(f"the teacher {self.name}: {error}") from error
        self.module.to(kind)

    def keeps_apart(self, longest: int) -> bool:
        """Whether texts may share a row of up to `longest` tokens."""
        ask = getattr(self.module, "keeps_apart", None)
        return bool(ask is None or ask(longest))

    def read(self, batch: Batch, places: Collection[Place]) -> dict[str, Tensor]:
        """Run the teacher on a batch.

        Args:
            batch: prepared as the student's.
            places: what to keep of its inside.

        Returns:
            `logits` of its scores, and what was kept by the name of its place; without a graph.
        """
        scores, kept = self.run(batch, places)
        return {"logits": scores.logits, **kept}

    def _taps_at(self, places: frozenset[Place]) -> Taps:
        if places not in self._taps:
            self._taps[places] = Taps(self.module.network, places)
        return self._taps[places]

    def run(self, batch: Batch, places: Collection[Place]) -> tuple[Scores, dict[str, Tensor]]:
        """Run the teacher on a batch, and return all of its scores beside what was kept."""
        if self.module.device != batch["input_ids"].device:
            self.module.to(batch["input_ids"].device)
        # Whoever called train() on what it is held by may have reached it.
        self.module.network.eval()
        with torch.no_grad():
            with self._taps_at(frozenset(places)).open() as kept:
                output = self.module.step(batch)
            scores = self.module.scores(output, batch)
        return scores, {str(place): kept[place] for place in places}


def teacher_facts(name: str, module: LMModule) -> TeacherFacts:
    """Describe a teacher."""
    network, config = module.network, module.network.config
    head = network.get_output_embeddings()
    return TeacherFacts(
        name,
        fingerprint(network, list(network.state_dict())),
        [] if head is not None else label_list(config),
        0 if head is None else int(cast(Tensor, head.weight).shape[0]),
        vocabulary_digest(module.tokenizer) if module.tokenizer else "",
        # A checkpoint says what was drawn before it was trained.
        [] if is_checkpoint(name) else list(module.base.get("fresh", [])),
    )


def teacher_shape(name: str, student: LMModule) -> TeacherShape:
    """Learn how large a teacher is, without its weights.

    Args:
        name: a checkpoint, a folder or a hub name.
        student: of the same task.

    Raises:
        ValueError: there is no such teacher.
    """
    if is_checkpoint(name):
        try:
            entry = dict(read_checkpoint(name, mmap=True)["lmkit"])
        except (FileNotFoundError, KeyError) as error:
            raise ValueError(f"there is no teacher at {name}, or none of lmkit") from error
        config = AutoConfig.for_model(**entry["config"])
    else:
        config = named_config(name)
    with torch.device("meta"):
        network = cast(Any, student.auto_class).from_config(config)
    stacks = ("encoder", "decoder") if config.is_encoder_decoder else ("",)
    return TeacherShape(
        {stack: depth_of(network, stack) for stack in stacks},
        {stack: width_of(network, stack) for stack in stacks},
    )


def is_checkpoint(name: str) -> bool:
    """Whether a teacher is named by a file."""
    return Path(name).is_file() or Path(name).suffix == ".ckpt"


def class_order(ours: Sequence[str], theirs: Sequence[str], name: str) -> list[int] | None:
    """Return where the teacher has each class of the student, `None` where the order is the same.

    Args:
        ours: names of the student's classes, in order.
        theirs: names of the teacher's.
        name: of the teacher, for messages.

    Raises:
        ValueError: the teacher has not the same classes.

    Example:
        >>> class_order(["no", "yes"], ["yes", "no"], "t"), class_order(["a"], ["a"], "t")
        ([1, 0], None)
    """
    unnamed = [all(n.startswith("LABEL_") for n in names) for names in (ours, theirs)]
    if any(unnamed) and len(ours) == len(theirs):
        return None
    if sorted(ours) != sorted(theirs):
        lacking = [each for each in ours if each not in theirs]
        unknown = [each for each in theirs if each not in ours]
        raise ValueError(
            f"the teacher {name} has other classes than the student: "
            f"{f'it lacks {_listed(lacking)}' if lacking else ''}"
            f"{'; ' if lacking and unknown else ''}"
            f"{f'the student lacks {_listed(unknown)}' if unknown else ''}. Fine-tune the teacher "
            "on these classes, or name the classes alike"
        )
    order = [list(theirs).index(each) for each in ours]
    return None if order == list(range(len(order))) else order


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


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (" ..." if len(names) > 5 else "")
