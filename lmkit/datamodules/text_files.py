"""Read documents from text files as a stream, and say exactly what is wrong with a bad one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from .table_files import csv_rows, file_format, json_rows, parquet_rows, tsv_rows
from .text_lines import numbered_lines
from .text_rows import BadRows, Document, Text, guess_column

__all__ = ["read_texts"]

# A document longer than this many characters comes in several pieces, so that memory stays flat.
_PIECE = 1 << 20


def read_texts(
    path: Path,
    *,
    text_column: str | None = None,
    document: Document = "line",
    encoding: str = "utf-8",
    bad: BadRows | None = None,
) -> Iterator[Text]:
    """Read one file document by document; blank documents are left out.

    Args:
        path: a txt, jsonl, csv, tsv or parquet file, by its ending; all but parquet also `.gz`.
            A file of another ending is read as txt.
        text_column: the column or key that holds the text; guessed when it is obvious.
        document: what a document of a txt file is: a line, a paragraph (lines up to a blank one),
            or the whole file.
        encoding: of the characters; a byte-order mark is taken off.
        bad: what to do with bad rows.

    Raises:
        ValueError: the file is empty or broken; names file, line and remedy.
    """
    bad = bad or BadRows()
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty; remove it from the list or fill it")
    kind: str = file_format(path) or "txt"
    if kind == "parquet":
        yield from _read_parquet(path, text_column, bad)
        return
    lines = numbered_lines(path, encoding, bad)
    if kind == "txt":
        yield from _read_plain(path, lines, document)
    else:
        reader = {"jsonl": _read_jsonl, "csv": _read_csv, "tsv": _read_tsv}[kind]
        yield from reader(path, lines, text_column, bad)


def _read_plain(path: Path, lines: Iterator[tuple[int, str]], document: Document) -> Iterator[Text]:
    if document == "line":
        for number, line in lines:
            if line.strip():
                yield Text(line, str(path), number)
        return
    held: list[str] = []
    size, start = 0, 1
    for number, line in lines:
        if not line.strip() and (document == "paragraph" or not held):
            if held:
                yield Text("\n".join(held), str(path), start)
            held, size = [], 0
            continue
        if size > _PIECE:
            yield Text("\n".join(held) + "\n", str(path), start, ends=False)
            held, size = [], 0
        start = start if held else number
        held.append(line)
        size += len(line) + 1
    if held:
        yield Text("\n".join(held).rstrip("\n"), str(path), start)


def _read_jsonl(
    path: Path, lines: Iterator[tuple[int, str]], wanted: str | None, bad: BadRows
) -> Iterator[Text]:
    column: str | None = None
    for number, row in json_rows(path, lines, bad):
        if column is None:
            strings = [key for key, value in row.items() if isinstance(value, str)]
            place = f"{path}, line {number}"
            is_there = wanted is not None and wanted in row
            column = wanted if is_there else guess_column(strings, wanted, place)
        assert column is not None
        value = row.get(column)
        if not isinstance(value, str):
            fault = (
                f"the value of {column!r} is {type(value).__name__}, not a string"
                if column in row
                else f"no key {column!r} (keys: {', '.join(map(repr, row))})"
            )
            bad(path, number, fault, "Correct the line")
        elif value.strip():
            yield Text(value, str(path), number)


def _read_tsv(
    path: Path, lines: Iterator[tuple[int, str]], wanted: str | None, bad: BadRows
) -> Iterator[Text]:
    yield from _pick_column(path, tsv_rows(lines), wanted, bad)


def _read_csv(
    path: Path, lines: Iterator[tuple[int, str]], wanted: str | None, bad: BadRows
) -> Iterator[Text]:
    yield from _pick_column(path, csv_rows(path, lines, bad), wanted, bad)


def _pick_column(
    path: Path, rows: Iterable[tuple[int, list[str]]], wanted: str | None, bad: BadRows
) -> Iterator[Text]:
    header: list[str] | None = None
    place = 0
    for number, row in rows:
        if header is None:
            header = [name.strip() for name in row]
            place = header.index(guess_column(header, wanted, f"{path}, line {number} (header)"))
        elif len(row) != len(header):
            fault = f"{len(row)} fields, and the header has {len(header)}"
            bad(path, number, fault, "Correct the line")
        elif row[place].strip():
            yield Text(row[place], str(path), number)


def _read_parquet(path: Path, wanted: str | None, bad: BadRows) -> Iterator[Text]:
    column = guess_column(_string_columns(path), wanted, str(path))
    for number, row in parquet_rows(path, [column]):
        if row[column] is None:
            fault = f"the value of {column!r} is missing (row number, not line)"
            bad(path, number, fault, "Correct the row")
        elif row[column].strip():
            yield Text(row[column], str(path), number)


def _string_columns(path: Path) -> list[str]:
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no readable parquet file ({error}); write it again") from error
    return [
        column.name
        for column in schema
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    ]
