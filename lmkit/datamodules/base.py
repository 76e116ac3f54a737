"""What the data modules of language models share: text, tokenizer, token stores and loaders."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Sized
from pathlib import Path
from typing import Any, ClassVar, Literal

from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from transformers import PreTrainedTokenizerBase

from ..tokenization import load_tokenizer, require_pad_token, require_separator, tokenizer_digest
from .collators import ChunkRows, PromptCollator
from .corpus import HeldOut, hold_out, token_stores, trained_tokenizer
from .data_facts import compare_facts, describe
from .loader import BatchPlan, Collate, PlannedLoader, ResumableLoader
from .source import FileSource, TextOptions, TextSource, expand_files, short_hash
from .source_resolution import Files, is_plain_source, resolve_sources
from .text_rows import Document, OnBadRow
from .token_store import TokenStore, cache_folder

__all__ = ["LMDataModule"]


class LMDataModule(LightningDataModule):
    """Text, tokenized once, cut into rows of one length, as batches that resume exactly.

    `MaskedLMDataModule` and `CausalLMDataModule` document the arguments. After `setup` the public
    attributes are there.

    Attributes:
        tokenizer: makes the tokens; `None` before `setup`.
        max_length: tokens in a row, special tokens included.
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
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int | None = None,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        # A live object in the hyper-parameters would make the checkpoint unreadable.
        self.save_hyperparameters(ignore=[] if is_plain_source(source) else ["source"])
        if max_length < 8:
            raise ValueError(f"max_length must be at least 8, got {max_length}")
        if not 0.0 <= val_fraction < 1.0:
            raise ValueError(f"val_fraction must lie in [0, 1), got {val_fraction}")
        if batch_size < 1 or (eval_batch_size is not None and eval_batch_size < 1):
            raise ValueError(
                "batch_size and eval_batch_size must be at least 1, got "
                f"{batch_size if batch_size < 1 else eval_batch_size}"
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
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.cache_dir = cache_dir
        self.seed = seed if seed is not None else int(os.environ.get("PL_GLOBAL_SEED", 0))
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.fingerprint = ""
        self.statistics: dict[str, int | float | str] = {}
        self._seed_is_given = seed is not None
        self._stores: dict[str, TokenStore] = {}
        self._facts: dict[str, Any] = {}

    @abstractmethod
    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise `ValueError` for a tokenizer that the objective cannot use."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return the objective's settings that change what is in a batch, as plain data."""

    @abstractmethod
    def affixes(self) -> tuple[list[int], list[int]]:
        """Return the ids before and after each row."""

    @abstractmethod
    def collator(self, chunks: ChunkRows, training: bool) -> Collate:
        """Return what makes batches of rows."""

    @abstractmethod
    def prompts(self, source: FileSource) -> list[list[int]]:
        """Return the ids of each text to predict on, at most `max_length` long."""

    def prepare_data(self) -> None:
        """Train the tokenizer and tokenize, where the cache does not have them; once per node."""
        self._build()

    def setup(self, stage: str | None = None) -> None:
        """Open what `prepare_data` made; the same for every stage, and for a second call."""
        if not self._stores:
            self._build()

    def use_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Take another tokenizer, e.g. a checkpoint's, and tokenize anew with it."""
        self._build(tokenizer)

    def train_dataloader(self) -> ResumableLoader:
        """Return the training batches, shuffled anew each epoch."""
        rows = self._rows("train", "pass train_file or source")
        overfit = bool(self.trainer and getattr(self.trainer, "overfit_batches", 0))
        plan = self._plan(rows, self.batch_size, None if overfit else self.seed)
        return ResumableLoader(
            plan,
            self.collator(rows, training=True),
            self.num_workers,
            stop=self._batches_per_epoch(len(plan)),
            clock=self._epoch if self.trainer else None,
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
        if not self.predict_file:
            raise ValueError(
                "pass predict_file (--data.predict_file=FILE), a text file with one text per line"
            )
        self.setup()
        assert self.tokenizer is not None
        files = expand_files(self.predict_file, "predict_file")
        texts = self.prompts(FileSource(files, self.text_options))
        if not texts:
            raise ValueError(f"predict_file: there is no text in {files[0]}, only blank lines")
        pad = require_pad_token(self.tokenizer)
        collate = PromptCollator(texts, pad_id=pad, left=self.pads_left)
        plan = self._plan(texts, self.eval_batch_size or self.batch_size, None)
        return PlannedLoader(plan, collate, self.num_workers)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run must find unchanged."""
        return {"fingerprint": self.fingerprint, "facts": dict(self._facts)}

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
        changed = compare_facts(before, self._facts)
        if changed:
            rank_zero_warn(changed)

    def _build(self, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        cache = cache_folder(self.cache_dir)
        sources = resolve_sources(self.source, self.files, self.text_options, cache)
        rule = None
        if "train" in sources and "val" not in sources and self.val_fraction:
            rule = hold_out(sources["train"], self.val_fraction)
        tokenizer = tokenizer or self._choose_tokenizer(sources, rule, cache)
        self.check_tokenizer(tokenizer)
        if tokenizer.pad_token_id is None and tokenizer.eos_token is not None:
            tokenizer.pad_token = tokenizer.eos_token  # GPT-2 has no padding token of its own
        require_pad_token(tokenizer)
        self.tokenizer = tokenizer
        self._body()
        separator = require_separator(tokenizer, *self.separator_roles)
        self._stores = token_stores(sources, rule, tokenizer, separator, cache)
        self._facts = {
            **{f"{split} text": source.key(cache) for split, source in sources.items()},
            "val_fraction": rule.below if rule else 0.0,
            "tokenizer": tokenizer_digest(tokenizer),
            "max_length": self.max_length,
            "seed": self.seed,
            **self.settings(),
        }
        before, self.fingerprint = self.fingerprint, short_hash(self._facts)
        rows = {split: len(ChunkRows(s, self._body())) for split, s in self._stores.items()}
        self.statistics, words = describe(sources, self._stores, rows, tokenizer, cache)
        if self.fingerprint != before:
            rank_zero_info(words)

    def _choose_tokenizer(
        self, sources: dict[str, TextSource], rule: HeldOut | None, cache: Path
    ) -> PreTrainedTokenizerBase:
        """Take the one named, else the model's own, else one trained on the training text."""
        if self.tokenizer_name is not None:
            return load_tokenizer(self.tokenizer_name)
        module = self.trainer.lightning_module if self.trainer else None
        own = getattr(module, "tokenizer", None)
        if isinstance(own, PreTrainedTokenizerBase):
            return own
        model = module.hparams.get("model") if module is not None else None
        if isinstance(model, str):
            return load_tokenizer(model)
        if "train" not in sources:
            raise ValueError(
                "there is no tokenizer and no training text to train one on; pass tokenizer (a "
                "hub name or a folder, e.g. of the exported model), or train_file or source"
            )
        return trained_tokenizer(
            sources["train"],
            rule,
            kind=self.tokenizer_kind,
            vocab_size=self.vocab_size,
            affixes=self.trains_affixes,
            cache=cache,
        )

    def _body(self) -> int:
        """Return how many tokens of text a row has beside its affixes."""
        body = self.max_length - sum(map(len, self.affixes()))
        if body < 1:
            raise ValueError(
                f"max_length={self.max_length} leaves no room for text beside the tokenizer's "
                "special tokens; raise it"
            )
        return body

    def _rows(self, split: str, remedy: str) -> ChunkRows:
        self.setup()
        if split not in self._stores:
            raise ValueError(f"there is no {split} text; {remedy}")
        return ChunkRows(self._stores[split], self._body())

    def _evaluation(self, split: str) -> PlannedLoader:
        rows = self._rows(split, f"pass {split}_file")
        plan = self._plan(rows, self.eval_batch_size or self.batch_size, None)
        return PlannedLoader(plan, self.collator(rows, training=False), self.num_workers)

    def _plan(self, rows: Sized, batch_size: int, seed: int | None) -> BatchPlan:
        rank, size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return BatchPlan(len(rows), batch_size, rank, size, seed)

    def _batches_per_epoch(self, batches: int) -> int:
        limit = self.trainer.limit_train_batches if self.trainer else None
        if limit is None:
            return batches
        # As Lightning counts: an int is a number of batches, a float a share of them.
        return min(batches, limit) if isinstance(limit, int) else max(1, int(batches * limit))

    def _epoch(self) -> int:
        assert self.trainer is not None
        progress: Any = self.trainer.fit_loop.epoch_progress.current
        return int(progress.processed)
