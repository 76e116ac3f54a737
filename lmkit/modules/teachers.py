"""The teachers of a distillation: found, checked against the student, asked or looked up."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from ..tokenization import vocabulary_digest
from ..types import Batch
from .base import LMModule
from .captures import Place
from .checks import check_data
from .distillation_losses import DistillationLoss, LogitLoss
from .multiple_choice import MultipleChoiceModule
from .sequence_classification import SequenceClassificationModule
from .stored_teacher import StoredTeacher, write_teacher
from .teacher import Teacher, TeacherFacts, TeacherShape, classes_of, teacher_shape
from .teacher_options import TeacherOptions, check_options
from .teacher_texts import TeacherTexts
from .teacher_view import Alignment, align

__all__ = ["Teachers"]


class Teachers:
    """All teachers of a student. No module: nothing that saves, trains or moves modules sees it.

    Args:
        names: of the teachers.
        losses: against them.
        options: how they are used.

    Raises:
        ValueError: there is no teacher, a loss names one that is not there, or options do not go
            together.

    Attributes:
        shapes: of each teacher, once `look` has seen them.
        facts: of each teacher, once they are found.
        alignments: of their classes with the student's.
        places: what is kept of the inside of each.
    """

    def __init__(
        self, names: Sequence[str], losses: Sequence[DistillationLoss], options: TeacherOptions
    ) -> None:
        self.names, self.options = list(names), options
        self.shapes: list[TeacherShape] = []
        self.facts: list[TeacherFacts] = []
        self.judge = True
        self.alignments: list[Alignment] = []
        self.places: list[list[Place]] = [[] for _ in names]
        #: Whether texts may share a row.
        self.packs = not any(getattr(loss, "whole_texts", False) for loss in losses)
        #: Whether anything compares predictions.
        self.uses_logits = any(isinstance(loss, LogitLoss) for loss in losses)
        self._live: list[Teacher] = []
        self._reads_otherwise: list[bool] = []
        self._stored: dict[str, list[StoredTeacher]] = {}
        #: What the teacher writes in place of the targets, if it does.
        self.texts: TeacherTexts | None = None
        check_options(names, losses, options)

    @property
    def there(self) -> bool:
        """Whether the teachers were found."""
        return bool(self.facts)

    def look(self, task: LMModule, ask_hub: bool) -> bool:
        """Learn how large the teachers are, and return whether that is known.

        Args:
            task: the student.
            ask_hub: whether to look for what is not on this machine.
        """
        if not self.shapes and (ask_hub or all(Path(name).exists() for name in self.names)):
            with suppress(ValueError):  # who needs the teachers will be told
                self.shapes = [teacher_shape(name, task) for name in self.names]
        return bool(self.shapes)

    def find(self, task: LMModule, required: bool) -> None:
        """Load the teachers, if they are not there, and check them against the student.

        Args:
            task: the student, with its network built.
            required: whether a missing teacher is an error, or only said.

        Raises:
            ValueError: a teacher is missing, of another task, or has other classes or tokens.
        """
        # What was written down is of the rows of a fit; a test has others by the same numbers.
        self._stored.clear()
        if not self._live:
            try:
                # What is drawn here must not change what the student draws.
                with torch.random.fork_rng(devices=[]):
                    precision = self.options.precision
                    self._live = [Teacher(name, task, precision) for name in self.names]
            except ValueError as error:
                if required:
                    raise
                said = str(error).rstrip(".")
                rank_zero_warn(f"{said}. The evaluation goes on without what compares with it")
                return
        self.facts = [teacher.facts for teacher in self._live]
        #: Whether what the teachers predict means anything.
        self.judge = not any(facts.fresh for facts in self.facts)
        self._check(task)

    def prepare(self, module: LMModule, trainer: Trainer) -> None:
        """Write down what the teachers write and say of the rows of training and validation.

        Args:
            module: trains the student.
            trainer: of the fit.
        """
        datamodule = getattr(trainer, "datamodule", None)
        check_data(module, datamodule, "fit")  # first, for the teacher may read for hours
        self.to(trainer.strategy.root_device)
        with trainer.precision_plugin.forward_context():
            self._write(module.task_module, datamodule)

    def _write(self, task: LMModule, datamodule: Any) -> None:
        if self.options.sequence_level:
            self._texts_of(task, datamodule).write(self._live[0])
        if not self.options.cache:
            return
        for split in self._splits(datamodule):
            texts = self.texts if split == "train" else None
            for number, teacher in enumerate(self._live):
                data, places = self._data(number, datamodule), self._fields(number, split)
                write_teacher(teacher, task, data, split, places, self.options, texts)

    def open(self, task: LMModule, datamodule: Any) -> None:
        """Open what was written down, and let go of the teachers that are not needed any more."""
        if self.options.sequence_level:
            self._texts_of(task, datamodule).open(self._live[0])
        if not self.options.cache:
            return
        self._stored = {
            split: [
                StoredTeacher.open(
                    teacher,
                    self._data(number, datamodule),
                    split,
                    self._fields(number, split),
                    self.options,
                )
                for number, teacher in enumerate(self._live)
            ]
            for split in self._splits(datamodule)
        }
        self._live.clear()

    @property
    def fingerprints(self) -> list[list[str]]:
        """Name, and hash of the weights, of each teacher in order."""
        return [[facts.name, facts.fingerprint] for facts in self.facts]

    def check_same(self, before: Sequence[Sequence[str]]) -> None:
        """Check that a run goes on with the teachers that it began with, in their order.

        Args:
            before: `fingerprints` of the checkpoint; empty of one that knew none.

        Raises:
            ValueError: there are more or fewer, or the weights of one are others.
        """
        if not (before and self.facts):
            return
        if len(before) != len(self.facts):
            raise ValueError(
                f"the checkpoint had the teachers {', '.join(name for name, _ in before)}, and "
                f"this run has {', '.join(self.names)}: give those, or start anew"
            )
        for facts, (name, known) in zip(self.facts, before, strict=True):
            if facts.fingerprint != known:
                raise ValueError(
                    f"the teacher {facts.name} has other weights than the one of the checkpoint "
                    f"({name}): give that one, or start anew"
                )

    def keep_apart(self, longest: int) -> bool:
        """Whether losses and live teachers keep texts apart that share a row."""
        return self.packs and all(teacher.keeps_apart(longest) for teacher in self._live)

    def to(self, device: torch.device) -> None:
        """Move the live teachers."""
        for teacher in self._live:
            teacher.module.to(device)

    def attend(self, datamodule: Any) -> None:
        """Let each live teacher attend as what is kept of it needs, and each text to itself.

        Raises:
            ValueError: the data are packed, and a teacher does not keep texts apart.
        """
        modes = {getattr(datamodule, f"{name}batching", None) for name in ("", "eval_")}
        for teacher, places in zip(self._live, self.places, strict=False):
            teacher.attend(any(place.kind == "attention" for place in places))
            if "pack" in modes:
                teacher.check_packing(datamodule.max_length)

    def read(self, batch: Batch, training: bool) -> list[dict[str, Tensor]]:
        """Return what each teacher says of a batch; nothing where there is none.

        Args:
            batch: prepared as the student's.
            training: whether it is one to train on, or of the validation.
        """
        if self._stored:
            stored = self._stored.get("train" if training else "val", [])
            return [teacher.read(batch) for teacher in stored]
        if not (training or self.judge):
            return []
        places: list[Collection[Place]] = [each if training else () for each in self.places]
        return [
            teacher.read(batch, there) if there or self.uses_logits or not training else {}
            for teacher, there in zip(self._live, places, strict=False)
        ]

    def _texts_of(self, task: LMModule, datamodule: Any) -> TeacherTexts:
        share, folder = self.options.prompt_share, self.options.cache_folder
        self._splits(datamodule)
        self.texts = TeacherTexts(task, datamodule, share, folder)
        return self.texts

    def _fields(self, number: int, split: str) -> list[Place]:
        return list(dict.fromkeys(self.places[number])) if split == "train" else []

    def _data(self, number: int, datamodule: Any) -> Any:
        """Return the data as a teacher reads them: with its own tokens, where these are others."""
        if not self._reads_otherwise[number]:
            return datamodule
        other = copy.copy(datamodule)
        other.use_tokenizer(self._live[number].module.tokenizer)
        return other

    def _splits(self, datamodule: Any) -> list[str]:
        if not hasattr(datamodule, "every_row"):
            raise ValueError(
                "cache goes over all rows of a data module of lmkit, and the data are none: leave "
                "cache out"
            )
        splits = ("train", "val") if self.judge else ("train",)
        return [split for split in splits if _has_rows(datamodule, split)]

    def _can_read_otherwise(self, task: LMModule, number: int) -> bool:
        """Whether what a teacher says does not depend on how a text is cut into tokens."""
        whole = isinstance(task, SequenceClassificationModule | MultipleChoiceModule)
        return whole and self.options.cache and not self.places[number]

    def _check(self, task: LMModule) -> None:
        labels, vocabulary = classes_of(task)
        known = len(task.tokenizer) if task.tokenizer is not None else 0
        digest = vocabulary_digest(task.tokenizer) if task.tokenizer is not None else ""
        self.alignments = []
        self._reads_otherwise = []
        for number, facts in enumerate(self.facts):
            other = bool(digest and facts.tokenizer and digest != facts.tokenizer)
            self._reads_otherwise.append(other)
            if other and not self._can_read_otherwise(task, number):
                raise ValueError(
                    f"the teacher {facts.name} has another tokenizer than the student: it cannot "
                    "read the student's ids. What it says of whole texts can be cached: take "
                    "LogitLoss alone, with cache=True, on classification. Else give the data the "
                    "teacher's tokenizer (data.tokenizer) and a student of that vocabulary; or let "
                    "the teacher label or write texts (lmkit predict), and train on these"
                )
            if not self.uses_logits:
                self.alignments.append(Alignment(None, None))
                continue
            if facts.fresh:
                raise ValueError(
                    f"the teacher {facts.name} has no trained head: {', '.join(facts.fresh[:3])} "
                    "would be drawn at random. Fine-tune it on the task first, and give the "
                    "checkpoint or the export; or take losses of what is inside it only"
                )
            self.alignments.append(align(labels, vocabulary, known, facts))
            if self.alignments[-1].width is not None and self.options.cache_top_k is not None:
                raise ValueError(
                    "cache_top_k needs one size of the vocabulary: the student has "
                    f"{vocabulary} and the teacher {facts.name} {facts.vocabulary}; leave "
                    "cache_top_k out, or give the student as many"
                )


def _has_rows(datamodule: Any, split: str) -> bool:
    try:
        return bool(datamodule.row_count(split))
    except ValueError:
        return False
