"""Some documents of a stream, tokenized, in memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["TextWindow"]


class TextWindow:
    """Documents in memory, with what `TokenStore` offers: each closed by its separator.

    Attributes:
        ids: int64 `[tokens]`.
        offsets: int64 `[documents]`, where each begins.
        documents: how many there are.
        tokens: how many there are, separators included.
        has_words: false: a stream does not know where words begin.
    """

    has_words = False

    def __init__(self, encoded: list[list[int]], separator: int) -> None:
        lengths = np.array([len(ids) + 1 for ids in encoded], np.int64)
        self.documents, self.tokens = len(encoded), int(lengths.sum())
        self.offsets = lengths.cumsum() - lengths
        self.ids = np.full(self.tokens, separator, np.int64)
        text = np.ones(self.tokens, bool)
        text[self.offsets + lengths - 1] = False
        self.ids[text] = np.fromiter((i for ids in encoded for i in ids), np.int64)

    def take(self, places: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
        """Return the ids at `places`."""
        return self.ids[places]

    def starts_word(self, places: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Raise `ValueError`: a stream does not know where words begin."""
        raise ValueError("a stream knows no words; pass masking='token', or streaming=False")
