"""A teacher: a trained model that is run and never trained, and held by nothing that is saved."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from ..tokenization import vocabulary_digest
from ..types import Batch
from .attention import MAPS, use_fast_attention
from .base import LMModule
from .captures import Place, Taps, depth_of, width_of
from .checkpoint_io import read_checkpoint
from .frozen_base import fingerprint
from .network import named_config
from .network_inputs import check_packing
from .scores import Scores
from .teacher_loading import is_checkpoint, load_teacher
from .word_predictions import label_list

__all__ = [
    "Teacher",
    "TeacherFacts",
    "TeacherShape",
    "class_order",
    "classes_of",
    "teacher_facts",
    "teacher_shape",
]

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
        self.module = load_teacher(name, student)
        self.facts = teacher_facts(name, self.module)
        self._taps: dict[frozenset[Place], Taps] = {}
        self.module.eval().requires_grad_(False).to(_PRECISIONS[precision])

    @property
    def network(self) -> PreTrainedModel:
        """The teacher's network."""
        return self.module.network

    def attend(self, maps: bool) -> None:
        """Choose the fastest attention, or that which shows its maps."""
        use_fast_attention(self.network, *([MAPS] if maps else []))

    def check_packing(self, longest: int) -> None:
        """Raise `ValueError` if texts that share a row of up to `longest` tokens see each other."""
        kind = cast(Any, self.network).dtype
        self.module.float()  # the rounding of bfloat16 is no sight of another text
        try:
            check_packing(self.network, longest, self.module.is_causal)
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
            self._taps[places] = Taps(self.network, places)
        return self._taps[places]

    def run(self, batch: Batch, places: Collection[Place]) -> tuple[Scores, dict[str, Tensor]]:
        """Run the teacher on a batch, and return all of its scores beside what was kept."""
        if self.module.device != batch["input_ids"].device:
            self.module.to(batch["input_ids"].device)
        # Whoever called train() on what it is held by may have reached it.
        self.network.eval()
        with torch.no_grad():
            with self._taps_at(frozenset(places)).open() as kept:
                output = self.module.step(batch)
            scores = self.module.scores(output, batch)
        return scores, {str(place): kept[place] for place in places}


def teacher_facts(name: str, module: LMModule) -> TeacherFacts:
    """Describe a teacher."""
    return TeacherFacts(
        name,
        fingerprint(module.network, list(module.network.state_dict())),
        *classes_of(module),
        vocabulary_digest(module.tokenizer) if module.tokenizer else "",
        # A checkpoint says what was drawn before it was trained.
        [] if is_checkpoint(name) else list(module.base.get("fresh", [])),
    )


def classes_of(module: LMModule) -> tuple[list[str], int]:
    """Return the names of a module's classes, or the rows of its language-model head."""
    head = module.network.get_output_embeddings()
    if head is None:
        return label_list(module.network.config), 0
    return [], int(cast(Tensor, head.weight).shape[0])


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
        config = AutoConfig.for_model(**(entry["config"] | entry.get("changed", {})))
    else:
        config = named_config(name)
    with torch.device("meta"):
        network = cast(Any, student.auto_class).from_config(config)
    stacks = ("encoder", "decoder") if config.is_encoder_decoder else ("",)
    return TeacherShape(
        {stack: depth_of(network, stack) for stack in stacks},
        {stack: width_of(network, stack) for stack in stacks},
    )


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


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (" ..." if len(names) > 5 else "")
