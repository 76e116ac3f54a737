"""Examples with changed words: as more of them, or anew in each epoch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..transforms import (
    Protection,
    Ramp,
    Transform,
    example_rng,
    transform_answer,
    transform_tagged,
    transform_text,
    transforms_from,
)
from ..transforms.apply import check_seed
from ..transforms.arguments import check_rate
from ..transforms.base import plain_data
from .batch_plan import check_positive
from .changed_batches import EXAMPLE, ChangedBatches
from .example_table import ExampleTable
from .loader import Collate
from .trainer_facts import epoch_length, planned_epochs, ranks

if TYPE_CHECKING:
    from .task import TaskDataModule

__all__ = ["Augmentation", "Rewriter", "Transforms", "plain_transforms"]

#: One or several, each a name or plain data, see `transform_from`.
Transforms = list[Any] | dict[str, Any] | str | None

_SPLITS = ("train", "val", "test")
# The stream of copies, beside that of examples that are changed anew.
_COPIES = 1


def plain_transforms(transforms: Any) -> Transforms:
    """Return transforms as plain data, which a checkpoint can hold."""
    if transforms is None:
        return None
    listed = transforms if isinstance(transforms, list | tuple) else [transforms]
    return [plain_data(each) for each in listed]


class Rewriter(NamedTuple):
    """Changes the words of one example.

    Attributes:
        transform: what is done.
        rng: all that is drawn comes from it.
        protection: which words stay.
        strength: what the rates of the transform are multiplied by.
    """

    transform: Transform
    rng: np.random.Generator
    protection: Protection
    strength: float

    def text(self, text: str) -> str:
        """Return a text with changed words."""
        return transform_text(self.transform, text, self.rng, self.protection, self.strength)

    def tagged(
        self, words: Sequence[str], tags: Sequence[str], bio: bool
    ) -> tuple[list[str], list[str]]:
        """Return changed words, and tags that follow them: BIO, or of any other kind."""
        how = self.rng, self.protection, self.strength
        # By the place of a tag, which no transform takes for an entity's.
        named = tags if bio else [str(place) for place in range(len(tags))]
        made, labels, _ = transform_tagged(self.transform, words, named, *how)
        assert labels is not None
        return made, labels if bio else [tags[int(place)] for place in labels]

    def words(self, words: Sequence[str]) -> list[str]:
        """Return changed words that have no tags."""
        return self.transform(words, None, self.rng, self.protection(words), self.strength).words

    def around(self, text: str, start: int, stop: int) -> tuple[str, int]:
        """Return a text changed around a stretch of it, and where that begins now."""
        how = self.rng, self.protection, self.strength
        return transform_answer(self.transform, text, start, text[start:stop], *how)


@dataclass(frozen=True)
class Augmentation:
    """How the words of a data module's examples are changed.

    Attributes:
        transform: what is done, one after the other.
        protection: which words stay.
        copies: how many changed copies of each example of the training there are beside it, rows
            without a label left out; 0 for none, and then examples are changed anew in each epoch.
        splits: which are changed.
        strength: what the rates of the transform are multiplied by.
        view: whether an example stays as it is, and what was changed goes beside it.
    """

    transform: Transform
    protection: Protection
    copies: int = 0
    splits: tuple[str, ...] = ("train",)
    strength: float | Ramp = 1.0
    view: bool = False

    @classmethod
    def of(
        cls,
        transforms: Transforms,
        copies: int | None,
        options: Mapping[str, Any] | None,
        view: bool = False,
    ) -> Augmentation | None:
        """Make one of the arguments of a data module, or none where there are no transforms.

        Args:
            transforms: see `transforms_from`.
            copies: `augmentations_per_example`.
            options: `transform_options`.
            view: whether the data module can put what was changed beside the examples.

        Raises:
            ValueError: an argument is unknown or outside its range, or two exclude each other.
        """
        if not isinstance(options, Mapping | None):
            raise ValueError(f"transform_options must be a dictionary, got {options!r}")
        chosen = dict(options or {})
        if not transforms:
            if copies is not None or chosen:
                name = "augmentations_per_example" if copies is not None else "transform_options"
                raise ValueError(f"{name} is about transforms, and there are none: give some")
            return None
        check_positive(augmentations_per_example=copies)
        known = {"strength", "protect", *(("splits",) if copies is None else ())}
        known |= {"view"} if view and copies is None else set()
        if strange := sorted(chosen.keys() - known):
            beside = "" if copies is None else " beside augmentations_per_example"
            raise ValueError(
                f"transform_options has {', '.join(sorted(known))}{beside}, got {strange[0]!r}"
            )
        splits = chosen.get("splits", ["train"])
        if not isinstance(splits, list | tuple) or not splits:
            raise ValueError(f"splits must be a list of some of {', '.join(_SPLITS)}: {splits!r}")
        if strange := [name for name in splits if name not in _SPLITS]:
            raise ValueError(f"splits may have {', '.join(_SPLITS)}, got {strange[0]!r}")
        protect = chosen.get("protect", {})
        if not isinstance(protect, Mapping):
            raise ValueError(f"protect must be a dictionary of what Protection takes: {protect!r}")
        try:
            protection = Protection(**protect)
            strength = chosen.get("strength", 1.0)
            if isinstance(strength, Mapping):
                if strange := sorted(strength.keys() - vars(Ramp()).keys()):
                    raise ValueError(
                        "strength must be a number or a dictionary of start, stop, begin and end, "
                        f"got {strange[0]!r}"
                    )
                strength = Ramp(**strength)
        except TypeError as error:
            raise ValueError(f"transform_options: {error}") from error
        if isinstance(strength, Ramp) and copies:
            raise ValueError(
                "strength changes in the course of a run, and copies are made before it: give a "
                "number, or leave augmentations_per_example out"
            )
        if not isinstance(strength, Ramp):
            check_rate("strength", strength)
        transform = transforms_from(transforms)
        apart = bool(chosen.get("view", False))
        return cls(transform, protection, copies or 0, tuple(splits), strength, apart)

    @property
    def draws(self) -> bool:
        """Whether rows of the training are other ones in each epoch."""
        return self.changes("train") and not self.view

    def facts(self) -> dict[str, Any]:
        """Return in words what decides which examples there are, beside the seed."""
        done = f"{self.transform!r} ({self.transform.fingerprint()[:8]}), {self.protection!r}"
        done = f"{done}, strength {self.strength}"
        if self.copies:
            return {"augmentations_per_example": f"{self.copies} by {done}"}
        beside = ", as a view" if self.view else ""
        return {"transforms": f"{done}, of {' and '.join(self.splits)}{beside}"}

    def changes(self, split: str) -> bool:
        """Whether the examples of a split are changed each time that a batch is made."""
        return not self.copies and split in self.splits

    def with_copies(self, data: TaskDataModule, examples: list[Any]) -> list[Any]:
        """Return examples, and behind them their changed copies, those that differ from them."""
        made = list(examples)
        if not self.copies:
            return made
        check_seed(data.seed)
        for number, example in enumerate(examples):
            seen = {repr(example)}
            for copied in range(self.copies):
                rng = example_rng(data.seed, copied, number, _COPIES)
                changed = data.rewrite(example, self.rewriter(rng))
                if repr(changed) not in seen:
                    seen.add(repr(changed))
                    made.append(changed)
        return made

    def column(self, examples: Sequence[Any]) -> dict[str, list[str]]:
        """Return the column of examples as they were read, if batches are made of them."""
        if self.copies:
            return {}
        return {EXAMPLE: [json.dumps(example, ensure_ascii=False) for example in examples]}

    def collator(
        self, data: TaskDataModule, table: ExampleTable, split: str, usual: Collate
    ) -> Collate:
        """Return what makes batches of changed examples; `usual` makes those of the others.

        Raises:
            ValueError: the strength depends on a run's length, and the run has no end; or an
                example has several rows.
        """
        if not self.changes(split):
            return usual
        check_seed(data.seed)
        if EXAMPLE not in table:
            raise ValueError(
                f"transforms change whole examples, and one of {split} has more than "
                f"max_length={data.max_length} tokens, and so several rows: give a larger "
                "max_length, or augmentations_per_example, which changes them before they are cut"
            )
        epochs: int | None = 1
        if isinstance(self.strength, Ramp) and split == "train":
            size = data.batch_size * ranks(data.trainer)[1]
            batches = epoch_length(data.trainer, math.ceil(len(table) / size))
            epochs = planned_epochs(data.trainer, batches)
        if epochs is None:
            raise ValueError(
                "strength follows the share of the run that is done, and this one has no end: give "
                "the trainer max_epochs"
            )
        return ChangedBatches(self, data, table, epochs, usual)

    def rewriter(self, rng: np.random.Generator, progress: float = 1.0) -> Rewriter:
        """Return what changes the words of one example, at a share of the run."""
        strength = self.strength.at(progress) if isinstance(self.strength, Ramp) else self.strength
        return Rewriter(self.transform, rng, self.protection, strength)
