"""The white space of a changed text."""

from __future__ import annotations

from collections.abc import Sequence

from .edits import Edit

__all__ = ["gaps_after"]


def gaps_after(
    words: list[str], gaps: list[str], new_words: list[str], edits: Sequence[Edit]
) -> list[str]:
    """Return what stands around the changed words.

    A word that takes another's place keeps the gaps of that one. A new word gets a space, on the
    side on which it would touch a word. Of the two gaps around a word that goes one is left: the
    outer one at the ends of a text, none beside punctuation that had none, else a line break.

    Args:
        words: before.
        gaps: before, one more than words.
        new_words: after.
        edits: what was done.

    Example:
        >>> gaps_after(["a", "b", "c"], ["", " ", "  ", "."], ["a", "c"],
        ...     [Edit("delete", 1, 2, 1, 1)])
        ['', ' ', '.']
    """
    if all(stop - start == after - first for _, start, stop, first, after in edits):
        return gaps
    left = list(gaps)
    made: list[str] = []
    position = 0
    for _, start, stop, new_start, new_stop in edits:
        kept = start + min(stop - start, new_stop - new_start)
        made += left[position:kept]
        position = kept
        last_new = new_start + kept - start - 1
        before = new_words[last_new : last_new + 1] if made else []
        if kept < stop:
            last = words[stop : stop + 1]
            left[stop] = _merged(left[kept], left[stop], before, last)
            position = stop
        for place in range(new_start + kept - start, new_stop):
            gap = left[position]
            if not made and not gap:
                made.append("")
                left[position] = " "
            elif gap and position < len(words):
                made.append(gap)
                left[position] = " "
            else:
                made.append(" " if made and _is_word(new_words[place - 1], -1) else "")
                after = position < len(words) and _is_word(words[position], 0)
                left[position] = " " if after else gap
    return made + left[position:]


def _merged(left: str, right: str, before: list[str], after: list[str]) -> str:
    """Return the gap that is left of two."""
    if not before:
        return left
    if not after:
        return right
    if left and right:
        return right if "\n" in right and "\n" not in left else left
    if _is_word(before[0], -1) and _is_word(after[0], 0):
        return left or right or " "
    return ""


def _is_word(word: str, end: int) -> bool:
    return word[end : end + 1 or None].isalnum()
