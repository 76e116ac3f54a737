"""Data for multiple choice."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..tokenization import require_pad_token
from ..tokenization.choice_rows import ChoiceRows, choice_texts
from ..types import IGNORE_INDEX, Batch
from .choices import ChoiceColumns, ChoiceQuestion, read_choices
from .example_table import Columns, ExampleTable
from .loader import Collate
from .records import RecordSource
from .source_resolution import Files
from .task import TaskDataModule
from .text_rows import BadRows, OnBadRow

__all__ = ["ChoiceCollator", "MultipleChoiceDataModule"]


class MultipleChoiceDataModule(TaskDataModule):
    """Questions with choices, one of which is right: SWAG, RACE, COPA, ARC, PIQA and their kin.

    A row of a table has a context, a question or both; its choices, in a column that holds a list
    (or ARC's `{"text": [...], "label": [...]}`) or in one column each (`choice1`, `ending0`,
    `option_a`, `sol2`, `A` ...); and a label: the number of the right choice, its letter, its mark
    or its text. Columns are guessed when obvious. Questions may have different numbers of choices;
    a choice that is blank is none.

    Each choice becomes a row of two texts: the context, and the question with the choice behind it
    or in its blank `_`; without a context or without a question, what there is, and the choice.
    Where they do not fit, the longer text is cut at its end, which is counted and said.

    Args:
        source: hub name, a file, glob or folder or a list of them, or in scripts a
            `datasets.Dataset` or `DatasetDict`.
        train_file: files to train on, in place of `source`.
        val_file: files to validate on; without one a part of the training questions is held out.
        test_file: files to test on; without one the validation questions are taken.
        predict_file: questions to answer; labels are not needed.
        unlabelled_file: questions to train on beside the others without a label: a column of them
            is not looked at. For techniques that learn from such questions, as distillation does.
        context_column: the column of the context.
        question_column: the column of the question.
        choice_columns: the columns of the choices, in order, or one that holds a list.
        label_column: the column of the label.
        first_label: number of the first choice in the labels, 0 or 1.
        column_names: of csv and tsv files that have no header.
        encoding: of the characters of the files.
        on_bad_row: `error`, or `skip` to count bad questions and go on.
        val_fraction: share of the training questions held out, in `[0, 1)`.
        tokenizer: hub name or folder; by default the model's own.
        max_length: tokens in a row, special tokens included.
        batch_size: questions per batch and device.
        eval_batch_size: the same in evaluation; by default `batch_size`.
        num_workers: processes that make batches ahead.
        seed: of the order; by default that of `seed_everything`.
        cache_dir: where token ids are kept; by default `$LMKIT_CACHE`, else `~/.cache/lmkit`.

    Raises:
        ValueError: a setting lies outside its range; in `prepare_data` and `setup`: bad input
            (file, line and remedy are named).

    Example:
        >>> MultipleChoiceDataModule(source="swag/regular", batch_size=8).first_label
        0
    """

    def __init__(
        self,
        source: Any = None,
        train_file: Files | None = None,
        val_file: Files | None = None,
        test_file: Files | None = None,
        predict_file: Files | None = None,
        unlabelled_file: Files | None = None,
        context_column: str | None = None,
        question_column: str | None = None,
        choice_columns: list[str] | None = None,
        label_column: str | None = None,
        first_label: int = 0,
        column_names: list[str] | None = None,
        encoding: str = "utf-8",
        on_bad_row: OnBadRow = "error",
        val_fraction: float = 0.1,
        tokenizer: str | None = None,
        max_length: int = 128,
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int | None = None,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(
            source,
            train_file,
            val_file,
            test_file,
            predict_file,
            unlabelled_file,
            column_names,
            encoding,
            on_bad_row,
            val_fraction,
            None,
            tokenizer,
            max_length,
            batch_size,
            eval_batch_size,
            num_workers,
            seed,
            cache_dir,
        )
        if first_label not in (0, 1):
            raise ValueError(f"first_label must be 0 or 1, got {first_label!r}")
        self.first_label = first_label
        choices = tuple(choice_columns) if choice_columns else None
        self.columns = ChoiceColumns(
            context_column, question_column, choices, label_column, first_label
        )
        self._asked: list[ChoiceQuestion] = []

    def read(self, source: RecordSource, labelled: bool, bad: BadRows) -> list[ChoiceQuestion]:
        """Return the questions of a source."""
        questions = read_choices(source, self.columns, labelled, bad)
        if not labelled:
            self._asked = questions
        return questions

    def texts(self, example: ChoiceQuestion) -> tuple[str, ...]:
        """Return context, question and choices."""
        return example.context, example.question, *example.choices

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Check that the tokenizer joins two texts."""
        ChoiceRows(tokenizer, self.max_length)

    def settings(self) -> dict[str, Any]:
        """Return what changes a batch."""
        return {"columns": list(self.columns)}

    def network_settings(self) -> dict[str, Any]:
        """Return nothing: the head gives one number for a choice, whatever it is called."""
        return {}

    def lengths(self, table: ExampleTable, training: bool = False) -> NDArray[np.int64]:
        """Return the length of each question's longest choice, which the others are padded to."""
        each = table.ragged("choice_lengths")
        return np.maximum.reduceat(each.values.astype(np.int64), each.bounds[:-1])

    def encode(self, examples: list[ChoiceQuestion], bad: BadRows) -> Columns:
        """Return the choices of each question laid end to end, their lengths, and the labels."""
        assert self.tokenizer is not None
        make = ChoiceRows(self.tokenizer, self.max_length)
        ids, types, lengths, cut = [], [], [], []
        for example in examples:
            rows = make(
                [choice_texts(example.context, example.question, c) for c in example.choices]
            )
            ids.append(list(chain.from_iterable(row.ids for row in rows)))
            types.append(list(chain.from_iterable(row.types for row in rows)))
            lengths.append([len(row.ids) for row in rows])
            cut.append(any(row.is_cut for row in rows))
        labels = [IGNORE_INDEX if e.label is None else e.label for e in examples]
        return {
            "input_ids": ids,
            "token_type_ids": types,
            "choice_lengths": lengths,
            "labels": np.array(labels, np.int64),
            "truncated": np.array(cut, np.bool_),
            "unlabelled": np.array([e.label is None for e in examples], np.bool_),
        }

    def collator(self, table: ExampleTable, training: bool) -> Collate:
        """Return what makes batches of questions."""
        assert self.tokenizer is not None
        return ChoiceCollator(table, require_pad_token(self.tokenizer))

    def inputs(self, index: int) -> dict[str, Any]:
        """Return the texts of a question of `predict_file`."""
        asked = self._asked[index]
        texts = {"context": asked.context, "question": asked.question}
        given = {name: text for name, text in texts.items() if text}
        return {**given, "choices": list(asked.choices)}


