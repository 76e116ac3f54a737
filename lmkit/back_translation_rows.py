"""The rows of a back-translation: read with their text column, and written with new texts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from .back_translation_filter import Made
from .datamodules.source import FileSource, TextOptions
from .datamodules.table_files import Record, file_format, read_records
from .datamodules.text_rows import guess_column

__all__ = ["read_rows", "row_lines"]

_ADDED = ("source_index", "similarity")
_HALF = re.compile("[\ud800-\udfff]")


def read_rows(
    files: Sequence[Path], text_column: str | None, encoding: str
) -> tuple[list[Record], str]:
    """Return the rows of files, and the column of their texts.

    Raises:
        ValueError: a file is empty or broken, no column is the text's or it holds no strings, or
            there are columns already that are to be added; names file and line.
    """
    rows: list[Record] = []
    column = text_column
    for path in files:
        if file_format(path) in (None, "txt"):
            options = TextOptions(encoding=encoding)
            read = [
                Record({"text": text.text}, text.file, text.line)
                for text in FileSource((path,), options).texts()
            ]
        else:
            read = list(read_records(path, encoding=encoding))
        for record in read:
            columns = list(record.values)
            place = f"{record.file}, line {record.line}"
            if column is None or column not in columns:
                column = guess_column(columns, column, place)
            if not isinstance(record.values[column], str):
                raise ValueError(
                    f"{place}: the value of {column!r} is "
                    f"{type(record.values[column]).__name__}, not a string. Correct the line"
                )
            for name, value in record.values.items():
                if isinstance(value, str) and _HALF.search(value):
                    raise ValueError(
                        f"{place}: the value of {name!r} has half of a character (a surrogate), "
                        "which no file can hold. Correct the line"
                    )
            if clash := next((name for name in _ADDED if name in record.values), None):
                raise ValueError(
                    f"{place}: there is a column {clash!r} already, which back-translation adds; "
                    "rename it"
                )
        rows += read
    if column is None:
        raise ValueError(f"there are no rows in {', '.join(map(str, files))}")
    return rows, column


def row_lines(rows: Sequence[Record], column: str, kept: Sequence[Made]) -> Iterator[str]:
    """Yield the rows with their new texts, as JSON."""
    for each in kept:
        said = {"source_index": each.row, "similarity": round(each.similarity, 4)}
        values = {**rows[each.row].values, column: each.text, **said}
        yield json.dumps(values, ensure_ascii=False, default=str) + "\n"
