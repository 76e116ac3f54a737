"""What may take the place of a word, found once for each word, in the case of its letters."""

from __future__ import annotations

from collections.abc import Callable, Iterable

__all__ = ["Candidates", "match_case"]

#: Words that are kept; with more, all are forgotten.
_MOST = 200_000


def match_case(new: str, old: str) -> str:
    """Return a word with the capitals of another one.

    Example:
        >>> match_case("film", "Movie"), match_case("film", "MOVIE"), match_case("film", "movie")
        ('Film', 'FILM', 'film')
    """
    if old.islower():
        return new
    if len(old) > 1 and old.isupper():
        return new.upper()
    return new[:1].upper() + new[1:] if old[:1].isupper() else new


class Candidates(dict[str, list[str]]):
    """A table from words to candidates, which asks for what it does not know yet.

    Args:
        find: returns the candidates of a word in small letters; their order is kept.

    Example:
        >>> Candidates(lambda word: [word + "s"])["Car"]
        ['Cars']
    """

    def __init__(self, find: Callable[[str], Iterable[str]]) -> None:
        super().__init__()
        self.find = find

    def __missing__(self, word: str) -> list[str]:
        if len(self) > _MOST:
            self.clear()
        low = word.lower()
        if low == word:
            found = [new for new in self.find(word) if new != word]
        else:
            found = [new for new in (match_case(n, word) for n in self[low]) if new != word]
        self[word] = found
        return found
