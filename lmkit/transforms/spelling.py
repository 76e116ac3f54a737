"""Words misspelt as people misspell them."""

from __future__ import annotations

import re
from functools import cached_property

import numpy as np

from .arguments import check_rate, check_table
from .base import WordTransform
from .candidates import Candidates
from .changes import Change
from .random_words import choose
from .spelling_table import MISSPELLINGS

__all__ = ["SpellingErrors", "misspell"]

_DOUBLED = re.compile(r"([bcdfglmnprstz])\1")
_ENDINGS = (
    ("able", "ible"),
    ("ible", "able"),
    ("ance", "ence"),
    ("ence", "ance"),
    ("ant", "ent"),
    ("ent", "ant"),
    ("or", "er"),
)
_INSIDE = (("ie", "ei"), ("ei", "ie"), ("ph", "f"), ("sc", "s"), ("wh", "w"), ("mb", "m"))


def misspell(word: str) -> list[str]:
    """Return misspellings of an English word by rules, sorted.

    A doubled letter is written once, `ie` as `ei`, `ph` as `f`, `-able` as `-ible` and so on, one
    at a time.

    Args:
        word: in small letters; of fewer than five letters there are none.

    Example:
        >>> misspell("possible"), misspell("cat")
        (['posible', 'possable'], [])
    """
    if len(word) < 5 or not word.isalpha():
        return []
    found = {word[: m.start()] + word[m.start() + 1 :] for m in _DOUBLED.finditer(word)}
    for right, wrong in _INSIDE:
        found.update(word[: m.start()] + wrong + word[m.end() :] for m in re.finditer(right, word))
    found.update(word[: -len(a)] + b for a, b in _ENDINGS if word.endswith(a))
    return sorted(found)


class SpellingErrors(WordTransform):
    """Replaces words by common misspellings of them.

    From a table of some 300 English words and their misspellings, and for other words by rules.

    Args:
        rate: of a word that may be changed and has a misspelling, in `[0, 1]`.
        rules: whether words outside the table are misspelt by rules.
        table: more words, in small letters, with their misspellings; goes before the built-in one.

    Raises:
        ValueError: the rate lies outside its range, or the table does not hold words with lists of
            words.

    Example:
        >>> SpellingErrors(rate=1.0)(["They", "receive"], None, np.random.default_rng(0)).words
        ['Thay', 'recieve']
    """

    def __init__(
        self, rate: float = 0.1, rules: bool = True, table: dict[str, list[str]] | None = None
    ) -> None:
        check_rate("rate", rate)
        check_table("table", table or {})
        self.rate, self.rules, self.table = rate, rules, table

    @cached_property
    def _candidates(self) -> Candidates:
        known = {**MISSPELLINGS, **(self.table or {})}
        rules = self.rules
        return Candidates(lambda word: known.get(word) or (misspell(word) if rules else []))

    def changes(
        self,
        words: list[str],
        free: list[int],
        rng: np.random.Generator,
        strength: float,
        groups: list[int] | None,
    ) -> list[Change]:
        """Draw words, and a misspelling of each."""
        table = self._candidates
        made = []
        for place, share in zip(*choose(self.rate * strength, free, rng), strict=True):
            if found := table[words[place]]:
                new = found[int(share * len(found))]
                made.append(Change("substitute", place, place + 1, [new]))
        return made
