"""Rows with named columns from csv, tsv, JSON lines and parquet files, and what is wrong with one.

`text_files.py` takes one column of them as text, `records.py` all of them.
"""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from .text_lines import numbered_lines
from .text_rows import BadRows

__all__ = [
    "Record",
    "csv_rows",
    "file_format",
    "json_rows",
    "named_rows",
    "parquet_rows",
    "read_records",
    "tsv_rows",
]

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


class Record(NamedTuple):
    """One row of a file or data set, before a task has understood it.

    Attributes:
        values: by column: strings of csv and tsv, plain data of the other formats.
        file: where it stands.
        line: its line there, from 1 (the number of the row for parquet and `datasets`).
    """

    values: dict[str, Any]
    file: str
    line: int


def file_format(path: Path) -> str | None:
    """Return `txt`, `jsonl`, `csv`, `tsv` or `parquet` by the name's ending, `None` for others.

    Example:
        >>> file_format(Path("a/news.csv.gz"))
        'csv'
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return _FORMATS.get(suffixes[-1]) if suffixes else None


def read_records(
    path: Path,
    *,
    encoding: str = "utf-8",
    column_names: Sequence[str] | None = None,
    bad: BadRows | None = None,
) -> Iterator[Record]:
    """Read one table row by row.

    Args:
        path: a jsonl, csv, tsv or parquet file, by its ending; all but parquet also `.gz`. A file
            of another ending is tsv when there is a tab in its first line; else a line is a label,
            a space and the text, as columns `label` and `text`.
        encoding: of the characters; a byte-order mark is taken off.
        column_names: of a csv or tsv file that has no header.
        bad: what to do with bad rows.

    Raises:
        ValueError: the file is empty or broken; names file, line and remedy.
    """
    bad = bad or BadRows()
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty; remove it from the list or fill it")
    kind = file_format(path) or "txt"
    if kind == "parquet":
        for number, values in parquet_rows(path):
            yield Record(values, str(path), number)
        return
    lines = numbered_lines(path, encoding, bad)
    if kind == "jsonl":
        named = json_rows(path, lines, bad)
    elif kind == "csv":
        named = named_rows(path, csv_rows(path, lines, bad), column_names, bad)
    elif kind == "tsv":
        named = named_rows(path, tsv_rows(lines), column_names, bad)
    else:
        named = _untyped_rows(path, lines, column_names, bad)
    for number, values in named:
        yield Record(values, str(path), number)


def json_rows(
    path: Path, lines: Iterable[tuple[int, str]], bad: BadRows
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the object of each line that is not blank."""
    begun = False
    for number, line in lines:
        if not line.strip():
            continue
        is_first, begun = not begun, True
        try:
            row = json.loads(line)
        except ValueError as error:
            if is_first and (line.strip() in ("[", "{") or line.lstrip().startswith("[{")):
                raise ValueError(_one_document(path, number)) from error
            bad(path, number, f"not valid JSON ({error})", "Correct the line")
            continue
        if isinstance(row, list) and row and isinstance(row[0], dict):
            raise ValueError(_one_document(path, number))
        if not isinstance(row, dict):
            fault = f"expected an object such as {{'text': ...}}, got {type(row).__name__}"
            bad(path, number, fault, "Correct the line")
            continue
        yield number, row


def tsv_rows(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, list[str]]]:
    """Yield the fields of each line that is not blank, without quoting.

    In tsv a double quote is a character, and an unbalanced one is common.
    """
    return ((number, line.split("\t")) for number, line in lines if line.strip())


def csv_rows(
    path: Path, lines: Iterable[tuple[int, str]], bad: BadRows
) -> Iterator[tuple[int, list[str]]]:
    """Yield the fields of each row, with the line that it starts at.

    Raises:
        ValueError: a quote is never closed, and has swallowed the rest of the file.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
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


def named_rows(
    path: Path,
    rows: Iterable[tuple[int, list[str]]],
    column_names: Sequence[str] | None,
    bad: BadRows,
) -> Iterator[tuple[int, dict[str, str]]]:
    """Name the fields of each row by the header, which is the first row unless names are given.

    Raises:
        ValueError: a name stands twice in the header.
    """
    header = [name.strip() for name in column_names] if column_names else None
    if header and (doubled := _doubled(header)) is not None:
        raise ValueError(f"column_names have {doubled!r} twice; give each column a name of its own")
    whose = "column_names have" if header else "the header has"
    for number, row in rows:
        if header is None:
            header = [name.strip() for name in row]
            if (doubled := _doubled(header)) is not None:
                raise ValueError(
                    f"{path}, line {number}: the header has {doubled!r} twice. Rename one, or "
                    "if the file has no header pass column_names"
                )
        elif len(row) != len(header):
            fault = f"{len(row)} fields, and {whose} {len(header)}"
            bad(path, number, fault, "Correct the line")
        elif [name.strip() for name in row] == header:
            bad(path, number, "the header stands here again", "Take the line out")
        else:
            yield number, dict(zip(header, row, strict=True))


def parquet_rows(
    path: Path, columns: Sequence[str] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a parquet file, numbered from 1.

    Args:
        path: the file.
        columns: those to read; all by default.

    Raises:
        ValueError: it is no parquet file.
    """
    try:
        with pq.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1000, columns=columns and list(columns)):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no readable parquet file ({error}); write it again") from error


def _doubled(names: Sequence[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _untyped_rows(
    path: Path, lines: Iterator[tuple[int, str]], names: Sequence[str] | None, bad: BadRows
) -> Iterator[tuple[int, dict[str, str]]]:
    first = next(((n, line) for n, line in lines if line.strip()), None)
    if first is None:
        return

    def all_lines() -> Iterator[tuple[int, str]]:
        yield first
        yield from lines

    if "\t" in first[1]:
        yield from named_rows(path, tsv_rows(all_lines()), names, bad)
        return
    for number, line in all_lines():
        label, _, text = line.strip().partition(" ")
        if text.strip():
            yield number, {"label": label.removeprefix("__label__"), "text": text}
        elif label:
            fault = "expected a label, a space and the text, got one word"
            bad(path, number, fault, "Correct the line, or save the table as csv, tsv or jsonl")


def _one_document(path: Path, number: int) -> str:
    return (
        f"{path}, line {number}: this is one JSON document, not one object per line; convert it to "
        "JSON lines (jq -c '.[]' < in.json > out.jsonl)"
    )
