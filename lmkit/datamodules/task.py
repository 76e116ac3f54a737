"""What the data modules of downstream tasks share: rows, labels, tokens, loaders that resume."""

from __future__ import annotations

import os
from abc import abstractmethod
from typing import Any, ClassVar, Literal

import numpy as np
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from .augmentation import Augmentation, Rewriter
from .batch_plan import check_positive, check_settings
from .data_facts import compare_facts
from .every_row import rows_hash
from .example_table import Columns, ExampleTable
from .loader import Collate, PlannedLoader, ResumableLoader
from .records import RecordOptions, RecordSource
from .source import short_hash
from .source_resolution import Files, is_plain_source
from .task_loaders import (
    evaluation_loader,
    every_row_loader,
    prediction_loader,
    train_loader,
)
from .task_tables import prediction_table, task_data
from .task_tokenizer import take_task_tokenizer
from .text_rows import BadRows, OnBadRow

__all__ = ["TaskDataModule"]


class TaskDataModule(LightningDataModule):
    """Labelled rows, encoded once and kept by content, as batches that resume exactly.

    A task says how it reads a row (`read`), what its classes are (`label_names`, `stratum`), how
    it encodes examples (`encode`) and makes batches of them (`collator`); its data module documents
    the arguments. After `setup` the public attributes are there.

    Attributes:
        tokenizer: makes the tokens; `None` before `setup`.
        labels: names of the classes, in the order of their numbers; empty where there are none.
        max_length: tokens of an example at most, special tokens included.
        seed: of order and draws.
        fingerprint: hash of data, tokenizer and settings.
        has_classes: whether examples have classes, which the data or the network must name.
        unlabelled_rows: how many training examples, the last ones, are of `unlabelled_file`.
        statistics: examples, tokens and classes of each split, as plain data.
    """

    #: The named tuple of plain data that an example is.
    example_type: ClassVar[type[Any]]
    #: How words of examples are changed; set by the data modules that can.
    augmentation: Augmentation | None = None

    def __init__(
        self,
        source: Any = None,
        train_file: Files | None = None,
        val_file: Files | None = None,
        test_file: Files | None = None,
        predict_file: Files | None = None,
        unlabelled_file: Files | None = None,
        column_names: list[str] | None = None,
        encoding: str = "utf-8",
        on_bad_row: OnBadRow = "error",
        val_fraction: float = 0.1,
        examples_per_class: int | None = None,
        tokenizer: str | None = None,
        max_length: int = 256,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int | None = None,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=[] if is_plain_source(source) else ["source"])
        check_settings(max_length, val_fraction)
        check_positive(batch_size=batch_size, eval_batch_size=eval_batch_size)
        check_positive(examples_per_class=examples_per_class)
        self.source, self.predict_file = source, predict_file
        self.files = {"train": train_file, "val": val_file, "test": test_file}
        self.files["unlabelled"] = unlabelled_file
        names = tuple(column_names) if column_names else None
        self.record_options = RecordOptions(encoding, on_bad_row, names)
        self.val_fraction = val_fraction
        self.examples_per_class = examples_per_class
        self.tokenizer_name = tokenizer
        #: Of a tokenizer that is trained on the training texts, where there is none.
        self.tokenizer_kind: Literal["wordpiece", "bpe"] = "wordpiece"
        self.vocab_size = 8192
        self.max_length = max_length
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.cache_dir = cache_dir
        self.seed = seed if seed is not None else int(os.environ.get("PL_GLOBAL_SEED", 0))
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.labels: list[str] = []
        self.has_classes = False
        self.fingerprint, self.unlabelled_rows = "", 0
        self.statistics: dict[str, int | float | str] = {}
        self._seed_is_given = seed is not None
        self._tables: dict[str, ExampleTable] = {}
        self._facts: dict[str, Any] = {}

    @abstractmethod
    def read(self, source: RecordSource, labelled: bool, bad: BadRows) -> list[Any]:
        """Return the examples of a source, named tuples that end with `file` and `line`.

        Args:
            source: its rows.
            labelled: whether they must have labels; if not, labels are not looked at.
            bad: told of each row that is no example; raises or skips it.
        """

    @abstractmethod
    def encode(self, examples: list[Any], bad: BadRows) -> Columns:
        """Return the columns of examples, among them `input_ids`; `tokenizer` and `labels` are set.

        Flat columns `truncated` and `unlabelled` are counted, and not kept.
        """

    @abstractmethod
    def collator(self, table: ExampleTable, training: bool) -> Collate:
        """Return what makes batches of a table's examples."""

    def settings(self) -> dict[str, Any]:
        """Return the task's settings that change what is in a batch, as plain data."""
        return {}

    def label_names(self, examples: list[Any]) -> list[str]:
        """Return the classes of the training examples, in order; none where the task has none."""
        return []

    def stratum(self, example: Any) -> tuple[str, ...] | None:
        """Return the class, or classes, that an example is held out and drawn by, if any."""

    def group(self, example: Any) -> str | None:
        """Return what keeps an example on one side of the hold-out with others, if anything."""

    def classes(self, table: ExampleTable) -> NDArray[np.int64] | None:
        """Return the class of each training example where all are to come as often, else `None`."""

    def lengths(self, table: ExampleTable, training: bool = False) -> NDArray[np.int64]:
        """Return how long each example is, by which they are brought together: int64 `[N]`."""
        return table.ragged("input_ids").lengths

    def rewrite(self, example: Any, rewriter: Rewriter) -> Any:
        """Return an example with changed words, and with labels that follow them."""
        raise NotImplementedError(f"{type(self).__name__} has no transforms")

    def texts(self, example: Any) -> tuple[str, ...]:
        """Return the texts of an example, to train a tokenizer on where there is none."""
        raise ValueError("there is no tokenizer; pass tokenizer (a hub name or a folder)")

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise `ValueError` for a tokenizer that the task cannot use."""

    def network_settings(self) -> dict[str, Any]:
        """Return the entries of the network's config that the data decide."""
        if not (self.labels and self.fingerprint):
            return {}
        return {
            "num_labels": len(self.labels),
            "id2label": dict(enumerate(self.labels)),
            "label2id": {name: number for number, name in enumerate(self.labels)},
        }

    def inputs(self, index: int) -> dict[str, Any]:
        """Return the fields of a row of `predict_file`, to be written beside its prediction."""
        return {}

    @property
    def fixed_rows(self) -> bool:
        """Whether a training row is the same in every epoch, however often it is drawn."""
        return not (self.augmentation and self.augmentation.draws)

    @property
    def draws_rows(self) -> bool:
        """Whether the seed decides which examples there are."""
        copies = self.augmentation and self.augmentation.copies
        return bool(copies) or self.examples_per_class is not None

    def prepare_data(self) -> None:
        """Read, check and encode, where the cache does not have it; once per node."""
        if not self._only_predicts():
            self._build()

    def setup(self, stage: str | None = None) -> None:
        """Open what `prepare_data` made; a second call changes nothing."""
        if not self.fingerprint and not self._only_predicts():
            self._build()

    def use_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Take another tokenizer, e.g. a checkpoint's, and tokenize anew with it."""
        self._build(tokenizer)

    def table(self, split: str) -> ExampleTable:
        """Return the encoded examples of `train`, `val` or `test`.

        Raises:
            ValueError: there are none.
        """
        self.setup()
        if split not in self._tables:
            raise ValueError(f"there are no {split} examples; pass {split}_file")
        return self._tables[split]

    def train_dataloader(self) -> ResumableLoader:
        """Return the training batches, drawn anew each epoch."""
        return train_loader(self)

    def val_dataloader(self) -> PlannedLoader | list[PlannedLoader]:
        """Return the validation batches, or an empty list where there are no such examples."""
        self.setup()
        return evaluation_loader(self, "val") if "val" in self._tables else []

    def test_dataloader(self) -> PlannedLoader:
        """Return the test batches; without a test set, the validation batches."""
        self.setup()
        if "test" not in self._tables and "val" in self._tables:
            rank_zero_info("there are no test examples: testing on those of the validation")
            return evaluation_loader(self, "val")
        return evaluation_loader(self, "test")

    def predict_dataloader(self) -> PlannedLoader:
        """Return the rows of `predict_file`, in order; labels are not needed, nor looked at."""
        self._tables["predict"] = table = prediction_table(self)
        return prediction_loader(self, table)

    def row_count(self, split: str = "train") -> int:
        """Return how many rows a split has, as training or evaluation has them."""
        return len(self.table(split))

    def rows_fingerprint(self, split: str = "train") -> str:
        """Return a hash of which rows a split has and what stands in them, whatever their order."""
        return rows_hash(self, split)

    def every_row(self, split: str = "train", batch_size: int | None = None) -> PlannedLoader:
        """Return each row of a split once, never shuffled nor limited.

        The batches are for one process, the same on every call, as in training or evaluation.

        Args:
            split: `train`, `val` or `test`.
            batch_size: by default that of training, or of evaluation.

        Raises:
            ValueError: rows are drawn anew in each epoch, or there is no such split.
        """
        return every_row_loader(self, split, batch_size)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run must find unchanged."""
        return {"fingerprint": self.fingerprint, "facts": dict(self._facts)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that a resumed fit has the data that the interrupted one had.

        Raises:
            ValueError: training data, tokenizer or labels changed; says which.
        """
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        before = dict(state_dict["facts"])
        if not self._seed_is_given and self.seed != before["seed"]:
            # Nobody asked for a seed: the run goes on with the one that it began with.
            self.seed = self._facts["seed"] = int(before["seed"])
            if self.draws_rows:  # other ones were drawn
                self._build(self.tokenizer)
        if changed := compare_facts(before, self._facts):
            rank_zero_warn(changed)

    def _only_predicts(self) -> bool:
        doing = getattr(getattr(self.trainer, "state", None), "fn", None)
        nothing = self.source is None and not any(self.files.values())
        return bool(self.predict_file) and (doing == TrainerFn.PREDICTING or nothing)

    def _build(self, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        if self._only_predicts():
            take_task_tokenizer(self, tokenizer, None)
            return
        made = task_data(self, tokenizer)
        self._tables, self.labels, self._facts = made.tables, made.labels, made.facts
        self.unlabelled_rows = made.unlabelled_rows
        before, self.fingerprint = self.fingerprint, short_hash(made.facts)
        self.statistics = made.statistics
        if self.fingerprint != before:
            rank_zero_info(made.words)
