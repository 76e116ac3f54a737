"""Data for the encoder-decoder that writes the spans that were taken out of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..functional.random import mix_each
from ..functional.span_corruption import corrupt_spans, raw_length, span_lengths
from ..tokenization import (
    require_pad_token,
    require_sentinels,
    require_separator,
    text_encoder,
)
from ..types import IGNORE_INDEX, Batch
from .base import LMDataModule
from .loader import Collate
from .row_table import Batching, ChunkTable
from .rows import Rows, SegmentRows
from .source import FileSource
from .source_resolution import Files
from .stream_window import TextWindow
from .text_rows import Document, OnBadRow
from .token_store import TokenStore

__all__ = ["DenoisingDataModule"]

# Evaluation takes the same spans in every run, so that runs of different seeds can be compared.
_EVALUATION_SEED = 0
# T5's tokenizer has so many sentinels; a small vocabulary spends at most this share on them.
_SENTINELS, _SENTINEL_SHARE = 100, 10


class DenoisingDataModule(LMDataModule):
    """Text with spans taken out, and the spans as the target: T5's objective (arXiv:1910.10683).

    Documents are laid end to end, each closed by a separator (the begin-of-text token, or where
    the tokenizer has none, as T5's, its end), and cut into stretches that are as long as fills an
    input of `max_length` exactly once their spans are gone: 141 tokens for 128, with targets of
    29. Spans are drawn anew each epoch, as a pure function of (seed, epoch, row); in evaluation
    they are the same in every epoch and every run.

    With neither `source` nor files it takes the embedded corpus (`lmkit.datamodules.embedded`): a
    default to start on, not a benchmark. A tokenizer that is trained here is a byte-level BPE with
    sentinels.

    Args:
        source: hub name (`owner/name`, `name/config`, `owner/name/config`), a file, glob or folder
            or a list of them, or in scripts a `datasets.Dataset` or `DatasetDict`.
        train_file: files or globs to train on, in place of `source`.
        val_file: files to validate on; without one a part of the training text is held out.
        test_file: files to test on; without one the validation text is taken.
        predict_file: texts to fill gaps in, one per line, with `<extra_id_0>`, `<extra_id_1>`, ...
            where the gaps are.
        text_column: column or key of the text; guessed when obvious.
        document: what a document of a txt file is: `line`, `paragraph` or `file`.
        encoding: of the characters of the files.
        on_bad_row: `error`, or `skip` to count bad rows and go on.
        val_fraction: share of the documents held out, by a hash of each, in `[0, 1)`.
        tokenizer: hub name or folder; by default the model's own, or else one trained on the text.
        vocab_size: of a trained one, special tokens included: 100 sentinels, or a tenth of a small
            vocabulary.
        max_length: tokens in an encoder's input, sentinels and end included; at least 8.
        batch_size: rows per batch and device.
        eval_batch_size: the same in evaluation; by default `batch_size`.
        num_workers: processes that make batches ahead.
        seed: of order and spans; by default that of `seed_everything`.
        cache_dir: where token ids are kept; by default `$LMKIT_CACHE`, else `~/.cache/lmkit`.
        streaming: read the training text as it comes, for text that does not fit the disk: it is
            tokenized on the way, shuffled over 64 batches, and begins again at its end. `source`
            may then be a `datasets.IterableDataset` too. Needs a tokenizer and, to validate, a
            `val_file`; `num_workers` is for evaluation only, one thread reads ahead.
        epoch_batches: batches that count as an epoch of a stream.
        noise_density: share of the tokens that are taken out, in `(0, 1)`.
        mean_span: tokens in a span on average, at least 1.
        random_roll: let a row begin with a span or end without one. `False` is T5's default, where
            the first token of a row never goes and the last always does.

    Raises:
        ValueError: a setting lies outside its range; in `prepare_data` and `setup`: bad input
            (file, line and remedy are named) or a tokenizer with too few sentinels.
    """

    separator_roles = ("bos_token", "eos_token", "sep_token")
    trains_affixes = False
    pads_left = False

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
        vocab_size: int = 8192,
        max_length: int = 128,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int | None = None,
        cache_dir: str | None = None,
        streaming: bool = False,
        epoch_batches: int = 1000,
        noise_density: float = 0.15,
        mean_span: float = 3.0,
        random_roll: bool = True,
    ) -> None:
        if not 0.0 < noise_density < 1.0:
            raise ValueError(f"noise_density must lie in (0, 1), got {noise_density}")
        if not mean_span >= 1.0:
            raise ValueError(f"mean_span must be at least 1, got {mean_span}")
        super().__init__(
            source=source,
            train_file=train_file,
            val_file=val_file,
            test_file=test_file,
            predict_file=predict_file,
            text_column=text_column,
            document=document,
            encoding=encoding,
            on_bad_row=on_bad_row,
            val_fraction=val_fraction,
            tokenizer=tokenizer,
            tokenizer_kind="bpe",
            vocab_size=vocab_size,
            max_length=max_length,
            batching="chunk",
            eval_batching="chunk",
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            cache_dir=cache_dir,
            streaming=streaming,
            epoch_batches=epoch_batches,
        )
        self.noise_density = noise_density
        self.mean_span = mean_span
        self.random_roll = random_roll
        self.raw_length, self.target_length = raw_length(max_length, noise_density, mean_span)
        self.spans = span_lengths(self.raw_length, noise_density, mean_span)[1]

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise `ValueError` for a tokenizer without an end or with too few sentinels."""
        require_sentinels(tokenizer, self.spans)
        require_separator(tokenizer, "eos_token", "sep_token")

    def settings(self) -> dict[str, Any]:
        """Return the settings of the spans."""
        return {
            "objective": "denoising",
            "raw_length": self.raw_length,
            "noise_density": self.noise_density,
            "mean_span": self.mean_span,
            "random_roll": self.random_roll,
        }

    def trained_sentinels(self) -> int:
        """Return how many sentinels a trained tokenizer gets: enough for any longer row too."""
        return max(self.spans, min(_SENTINELS, self.vocab_size // _SENTINEL_SHARE))

    def affixes(self, batching: Batching) -> tuple[list[int], list[int]]:
        """Return none: the end stands behind what is left of a row once its spans are gone."""
        return [], []

    def rows(self, store: TokenStore | TextWindow, batching: Batching) -> Rows:
        """Return stretches of the stream, longer than the inputs that are made of them."""
        assert self.tokenizer is not None
        table = ChunkTable(store, self.raw_length, 0)
        pad = require_pad_token(self.tokenizer)
        return SegmentRows(store, table, prefix=(), suffix=(), pad_id=pad)

    def collator(self, rows: Rows, training: bool) -> Collate:
        """Return what takes spans out: anew each epoch in training, always alike in evaluation."""
        assert self.tokenizer is not None
        return SpanCorruptionCollator(
            rows,
            sentinels=require_sentinels(self.tokenizer)[: self.spans],
            eos_id=require_separator(self.tokenizer, "eos_token", "sep_token"),
            pad_id=require_pad_token(self.tokenizer),
            seed=self.seed if training else _EVALUATION_SEED,
            density=self.noise_density,
            mean=self.mean_span,
            random_roll=self.random_roll,
        )

    def prompts(self, source: FileSource) -> list[list[int]]:
        """Return the ids of each text with its end; each has to have sentinels, in order."""
        assert self.tokenizer is not None
        eos = require_separator(self.tokenizer, "eos_token", "sep_token")
        sentinels = require_sentinels(self.tokenizer)
        encode = text_encoder(self.tokenizer)
        room = self.max_length - 1
        texts, long = [], 0
        for text in source.texts(report=True):
            ids = encode([text.text])[0]
            long += len(ids) > room
            found = [token for token in ids[:room] if token in sentinels]
            if not found or found != sentinels[: len(found)]:
                raise ValueError(
                    f"{text.file}, line {text.line}: the first {room} tokens must have the gaps "
                    "<extra_id_0>, <extra_id_1>, ... in this order, and have "
                    f"{self.tokenizer.convert_ids_to_tokens(found) or 'none'}; write <extra_id_0> "
                    "where the first part is to be filled in"
                )
            texts.append([*ids[:room], eos])
        if long:
            rank_zero_warn(f"{long} texts were cut to max_length={self.max_length} tokens")
        return texts


class SpanCorruptionCollator:
    """Batches for the encoder-decoder: rows with sentinels in place of spans, and the spans.

    The spans of a row are a pure function of (seed, epoch, row): no batch size, worker or rank
    changes them.

    Args:
        rows: the rows.
        sentinels: ids that stand for spans, in the order of use.
        eos_id: id that ends inputs and targets.
        pad_id: id of the padding, which only the last row and filler rows have.
        seed: of the spans.
        density: share of the tokens that are taken out.
        mean: tokens in a span on average.
        random_roll: see `corrupt_spans`.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        sentinels: Sequence[int],
        eos_id: int,
        pad_id: int,
        seed: int,
        density: float = 0.15,
        mean: float = 3.0,
        random_roll: bool = True,
    ) -> None:
        self.rows = rows
        self.sentinels = torch.tensor(list(sentinels))
        self.eos_id, self.pad_id, self.seed = eos_id, pad_id, seed
        self.density, self.mean, self.random_roll = density, mean, random_roll

    def __call__(self, epoch: int, rows: Tensor) -> Batch:
        """Return the batch of these rows, int64 `[B]`.

        It has `input_ids` and `attention_mask`, int64 `[B, L]`, `labels`, int64 `[B, T]` with -100
        behind the end, `label_positions`, int64 `[B, T]`, which are all of its columns, and `index`
        `[B]`. A row of fewer than 2 tokens has no label.
        """
        taken = self.rows.gather(rows)
        inputs, targets = corrupt_spans(
            taken.input_ids,
            mix_each(self.seed, epoch, last=rows),
            sentinels=self.sentinels,
            eos_id=self.eos_id,
            lengths=(taken.segment_ids > 0).sum(1),
            density=self.density,
            mean=self.mean,
            random_roll=self.random_roll,
        )
        real = inputs != IGNORE_INDEX
        return {
            "input_ids": inputs.masked_fill(~real, self.pad_id),
            "attention_mask": real.long(),
            "labels": targets,
            "label_positions": torch.arange(targets.shape[1]).repeat(len(rows), 1),
            "index": rows,
        }
