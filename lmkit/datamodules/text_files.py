"""Read documents from text files as a stream, and say exactly what is wrong with a bad one."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from .text_lines import numbered_lines
from .text_rows import BadRows, Document, Text, guess_column

__all__ = ["read_texts", "text_format"]

_FORMATS = {
    ".txt": "txt",
    ".text": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}

# A document longer than this many characters comes in several pieces, so that memory stays flat.
_PIECE = 1 << 20


def text_format(path: Path) -> str | None:
    """Return `txt`, `jsonl`, `csv`, `tsv` or `parquet` by the name's ending, `None` for others.

    Example:
        >>> text_format(Path("a/news.csv.gz"))
        'csv'
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return _FORMATS.get(suffixes[-1]) if suffixes else None


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
    kind = text_format(path) or "txt"
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
    column = None
    for number, line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if line.strip() in ("[", "{") or line.lstrip().startswith("[{"):
                raise ValueError(_one_document(path, number)) from error
            bad(path, number, f"not valid JSON ({error})", "Correct the line")
            continue
        if isinstance(row, list) and row and isinstance(row[0], dict):
            raise ValueError(_one_document(path, number))
        if not isinstance(row, dict):
            fault = f"expected an object such as {{'text': ...}}, got {type(row).__name__}"
            bad(path, number, fault, "Correct the line")
            continue
        if column is None:
            strings = [key for key, value in row.items() if isinstance(value, str)]
            known = wanted is not None and wanted in row
            column = wanted if known else guess_column(strings, wanted, f"{path}, line {number}")
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


def _one_document(path: Path, number: int) -> str:
    return (
        f"{path}, line {number}: this is one JSON document, not one object per line; convert it to "
        "JSON lines (jq -c '.[]' < in.json > out.jsonl)"
    )


def _read_tsv(
    path: Path, lines: Iterator[tuple[int, str]], wanted: str | None, bad: BadRows
) -> Iterator[Text]:
    # Without quoting: in tsv a double quote is a character, and an unbalanced one is common.
    yield from _pick_column(
        path, ((number, line.split("\t")) for number, line in lines if line.strip()), wanted, bad
    )


def _read_csv(
    path: Path, lines: Iterator[tuple[int, str]], wanted: str | None, bad: BadRows
) -> Iterator[Text]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    yield from _pick_column(path, _csv_rows(path, lines, bad), wanted, bad)


def _csv_rows(
    path: Path, lines: Iterator[tuple[int, str]], bad: BadRows
) -> Iterator[tuple[int, list[str]]]:
    last = [0]

    def fed() -> Iterator[str]:
        for number, line in lines:
            last[0] = number
            yield line + "\n"

    reader = csv.reader(fed(), strict=True)
    while True:
        start = last[0] + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end" in str(error):
                # Never skipped: such a row has swallowed the rest of the file.
                raise ValueError(
                    f"{path}, line {start}: a quote is opened and never closed. Double it inside a "
                    "field, or save the file as tsv, which has no quoting"
                ) from error
            bad(path, start, f"not valid csv ({error})", "Correct the line")
            continue
        if row:
            yield start, row


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
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            strings = [
                column.name
                for column in schema
                if pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
            ]
            column = guess_column(strings, wanted, str(path))
            number = 0
            for batch in file.iter_batches(batch_size=1000, columns=[column]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    if value is None:
                        fault = f"the value of {column!r} is missing (row number, not line)"
                        bad(path, number, fault, "Correct the row")
                    elif value.strip():
                        yield Text(value, str(path), number)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no readable parquet file ({error}); write it again") from error