class ChoiceCollator:
    """Batches of questions, each with all its choices.

    Args:
        table: `input_ids` and `token_type_ids`, the choices of a question laid end to end;
            `choice_lengths`; `labels`.
        pad_id: id of the padding.
    """

    def __init__(self, table: ExampleTable, pad_id: int) -> None:
        self.table, self.pad_id = table, pad_id

    def __call__(self, epoch: int, rows: Tensor) -> Batch:
        """Return the batch of these questions, int64 `[B]`, -1 for a filler.

        It has `input_ids`, `attention_mask` and `token_type_ids`, int64 `[B, C, L]`; `choice_mask`,
        int64 `[B, C]`, 1 where there is a choice; `labels` and `index`, int64 `[B]`.
        """
        numbers = rows.tolist()
        lengths = self.table.ragged("choice_lengths")
        # A filler has one choice of one token, so that nothing is the maximum of nothing.
        own: list[Sequence[int]] = [lengths[n].tolist() if n >= 0 else [1] for n in numbers]
        shape = len(own), max(map(len, own)), max(map(max, own))
        ids, types = np.full(shape, self.pad_id, np.int64), np.zeros(shape, np.int64)
        attention, choices = np.zeros(shape, np.int64), np.zeros(shape[:2], np.int64)
        # A row that attends to nothing makes NaN in some attention kernels: each keeps one token.
        attention[:, :, 0] = 1
        for place, (number, sizes) in enumerate(zip(numbers, own, strict=True)):
            choices[place, : len(sizes)] = 1
            if number < 0:
                continue
            real = np.arange(shape[2]) < np.array(sizes)[:, np.newaxis]
            attention[place, : len(sizes)] = real
            ids[place, : len(sizes)][real] = self.table.ragged("input_ids")[number]
            types[place, : len(sizes)][real] = self.table.ragged("token_type_ids")[number]
        labels = self.table.array("labels")[rows.numpy()]
        labels[rows.numpy() < 0] = IGNORE_INDEX
        made = {
            "input_ids": ids,
            "attention_mask": attention,
            "token_type_ids": types,
            "choice_mask": choices,
            "labels": labels,
        }
        return {**{name: torch.from_numpy(array) for name, array in made.items()}, "index": rows}
