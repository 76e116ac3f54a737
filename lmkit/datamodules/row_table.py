"""Which stretches of a token store make up which row: cut, packed or sorted by length.

A table is a pure function of the store and of its settings. It is computed once and kept on disk,
so that its size is no matter for memory, and rows can be had in any order.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..cache import building_folder, put_in_place
from .row_layout import lay_out, write_rows
from .source import short_hash
from .stream_window import TextWindow
from .token_store import TokenStore

__all__ = [
    "ROWS_VERSION",
    "Batching",
    "ChunkTable",
    "RowTable",
    "check_batching",
    "room_for_text",
    "row_table",
]

#: How rows are made of documents.
Batching = Literal["pack", "bucket", "chunk"]

#: Part of every key: raise it when tables are computed otherwise.
ROWS_VERSION = 2
Integers = NDArray[np.int64]
Segments = tuple[Integers, Integers, Integers]


class ChunkTable:
    """The stream of tokens cut every `body` tokens, documents joined by their separators.

    Args:
        store: the tokens.
        body: tokens in a row, special tokens apart.
        affixes: how many special tokens a row has.
    """

    packed = False

    def __init__(self, store: TokenStore | TextWindow, body: int, affixes: int) -> None:
        self.tokens, self.body, self.affixes = store.tokens, body, affixes
        #: Documents that were cut because they are longer than a row; a chunk cuts any.
        self.cut = 0

    def __len__(self) -> int:
        return math.ceil(self.tokens / self.body)

    def segments(self, rows: Integers) -> Segments:
        """Return how many segments each of these rows has, and start and length of each."""
        count = (rows >= 0).astype(np.int64)
        start = rows[rows >= 0] * self.body
        return count, start, np.minimum(self.body, self.tokens - start)

    def width(self, rows: Integers) -> int:
        """Return the number of columns."""
        return self.body + self.affixes

    def widths(self) -> list[tuple[int, int]]:
        """Return the last row (exclusive) and the width of each class of rows."""
        return [(len(self), self.body + self.affixes)]


class RowTable:
    """Segments, row by row, in memory or on disk.

    One on disk pickles as its path. `width` and `widths` count special tokens, `lengths` do not.

    Args:
        meta: `packed`, `rows`, `cut` and `widths`, as plain data.
        arrays: `starts` int64 and `lengths` int32 `[segments]`, `bounds` int64 `[rows + 1]`.
        path: where the arrays can be read again.
    """

    def __init__(
        self, meta: Mapping[str, Any], arrays: dict[str, NDArray[Any]], path: Path | None = None
    ) -> None:
        self.packed, self.rows = bool(meta["packed"]), int(meta["rows"])
        #: Documents that were cut because they are longer than a row.
        self.cut = int(meta["cut"])
        self._classes = [(int(end), int(width)) for end, width in meta["widths"]]
        self._arrays, self.path = arrays, path

    @classmethod
    def open(cls, path: Path) -> RowTable:
        """Open the table in a folder.

        Raises:
            FileNotFoundError: there is no whole table.
        """
        try:
            meta = json.loads((path / "meta.json").read_text())
            sizes = {"starts": 8 * meta["segments"], "lengths": 4 * meta["segments"]}
            sizes["bounds"] = 8 * (meta["rows"] + 1)
            whole = all((path / f"{n}.bin").stat().st_size == size for n, size in sizes.items())
            table = cls(meta, {}, path)
        except (OSError, ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            raise FileNotFoundError(f"no whole table of rows at {path}")
        return table

    def __len__(self) -> int:
        return self.rows

    def segments(self, rows: Integers) -> Segments:
        """Return how many segments each of these rows has, and start and length of each."""
        bounds = self._read("bounds", np.int64)
        first = bounds[rows]
        count = bounds[rows + 1] - first
        count[rows < 0] = 0  # a filler, for which the two lines above read something else
        end = count.cumsum()
        place = np.arange(count.sum()) + (first - end + count).repeat(count)
        starts, lengths = self._read("starts", np.int64), self._read("lengths", np.int32)
        return count, starts[place], lengths[place].astype(np.int64)

    def width(self, rows: Integers) -> int:
        """Return the number of columns of a batch of these rows."""
        last = int(rows.max(initial=-1))
        return next((width for end, width in self._classes if last < end), self._classes[-1][1])

    def widths(self) -> list[tuple[int, int]]:
        """Return the last row (exclusive) and the width of each class of rows, the short first."""
        return list(self._classes)

    def _read(self, name: str, dtype: Any) -> NDArray[Any]:
        if name not in self._arrays:
            assert self.path is not None
            path = self.path / f"{name}.bin"
            empty = not path.stat().st_size
            self._arrays[name] = np.zeros(0, dtype)
            if not empty:
                # As a plain array: each access of a memmap costs microseconds more.
                self._arrays[name] = np.memmap(path, dtype, mode="r").view(np.ndarray)
        return self._arrays[name]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": {} if self.path else self._arrays}


def row_table(
    store: TokenStore | TextWindow, batching: Batching, body: int, affixes: int, cache: Path
) -> RowTable | ChunkTable:
    """Return the table of a store, from the cache or computed now; that of a window in memory.

    Args:
        store: the tokens.
        batching: `"chunk"` cuts the stream of all documents into rows of `body` tokens. The others
            keep documents apart, and cut only those longer than `body`: `"bucket"` has one piece
            per row, sorted by length into classes of one width; `"pack"` has as many pieces in a
            row as fit, found by `pack_lengths` among 1,024 pieces drawn at random.
        body: tokens of text that fit into a row beside `affixes`.
        affixes: special tokens around each piece.
        cache: folder of the cache.

    Raises:
        ValueError: `batching` is unknown.
    """
    if batching == "chunk":
        return ChunkTable(store, body, affixes)
    check_batching(batching=batching)
    if isinstance(store, TextWindow):
        return RowTable(*lay_out(store, batching, body, affixes))
    key = short_hash(["rows", ROWS_VERSION, store.path.name, batching, body, affixes])
    final = cache / "rows" / key
    try:
        return RowTable.open(final)
    except FileNotFoundError:
        pass
    building = building_folder(final)
    building.mkdir()
    try:
        meta = write_rows(store, batching, body, affixes, building)
        (building / "meta.json").write_text(json.dumps(meta))
        return put_in_place(building, final, RowTable.open)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def room_for_text(max_length: int, affixes: int) -> int:
    """Return how many tokens of text a row has beside its special tokens.

    Raises:
        ValueError: it has no room for text.
    """
    if max_length <= affixes:
        raise ValueError(
            f"max_length={max_length} leaves no room for text beside the tokenizer's special "
            "tokens; raise it"
        )
    return max_length - affixes


def check_batching(**arguments: str) -> None:
    """Raise `ValueError` for an argument, by its name, that is no `Batching`."""
    for name, value in arguments.items():
        if value not in get_args(Batching):
            raise ValueError(f"{name} must be pack, bucket or chunk, got {value!r}")
