"""Lay documents out in rows: cut into pieces, and these packed together or sorted by length."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ..functional.packing import pack_lengths
from ..functional.random import permute

__all__ = ["Documents", "lay_out", "write_rows"]

# Pieces that are packed together; more bring no better rows.
_WINDOW = 1024
# Documents or rows held in memory at a time.
_BLOCK = 1 << 18
# Widths of rows sorted by length are multiples of this.
_MULTIPLE = 8

Integers = NDArray[np.int64]
Apart = Literal["pack", "bucket"]


class Documents(Protocol):
    """What is laid out: documents end to end, each closed by one separator."""

    documents: int
    tokens: int

    @property
    def offsets(self) -> Integers:
        """Where each document begins: int64 `[documents]`."""


def lay_out(
    source: Documents, batching: Apart, body: int, affixes: int
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Lay documents out in memory; see `RowTable` for what is returned.

    Args:
        source: the documents.
        batching: `"pack"` or `"bucket"`.
        body: tokens that fit into a row beside `affixes`.
        affixes: special tokens around each piece.
    """
    starts, lengths, cut = _pieces(source, body, 0, source.documents)
    rows, widths = _arranged(batching, lengths, body, affixes)
    laid = list(rows)
    order = np.concatenate(laid) if laid else np.zeros(0, np.int64)
    bounds = np.cumsum([0, *map(len, laid)])
    meta = {"packed": batching == "pack", "rows": len(laid), "segments": len(starts), "cut": cut}
    arrays: dict[str, NDArray[Any]] = {
        "starts": starts[order],
        "lengths": lengths[order],
        "bounds": bounds,
    }
    return {**meta, "widths": widths or [(len(laid), body + affixes)]}, arrays


def write_rows(
    source: Documents, batching: Apart, body: int, affixes: int, folder: Path
) -> dict[str, Any]:
    """Lay documents out on disk, as `starts.bin`, `lengths.bin` and `bounds.bin`.

    Memory does not grow with the text where rows are packed; to sort them takes some bytes a piece.

    Returns:
        The table's meta data, see `RowTable`.
    """
    piece_files = (folder / "piece_starts.bin", folder / "piece_lengths.bin")
    count = cut = 0
    with piece_files[0].open("wb") as starts, piece_files[1].open("wb") as lengths:
        for low in range(0, source.documents, _BLOCK):
            begin, size, cut_here = _pieces(source, body, low, low + _BLOCK)
            starts.write(begin.astype(np.int64).tobytes())
            lengths.write(size.astype(np.int32).tobytes())
            count, cut = count + len(begin), cut + cut_here
    piece_starts = np.memmap(piece_files[0], np.int64, mode="r")
    piece_lengths = np.memmap(piece_files[1], np.int32, mode="r")
    rows, widths = _arranged(batching, piece_lengths, body, affixes)
    row_count = _write(rows, piece_starts, piece_lengths, folder)
    for path in piece_files:
        path.unlink()
    meta = {"packed": batching == "pack", "rows": row_count, "segments": count, "cut": cut}
    return {**meta, "widths": widths or [(row_count, body + affixes)]}


def _pieces(
    source: Documents, body: int, low: int, high: int
) -> tuple[Integers, NDArray[np.int32], int]:
    """Cut documents into pieces of at most `body`: starts, lengths, and how many were cut."""
    start = np.asarray(source.offsets[low:high])
    stop = np.asarray(source.offsets[low + 1 : high + 1])
    if len(stop) < len(start):
        stop = np.append(stop, source.tokens)
    length = stop - start - 1  # without the separator
    count = -(-length // body)
    number = np.arange(count.sum()) - (count.cumsum() - count).repeat(count)
    begin = start.repeat(count) + number * body
    size = np.minimum(body, (start + length).repeat(count) - begin)
    return begin, size.astype(np.int32), int((count > 1).sum())


def _arranged(
    batching: Apart, lengths: NDArray[np.int32], body: int, affixes: int
) -> tuple[Iterator[Integers], list[tuple[int, int]]]:
    """Return the pieces of each row, and the classes of width if there are several."""
    if batching == "pack":
        return _packed(lengths, body, affixes), []
    width = -(-(lengths + affixes) // _MULTIPLE) * _MULTIPLE
    np.minimum(width, body + affixes, out=width)
    order = np.argsort(lengths, kind="stable")
    edges = np.flatnonzero(np.diff(width[order], append=-1)) + 1
    widths = [(int(end), int(width[order[end - 1]])) for end in edges]
    return (order[i : i + 1] for i in range(len(order))), widths


def _packed(lengths: NDArray[np.int32], body: int, affixes: int) -> Iterator[Integers]:
    windows = range(0, len(lengths), _WINDOW)
    for low in tqdm(windows, "packing", delay=2, disable=None, leave=False, unit_scale=_WINDOW):
        place = torch.arange(low, min(low + _WINDOW, len(lengths)))
        chosen = permute(place, len(lengths), seed=0).numpy()
        for row in pack_lengths((lengths[chosen] + affixes).tolist(), body + affixes):
            yield chosen[row]


def _write(
    rows: Iterator[Integers], starts: Integers, lengths: NDArray[np.int32], folder: Path
) -> int:
    """Write rows of piece numbers as starts, lengths and bounds; return how many there are."""
    count = total = 0
    files = [(folder / f"{name}.bin").open("wb") for name in ("starts", "lengths", "bounds")]
    files[2].write(np.zeros(1, np.int64).tobytes())
    held: list[Integers] = []
    ends: list[int] = []

    def flush() -> None:
        if held:
            chosen = np.concatenate(held)
            files[0].write(starts[chosen].tobytes())
            files[1].write(lengths[chosen].tobytes())
            files[2].write(np.asarray(ends, np.int64).tobytes())
            held.clear()
            ends.clear()

    try:
        for row in rows:
            total += len(row)
            count += 1
            held.append(row)
            ends.append(total)
            if len(held) >= _BLOCK:
                flush()
        flush()
    finally:
        for file in files:
            file.close()
    return count
