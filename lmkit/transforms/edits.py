"""What a transform did to a row of words, so that anything that points at words can follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

__all__ = ["OPERATIONS", "Edit", "carry", "compose", "replay", "span_after"]

#: What an edit may be. A `swap` puts another word of the row in place of one.
OPERATIONS = ("substitute", "insert", "delete", "swap")

T = TypeVar("T")


class Edit(NamedTuple):
    """One change: words `start` to `stop` became words `new_start` to `new_stop`.

    Attributes:
        operation: one of `OPERATIONS`.
        start: first word that it takes away.
        stop: word behind the last one; of an insertion equal to `start`, and the new words stand
            before this word.
        new_start: first new word.
        new_stop: word behind the last new one; of a deletion equal to `new_start`.
    """

    operation: str
    start: int
    stop: int
    new_start: int
    new_stop: int


def replay(words: Sequence[T], edits: Sequence[Edit], new_words: Sequence[T]) -> list[T]:
    """Make the changed row again: what no edit names from the first row, the rest from the second.

    Args:
        words: before.
        edits: in the order of the words.
        new_words: after; only what edits name is read.

    Example:
        >>> replay(["a", "b", "c"], [Edit("delete", 1, 2, 1, 1)], [])
        ['a', 'c']
    """
    origins = enumerate(_origins(edits, len(words)))
    return [new_words[place] if done else words[i] for place, (i, done) in origins]


def carry(values: Sequence[T], edits: Sequence[Edit], fill: T) -> list[T]:
    """Return a value for each new word: that of the word where it stayed, else `fill`.

    Example:
        >>> carry([1, 2, 3], [Edit("insert", 1, 1, 1, 2)], 0)
        [1, 0, 2, 3]
    """
    return [fill if done else values[i] for i, done in _origins(edits, len(values))]


def span_after(edits: Sequence[Edit], start: int, stop: int) -> tuple[int, int] | None:
    """Return where a span of words is after the edits; `None` where one of them touches it.

    An insertion before its first word or behind its last one does not touch it, one inside does.

    Args:
        edits: in the order of the words.
        start: first word.
        stop: word behind the last one, greater than `start`.

    Example:
        >>> edits = [Edit("insert", 0, 0, 0, 1), Edit("delete", 4, 5, 5, 5)]
        >>> span_after(edits, 1, 3), span_after(edits, 3, 6)
        ((2, 4), None)
    """
    shift = 0
    for edit in edits:
        if edit.start >= stop:
            break
        if edit.stop > start:
            return None
        shift = edit.new_stop - edit.stop
    return start + shift, stop + shift


def compose(first: Sequence[Edit], second: Sequence[Edit], length: int) -> list[Edit]:
    """Return the edits that do what `first` and then `second` do.

    Args:
        first: from a row of `length` words to one in the middle.
        second: from the middle to the last row.
        length: number of words of the first row.

    Example:
        >>> compose([Edit("insert", 0, 0, 0, 1)], [Edit("delete", 0, 2, 0, 0)], 2)
        [Edit(operation='delete', start=0, stop=1, new_start=0, new_stop=0)]
    """
    if not first or not second:
        return list(second or first)
    middle = _origins(first, length)
    made: list[Edit] = []
    position = 0
    last = _origins(second, len(middle))
    for place, (through, operation) in enumerate(last):
        origin, earlier = middle[through] if through >= 0 else (-1, None)
        done = operation or earlier
        if origin < 0:
            made.append(Edit("insert", position, position, place, place + 1))
            continue
        if origin > position:
            made.append(Edit("delete", position, origin, place, place))
        if done:
            made.append(Edit(done, origin, origin + 1, place, place + 1))
        position = origin + 1
    if position < length:
        made.append(Edit("delete", position, length, len(last), len(last)))
    return made


def _origins(edits: Sequence[Edit], length: int) -> list[tuple[int, str | None]]:
    """Return of each new word the old one in its place, -1 for none, and what was done to it."""
    made: list[tuple[int, str | None]] = []
    position = 0
    for operation, start, stop, new_start, new_stop in edits:
        made += [(i, None) for i in range(position, start)]
        places = range(start, start + new_stop - new_start)
        made += [(i if i < stop else -1, operation) for i in places]
        position = stop
    made += [(i, None) for i in range(position, length)]
    return made
