"""Sentences of words as rows of tokens: windows of those that are too long for one row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from .special import require_pad_token, special_affixes
from .word_pieces import PiecedWords

__all__ = ["LaidWords", "WordLayout", "WordWindow", "cut_windows"]

# Share of a window that it has in common with the next one, so that no word is without company.
_OVERLAP = 4


class WordWindow(NamedTuple):
    """A stretch of a sentence's tokens.

    Attributes:
        first: its first token.
        last: the token behind its last one.
        own_first: the first token of the words that are its own.
        own_last: the token behind them.
    """

    first: int
    last: int
    own_first: int
    own_last: int


class LaidWords(NamedTuple):
    """Sentences as rows.

    Attributes:
        input_ids: int64 `[B, L]`, or `[B, K, L]` where a sentence has several windows.
        attention_mask: of the same shape, 1 = token; a row without any keeps one. Windows that a
            sentence does not have are 0.
        positions: int64 `[B, W]`, where in its row, with windows laid end to end, the first token
            of each word stands; -1 for a word that has none, and behind a sentence's end.
    """

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    positions: NDArray[np.int64]


def cut_windows(starts: NDArray[np.int64], total: int, room: int) -> list[WordWindow]:
    """Cut a sentence into windows of whole words, which share a quarter of a window.

    Each word belongs to exactly one window, the one in which it is farther from the border; in the
    other it is there to be looked at.

    Args:
        starts: int64 `[W]` of `PiecedWords`.
        total: number of tokens.
        room: tokens in a window; no word has more.

    Example:
        >>> cut_windows(np.arange(10), 10, 8)
        [WordWindow(first=0, last=8, own_first=0, own_last=7),
         WordWindow(first=6, last=10, own_first=7, own_last=10)]
    """
    begins = starts[starts >= 0]
    # A place where a window may begin or end.
    edges = np.append(begins, total)
    windows: list[WordWindow] = []
    first, own = 0, 0
    while True:
        last = int(edges[np.searchsorted(edges, first + room, "right") - 1])
        if last >= total:
            return [*windows, WordWindow(first, total, own, total)]
        behind = int(edges[np.searchsorted(edges, last, "right")])
        # The next one begins as early as it may, and still has room for the word behind this one.
        earliest = max(last - room // _OVERLAP, behind - room)
        following = int(edges[np.searchsorted(edges, earliest)])
        middle = int(edges[np.searchsorted(edges, (following + last) // 2)])
        windows.append(WordWindow(first, last, own, middle))
        first, own = following, middle


@dataclass(frozen=True)
class WordLayout:
    """How sentences are laid out as rows of at most `max_length` tokens.

    Attributes:
        prefix: ids before the tokens of a row.
        suffix: ids behind them.
        pad_id: id of the padding.
        max_length: tokens of a row.
    """

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    pad_id: int
    max_length: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, max_length: int) -> WordLayout:
        """Return the layout of a tokenizer.

        Raises:
            ValueError: it has no padding, or its special tokens alone fill a row.
        """
        prefix, suffix = special_affixes(tokenizer)
        if max_length <= len(prefix) + len(suffix):
            raise ValueError(
                f"max_length is {max_length}, which the {len(prefix) + len(suffix)} special tokens "
                "of a row fill; raise it"
            )
        return cls(tuple(prefix), tuple(suffix), require_pad_token(tokenizer), max_length)

    @property
    def room(self) -> int:
        """Tokens of a row that are not special."""
        return self.max_length - len(self.prefix) - len(self.suffix)

    def limited(self, words: PiecedWords) -> tuple[PiecedWords, bool]:
        """Return the words, each of so many first tokens as a row has room for, and if one is cut.

        Args:
            words: a sentence.
        """
        begins = words.starts[words.starts >= 0]
        sizes = np.diff(begins, append=len(words.ids))
        if not (sizes > self.room).any():
            return words, False
        inside = np.arange(len(words.ids)) - np.repeat(begins, sizes)
        starts = words.starts.copy()
        kept = np.minimum(sizes, self.room)
        starts[starts >= 0] = kept.cumsum() - kept
        return PiecedWords(words.ids[inside < self.room], starts), True

    def row(self, ids: Sequence[int]) -> list[int]:
        """Return tokens with the special ones around them."""
        return [*self.prefix, *ids, *self.suffix]

    def lay(self, sentences: Sequence[PiecedWords]) -> LaidWords:
        """Lay out some sentences; one without tokens is a row of special tokens.

        Args:
            sentences: whose words have room in a row each; see `limited`.
        """
        windows = [cut_windows(words.starts, len(words.ids), self.room) for words in sentences]
        most = max(map(len, windows), default=1)
        affixes = len(self.prefix) + len(self.suffix)
        longest = max((w.last - w.first for row in windows for w in row), default=0)
        width = max(1, longest + affixes)
        ids = np.full((len(sentences), most, width), self.pad_id, np.int64)
        mask = np.zeros_like(ids)
        # What attends to nothing makes NaN in some attention kernels.
        mask[:, 0, 0] = 1
        count = max((len(words.starts) for words in sentences), default=0)
        positions = np.full((len(sentences), count), -1, np.int64)
        for row, (words, cut) in enumerate(zip(sentences, windows, strict=True)):
            for number, window in enumerate(cut):
                made = self.row(words.ids[window.first : window.last].tolist())
                ids[row, number, : len(made)] = made
                mask[row, number, : len(made)] = 1
                own = (words.starts >= window.own_first) & (words.starts < window.own_last)
                shift = number * width + len(self.prefix) - window.first
                positions[row, : len(own)][own] = words.starts[own] + shift
        if most == 1:
            ids, mask = ids[:, 0], mask[:, 0]
        return LaidWords(ids, mask, positions)
