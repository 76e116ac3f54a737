"""The task that an encoder is to learn: its data, and the examples that are read."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..datamodules import (
    MultiTaskDataModule,
    SequenceClassificationDataModule,
    TokenClassificationDataModule,
)
from ..datamodules.task import TaskDataModule
from ..functional.random import permute
from ..report.config_data import data_from_config

__all__ = ["FEWEST", "TargetTask", "check_count", "drawn_examples", "rows_of", "target_data"]

#: With fewer examples the figures are chance.
FEWEST = 10

#: What the rows of a file are.
TargetTask = Literal["single_label", "multi_label", "regression", "tagging"]


# Arguments of the data module of texts that the one of tagged words does not have.
_OF_TEXTS = {
    "text_column",
    "text_pair_column",
    "label_column",
    "label_separator",
    "column_names",
}


def target_data(
    data: LightningDataModule | str | os.PathLike[str],
    task: TargetTask | None = None,
    reading: Mapping[str, Any] | None = None,
) -> SequenceClassificationDataModule | TokenClassificationDataModule:
    """Return the data module of a task: as it is, of a config, or of a file with labels.

    Args:
        data: as of `transferability`.
        task: of a file what its rows are.
        reading: of a file further arguments of the data module, such as `label_column`. All its
            rows are for training.

    Raises:
        TypeError: it is neither a path nor a data module of classification, regression or tagging.
        FileNotFoundError: there is no such file.
        ValueError: the task is unknown; or it or `reading` is given for what is no file, or
            `reading` has what the rows do not have.
    """
    if task is not None and task not in get_args(TargetTask):
        raise ValueError(f"task must be one of {', '.join(get_args(TargetTask))}, got {task!r}")
    is_path = isinstance(data, str | os.PathLike)
    place = Path(cast(Any, data)) if is_path else Path()
    is_config = place.suffix in (".yaml", ".yml")
    if is_path and not is_config:
        if not place.exists():
            raise FileNotFoundError(f"there is no file {place} with examples")
        words = {".conll", ".conllu"} & set(place.suffixes)
        kind = task or ("tagging" if words else "single_label")
        given: dict[str, Any] = {"train_file": str(place), "val_fraction": 0.0, **(reading or {})}
        if kind != "tagging":
            return SequenceClassificationDataModule(task=kind, **given)
        if columns := sorted(given.keys() & _OF_TEXTS):
            raise ValueError(f"{columns[0]} is for a table of texts, and {place} has tagged words")
        return TokenClassificationDataModule(**given)
    if task is not None:
        raise ValueError(f"task={task!r} is for a file with labels, and these data know theirs")
    if reading:
        raise ValueError(f"{min(reading)} is for a file with labels, and these data know theirs")
    made = data_from_config(place) if is_config else data
    if isinstance(made, MultiTaskDataModule):
        raise TypeError("data must be of one task, and these are of several: give the file of one")
    if not isinstance(made, SequenceClassificationDataModule | TokenClassificationDataModule):
        raise TypeError(
            "data must be those of a classification, a regression or a tagging, got "
            f"{type(made).__name__}"
        )
    if made.augmentation and made.augmentation.copies:
        raise ValueError(
            "augmentations_per_example makes copies, and an example that is left out would be "
            "known by its own: leave it out of the data"
        )
    return made


def rows_of(
    data: TaskDataModule, tokenizer: PreTrainedTokenizerBase, positions: int | None = None
) -> TaskDataModule:
    """Return data with the tokens of a model, of each row as many as it has positions for."""
    other = copy.copy(data)
    other.tokenizer_name = None
    other.max_length = min(data.max_length, positions or data.max_length)
    other.use_tokenizer(tokenizer)
    return other


def check_count(count: int) -> None:
    """Check that there are enough examples, or words.

    Raises:
        ValueError: there are not.
    """
    if count < FEWEST:
        raise ValueError(f"there are {count} examples with labels, and it takes {FEWEST} at least")


def drawn_examples(data: TaskDataModule, examples: int, seed: int) -> Tensor:
    """Return the numbers of the training examples that are read, the same for all models.

    Args:
        data: of `rows_of`.
        examples: how many, or so many words of whole sentences; or all.
        seed: of the draw.

    Raises:
        ValueError: there are fewer than ten.
    """
    # Of a long sentence all of it: its windows depend on the tokenizer.
    table = TaskDataModule.table(data, "train")
    count = len(table) - data.unlabelled_rows
    order = permute(torch.arange(count), count, seed)
    if "word_labels" not in table:
        check_count(min(count, examples))
        return order[:examples]
    words = torch.from_numpy(table.ragged("word_labels").lengths[order.numpy()]).cumsum(0)
    return order[: int((words < examples).sum()) + 1]
