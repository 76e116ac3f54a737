"""Where labelled rows come from: local tables, a `datasets` object, or the hub."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from .source import files_facts, short_hash
from .table_files import Record, read_records
from .text_rows import BadRows, OnBadRow

if TYPE_CHECKING:
    import datasets

__all__ = [
    "DatasetRecords",
    "FileRecords",
    "Record",
    "RecordOptions",
    "RecordSource",
    "choose_column",
]


@dataclass(frozen=True)
class RecordOptions:
    """How to read rows: see `read_records`."""

    encoding: str = "utf-8"
    on_bad_row: OnBadRow = "error"
    column_names: tuple[str, ...] | None = None
    #: Formats of tagged text, which a folder may hold beside tables.
    endings: ClassVar[tuple[str, ...]] = (".conll", ".conllu", ".iob", ".bio")

    def __post_init__(self) -> None:
        if self.on_bad_row not in ("error", "skip"):
            raise ValueError(f"on_bad_row must be one of error, skip, got {self.on_bad_row!r}")

    def of_files(self, files: tuple[Path, ...]) -> RecordSource:
        """Return the rows of files."""
        return FileRecords(files, self)

    def of_dataset(self, dataset: datasets.Dataset, name: str) -> RecordSource:
        """Return the rows of a data set."""
        return DatasetRecords(dataset, name, self)

    def of_nothing(self, cache: Path) -> dict[str, RecordSource]:
        """Raise `ValueError`: there are no labelled rows to fall back to."""
        raise ValueError(
            "there are no data: pass train_file (--data.train_file=FILE: csv, tsv, jsonl, parquet "
            "...) or source (--data.source=NAME, a data set of the hub, a folder or files)"
        )


@dataclass(frozen=True)
class FileRecords:
    """Local tables, read one after the other.

    Attributes:
        files: their paths.
        options: how to read them.
    """

    files: tuple[Path, ...]
    options: RecordOptions

    @property
    def name(self) -> str:
        """For messages."""
        more = f" and {len(self.files) - 1} more files" if len(self.files) > 1 else ""
        return f"{self.files[0]}{more}"

    def records(self, bad: BadRows) -> Iterator[Record]:
        """Yield the rows; raises `ValueError` for bad ones, naming file and line, unless skipped.

        Args:
            bad: what to do with bad rows.
        """
        for path in self.files:
            yield from read_records(
                path,
                encoding=self.options.encoding,
                column_names=self.options.column_names,
                bad=bad,
            )

    def key(self, cache: Path) -> str:
        """Return a hash of the files' content, in order, and of how they are read."""
        return short_hash(["files", *files_facts(self.files, cache), repr(self.options)])


@dataclass(frozen=True)
class DatasetRecords:
    """One split of a `datasets.Dataset`; class labels come as their names.

    Attributes:
        dataset: the rows.
        name: for messages.
        options: what to do with bad rows.
    """

    dataset: datasets.Dataset
    name: str
    options: RecordOptions

    def records(self, bad: BadRows) -> Iterator[Record]:
        """Yield the rows, numbered from 1. A class label that is -1, as of a test, is `None`."""
        names = {
            column: found
            for column, feature in self.dataset.features.items()
            if (found := _class_names(feature)) is not None
        }
        for number, row in enumerate(self.dataset, 1):
            values = dict(row)
            for column, known in names.items():
                values[column] = _named(values[column], known)
            yield Record(values, self.name, number)

    def class_columns(self) -> list[str]:
        """Return the columns that hold one class label each."""
        return [n for n, f in self.dataset.features.items() if hasattr(f, "int2str")]

    def class_names(self, column: str) -> list[str] | None:
        """Return the names of the classes of a column, in their order, if it has them."""
        return _class_names(self.dataset.features.get(column))

    def key(self, cache: Path) -> str:
        """Return a hash of the data set's fingerprint."""
        return short_hash(["dataset", self.dataset._fingerprint, self.options.on_bad_row])


RecordSource = FileRecords | DatasetRecords


def choose_column(
    columns: Sequence[str],
    wanted: str | None,
    usual: Sequence[str],
    argument: str,
    place: str,
) -> str | None:
    """Return the column that the user named, or one of the usual names, in their order.

    Args:
        columns: those that there are.
        wanted: the one named by the user, if any.
        usual: names to guess from, in lower case.
        argument: of the user's choice, for the error.
        place: file or data set, for the error.

    Returns:
        The column, or `None` when it is not named and none of the usual ones is there.

    Raises:
        ValueError: the wanted column is not there; names those that are.

    Example:
        >>> choose_column(["id", "Sentence"], None, ["text", "sentence"], "text_column", "a.csv")
        'Sentence'
    """
    if wanted is not None:
        if wanted in columns:
            return wanted
        near = difflib.get_close_matches(wanted, columns, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(
            f"{place}: no column {wanted!r} ({argument}); there are "
            f"{', '.join(map(repr, columns)) or 'none'}{hint} If the file has no header, pass "
            "column_names"
        )
    lowered = {column.lower(): column for column in reversed(columns)}
    return next((lowered[name] for name in usual if name in lowered), None)


def _class_names(feature: Any) -> list[str] | None:
    inner = getattr(feature, "feature", feature)
    names = getattr(inner, "names", None)
    return list(names) if names is not None and hasattr(inner, "int2str") else None


def _named(value: Any, names: Sequence[str]) -> Any:
    if isinstance(value, Mapping):
        return value
    if isinstance(value, list | tuple):
        return [_named(inner, names) for inner in value]
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else None
