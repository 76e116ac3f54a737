"""What a transform wants to change, before it is done to words and labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .edits import Edit

__all__ = ["Change", "perform"]


class Change(NamedTuple):
    """Words to be put in place of words `start` to `stop`.

    Attributes:
        operation: one of `OPERATIONS`.
        start: first word that goes.
        stop: word behind the last one that goes; of an insertion equal to `start`.
        words: what comes.
        origins: of each word that comes the word that it was made from; may be left out where each
            takes the place of one.
    """

    operation: str
    start: int
    stop: int
    words: list[str]
    origins: Sequence[int] = ()


def perform(words: list[str], changes: Sequence[Change]) -> tuple[list[str], list[Edit]]:
    """Return the changed row and what was done to it.

    Args:
        words: one or more.
        changes: in the order of the words; they do not overlap.

    Example:
        >>> perform(["a", "b"], [Change("substitute", 1, 2, ["c"])])
        (['a', 'c'], [Edit(operation='substitute', start=1, stop=2, new_start=1, new_stop=2)])
    """
    made: list[str] = []
    edits: list[Edit] = []
    position = 0
    for operation, start, stop, new, _ in changes:
        made += words[position:start]
        first = len(made)
        made += new
        edits.append(Edit(operation, start, stop, first, len(made)))
        position = stop
    made += words[position:]
    return made, edits
