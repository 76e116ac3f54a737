"""Letters mistyped, misread, doubled, left out and swapped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from .arguments import check_one_of, check_rate, check_whole
from .base import WordTransform
from .candidates import match_case
from .changes import Change
from .random_words import choose

__all__ = ["KINDS", "LAYOUTS", "CharacterNoise", "neighbours"]

KINDS = ("keyboard", "ocr", "swap", "drop", "insert", "case")

#: Rows of letters, each half a key to the right of the one above.
LAYOUTS = {
    "qwerty": ("qwertyuiop", "asdfghjkl", "zxcvbnm"),
    "qwertz": ("qwertzuiop", "asdfghjkl", "yxcvbnm"),
    "azerty": ("azertyuiop", "qsdfghjklm", "wxcvbn"),
}

#: What is read in place of what, in both directions.
_ALIKE = "o0 O0 l1 I1 lI i1 s5 S5 z2 Z2 b6 B8 g9 q9 g6 G6 t7 T7 a4 A4 e3 ce uv vu hb nu mn B3 D0 QO"
_ALIKE_LONG = (("m", "rn"), ("w", "vv"), ("d", "cl"), ("k", "lc"), ("h", "li"))
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def neighbours(layout: str = "qwerty") -> dict[str, str]:
    """Return the letters whose keys touch that of each letter, sorted.

    Example:
        >>> neighbours()["a"], neighbours("azerty")["a"]
        ('qswz', 'qz')
    """
    check_one_of("layout", layout, list(LAYOUTS))
    # Twice the place of a key, so that half a key is whole.
    keys = {
        letter: (row, 2 * place + row)
        for row, letters in enumerate(LAYOUTS[layout])
        for place, letter in enumerate(letters)
    }

    def touch(one: tuple[int, int], other: tuple[int, int]) -> bool:
        rows, across = abs(one[0] - other[0]), abs(one[1] - other[1])
        return (rows == 0 and across == 2) or (rows == 1 and across <= 1)

    return {
        letter: "".join(sorted(other for other in keys if touch(keys[letter], keys[other])))
        for letter in keys
    }


def _misreadings() -> dict[str, list[str]]:
    made: dict[str, set[str]] = {}
    for one, other in [*_ALIKE.split(), *_ALIKE_LONG]:
        made.setdefault(one, set()).add(other)
        if len(other) == 1:
            made.setdefault(other, set()).add(one)
    return {letter: sorted(found) for letter, found in made.items()}


class CharacterNoise(WordTransform):
    r"""Puts mistakes into words.

    Each word gets some with probability `rate`: $\max(1, \lfloor c\, l \rfloor)$ of its $l$
    letters, each of a kind drawn from those that the word allows:

    - `keyboard`: the letter of a neighbouring key;
    - `ocr`: what a letter or digit looks like, such as `0` for `o` or `rn` for `m`;
    - `swap`: a letter and the next one, if they differ;
    - `drop`: a letter goes, the last one never;
    - `insert`: any letter comes;
    - `case`: a capital becomes small, a small letter a capital.

    Mistakes in inputs make a network that was trained on clean text much worse; training with them
    makes it robust (arXiv:1711.02173).

    Args:
        kinds: one or more of `KINDS`.
        rate: of a word that may be changed, in `[0, 1]`.
        character_rate: $c$, in `[0, 1]`.
        shortest: words with fewer letters are left alone; at least 1.
        keep_first: whether the first letter stays, which people seldom get wrong.
        layout: of the keyboard, one of `LAYOUTS`.

    Raises:
        ValueError: there is no kind, or an unknown one, or a number lies outside its range.
        TypeError: `kinds` is a single string.

    Example:
        >>> CharacterNoise(["swap"], rate=1.0)(["to"], None, np.random.default_rng(0)).words
        ['ot']
    """

    def __init__(
        self,
        kinds: Sequence[str] = ("keyboard", "swap", "drop", "insert"),
        rate: float = 0.1,
        character_rate: float = 0.1,
        shortest: int = 2,
        keep_first: bool = False,
        layout: str = "qwerty",
    ) -> None:
        if isinstance(kinds, str):
            raise TypeError(f"kinds must be a list of strings, got the string {kinds!r}")
        self.kinds = list(kinds)
        if not self.kinds:
            raise ValueError(f"kinds must name at least one of {', '.join(KINDS)}")
        for kind in self.kinds:
            check_one_of("kinds", kind, KINDS)
        check_rate("rate", rate)
        check_rate("character_rate", character_rate)
        check_whole("shortest", shortest, 1)
        check_one_of("layout", layout, list(LAYOUTS))
        self.rate, self.character_rate, self.shortest = rate, character_rate, shortest
        self.keep_first, self.layout = keep_first, layout

    @cached_property
    def _makers(self) -> list[Callable[[str, int, float, float], str]]:
        keys = neighbours(self.layout)
        alike = _misreadings()

        def place_of(found: list[int], drawn: float) -> int:
            return found[int(drawn * len(found))]

        def keyboard(word: str, first: int, where: float, what: float) -> str:
            found = [i for i in range(first, len(word)) if word[i].lower() in keys]
            if not found:
                return word
            i = place_of(found, where)
            near = keys[word[i].lower()]
            return word[:i] + match_case(near[int(what * len(near))], word[i]) + word[i + 1 :]

        def ocr(word: str, first: int, where: float, what: float) -> str:
            found = [i for i in range(first, len(word)) if word[i] in alike]
            if not found:
                return word
            i = place_of(found, where)
            near = alike[word[i]]
            return word[:i] + near[int(what * len(near))] + word[i + 1 :]

        def swap(word: str, first: int, where: float, what: float) -> str:
            found = [i for i in range(first, len(word) - 1) if word[i] != word[i + 1]]
            if not found:
                return word
            i = place_of(found, where)
            return word[:i] + word[i + 1] + word[i] + word[i + 2 :]

        def drop(word: str, first: int, where: float, what: float) -> str:
            if len(word) <= max(first, 1):
                return word
            i = first + int(where * (len(word) - first))
            return word[:i] + word[i + 1 :]

        def insert(word: str, first: int, where: float, what: float) -> str:
            i = first + int(where * (len(word) + 1 - first))
            new = match_case(_LETTERS[int(what * 26)], "XX" if word.isupper() else "x")
            return word[:i] + new + word[i:]

        def case(word: str, first: int, where: float, what: float) -> str:
            found = [i for i in range(first, len(word)) if len(word[i].swapcase()) == 1]
            found = [i for i in found if word[i].swapcase() != word[i]]
            if not found:
                return word
            i = place_of(found, where)
            return word[:i] + word[i].swapcase() + word[i + 1 :]

        known = {f.__name__: f for f in (keyboard, ocr, swap, drop, insert, case)}
        return [known[kind] for kind in self.kinds]

    def changes(
        self,
        words: list[str],
        free: list[int],
        rng: np.random.Generator,
        strength: float,
        groups: list[int] | None,
    ) -> list[Change]:
        """Draw words, and mistakes for each."""
        chosen, _ = choose(self.rate * strength, free, rng)
        chosen = [place for place in chosen if len(words[place]) >= self.shortest]
        if not chosen:
            return []
        counts = [int(self.character_rate * len(words[place])) or 1 for place in chosen]
        numbers = iter(rng.random((sum(counts), 3)).tolist())
        made = []
        for place, count in zip(chosen, counts, strict=True):
            word = words[place]
            for _ in range(count):
                word = self._mistake(word, *next(numbers))
            if word != words[place]:
                made.append(Change("substitute", place, place + 1, [word]))
        return made

    def _mistake(self, word: str, kind: float, where: float, what: float) -> str:
        """Return a word with one more mistake, of the first kind that is possible."""
        makers, first = self._makers, int(self.keep_first)
        start = int(kind * len(makers))
        for turn in range(len(makers)):
            made = makers[(start + turn) % len(makers)](word, first, where, what)
            if made != word:
                return made
        return word
