"""Words, or words in a row, hidden behind one token."""

from __future__ import annotations

import numpy as np

from .arguments import check_rate, check_whole
from .base import WordTransform
from .changes import Change
from .random_words import choose, count_for

__all__ = ["SpanMasking", "TokenDropout"]


class TokenDropout(WordTransform):
    """Replaces each word with a probability by the mask token or another word.

    As word dropout (arXiv:1511.06349); labels stay.

    Args:
        replacement: the text of the tokenizer's mask or unknown token, such as `[MASK]`.
        rate: of a word that may be changed, in `[0, 1]`.

    Raises:
        ValueError: the rate lies outside its range, or the replacement is empty or not one word.

    Example:
        >>> TokenDropout("[MASK]", 1.0)(["a", "b"], None, np.random.default_rng(0)).words
        ['[MASK]', '[MASK]']
    """

    def __init__(self, replacement: str, rate: float = 0.1) -> None:
        _check_replacement(replacement)
        check_rate("rate", rate)
        self.replacement, self.rate = replacement, rate

    def changes(
        self,
        words: list[str],
        free: list[int],
        rng: np.random.Generator,
        strength: float,
        groups: list[int] | None,
    ) -> list[Change]:
        """Draw which words are hidden."""
        new = self.replacement
        chosen, _ = choose(self.rate * strength, free, rng)
        return [Change("substitute", p, p + 1, [new]) for p in chosen if words[p] != new]


class SpanMasking(WordTransform):
    r"""Hides words in a row, until $\max(1, \lfloor \alpha L \rfloor)$ words are hidden.

    The length of a span is drawn as in SpanBERT (arXiv:1907.10529): geometric with the mean
    $1 / p$, cut at the longest, and it begins at any word. Each word of it becomes the replacement,
    so labels stay. A span ends at a protected word and at one that is hidden already.

    Args:
        replacement: the text of the tokenizer's mask or unknown token, such as `[MASK]`.
        alpha: in `[0, 1]`; 0 for never.
        mean_length: $1 / p$, in words, at least 1; before the cut.
        longest: in words, at least 1.

    Raises:
        ValueError: a number lies outside its range, or the replacement is empty or not one word.

    Example:
        >>> row = SpanMasking("_", 0.5)(["a", "b", "c", "d"], None, np.random.default_rng(0)).words
        >>> row.count("_")
        2
    """

    def __init__(
        self, replacement: str, alpha: float = 0.15, mean_length: float = 5.0, longest: int = 10
    ) -> None:
        _check_replacement(replacement)
        check_rate("alpha", alpha)
        check_whole("longest", longest, 1)
        if not 1.0 <= mean_length < float("inf"):
            raise ValueError(f"mean_length must be at least 1, got {mean_length}")
        self.replacement, self.alpha = replacement, alpha
        self.mean_length, self.longest = mean_length, longest

    def changes(
        self,
        words: list[str],
        free: list[int],
        rng: np.random.Generator,
        strength: float,
        groups: list[int] | None,
    ) -> list[Change]:
        """Draw where spans begin, and how long they are."""
        left = count_for(self.alpha, len(free), strength, rng)
        able, hidden = set(free), set[int]()
        while left and len(hidden) < len(free):
            start = free[int(rng.random() * len(free))]
            if start in hidden:
                continue  # any of those that are left is as likely as another
            length = min(int(rng.geometric(1 / self.mean_length)), self.longest, left)
            for place in range(start, start + length):
                if place not in able or place in hidden:
                    break
                hidden.add(place)
                left -= 1
        new = self.replacement
        return [Change("substitute", p, p + 1, [new]) for p in sorted(hidden) if words[p] != new]


def _check_replacement(value: object) -> None:
    if not isinstance(value, str) or len(value.split()) != 1 or value != value.strip():
        raise ValueError(
            f"replacement must be one word, such as the tokenizer's mask token '[MASK]': {value!r}"
        )
