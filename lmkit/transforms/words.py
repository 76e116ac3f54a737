"""Text as words and the gaps between them, from which the same text comes back."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from itertools import chain
from typing import NamedTuple

__all__ = ["Words", "join_words", "split_words"]


def _marks() -> str:
    """Return the signs inside of words that are no letters: accents, vowel signs, joiners."""
    found = [c for c in map(chr, range(0x300, 0x10000)) if unicodedata.category(c)[0] == "M"]
    return "".join(found) + "\u200c\u200d"


#: `well-known`, `don't`, `3.14`, `12:30`, `1,000`.
_PLAIN = (
    r"(?:[^\W\d_]\.){2,}|\d+(?:[.,:/]\d+)+|LETTER+(?:['\u2019\-]LETTER+)*"
    r"|\.+|[!?]+|-+|[^\w\s]"
)
#: Addresses, names and topics of short messages, and special tokens such as `[MASK]`, `<mask>`.
_RARE = (
    r"(?:[A-Za-z][A-Za-z0-9+.\-]{0,20}://|[wW]{3}\.)\S*[\w/]"
    r"|[\w.+'\-]{1,64}@[\w\-]+(?:\.[\w\-]+)*|[@#]\w+"
    r"|\[[A-Z][A-Z0-9_]*\]|<[|/]?\w+\|?>"
)
_TRIGGERS = re.compile(r"[@#<\[]|://|[wW]{3}\.")

#: What lies between two spaces is remembered up to this length, and so many of them.
_LONGEST, _MOST = 40, 200_000


class Words(NamedTuple):
    """The words of a text and what stands around them.

    Attributes:
        words: words, numbers, addresses, signs.
        gaps: white space before each word, and behind the last one: one more than words.
    """

    words: list[str]
    gaps: list[str]

    def text(self) -> str:
        """Return the text that they make."""
        return join_words(self.words, self.gaps)


def join_words(words: list[str], gaps: list[str]) -> str:
    """Return the text of words and gaps, see `Words`.

    Example:
        >>> join_words(["a", "b"], ["", " ", "."])
        'a b.'
    """
    parts = [""] * (len(words) + len(gaps))
    parts[0::2] = gaps
    parts[1::2] = words
    return "".join(parts)


def split_words(text: str) -> Words:
    """Split a text into words and gaps; `split_words(text).text() == text` for any text.

    A word is a run of letters and digits with their accents, also with an apostrophe or a hyphen
    inside. Numbers, abbreviations of single letters, addresses, `#topics`, `@names` and special
    tokens such as `[MASK]` or `<mask>` are one word. Other signs are words of their own, dots,
    dashes, and marks of exclamation and question in a row one word. Of languages that are written
    without spaces a run of letters is one word.

    Args:
        text: any.

    Raises:
        TypeError: it is no text.

    Example:
        >>> split_words("Don't stop, it's  3.5 km!").words
        ["Don't", 'stop', ',', "it's", '3.5', 'km', '!']
        >>> split_words("Don't stop, it's  3.5 km!").gaps
        ['', ' ', '', ' ', '  ', ' ', '', '']
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a string, got {type(text).__name__}")
    # No word holds a space, so that what lies between two spaces is split once for all texts.
    try:
        words, gaps = zip(*map(_PIECES.__getitem__, text.split(" ")), strict=True)
    except TypeError:
        # A gap of more than one space, or another one than a space beside one.
        parts = _parts(text)
        return Words(parts[1::2], parts[0::2])
    between = list(chain.from_iterable(gaps))
    between[-1] = ""
    return Words(list(chain.from_iterable(words)), ["", *between])


def _parts(text: str) -> list[str]:
    """Return gaps and words in turn."""
    quick, full = _patterns()
    return (full if _TRIGGERS.search(text) else quick).split(text)


@cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Return the pattern of words, and that of all; made at the first text, and not at import."""
    plain = _PLAIN.replace("LETTER", rf"[\w{_marks()}]")
    return re.compile(f"({plain})"), re.compile(f"({_RARE}|{plain})")


class _Pieces(dict[str, tuple[tuple[str, ...], tuple[str, ...]] | None]):
    """Of what lies between spaces its words, and the gap behind each; `None` with gaps outside."""

    def __missing__(self, text: str) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        parts = _parts(text)
        is_plain = len(parts) > 1 and parts[0] == parts[-1] == ""
        found = (tuple(parts[1::2]), (*parts[2:-1:2], " ")) if is_plain else None
        if len(text) <= _LONGEST:
            if len(self) > _MOST:
                self.clear()
            self[text] = found
        return found


_PIECES = _Pieces()
