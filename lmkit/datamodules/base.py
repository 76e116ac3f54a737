"""What the data modules of language models share: text, tokenizer, token stores and loaders."""

from __future__ import annotations

import os
from abc import abstractmethod
from functools import partial
from typing import Any, ClassVar, Literal

from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from transformers import PreTrainedTokenizerBase

from ..cache import cache_folder
from ..functional.packing import segment_bounds
from ..tokenization import require_pad_token
from .batch_plan import BatchPlan, BucketPlan, Plan, check_positive, check_settings
from .data_facts import compare_facts
from .every_row import check_fixed, rows_hash
from .loader import Collate, PlannedLoader, ResumableLoader
from .prompts import prompt_loader, takes_prompts_only
from .row_table import Batching, check_batching, room_for_text, row_table
from .rows import Rows, SegmentRows
from .source import FileSource, TextOptions, TextSource, short_hash
from .source_resolution import Files, is_plain_source
from .stream import StreamLoader
from .stream_window import TextWindow
from .streaming import stream_loader
from .text_data import text_data
from .text_rows import Document, OnBadRow
from .token_store import TokenStore
from .trainer_facts import epoch_length, epoch_number, ranks

__all__ = ["LMDataModule"]


class LMDataModule(LightningDataModule):
    """Text, tokenized once, laid out in rows, as batches that resume exactly.

    `MaskedLMDataModule` and `CausalLMDataModule` document the arguments. After `setup` the public
    attributes are there.

    Attributes:
        tokenizer: makes the tokens; `None` before `setup`.
        max_length: tokens in a row, special tokens included.
        batching: how rows are made in training, `eval_batching` in evaluation.
        seed: of order and masks.
        fingerprint: hash of data, tokenizer and settings.
        statistics: documents, tokens and rows of each split, as plain data.
    """

    #: Special tokens that may end a document, the preferred one first.
    separator_roles: ClassVar[tuple[str, ...]]
    #: Whether a tokenizer that is trained here puts special tokens around a text.
    trains_affixes: ClassVar[bool]
    #: Whether prompts are padded on the left, to be continued.
    pads_left: ClassVar[bool]
    #: Whether a row has something drawn for it in each epoch anew, such as its masks.
    draws_each_epoch: ClassVar[bool] = True

    def __init__(
        self,
        source: Any = None,
        train_file: Files | None = None,
        val_file: Files | None = None,
        test_file: Files | None = None,
        predict_file: Files | None = None,
        text_column: str | None = None,
        document: Document = "line",
        encoding: str = "utf-8",
        on_bad_row: OnBadRow = "error",
        val_fraction: float = 0.05,
        tokenizer: str | None = None,
        tokenizer_kind: Literal["wordpiece", "bpe"] = "wordpiece",
        vocab_size: int = 8192,
        max_length: int = 128,
        batching: Batching = "pack",
        eval_batching: Batching = "bucket",
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int | None = None,
        cache_dir: str | None = None,
        streaming: bool = False,
        epoch_batches: int = 1000,
    ) -> None:
        super().__init__()
        # A live object in the hyper-parameters would make the checkpoint unreadable.
        self.save_hyperparameters(ignore=[] if is_plain_source(source) else ["source"])
        check_settings(max_length, val_fraction, num_workers)
        check_batching(batching=batching, eval_batching=eval_batching)
        check_positive(
            batch_size=batch_size, eval_batch_size=eval_batch_size, epoch_batches=epoch_batches
        )
        self.source = source
        self.files = {"train": train_file, "val": val_file, "test": test_file}
        self.predict_file = predict_file
        self.text_options = TextOptions(text_column, document, encoding, on_bad_row)
        self.val_fraction = val_fraction
        self.tokenizer_name = tokenizer
        self.tokenizer_kind = tokenizer_kind
        self.vocab_size = vocab_size
        self.max_length = max_length
        self.batching = batching
        self.eval_batching = eval_batching
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.cache_dir = cache_dir
        self.streaming = streaming
        self.epoch_batches = epoch_batches
        self.seed = seed if seed is not None else int(os.environ.get("PL_GLOBAL_SEED", 0))
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.fingerprint = ""
        self.statistics: dict[str, int | float | str] = {}
        self._seed_is_given = seed is not None
        self._stores: dict[str, TokenStore] = {}
        self._rows: dict[str, Rows] = {}
        self._facts: dict[str, Any] = {}
        self._stream: TextSource | None = None
        self._streamed: StreamLoader | None = None
        self._stream_state: dict[str, Any] | None = None

    @abstractmethod
    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise `ValueError` for a tokenizer that the objective cannot use."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return the objective's settings that change what is in a batch, as plain data."""

    @abstractmethod
    def affixes(self, batching: Batching) -> tuple[list[int], list[int]]:
        """Return the ids before and after each text of a row."""

    @abstractmethod
    def collator(self, rows: Rows, training: bool) -> Collate:
        """Return what makes batches of rows."""

    @abstractmethod
    def prompts(self, source: FileSource) -> list[list[int]]:
        """Return the ids of each text to predict on, at most `max_length` long."""

    def boundaries(self) -> dict[str, bool]:
        """Return which of `words` and `sentences` the token stores have to know."""
        return {}

    def trained_sentinels(self) -> int:
        """Return how many sentinels a tokenizer that is trained here gets."""
        return 0

    @property
    def fixed_rows(self) -> bool:
        """Whether a training row is the same in every epoch, and can be known by its number."""
        return not (self.streaming or self.draws_each_epoch)

    def prepare_data(self) -> None:
        """Train the tokenizer and tokenize, where the cache does not have them; once per node."""
        if not takes_prompts_only(self):
            self._build()

    def setup(self, stage: str | None = None) -> None:
        """Open what `prepare_data` made; the same for every stage, and for a second call."""
        if not (self.fingerprint or takes_prompts_only(self)):
            self._build()

    def use_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Take another tokenizer, e.g. a checkpoint's, and tokenize anew with it."""
        self._build(tokenizer)

    def train_dataloader(self) -> ResumableLoader | StreamLoader:
        """Return the training batches, shuffled anew each epoch."""
        if self.streaming:
            self.setup()
            self._streamed = stream_loader(self, self._stream, self._stream_state)
            return self._streamed
        rows = self._split_rows("train", "pass train_file or source")
        overfit = bool(self.trainer and getattr(self.trainer, "overfit_batches", 0))
        plan = self.plan(rows, self.batch_size, None if overfit else self.seed)
        return ResumableLoader(
            plan,
            self.collator(rows, training=True),
            self.num_workers,
            stop=epoch_length(self.trainer, len(plan)),
            clock=partial(epoch_number, self.trainer) if self.trainer else None,
        )

    def val_dataloader(self) -> PlannedLoader | list[PlannedLoader]:
        """Return the validation batches, or an empty list where there is no validation text."""
        return self._evaluation("val") if "val" in self._stores else []

    def test_dataloader(self) -> PlannedLoader:
        """Return the test batches; without a test text, the validation batches."""
        if "test" not in self._stores and "val" in self._stores:
            rank_zero_info("there is no test text: testing on the validation text")
            return self._evaluation("val")
        return self._evaluation("test")

    def predict_dataloader(self) -> PlannedLoader:
        """Return the texts of `predict_file`, in order."""
        return prompt_loader(self)

    def row_count(self, split: str = "train") -> int:
        """Return how many rows a split has, as training has them."""
        return len(self._split_rows(split, f"pass {split}_file"))

    def rows_fingerprint(self, split: str = "train") -> str:
        """Return a hash of which rows a split has and what stands in them, whatever their order."""
        return rows_hash(self, split)

    def every_row(self, split: str = "train", batch_size: int | None = None) -> PlannedLoader:
        """Return each row of a split once, in the batches of training, never shuffled nor limited.

        The batches are for one process, whatever the trainer's, and the same on every call.

        Args:
            split: `train`, `val` or `test`.
            batch_size: by default that of training.

        Raises:
            ValueError: rows are drawn anew in each epoch, or there is no such split.
        """
        check_fixed(self, split, batch_size)
        rows = self._split_rows(split, f"pass {split}_file")
        plan = self.plan(rows, batch_size or self.batch_size, None, alone=True)
        return PlannedLoader(plan, self.collator(rows, training=True), self.num_workers)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Find where packed texts begin, here, where no device has to be waited for."""
        on_cuda = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        if on_cuda and "segment_ids" in batch:
            batch["segment_bounds"] = segment_bounds(batch["segment_ids"])
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run must find unchanged."""
        stream = self._streamed.state_dict() if self._streamed else None
        return {"fingerprint": self.fingerprint, "facts": dict(self._facts), "stream": stream}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that a resumed fit has the data that the interrupted one had.

        Raises:
            ValueError: training text, tokenizer or row length changed; says which.
        """
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        before = dict(state_dict["facts"])
        if not self._seed_is_given:
            # Nobody asked for a seed: the run goes on with the one that it began with.
            self.seed = self._facts["seed"] = int(before["seed"])
        if changed := compare_facts(before, self._facts):
            rank_zero_warn(changed)
        self._stream_state = state_dict.get("stream")

    def _build(self, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        made = text_data(self, tokenizer)
        self._stream, self._stores, self._rows = made.stream, made.stores, made.rows
        before, self.fingerprint = self.fingerprint, short_hash(made.facts)
        self._facts, self.statistics = made.facts, made.statistics
        if self.fingerprint != before:
            rank_zero_info(made.words)

    def rows(self, store: TokenStore | TextWindow, batching: Batching) -> Rows:
        """Return the rows of a split.

        Raises:
            ValueError: the special tokens alone fill a row.
        """
        assert self.tokenizer is not None
        prefix, suffix = self.affixes(batching)
        affixes = len(prefix) + len(suffix)
        body = room_for_text(self.max_length, affixes)
        table = row_table(store, batching, body, affixes, cache_folder(self.cache_dir))
        pad = require_pad_token(self.tokenizer)
        return SegmentRows(
            store, table, prefix=prefix, suffix=suffix, pad_id=pad, words=store.has_words
        )

    def _split_rows(self, split: str, remedy: str) -> Rows:
        self.setup()
        if split not in self._rows:
            raise ValueError(f"there is no {split} text; {remedy}")
        return self._rows[split]

    def _evaluation(self, split: str) -> PlannedLoader:
        rows = self._split_rows(split, f"pass {split}_file")
        plan = self.plan(rows, self.eval_batch_size or self.batch_size, None)
        return PlannedLoader(plan, self.collator(rows, training=False), self.num_workers)

    def plan(self, rows: Rows, batch_size: int, seed: int | None, alone: bool = False) -> Plan:
        """Return which rows are in which batch of this rank, or of a process that is alone."""
        rank, size = (0, 1) if alone else ranks(self.trainer)
        classes = rows.widths()
        if any(width < self.max_length for _, width in classes):
            return BucketPlan(classes, batch_size * self.max_length, rank, size, seed)
        return BatchPlan(len(rows), batch_size, rank, size, seed)
