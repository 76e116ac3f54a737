"""Token ids of a corpus on disk, read as a memory map.

A store is a folder: `tokens.bin` (uint16, or uint32 where the vocabulary needs it), `offsets.bin`
(int64, where each document starts), `meta.json`. Its name is a hash of everything that it depends
on, it is written beside and renamed into place (`token_writer.py`), and so it is either whole or
not there.
"""

from __future__ import annotations

import json
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["FORMAT_VERSION", "TokenStore", "cache_folder"]

#: Part of every key: raise it when the files or the way they are cut change.
FORMAT_VERSION = 1

# Linux maps 64 KiB around each place that is read: 256 rows are at most 16 MiB.
_ROWS_MAPPED = 256


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the cache: `cache_dir`, else `$LMKIT_CACHE`, else `~/.cache/lmkit`.

    Raises:
        ValueError: it cannot be written to.
    """
    chosen = cache_dir or os.environ.get("LMKIT_CACHE") or "~/.cache/lmkit"
    folder = Path(chosen).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise ValueError(
            f"cannot write to the cache {folder}; pass another cache_dir or set LMKIT_CACHE"
        )
    return folder


class TokenStore:
    """A store that is there: documents laid end to end, each with its closing separator.

    It pickles as its path; each process maps the files when it first reads them.

    Attributes:
        path: its folder.
        documents: how many there are.
        tokens: how many there are, separators included.
        text_bytes: size of the text in UTF-8.

    Raises:
        FileNotFoundError: there is no whole store at `path`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            meta = json.loads((path / "meta.json").read_text())
            self.documents = int(meta["documents"])
            self.tokens = int(meta["tokens"])
            self.text_bytes = int(meta["text_bytes"])
            self.dtype = np.dtype(meta["dtype"])
            whole = (path / "tokens.bin").stat().st_size == self.tokens * self.dtype.itemsize and (
                path / "offsets.bin"
            ).stat().st_size == self.documents * 8
        except (OSError, ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            raise FileNotFoundError(f"no whole token store at {path}")
        self._map: mmap.mmap | None = None
        self._read = 0

    @property
    def ids(self) -> NDArray[Any]:
        """All token ids in a row, read-only: uint16 or uint32 `[tokens]`."""
        if not self.tokens:
            return np.zeros(0, self.dtype)
        if self._map is None:
            with (self.path / "tokens.bin").open("rb") as stream:
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        return np.frombuffer(self._map, self.dtype)

    def take(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the ids at `places`, of the same shape, for rows in its first dimension."""
        taken = self.ids[places].astype(np.int64)
        self._read += len(places)
        if self._read > _ROWS_MAPPED and self._map is not None and hasattr(self._map, "madvise"):
            # What was read stays mapped, and counts as this process's memory, which would grow to
            # the size of the corpus. Given back it is still in the system's page cache.
            self._map.madvise(mmap.MADV_DONTNEED)
            self._read = 0
        return taken

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Where each document starts: int64 `[documents]`."""
        if not self.documents:
            return np.zeros(0, np.int64)
        return np.memmap(self.path / "offsets.bin", np.int64, mode="r")

    @property
    def disk_bytes(self) -> int:
        """Size of the store on disk."""
        return self.tokens * int(self.dtype.itemsize) + self.documents * 8

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}
