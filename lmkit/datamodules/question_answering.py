"""Data for extractive question answering."""

from __future__ import annotations

from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from transformers import PreTrainedTokenizerBase

from ..tokenization import require_pad_token
from ..tokenization.question_windows import QuestionWindows
from ..types import IGNORE_INDEX
from .augmentation import Augmentation, Rewriter, Transforms, plain_transforms
from .batch_plan import BatchPlan
from .example_table import Columns, ExampleTable
from .loader import Collate, PlannedLoader
from .question_rows import AnswerCollator, QuestionCollator, encode_questions, training_collator
from .records import RecordSource
from .source_resolution import Files
from .squad import Question, QuestionColumns, read_questions
from .task import TaskDataModule
from .text_rows import BadRows, OnBadRow
from .trainer_facts import ranks

__all__ = ["QuestionAnsweringDataModule"]


class QuestionAnsweringDataModule(TaskDataModule):
    """Questions on texts that hold the answer, as SQuAD (arXiv:1606.05250, arXiv:1806.03822).

    Files are SQuAD's own JSON, of 1.1 and of 2.0, or tables with a question in each row: JSON
    lines, csv, tsv, parquet; a hub name such as `squad` or `squad_v2`. A row has `question`,
    `context`, perhaps an `id`, and `answers` as `{"text": [...], "answer_start": [...]}`, a list of
    `{"text", "answer_start"}`, or a text beside a column `answer_start`. A question without
    answers, or with `is_impossible`, is one that its context does not answer.

    A context that does not fit a row is cut into windows that share `doc_stride` tokens, each a row
    of its own with the question. A window that does not hold the whole answer has CLS as its label.
    Only the context is cut: of a question longer than `max_question_length` tokens the rest is left
    out, which is counted and said. A tokenizer that pads on the right has the question first, one
    that pads on the left (XLNet) the context; batches are padded on the right, with a mask.

    An answer that stands within 10 characters of its `answer_start`, or with other white space, is
    moved there, which is counted and said; one that does not is a bad row.

    Args:
        source: hub name, a file, glob or folder or a list of them, or in scripts a
            `datasets.Dataset` or `DatasetDict`.
        train_file: files to train on, in place of `source`.
        val_file: files to validate on; without one a part of the training questions is held out.
        test_file: files to test on; without one the validation questions are taken.
        predict_file: questions to answer; answers are not needed.
        unlabelled_file: questions to train on beside the others whose answers are not known, nor
            looked at. For techniques that learn from such questions, as distillation does.
        question_column: the column of the question, in rows; guessed when obvious.
        context_column: the column of the context.
        answers_column: the column of the answers.
        column_names: of csv and tsv files that have no header.
        encoding: of the characters of the files.
        on_bad_row: `error`, or `skip` to count bad questions and go on.
        val_fraction: share of the training questions held out, in `[0, 1)`.
        transforms: what changes the words of the training examples: one or several of
            `lmkit.transforms`, each a name or a dictionary of `class_path` and `init_args`; see
            `docs/text_augmentation.md`.
        augmentations_per_example: make so many changed copies of each example, once, which train
            beside it. Needed with `transforms`: a changed context has other windows, so that none
            can be changed while a batch is made.
        transform_options: a dictionary of `strength`, in `[0, 1]`, what the rates of all are
            multiplied by, and `protect`, arguments of `Protection`.
        tokenizer: hub name or folder, of a fast one; by default the model's own.
        max_length: tokens in a row, special tokens included.
        doc_stride: tokens that neighbouring windows share, as transformers' `stride`. (BERT's
            script means by it how far a window moves on.)
        max_question_length: tokens of a question at most.
        batch_size: windows per batch and device.
        eval_batch_size: the same in evaluation, and questions per batch in prediction.
        num_workers: processes that make batches ahead.
        seed: of the order; by default that of `seed_everything`.
        cache_dir: where token ids are kept; by default `$LMKIT_CACHE`, else `~/.cache/lmkit`.

    Raises:
        ValueError: a setting lies outside its range; in `prepare_data` and `setup`: bad input
            (file, line, question and remedy are named), or rows too short for windows to move on.

    Example:
        >>> QuestionAnsweringDataModule(source="squad", max_length=256, doc_stride=64).doc_stride
        64
    """

    def __init__(
        self,
        source: Any = None,
        train_file: Files | None = None,
        val_file: Files | None = None,
        test_file: Files | None = None,
        predict_file: Files | None = None,
        unlabelled_file: Files | None = None,
        question_column: str | None = None,
        context_column: str | None = None,
        answers_column: str | None = None,
        column_names: list[str] | None = None,
        encoding: str = "utf-8",
        on_bad_row: OnBadRow = "error",
        val_fraction: float = 0.1,
        transforms: Transforms = None,
        augmentations_per_example: int | None = None,
        transform_options: dict[str, Any] | None = None,
        tokenizer: str | None = None,
        max_length: int = 384,
        doc_stride: int = 128,
        max_question_length: int = 64,
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int | None = None,
        cache_dir: str | None = None,
    ) -> None:
        transforms = plain_transforms(transforms)
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
        if not 0 <= doc_stride < max_length:
            raise ValueError(
                f"doc_stride must lie in [0, max_length) = [0, {max_length}), got {doc_stride}"
            )
        self.columns = QuestionColumns(question_column, context_column, answers_column)
        self.doc_stride, self.max_question_length = doc_stride, max_question_length
        if transforms and not augmentations_per_example:
            raise ValueError(
                "transforms change the windows that a context is cut into, so that they cannot be "
                "done while a batch is made: give augmentations_per_example (e.g. 1)"
            )
        how = transforms, augmentations_per_example, transform_options
        self.augmentation = Augmentation.of(*how)
        self._asked: list[dict[str, str]] = []

    @property
    def has_unanswerable(self) -> bool:
        """Whether there are questions without an answer in the training or validation data."""
        return any(self.statistics.get(f"{split}/unanswerable") for split in ("train", "val"))

    def read(self, source: RecordSource, labelled: bool, bad: BadRows) -> list[Question]:
        """Return the questions of a source."""
        questions = list(read_questions(source, self.columns, labelled, bad))
        moved = sum(answer.is_moved for q in questions for answer in q.answers or ())
        if moved:
            rank_zero_info(f"{source.name}: {moved} answers stand a few characters off; moved them")
        if not labelled:
            self._asked = [{"id": q.id, "question": q.question} for q in questions]
        return questions

    def rewrite(self, example: Question, rewriter: Rewriter) -> Question:
        """Return a changed question on a changed context, around its answers."""
        answers = example.answers or ()
        start = min((answer.start for answer in answers), default=0)
        stop = max((answer.start + len(answer.text) for answer in answers), default=0)
        context, now = rewriter.around(example.context, start, stop)
        moved = tuple(a._replace(start=a.start + now - start) for a in answers)
        return example._replace(
            question=rewriter.text(example.question),
            context=context,
            answers=None if example.answers is None else moved,
        )

    def group(self, example: Question) -> str:
        """Return the context, so that all questions on it are on one side of a hold-out."""
        return example.context

    def texts(self, example: Question) -> tuple[str, ...]:
        """Return question and context."""
        return example.question, example.context

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Check that the tokenizer is a fast one, joins pairs, and leaves room for windows."""
        self._windows(tokenizer)

    def settings(self) -> dict[str, Any]:
        """Return what changes a batch."""
        return {
            "doc_stride": self.doc_stride,
            "max_question_length": self.max_question_length,
            "columns": list(self.columns),
        }

    def network_settings(self) -> dict[str, Any]:
        """Return the size of the head: start and end, also on top of a classifier's encoder."""
        return {"num_labels": 2}

    def encode(self, examples: list[Question], bad: BadRows) -> Columns:
        """Return the windows of questions."""
        assert self.tokenizer is not None
        windows = self._windows(self.tokenizer)
        columns = encode_questions(examples, windows, bad)
        if windows.cut:
            rank_zero_info(
                f"{windows.cut} questions are longer than max_question_length="
                f"{self.max_question_length} tokens, and are cut"
            )
        return columns

    def collator(self, table: ExampleTable, training: bool) -> Collate:
        """Return what makes batches of windows."""
        assert self.tokenizer is not None
        pad = require_pad_token(self.tokenizer)
        return training_collator(table, pad) if training else AnswerCollator(table, pad)

    def setup(self, stage: str | None = None) -> None:
        """Open the tables, and count questions beside windows."""
        super().setup(stage)
        for split, table in self._tables.items():
            if split not in self.files or f"{split}/questions" in self.statistics:
                continue
            numbers, first = np.unique(table.array("question"), return_index=True)
            known = first[table.array("start_positions")[first] != IGNORE_INDEX]
            none = sum(table.text("answers", int(row)) == "[]" for row in known)
            self.statistics[f"{split}/questions"] = len(numbers)
            self.statistics[f"{split}/unanswerable"] = none

    def predict_dataloader(self) -> PlannedLoader:
        """Return the questions of `predict_file`, in order, each with all its windows."""
        loader = super().predict_dataloader()
        assert self.tokenizer is not None
        collate = QuestionCollator(self.table("predict"), require_pad_token(self.tokenizer))
        batch_size = self.eval_batch_size or self.batch_size
        plan = BatchPlan(len(collate), batch_size, *ranks(self.trainer))
        return PlannedLoader(plan, collate, loader.num_workers)

    def inputs(self, index: int) -> dict[str, Any]:
        """Return id and text of a question of `predict_file`."""
        return self._asked[index]

    def _windows(self, tokenizer: PreTrainedTokenizerBase) -> QuestionWindows:
        return QuestionWindows(
            tokenizer, self.max_length, self.doc_stride, self.max_question_length
        )
