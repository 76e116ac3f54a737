"""Where sentences begin in a text, by a rule that needs no model and no list of words."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

__all__ = ["sentence_starts"]

_LINE = re.compile(r"^[^\S\n]*(?=\S)", re.MULTILINE)
# Full stops, with closing quotes and brackets behind them; and those of Chinese and Japanese, which
# no space follows.
_CLOSING = r"[\"'\u201D\u2019\u00BB\u300D\u300F)\]]*"
_STOP = re.compile(rf"[.!?\u2026]{_CLOSING}\s+|[\u3002\uFF01\uFF1F]{_CLOSING}\s*")
_OPENING = "\"'\u201c\u2018\u00ab([\u201e\u300c\u300e\u00bf\u00a1"


def sentence_starts(text: str) -> NDArray[np.int64]:
    r"""Return the characters at which the sentences of a document begin, the first one included.

    A sentence ends with its line, so that a text of one sentence a line is cut as it should be, and
    inside a line, which may be a paragraph, at `.`, `!`, `?` or `…`, with the quotes and brackets
    that close behind it, if a space follows and then a capital, a digit, an opening quote or
    bracket, or a letter of a script without capitals; and at the full-width stops of Chinese and
    Japanese. "Dr. Smith" is cut wrongly; segments of whole sentences bear that.

    Args:
        text: a document.

    Returns:
        int64, rising; empty for a blank text.

    Example:
        >>> sentence_starts("One sentence. Another one, no. 5 of them?").tolist()
        [0, 14, 31]
        >>> sentence_starts("a heading\n\nA line. It has two.\n").tolist()
        [0, 11, 19]
    """
    lines = [match.end() for match in _LINE.finditer(text)]
    stops = (match.end() for match in _STOP.finditer(text))
    inner = (at for at in stops if at < len(text) and _opens(text[at]))
    return np.array(sorted({*lines, *inner}), np.int64)


def _opens(letter: str) -> bool:
    caseless = letter.isalpha() and letter.lower() == letter.upper()
    return letter.isupper() or letter.isdigit() or letter in _OPENING or caseless
