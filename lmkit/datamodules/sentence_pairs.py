"""Rows of two segments, for next-sentence and sentence-order prediction."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor

from ..functional.sentence_pairs import SentenceObjective, plan_pairs
from ..tokenization import PairAffixes
from ..types import IGNORE_INDEX
from .rows import RowBatch
from .source import short_hash
from .token_store import TokenStore

__all__ = ["PairRows"]

# Part of every key: raise it when pairs are planned otherwise.
_VERSION = 1
# Which pairs there are is a matter of the text alone, as which documents share a packed row: a
# resumed run finds the same ones, whatever its seed.
_SEED = 0
# Planning takes a minute for some ten million sentences.
_MANY = 2_000_000
# Share of random segments above which a network learns little but to say that they are. Sentence
# order has half of each; next sentence a half and those of rows that hold one sentence.
_LOPSIDED = 0.75

Integers = NDArray[np.int64]


class PairRows:
    """Rows `[CLS] A [SEP] B [SEP]`, or as the tokenizer joins two texts.

    Both segments of a row see each other; it is one text. The extras of a batch are
    `token_type_ids`, int64 `[B, L]`, and `next_sentence_label`, int64 `[B]`: 0 where B follows A, 1
    where it is from another document or the two are swapped, -100 for a filler. It pickles as a
    path.

    Args:
        store: the tokens, written with sentences.
        objective: `"next_sentence"` or `"sentence_order"`; see `plan_pairs`.
        affixes: what stands around and between the segments.
        max_length: tokens in a row.
        pad_id: id of the padding.
        cache: folder of the cache, where the plan is kept.
        words: whether words are numbered, which the store has to have been written for.

    Raises:
        ValueError: there is no room for two tokens, one document only, or no pair.
    """

    packed = False
    #: No document is cut to fit a row: its sentences are trimmed.
    cut = 0

    def __init__(
        self,
        store: TokenStore,
        objective: SentenceObjective,
        affixes: PairAffixes,
        *,
        max_length: int,
        pad_id: int,
        cache: Path,
        words: bool = False,
    ) -> None:
        self.store, self.affixes, self.words = store, affixes, words
        self.max_length, self.pad_id = max_length, pad_id
        room = max_length - sum(map(len, affixes[:3]))
        if room < 2:
            raise ValueError(
                f"max_length={max_length} leaves no room for two segments beside the tokenizer's "
                "special tokens; raise it"
            )
        key = short_hash(["pairs", _VERSION, store.path.name, objective, room, _SEED])
        self.path = cache / "pairs" / f"{key}.npy"
        try:
            self.plan = np.load(self.path, mmap_mode="r")
        except (OSError, ValueError, EOFError):
            _write(self.path, _plan(store, objective, room))
            self.plan = np.load(self.path, mmap_mode="r")

    def __len__(self) -> int:
        return int(self.plan.shape[1])

    def widths(self) -> list[tuple[int, int]]:
        """Return the number of rows and their width: all have one."""
        return [(len(self), self.max_length)]

    def gather(self, rows: Tensor) -> RowBatch:
        """Return the rows of these numbers, int64 `[B]`; -1 is a filler, all padding."""
        numbers = rows.numpy()
        real = (numbers >= 0)[:, np.newaxis]
        plan = np.asarray(self.plan[:, np.maximum(numbers, 0)])[:, :, np.newaxis]
        a_start, a_length, b_start, b_length, label = plan
        prefix, middle, suffix, types = self.affixes
        column = np.arange(self.max_length)
        # Where each of the five parts ends: prefix, first segment, middle, second segment, suffix.
        sizes = [len(prefix), a_length, len(middle), b_length, len(suffix)]
        ends = np.cumsum(np.broadcast_arrays(*(np.asarray(size) for size in sizes)), 0)
        begins = [end - size for end, size in zip(ends, sizes, strict=True)]

        ids = np.full((len(numbers), self.max_length), self.pad_id, np.int64)
        kinds = np.zeros_like(ids)
        for part, (tokens, kind) in enumerate(
            [(prefix, types[0]), ([], []), (middle, types[2]), ([], []), (suffix, types[4])]
        ):
            for place, (token, token_type) in enumerate(zip(tokens, kind, strict=True)):
                at = begins[part] + place
                np.put_along_axis(ids, at, token, 1)
                np.put_along_axis(kinds, at, token_type, 1)
        in_a, in_b = (real & (column >= begins[i]) & (column < ends[i]) for i in (1, 3))
        text = in_a | in_b
        source = np.where(in_a, a_start - begins[1], b_start - begins[3]) + column
        ids[text] = self.store.take(source[text], rows=2 * len(numbers))
        kinds[in_a], kinds[in_b] = types[1], types[3]
        inside = real & (column < ends[4])
        ids[~inside], kinds[~inside] = self.pad_id, 0
        return RowBatch(
            torch.from_numpy(ids),
            torch.from_numpy(inside.astype(np.int64)),
            torch.from_numpy(np.where(inside, column, 0)),
            self._words(text, source) if self.words else None,
            {
                "token_type_ids": torch.from_numpy(kinds),
                "next_sentence_label": torch.from_numpy(np.where(real, label, IGNORE_INDEX)[:, 0]),
            },
        )

    def _words(self, text: NDArray[np.bool_], source: Integers) -> Tensor:
        starts = np.zeros(text.shape, bool)
        starts[text] = self.store.starts_word(source[text])
        # A trimmed segment may begin inside a word.
        starts[:, 1:] |= text[:, 1:] & ~text[:, :-1]
        starts[:, 0] |= text[:, 0]
        return torch.from_numpy(np.where(text, starts.cumsum(1) - 1, -1))

    def __getstate__(self) -> dict[str, object]:
        # A memory map would be pickled as all that it maps.
        return {**self.__dict__, "plan": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self.plan = np.load(self.path, mmap_mode="r")


def _plan(store: TokenStore, objective: SentenceObjective, room: int) -> Integers:
    starts = np.asarray(store.sentences)
    if len(starts) > _MANY:
        rank_zero_info(f"pairing {len(starts):,} sentences, once")
    bounds = np.append(store.offsets, store.tokens)
    documents = np.searchsorted(starts, bounds)
    ends = np.append(starts[1:], store.tokens)
    filled = np.flatnonzero(np.diff(documents))
    ends[documents[filled + 1] - 1] = bounds[filled + 1] - 1  # the separator is of no sentence
    pairs = plan_pairs(starts, ends - starts, documents, room, objective, seed=_SEED)
    share = float(pairs.label.mean())
    if share > _LOPSIDED:
        rank_zero_warn(
            f"{share:.0%} of the second segments are random ones, because most rows hold one "
            "sentence; raise max_length, make documents of several sentences (document='paragraph' "
            "or 'file'), or use sentence_order"
        )
    return np.stack(pairs)


def _write(path: Path, plan: Integers) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    building = path.with_name(f".building-{uuid4().hex}.npy")
    try:
        np.save(building, plan)
        building.replace(path)
    finally:
        building.unlink(missing_ok=True)
