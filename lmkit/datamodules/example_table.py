"""Encoded examples: columns of numbers, of rows of different lengths, and of text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Columns", "ExampleTable", "Ragged"]

#: What a task encodes its examples to, by name: an array with the example as its first dimension,
#: a sequence of integers for each example, or a text for each.
Columns = Mapping[str, NDArray[Any] | Sequence[Sequence[int]] | Sequence[str]]


class Ragged:
    """Rows of different lengths, laid end to end.

    Args:
        values: all rows, `[total]`.
        bounds: int64 `[N + 1]`, where each row begins, and the end.

    Example:
        >>> rows = Ragged.of([[1, 2, 3], [], [4]])
        >>> rows[0].tolist(), rows.lengths.tolist()
        ([1, 2, 3], [3, 0, 1])
        >>> rows.padded(np.array([2, 0, -1]), 3, fill=0).tolist()
        [[4, 0, 0], [1, 2, 3], [0, 0, 0]]
    """

    def __init__(self, values: NDArray[Any], bounds: NDArray[np.int64]) -> None:
        self.values, self.bounds = values, bounds

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Ragged:
        """Lay rows end to end, in the smallest type that holds their values."""
        bounds = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row) for row in rows], out=bounds[1:])
        values = np.fromiter((v for row in rows for v in row), np.int64, int(bounds[-1]))
        low, high = int(values.min(initial=0)), int(values.max(initial=0))
        kind = next(
            k
            for k in (np.int8, np.int16, np.int32, np.int64)
            if np.iinfo(k).min <= low and high <= np.iinfo(k).max
        )
        return cls(values.astype(kind), bounds)

    @classmethod
    def of_texts(cls, texts: Sequence[str]) -> Ragged:
        """Lay texts end to end in UTF-8."""
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        bounds = np.zeros(len(texts) + 1, np.int64)
        np.cumsum([len(text) for text in encoded], out=bounds[1:])
        return cls(np.frombuffer(b"".join(encoded), np.uint8), bounds)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Length of each row, int64 `[N]`."""
        return np.diff(self.bounds)

    def __getitem__(self, row: int) -> NDArray[Any]:
        return self.values[self.bounds[row] : self.bounds[row + 1]]

    def padded(self, rows: NDArray[np.int64], width: int, fill: int) -> NDArray[np.int64]:
        """Return some rows, filled up on the right.

        Args:
            rows: int64 `[B]`; -1 is a row of padding.
            width: number of columns; what a row has beyond them is left out.
            fill: value of the padding.

        Returns:
            int64 `[B, width]`.
        """
        start = self.bounds[rows]
        length = np.where(rows < 0, 0, np.minimum(self.bounds[rows + 1] - start, width))
        column = np.arange(width)
        real = column < length[:, np.newaxis]
        made = np.full((len(rows), width), fill, np.int64)
        made[real] = self.values[(start[:, np.newaxis] + column)[real]]
        return made


class ExampleTable:
    """Columns of one split, in memory or memory-mapped; one on disk pickles as its path.

    Args:
        columns: by name.
        meta: plain data about them.
        path: where the columns can be read again.

    Example:
        >>> table = ExampleTable.of({"input_ids": [[5, 6], [7]], "text": ["a b", "c"]})
        >>> len(table), table.text("text", 1)
        (2, 'c')
    """

    def __init__(
        self,
        columns: Mapping[str, NDArray[Any] | Ragged],
        meta: Mapping[str, Any],
        path: Path | None = None,
    ) -> None:
        self._columns, self.meta, self.path = dict(columns), dict(meta), path

    @classmethod
    def of(cls, columns: Columns, meta: Mapping[str, Any] | None = None) -> ExampleTable:
        """Make a table in memory.

        Raises:
            ValueError: the columns are not of one length.
        """
        made = {name: _column(values) for name, values in columns.items()}
        if len({len(column) for column in made.values()}) > 1:
            sizes = {name: len(column) for name, column in made.items()}
            raise ValueError(f"columns must be of one length, got {sizes}")
        return cls(made, meta or {})

    @classmethod
    def open(cls, path: Path) -> ExampleTable:
        """Open the table in a folder.

        Raises:
            FileNotFoundError: there is no whole table.
        """
        try:
            entry = json.loads((path / "meta.json").read_text())
            sizes = entry["sizes"].items()
            whole = all((path / name).stat().st_size == size for name, size in sizes)
            meta, names = dict(entry["meta"]), entry["columns"]
            columns = {name: _mapped(path, name, kind) for name, kind in names.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            whole = False
        if not whole:
            raise FileNotFoundError(f"no whole table of examples at {path}")
        return cls(columns, meta, path)

    def save(self, path: Path) -> None:
        """Write the table into a new folder, to be opened again."""
        path.mkdir(parents=True)
        for name, column in self._columns.items():
            if isinstance(column, Ragged):
                np.save(path / f"{name}.npy", column.values)
                np.save(path / f"{name}.bounds.npy", column.bounds)
            else:
                np.save(path / f"{name}.npy", column)
        entry = {
            "meta": self.meta,
            "columns": {n: type(c).__name__ for n, c in self._columns.items()},
            "sizes": {file.name: file.stat().st_size for file in path.glob("*.npy")},
        }
        (path / "meta.json").write_text(json.dumps(entry))

    def __len__(self) -> int:
        return len(next(iter(self._columns.values()))) if self._columns else 0

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    def array(self, name: str) -> NDArray[Any]:
        """Return a column with one value, or one array, for each example."""
        column = self._columns[name]
        assert not isinstance(column, Ragged), f"{name} is a ragged column"
        return column

    def ragged(self, name: str) -> Ragged:
        """Return a column with rows of different lengths."""
        column = self._columns[name]
        assert isinstance(column, Ragged), f"{name} is not a ragged column"
        return column

    def text(self, name: str, row: int) -> str:
        """Return a text of a column of texts."""
        return self.ragged(name)[row].tobytes().decode("utf-8", "surrogatepass")

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path} if self.path else dict(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        path = state["path"]
        self.__dict__.update(ExampleTable.open(path).__dict__ if path else state)


def _column(values: Any) -> NDArray[Any] | Ragged:
    if isinstance(values, np.ndarray | Ragged):
        return values
    if len(values) and isinstance(values[0], str):
        return Ragged.of_texts(values)
    return Ragged.of(values)


def _mapped(path: Path, name: str, kind: str) -> NDArray[Any] | Ragged:
    values = _read(path / f"{name}.npy")
    return Ragged(values, _read(path / f"{name}.bounds.npy")) if kind == "Ragged" else values


def _read(path: Path) -> NDArray[Any]:
    # As a plain array: each access of a memmap costs microseconds more.
    array: NDArray[Any] = np.load(path, mmap_mode="r").view(np.ndarray)
    return array
