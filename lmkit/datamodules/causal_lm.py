"""Data for the causal language model."""

from __future__ import annotations

from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_warn
from transformers import PreTrainedTokenizerBase

from ..tokenization import require_separator, special_affixes, text_encoder
from .base import LMDataModule
from .collators import CausalCollator
from .loader import Collate
from .row_table import Batching
from .rows import Rows
from .source import FileSource
from .source_resolution import Files
from .text_rows import Document, OnBadRow

__all__ = ["CausalLMDataModule"]


class CausalLMDataModule(LMDataModule):
    """Text as rows of `max_length` tokens, each token to be predicted from those before it.

    Documents are laid end to end, each closed by the end-of-text token, and cut into rows, as GPT-2
    was trained. Labels are the row itself, -100 on padding; the model shifts them. With
    `batching="pack"` a row holds as many documents as fit, each seeing itself alone.

    With neither `source` nor files it takes the embedded corpus (`lmkit.datamodules.embedded`): a
    default to start on, not a benchmark.

    Args:
        source: hub name (`owner/name`, `name/config`, `owner/name/config`), a file, glob or folder
            or a list of them, or in scripts a `datasets.Dataset` or `DatasetDict`.
        train_file: files or globs to train on, in place of `source`.
        val_file: files to validate on; without one a part of the training text is held out.
        test_file: files to test on; without one the validation text is taken.
        predict_file: texts to continue, one prompt per line.
        text_column: column or key of the text; guessed when obvious.
        document: what a document of a txt file is: `line`, `paragraph` or `file`.
        encoding: of the characters of the files.
        on_bad_row: `error`, or `skip` to count bad rows and go on.
        val_fraction: share of the documents held out, by a hash of each, in `[0, 1)`.
        tokenizer: hub name or folder; by default the model's own, or else one trained on the text.
        tokenizer_kind: of a trained one: `wordpiece` or `bpe` (byte-level).
        vocab_size: of a trained one, special tokens included.
        max_length: tokens in a row, special tokens included; at least 8.
        batching: how rows are made in training. `chunk`: the text as one stream, cut every
            `max_length` tokens; `pack`: as many documents in a row as fit, each seeing itself
            alone, which is for documents that stand for themselves; `bucket`: one per row, in
            batches of about one length. The last two cut only documents longer than a row.
        eval_batching: the same in evaluation.
        batch_size: rows of `max_length` per batch and device; in buckets, as many shorter rows as
            have that many tokens.
        eval_batch_size: the same in evaluation; by default `batch_size`.
        num_workers: processes that make batches ahead.
        seed: of the order; by default that of `seed_everything`.
        cache_dir: where token ids are kept; by default `$LMKIT_CACHE`, else `~/.cache/lmkit`.
        streaming: read the training text as it comes, for text that does not fit the disk: it is
            tokenized on the way, shuffled over 64 batches, and begins again at its end. `source`
            may then be a `datasets.IterableDataset` too. Needs a tokenizer and, to validate, a
            `val_file`; `num_workers` is for evaluation only, one thread reads ahead.
        epoch_batches: batches that count as an epoch of a stream.

    Raises:
        ValueError: a setting lies outside its range; in `prepare_data` and `setup`: bad input
            (file, line and remedy are named) or a tokenizer without an end-of-text token.
    """

    separator_roles = ("eos_token", "sep_token")
    trains_affixes = False
    pads_left = True
    draws_each_epoch = False

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
        tokenizer_kind: Literal["wordpiece", "bpe"] = "bpe",
        vocab_size: int = 8192,
        max_length: int = 128,
        batching: Batching = "chunk",
        eval_batching: Batching = "chunk",
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int | None = None,
        cache_dir: str | None = None,
        streaming: bool = False,
        epoch_batches: int = 1000,
    ) -> None:
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
            tokenizer_kind=tokenizer_kind,
            vocab_size=vocab_size,
            max_length=max_length,
            batching=batching,
            eval_batching=eval_batching,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            cache_dir=cache_dir,
            streaming=streaming,
            epoch_batches=epoch_batches,
        )

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Accept any tokenizer: what ends a document is asked for later."""

    def settings(self) -> dict[str, Any]:
        """Return the name of the objective: it has no settings of its own."""
        return {"objective": "causal_lm"}

    def affixes(self, batching: Batching) -> tuple[list[int], list[int]]:
        """Return none for a stretch of the stream; for a document, what begins and ends it."""
        if batching == "chunk":
            return [], []
        assert self.tokenizer is not None
        prefix, _ = special_affixes(self.tokenizer)
        return prefix, [require_separator(self.tokenizer, *self.separator_roles)]

    def collator(self, rows: Rows, training: bool) -> Collate:
        """Return what makes rows and their labels, the same in training and evaluation."""
        return CausalCollator(rows)

    def prompts(self, source: FileSource) -> list[list[int]]:
        """Return the ids of each prompt, with what the tokenizer puts before a text."""
        assert self.tokenizer is not None
        prefix, _ = special_affixes(self.tokenizer)
        encode = text_encoder(self.tokenizer)
        room = self.max_length - len(prefix)
        texts, long = [], 0
        for text in source.texts(report=True):
            ids = encode([text.text])[0]
            long += len(ids) > room
            if not prefix and not ids:
                raise ValueError(f"{text.file}, line {text.line}: the tokenizer finds no token")
            # What is to be continued is the end of a prompt.
            texts.append([*prefix, *ids[-room:]])
        if long:
            rank_zero_warn(f"{long} prompts were cut to their last {room} tokens")
        return texts
