"""What reading any text shares: the document, the bad row, and the column that holds the text."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

__all__ = ["BadRows", "Document", "OnBadRow", "Text", "guess_column", "text_batches"]

log = logging.getLogger("lmkit")

Document = Literal["line", "paragraph", "file"]
OnBadRow = Literal["error", "skip"]

_USUAL_COLUMNS = ("text", "sentence", "content")
# One call of the tokenizer: enough documents to feed its threads, few enough to stay small.
_DOCUMENTS = 1000
_CHARACTERS = 1 << 20


class Text(NamedTuple):
    """A document, or a piece of a long one.

    Attributes:
        text: the characters.
        file: where it stands.
        line: its first line there, from 1 (the row number for parquet and `datasets`).
        ends: whether the document ends here.
    """

    text: str
    file: str
    line: int
    ends: bool = True


@dataclass
class BadRows:
    """What to do with a row that cannot be read: raise, or count, skip and say so once.

    Attributes:
        policy: `error` or `skip`.
        count: rows skipped so far.
        first: the message about the first of them.
    """

    policy: OnBadRow = "error"
    count: int = 0
    first: str = field(default="", repr=False)

    def __call__(self, file: str | Path, line: int, fault: str, remedy: str) -> None:
        """Report the row at `file`, `line`; raises `ValueError` unless rows are skipped."""
        message = f"{file}, line {line}: {fault}"
        if self.policy == "error":
            end = "" if message.endswith("?") else "."
            raise ValueError(f"{message}{end} {remedy}, or pass on_bad_row='skip'")
        self.count += 1
        self.first = self.first or message

    def report(self) -> None:
        """Log how many rows were skipped, once, and start counting again."""
        if self.count:
            log.warning("skipped %d bad rows; the first: %s", self.count, self.first)
        self.count, self.first = 0, ""


def guess_column(columns: Sequence[str], wanted: str | None, place: str) -> str:
    """Return the text column: the wanted one, a usual name, or the only one there is.

    Args:
        columns: names of the columns that hold strings.
        wanted: the name given by the user, if any.
        place: file or data set, for the error.

    Raises:
        ValueError: there is no such column, or none is obvious; names those found.

    Example:
        >>> guess_column(["id", "sentence"], None, "reviews.csv")
        'sentence'
    """
    found = ", ".join(repr(column) for column in columns) or "none"
    if wanted is not None:
        if wanted in columns:
            return wanted
        match = difflib.get_close_matches(wanted, columns, n=1)
        hint = f"; did you mean {match[0]!r}?" if match else ""
        raise ValueError(f"{place}: no text column {wanted!r}; text columns: {found}{hint}")
    for usual in _USUAL_COLUMNS:
        for column in columns:
            if column.lower() == usual:
                return column
    if len(columns) == 1:
        return columns[0]
    raise ValueError(f"{place}: which column is the text? Pass text_column; text columns: {found}")


def text_batches(texts: Iterable[Text]) -> Iterator[list[Text]]:
    """Yield the texts in lists for one call of the tokenizer each; none is read ahead."""
    batch: list[Text] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text.text)
        if len(batch) >= _DOCUMENTS or size >= _CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
