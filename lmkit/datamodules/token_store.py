"""Token ids of a corpus on disk, read as a memory map.

A store is a folder: `tokens.bin` (uint16, or uint32 where the vocabulary needs it), `offsets.bin`
(int64, where each document starts), `meta.json`; where they were asked for, `words.bin` (one bit
per token, whether it is the first of its word) and `sentences.bin` (int64, where each sentence
starts). Its name is a hash of everything that it depends on, it is written beside and renamed into
place (`token_writer.py`), and so it is either whole or not there.
"""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["FORMAT_VERSION", "TokenStore"]

#: Part of every key: raise it when the files or the way they are cut change.
FORMAT_VERSION = 1

# Linux maps 64 KiB around each place that is read: 256 rows are at most 16 MiB.
_ROWS_MAPPED = 256


class TokenStore:
    """A store that is there: documents laid end to end, each with its closing separator.

    It pickles as its path; each process maps the files when it first reads them.

    Attributes:
        path: its folder.
        documents: how many there are.
        tokens: how many there are, separators included.
        text_bytes: size of the text in UTF-8.
        has_words: whether it knows where words begin.
        sentence_count: how many sentences there are, `None` if it does not know.

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
            self.has_words = bool(meta.get("words"))
            self.sentence_count: int | None = meta.get("sentences")
            sizes = self._sizes()
            whole = all((path / name).stat().st_size == size for name, size in sizes.items())
        except (OSError, ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            raise FileNotFoundError(f"no whole token store at {path}")
        self._maps: dict[str, mmap.mmap] = {}
        self._read = 0

    def _sizes(self) -> dict[str, int]:
        sizes = {
            "tokens.bin": self.tokens * int(self.dtype.itemsize),
            "offsets.bin": self.documents * 8,
        }
        if self.has_words:
            sizes["words.bin"] = -(-self.tokens // 8)
        if self.sentence_count is not None:
            sizes["sentences.bin"] = self.sentence_count * 8
        return sizes

    @property
    def ids(self) -> NDArray[Any]:
        """All token ids in a row, read-only: uint16 or uint32 `[tokens]`."""
        if not self.tokens:
            return np.zeros(0, self.dtype)
        return np.frombuffer(self._mapped("tokens.bin"), self.dtype)

    def _mapped(self, name: str) -> mmap.mmap:
        if name not in self._maps:
            with (self.path / name).open("rb") as stream:
                self._maps[name] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[name]

    def take(self, places: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
        """Return the ids at `places`, of the same shape, which lie in about `rows` stretches."""
        taken = self.ids[places].astype(np.int64)
        self._read += rows
        if self._read > _ROWS_MAPPED and hasattr(mmap.mmap, "madvise"):
            # What was read stays mapped, and counts as this process's memory, which would grow to
            # the size of the corpus. Given back it is still in the system's page cache.
            for mapped in self._maps.values():
                mapped.madvise(mmap.MADV_DONTNEED)
            self._read = 0
        return taken

    def starts_word(self, places: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether the tokens at `places` are the first of their words, of the same shape.

        Raises:
            ValueError: the store was written without words.
        """
        if not self.has_words:
            raise ValueError(f"the token store {self.path} has no words; write it with words=True")
        if not self.tokens:
            return np.zeros(places.shape, bool)
        octets = np.frombuffer(self._mapped("words.bin"), np.uint8)[places >> 3]
        starts: NDArray[np.bool_] = (octets << (places & 7) & 0x80) > 0
        return starts

    @property
    def sentences(self) -> NDArray[np.int64]:
        """Where each sentence starts: int64 `[sentence_count]`.

        Raises:
            ValueError: the store was written without sentences.
        """
        if self.sentence_count is None:
            raise ValueError(
                f"the token store {self.path} has no sentences; write it with sentences=True"
            )
        if not self.sentence_count:
            return np.zeros(0, np.int64)
        return np.memmap(self.path / "sentences.bin", np.int64, mode="r")

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Where each document starts: int64 `[documents]`."""
        if not self.documents:
            return np.zeros(0, np.int64)
        return np.memmap(self.path / "offsets.bin", np.int64, mode="r")

    @property
    def disk_bytes(self) -> int:
        """Size of the store on disk."""
        return sum(self._sizes().values())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}
