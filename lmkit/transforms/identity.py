"""The same text about somebody else: words of gender, pronouns and names exchanged."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from .arguments import check_rate
from .base import WordTransform
from .candidates import match_case
from .changes import Change
from .identity_table import AFTER_OBJECT, GENDERED, NAMES, ONE_WAY

__all__ = ["IdentitySwap"]


class IdentitySwap(WordTransform):
    """Exchanges all words of identity of a row at once (counterfactual data augmentation).

    Of each pair both words become the other (arXiv:1807.11714): he and she, king and queen, James
    and Mary. `her` becomes `his` before what it may belong to, else `him`; `his` becomes `her` or
    `hers`; what is behind an apostrophe stays. The words are those of English.

    Names are words with a capital, which `Protection` protects by default where a sentence does not
    begin: swap them under `Protection(names=False)`. A name that stays in one place, or whose
    other name does, stays in all.

    Args:
        probability: of a row, in `[0, 1]`; multiplied by the strength.
        gender: whether words of gender and pronouns are exchanged.
        names: whether first names are exchanged, with those that are about as frequent.
        pairs: more words, `[[one, other], ...]`, such as names of religions or places; with
            capitals they are told from the same word in small letters.

    Raises:
        ValueError: the probability lies outside its range, a pair has not two words, or a word is
            in two pairs.

    Example:
        >>> swap = IdentitySwap(probability=1.0)
        >>> swap("She gave him her book , James 's .".split(), None, np.random.default_rng(0)).words
        ['He', 'gave', 'her', 'his', 'book', ',', 'Mary', "'s", '.']
    """

    def __init__(
        self,
        probability: float = 0.5,
        gender: bool = True,
        names: bool = True,
        pairs: Sequence[Sequence[str]] = (),
    ) -> None:
        check_rate("probability", probability)
        self.probability, self.gender, self.names = probability, gender, names
        self.pairs = [list(pair) for pair in pairs]
        seen: set[str] = set()
        for pair in self.pairs:
            if len(pair) != 2 or not all(isinstance(w, str) and len(w.split()) == 1 for w in pair):
                raise ValueError(f"pairs must have two words each, got {pair}")
            if twice := sorted(seen & set(pair)) or (pair[:1] if pair[0] == pair[1] else []):
                raise ValueError(f"pairs: {twice[0]!r} stands in two places")
            seen.update(pair)

    @cached_property
    def _table(self) -> dict[str, str]:
        pairs = [*(GENDERED if self.gender else []), *(NAMES if self.names else [])]
        made = {one: other for pair in pairs for one, other in (pair, pair[::-1])}
        if self.gender:
            made.update(ONE_WAY)
            made.update({"him": "her", "hers": "his"})
        made.update({a: b for p in self.pairs for a, b in ((p[0], p[1]), (p[1], p[0]))})
        return made

    def changes(
        self,
        words: list[str],
        free: list[int],
        rng: np.random.Generator,
        strength: float,
        groups: list[int] | None,
    ) -> list[Change]:
        """Draw whether the row is changed."""
        if rng.random() >= self.probability * strength:
            return []
        made = []
        stay = self._names_that_stay(words, free)
        for place in free:
            new = None if _name_of(words[place]) in stay else self._other(words, place)
            if new is not None and new != words[place]:
                made.append(Change("substitute", place, place + 1, [new]))
        return made

    def _names_that_stay(self, words: list[str], free: list[int]) -> set[str]:
        if not self.names or len(free) == len(words):
            return set()
        fixed = {_name_of(words[place]) for place in set(range(len(words))) - set(free)}
        return {name for pair in NAMES if not fixed.isdisjoint(pair) for name in pair}

    def _other(self, words: list[str], place: int) -> str | None:
        table, word = self._table, words[place]
        low = word.lower()
        behind = words[place + 1][:1] if place + 1 < len(words) else ""
        if self.gender and low == "miss" and word != low and behind.isupper() and low not in table:
            return match_case("mr", word)  # a title before a name; else it is a verb
        if self.gender and low in ("her", "his") and low not in table:
            alone = place + 1 == len(words) or not words[place + 1][:1].isalnum()
            alone = alone or words[place + 1].lower() in AFTER_OBJECT
            if low == "her":
                return match_case("him" if alone else "his", word)
            return match_case("hers" if alone else "her", word)
        for known in (word, low):
            if known in table:
                return table[known] if known == word else match_case(table[known], word)
        sign = next((sign for sign in ("'", "\u2019") if sign in word), "")
        if sign and word[0] not in "'\u2019":
            head, _, tail = word.partition(sign)
            other = self._other([head], 0)
            return None if other is None else other + sign + tail
        return None


def _name_of(word: str) -> str:
    """Return a word without what is behind an apostrophe."""
    return word.replace("\u2019", "'").partition("'")[0]
