"""Labelled texts and pairs of texts as batches."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..tokenization import require_pad_token
from ..types import IGNORE_INDEX
from .augmentation import Augmentation, Rewriter, Transforms, plain_transforms
from .encoded_texts import check_pairs, encode_texts
from .example_collator import ExampleCollator
from .example_table import Columns, ExampleTable
from .label_names import label_number, sorted_labels, warn_of_mixed_labels
from .labelled_texts import LabelledText, TextColumns, read_labelled_texts
from .loader import Collate
from .records import DatasetRecords, RecordSource
from .source_resolution import Files
from .task import TaskDataModule
from .text_rows import BadRows, OnBadRow

__all__ = ["SequenceClassificationDataModule"]

#: What is predicted: one class, any number of classes, or a number.
Task = Literal["single_label", "multi_label", "regression"]


class SequenceClassificationDataModule(TaskDataModule):
    """Texts, or pairs of texts, with a label, with any number of labels, or with a number.

    Reads csv, tsv, JSON lines and parquet, each gzipped too, files with a label, a space and the
    text on each line, and data sets of the hub such as `glue/sst2`. Columns with usual names are
    found (`text`, `sentence`, `premise` and `hypothesis`, `label` ...). Labels are names, or
    numbers that serve as names; a network that knows names keeps its order of them. What is longer
    than `max_length` is cut, of a pair the longer text first, and counted.

    Args:
        source: a hub name, files, globs, a folder with train, dev and test files, or a `datasets`
            object.
        train_file: in place of `source`; files, globs or folders.
        val_file: the validation examples; without, some of each class are held out.
        test_file: the test examples.
        predict_file: texts to predict on, as above, without labels; a `.txt` file has one a line.
        unlabelled_file: texts to train on beside the others, read as those of `predict_file`: they
            have no label, and a column of labels is not looked at. For techniques that learn from
            such texts, as distillation does.
        task: `"single_label"`, `"multi_label"` or `"regression"`.
        text_column: the column of the text.
        text_pair_column: the column of the second text.
        label_column: the column of the label; in multi-label data it may be a list of columns that
            hold 0 or 1, one for each class.
        label_separator: between the labels of one field of csv or tsv in multi-label data.
        column_names: of csv or tsv files without a header.
        encoding: of the files.
        on_bad_row: `"error"`, or `"skip"` to leave out bad rows, and say how many.
        val_fraction: share of each class held out where there is no `val_file`.
        examples_per_class: train on so many examples of each class only, drawn by the seed.
        class_balanced: let each class come as often as any other in training.
        transforms: what changes the words of the training examples: one or several of
            `lmkit.transforms`, each a name or a dictionary of `class_path` and `init_args`; see
            `docs/text_augmentation.md`.
        augmentations_per_example: make so many changed copies of each example, once, which train
            beside it; by default the examples are changed, anew in each epoch.
        transform_options: a dictionary of `strength`, in `[0, 1]`, what the rates of all are
            multiplied by (or `{"start": 0.0, "stop": 1.0}`, to change it in the course of a run);
            `protect`, arguments of `Protection`; `splits`, a list of which examples are changed,
            `val` and `test` only if they are named; and `view: true` to leave the examples as they
            are and put what was changed beside them, for `UDACallback`.
        tokenizer: a hub name or a folder; the model's own by default.
        max_length: tokens of an example at most, special ones included.
        batch_size: examples per batch and rank.
        eval_batch_size: likewise in evaluation; `batch_size` by default.
        num_workers: processes that make batches.
        seed: of the order and the draws.
        cache_dir: where encoded data are kept.

    Raises:
        ValueError: an argument lies outside its range; in `setup` a file, line, column or label is
            bad, or a label of the validation or test is not among those of the training.

    Example:
        >>> data = SequenceClassificationDataModule(train_file="reviews.csv", max_length=128)
        >>> data.task, data.batch_size
        ('single_label', 32)
    """

    example_type: ClassVar[type[Any]] = LabelledText

    def __init__(
        self,
        source: Any = None,
        train_file: Files | None = None,
        val_file: Files | None = None,
        test_file: Files | None = None,
        predict_file: Files | None = None,
        unlabelled_file: Files | None = None,
        task: Task = "single_label",
        text_column: str | None = None,
        text_pair_column: str | None = None,
        label_column: str | list[str] | None = None,
        label_separator: str = ",",
        column_names: list[str] | None = None,
        encoding: str = "utf-8",
        on_bad_row: OnBadRow = "error",
        val_fraction: float = 0.1,
        examples_per_class: int | None = None,
        class_balanced: bool = False,
        transforms: Transforms = None,
        augmentations_per_example: int | None = None,
        transform_options: dict[str, Any] | None = None,
        tokenizer: str | None = None,
        max_length: int = 256,
        batch_size: int = 32,
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
            examples_per_class,
            tokenizer,
            max_length,
            batch_size,
            eval_batch_size,
            num_workers,
            seed,
            cache_dir,
        )
        if task not in get_args(Task):
            raise ValueError(f"task must be one of {', '.join(get_args(Task))}, got {task!r}")
        if class_balanced and task != "single_label":
            raise ValueError(f"class_balanced is for task='single_label', got task={task!r}")
        if class_balanced and unlabelled_file:
            raise ValueError(
                "class_balanced=True lets each class come as often as any other, and the texts of "
                "unlabelled_file have none; leave one of the two out"
            )
        if isinstance(label_column, list) and task != "multi_label":
            raise ValueError(
                f"label_column={label_column!r} names several columns, which is for "
                f"task='multi_label', got task={task!r}"
            )
        self.task: Task = task
        self.has_classes = task != "regression"
        self.class_balanced = class_balanced
        self.columns = TextColumns(
            text_column,
            text_pair_column,
            tuple(label_column) if isinstance(label_column, list) else label_column,
            task == "regression",
            task == "multi_label",
            label_separator,
        )
        self._order: list[str] = []
        how = transforms, augmentations_per_example, transform_options
        self.augmentation = Augmentation.of(*how, view=True)

    def read(self, source: RecordSource, labelled: bool, bad: BadRows) -> list[LabelledText]:
        """Return the examples of a source."""
        if isinstance(source, DatasetRecords) and not self._order:
            wanted = self.columns.label
            named = [name for name in source.dataset.features if source.class_names(name)]
            columns = [wanted] if isinstance(wanted, str) else named
            self._order = (source.class_names(columns[0]) if len(columns) == 1 else None) or []
        return read_labelled_texts(source, self.columns, labelled, bad)

    def label_names(self, examples: list[LabelledText]) -> list[str]:
        """Return the classes: in the order of a data set that names them, else sorted."""
        if self.task == "regression":
            return []
        if isinstance(self.columns.label, tuple):
            return list(self.columns.label)
        found = {n: f"{e.file}, line {e.line}" for e in reversed(examples) for n in e.labels or ()}
        if self._order and set(found) <= set(self._order):
            return self._order
        warn_of_mixed_labels(found)
        return sorted_labels(found)

    def stratum(self, example: LabelledText) -> tuple[str, ...] | None:
        """Return the class, or the classes together."""
        return None if example.labels is None else tuple(sorted(example.labels))

    def rewrite(self, example: LabelledText, rewriter: Rewriter) -> LabelledText:
        """Return an example with a changed text, or two."""
        pair = None if example.pair is None else rewriter.text(example.pair)
        return example._replace(text=rewriter.text(example.text), pair=pair)

    def texts(self, example: LabelledText) -> tuple[str, ...]:
        """Return one text or two."""
        return (example.text,) if example.pair is None else (example.text, example.pair)

    def settings(self) -> dict[str, Any]:
        """Return what changes a batch."""
        return {
            "task": self.task,
            "columns": repr(self.columns),
            "class_balanced": self.class_balanced,
        }

    def network_settings(self) -> dict[str, Any]:
        """Return names and number of the classes, and the kind of problem."""
        if not self.fingerprint:  # only predicts: the network knows what it was trained for
            return {}
        if self.task == "regression":
            return {"num_labels": 1, "problem_type": "regression"}
        return {
            **super().network_settings(),
            "problem_type": f"{self.task}_classification",
        }

    def encode(self, examples: list[LabelledText], bad: BadRows) -> Columns:
        """Return tokens, types of the texts of pairs, and labels."""
        known = {name: number for number, name in enumerate(self.labels)}
        if self.task == "single_label" and len(known) == 1:
            raise ValueError(
                f"{examples[0].file}: there is only one class, {self.labels[0]!r}, and so nothing "
                "to tell apart; add examples of another one"
            )
        kept: list[LabelledText] = []
        labels: list[Any] = []
        for example in examples:
            label = self._label(example, known, bad)
            if label is not None:
                kept.append(example)
                labels.append(label)
        assert self.tokenizer is not None
        check_pairs(kept)
        columns = encode_texts(self.tokenizer, kept, self.max_length)
        kind = np.int64 if self.task == "single_label" else np.float32
        shape = (len(kept), len(known)) if self.task == "multi_label" else (len(kept),)
        columns["labels"] = np.asarray(labels, kind).reshape(shape)
        columns["unlabelled"] = [example.is_unlabelled for example in kept]
        columns |= self.augmentation.column(kept) if self.augmentation else {}
        columns["line"] = np.array([example.line for example in kept], np.int64)
        columns["text"] = [example.text for example in kept]
        columns["pair"] = [example.pair or "" for example in kept]
        return columns

    def classes(self, table: ExampleTable) -> NDArray[np.int64] | None:
        """Return the class of each training example where all are to come as often."""
        return table.array("labels") if self.class_balanced else None

    def collator(self, table: ExampleTable, training: bool) -> Collate:
        """Return what makes batches of examples."""
        assert self.tokenizer is not None
        types = {"token_type_ids": 0} if "token_type_ids" in table else {}
        filler = IGNORE_INDEX if self.task == "single_label" else float("nan")
        return ExampleCollator(
            table, require_pad_token(self.tokenizer), ragged=types, flat={"labels": filler}
        )

    def inputs(self, index: int) -> dict[str, Any]:
        """Return line and text, or the two texts, of a row of `predict_file`."""
        table = self.table("predict")
        pair = table.text("pair", index)
        first = {"line": int(table.array("line")[index]), "text": table.text("text", index)}
        return {**first, "text_pair": pair} if pair else first

    def label_counts(self) -> list[int]:
        """Return how many training examples each class has."""
        labels = self.table("train").array("labels")
        labels = labels[: len(labels) - self.unlabelled_rows]
        if self.task == "multi_label":
            return [int(count) for count in labels.sum(0)]
        return [int(count) for count in np.bincount(labels, minlength=len(self.labels))]

    def _label(self, example: LabelledText, known: dict[str, int], bad: BadRows) -> Any:
        if example.is_unlabelled:
            none = float("nan")
            return {"single_label": IGNORE_INDEX, "regression": none}.get(
                self.task, [none] * len(known)
            )
        if self.task == "regression":
            return example.value
        where = (known, example.file, example.line, bad)
        numbers = [label_number(name, *where) for name in example.labels or ()]
        if any(number is None for number in numbers):
            return None
        if self.task == "single_label":
            return numbers[0]
        row = [0.0] * len(known)
        for number in numbers:
            row[number or 0] = 1.0
        return row
