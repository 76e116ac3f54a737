"""Pairs of texts for an encoder-decoder that turns one into the other."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..tokenization import require_pad_token, special_affixes, text_encoder
from ..tokenization.text_ends import close_texts
from ..types import IGNORE_INDEX, Batch
from .example_collator import ExampleCollator
from .example_table import Columns, ExampleTable
from .loader import Collate
from .pair_columns import TextPair, Wanted, read_pairs
from .parallel_text import ParallelOptions
from .records import RecordSource
from .source_resolution import Files
from .task import TaskDataModule
from .text_rows import BadRows, OnBadRow

__all__ = ["Seq2SeqDataModule"]


class Seq2SeqDataModule(TaskDataModule):
    """Pairs of texts, the second of which is to be written for the first.

    Pairs come from tables (csv, tsv, jsonl, parquet) with a column of sources and one of targets,
    from data sets of the hub, and from plain files of which two belong together line by line, such
    as `train_file=["train.en", "train.de"]`; each also with `.gz`. Columns are guessed where they
    are obvious: `source` and `target`, `article` and `highlights`, `document` and `summary`, the
    languages of a hub's `translation`.

    Batches hold pairs of about the same length, source and target together, and each side is padded
    to its own longest row. A text that is longer than its maximum is cut before its end token;
    how many were cut is counted and said.

    Where there is neither a `tokenizer` nor a model with its own, a byte-level BPE is trained on
    sources and targets together.

    Args:
        source: a hub name (`owner/name`, `name/config`), a folder or files, or a `datasets` object.
        train_file: tables, or two plain files with the sources first. With `source_lang` and
            `target_lang` any number of plain files, joined by the endings of their names.
        val_file: as `train_file`; without it `val_fraction` of the training pairs is held out.
        test_file: as `train_file`.
        predict_file: a table, or a plain file with one source a line.
        source_column: the column of the sources; guessed when it is obvious.
        target_column: the column of the targets.
        source_lang: the language, as columns, hub data and ends of file names have it, e.g. `en`.
        target_lang: the language to write in.
        column_names: of csv and tsv files without a header.
        encoding: of the files' characters.
        on_bad_row: `error` or `skip`, for a pair with a blank or missing side among others.
        val_fraction: share of the training pairs to hold out, where there are no others.
        prefix: put before each source, such as T5's `"translate English to German: "`. It becomes
            part of the model's config, and stands before what is predicted on as well.
        tokenizer: hub name or folder; by default the model's own.
        tokenizer_kind: of one that is trained, `bpe` or `wordpiece` (which folds case).
        vocab_size: of one that is trained.
        max_length: tokens of a source at most, special tokens and prefix included.
        max_target_length: tokens of a target at most, special tokens included.
        batch_size: pairs per batch and rank.
        eval_batch_size: the same in evaluation and prediction; by default `batch_size`.
        num_workers: processes that make batches ahead.
        seed: of the order; by default that of `seed_everything`.
        cache_dir: where encoded pairs are kept.

    Raises:
        ValueError: an argument lies outside its range; in `setup`: bad files or rows, two files of
            different numbers of lines, a tokenizer that knows no end of a text.

    Example:
        >>> data = Seq2SeqDataModule(train_file=["train.en", "train.de"], max_target_length=64)
        >>> data.max_length, data.max_target_length
        (128, 64)
    """

    def __init__(
        self,
        source: Any = None,
        train_file: Files | None = None,
        val_file: Files | None = None,
        test_file: Files | None = None,
        predict_file: Files | None = None,
        source_column: str | None = None,
        target_column: str | None = None,
        source_lang: str | None = None,
        target_lang: str | None = None,
        column_names: list[str] | None = None,
        encoding: str = "utf-8",
        on_bad_row: OnBadRow = "error",
        val_fraction: float = 0.05,
        prefix: str = "",
        tokenizer: str | None = None,
        tokenizer_kind: Literal["wordpiece", "bpe"] = "bpe",
        vocab_size: int = 8192,
        max_length: int = 128,
        max_target_length: int = 128,
        batch_size: int = 32,
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
            column_names=column_names,
            encoding=encoding,
            on_bad_row=on_bad_row,
            val_fraction=val_fraction,
            tokenizer=tokenizer,
            max_length=max_length,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            seed=seed,
            cache_dir=cache_dir,
        )
        if max_target_length < 4:
            raise ValueError(f"max_target_length must be at least 4, got {max_target_length}")
        names = tuple(column_names) if column_names else None
        self.record_options = ParallelOptions(encoding, on_bad_row, names, source_lang, target_lang)
        self.wanted = Wanted(source_column, target_column, source_lang, target_lang)
        self.prefix = prefix
        self.tokenizer_kind = tokenizer_kind
        self.vocab_size = vocab_size
        self.max_target_length = max_target_length

    def read(self, source: RecordSource, labelled: bool, bad: BadRows) -> list[TextPair]:
        """Return the pairs of a source; to predict on, without their targets."""
        return read_pairs(source.records(bad), bad, self.wanted, labelled)

    def texts(self, example: TextPair) -> tuple[str, ...]:
        """Return both sides, to train a tokenizer on."""
        return (self.prefix + example.source, example.target)

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Check that the tokenizer has an end of text, and see to it that each text gets it.

        Raises:
            ValueError: it has none.
        """
        close_texts(tokenizer)

    def settings(self) -> dict[str, Any]:
        """Return what changes the content of a batch."""
        return {
            "max_target_length": self.max_target_length,
            "prefix": self.prefix,
            "columns": list(self.wanted),
        }

    def network_settings(self) -> dict[str, Any]:
        """Return what the network's config says of its texts."""
        facts = {"prefix": self.prefix, "max_target_length": self.max_target_length}
        return {"seq2seq": facts}

    def encode(self, examples: list[TextPair], bad: BadRows) -> Columns:
        """Return `input_ids`, `labels`, both texts, and what was cut."""
        sources, cut = self._ids([self.prefix + pair.source for pair in examples], self.max_length)
        targets, also = self._ids([pair.target for pair in examples], self.max_target_length)
        return {
            "input_ids": sources,
            "labels": targets,
            "source": [pair.source for pair in examples],
            "target": [pair.target for pair in examples],
            "truncated": cut | also,
        }

    def lengths(self, table: ExampleTable, training: bool = False) -> NDArray[np.int64]:
        """Return the tokens of source and target together: int64 `[N]`; in training 1 for all.

        Batches of one length cost 2 BLEU on Multi30k: pairs meet at random.
        """
        if training:
            return np.ones(len(table), np.int64)
        return table.ragged("input_ids").lengths + table.ragged("labels").lengths

    def collator(self, table: ExampleTable, training: bool) -> Collate:
        """Return what makes batches of pairs."""
        assert self.tokenizer is not None
        return PairCollator(table, require_pad_token(self.tokenizer))

    def inputs(self, index: int) -> dict[str, Any]:
        """Return the source of a row of `predict_file`."""
        return {"source": self.table("predict").text("source", index)}

    def target(self, split: str, index: int) -> str:
        """Return the target of an example of `val` or `test` as it stands in its file.

        Tests run on `val` where there is no `test`.
        """
        split = "val" if split == "test" and "test" not in self._tables else split
        return self.table(split).text("target", index)

    def _ids(self, texts: list[str], length: int) -> tuple[list[list[int]], NDArray[np.bool_]]:
        assert self.tokenizer is not None
        before, after = special_affixes(self.tokenizer)
        room = max(1, length - len(before) - len(after))
        bodies = text_encoder(self.tokenizer)(texts)
        cut = np.array([len(body) > room for body in bodies], bool)
        return [[*before, *body[:room], *after] for body in bodies], cut


class PairCollator:
    """Batches of pairs, each side padded to its longest.

    Args:
        table: the pairs.
        pad_id: id of the padding of sources.
    """

    def __init__(self, table: ExampleTable, pad_id: int) -> None:
        self.table = table
        self._sources = ExampleCollator(table, pad_id)

    def __call__(self, epoch: int, rows: Tensor) -> Batch:
        """Return the batch of these pairs, int64 `[B]`, -1 for a filler row.

        It has `input_ids` and `attention_mask`, int64 `[B, L]`, `labels` int64 `[B, T]` with -100
        behind the end of a target, and `index` `[B]`.
        """
        numbers = rows.numpy()
        labels = self.table.ragged("labels")
        lengths = np.where(numbers < 0, 0, labels.lengths[numbers])
        width = max(1, int(lengths.max(initial=1)))
        padded = torch.from_numpy(labels.padded(numbers, width, IGNORE_INDEX))
        return {**self._sources(epoch, rows), "labels": padded}
