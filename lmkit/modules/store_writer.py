"""Write what a teacher says of each training example, safe against a kill at any moment."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..cache import FolderLock, write_whole, writing_to
from .store_runs import Runs, as_array, check_fields, runs_of, words_of
from .teacher_store import (
    FORMAT_VERSION,
    Field,
    TeacherStore,
    check_key,
    damage,
    fields_of,
    plain_key,
    read_entry,
)

__all__ = ["StoreWriter"]

log = logging.getLogger("lmkit")

# What cannot be written to a full disk.
_WHAT = "what the teacher says"

# What a folder may have before anything is known of it.
_OWN = {"lock", ".progress.json.building"}


class StoreWriter:
    """A store in the making. Opened again after a kill it goes on behind the last `commit`.

    Files are appended to only. A commit brings what was appended to the disk, and then says in
    `progress.json`, which is replaced at once, how much of each file counts; what stands behind
    that is cut off when the store is opened again. So the finished store is, bit for bit, that of a
    writer that was never interrupted.

    Args:
        folder: of the store, made where it is not there.
        examples: how many there are, $N$.
        key: what the store depends on, as plain data.
        dtypes: name of a field -> type to keep its numbers in (`float16`, `float32`, `int32`, ...);
            as they come by default, bfloat16 as float32. For float16 see `to_float16`.
        wait: seconds to wait for another process that is writing to the folder.

    Attributes:
        position: batches committed. A loader of the same batches goes on with this one; with other
            batches ask `lacks` instead.
        finished: whether the store is finished, and has nothing more to write.

    Raises:
        BusyError: another process is writing to the folder.
        ValueError: the folder has the store of another key, or of another number of examples.
        TypeError: the key is not plain data.
    """

    def __init__(
        self,
        folder: Path,
        examples: int,
        key: Mapping[str, Any],
        dtypes: Mapping[str, str] | None = None,
        wait: float = 0.0,
    ) -> None:
        if examples < 1:
            raise ValueError(f"examples must be at least 1, got {examples}")
        self.folder, self.examples, self.key = Path(folder), examples, plain_key(key)
        self.dtypes = {name: np.dtype(kind) for name, kind in (dtypes or {}).items()}
        self.position, self.finished = 0, False
        self._pending = 0
        self._torn = False
        self._fields: dict[str, Field] = {}
        self._files: dict[str, IO[bytes]] = {}
        self._there = np.zeros(examples, bool)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FolderLock(self.folder, wait)
        try:
            with writing_to(self.folder, _WHAT):
                self._restore()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def lacks(self, numbers: ArrayLike | Tensor) -> NDArray[np.bool_]:
        """Return which examples were not written yet: bool, of the shape of `numbers`; not -1."""
        numbers = np.asarray(as_array(numbers), np.int64)
        lacking: NDArray[np.bool_] = (numbers >= 0) & ~self._there[numbers.clip(0)]
        return lacking

    def write(
        self,
        numbers: ArrayLike | Tensor,
        fields: Mapping[str, Runs | Sequence[ArrayLike | Tensor] | NDArray[Any] | Tensor],
    ) -> None:
        """Append a batch.

        Args:
            numbers: of its examples, int64 `[B]`; -1 is a filler, whose rows are not kept.
            fields: by name, the rows of each example: `Runs`, or a sequence of `[rows, *shape]`, or
                all in one of `[B, rows, *shape]`. Each batch has the same fields, and their rows
                are of the same shape and type.

        Raises:
            ValueError: an example was written before or is none of the store's, or a field is not
                as it was or does not fit the examples or its type; nothing is written.
            OSError: the disk is full.
        """
        self._require_open()
        numbers = np.asarray(as_array(numbers), np.int64)
        real = numbers >= 0
        self._check(numbers[real])
        batch = {n: runs_of(n, given, real, self.dtypes.get(n)) for n, given in fields.items()}
        found = {n: Field(values.dtype, values.shape[1:]) for n, (values, _) in batch.items()}
        if not self._fields:
            check_fields(found, self.dtypes)
            self._fields = found
        if found != self._fields:
            raise ValueError(
                f"fields must be those of the batches before, {words_of(self._fields)}, got "
                f"{words_of(found)}"
            )
        self._torn = True
        with writing_to(self.folder, _WHAT):
            if not self._files:
                self._open()
            for name, (values, counts) in batch.items():
                _append(self._files[f"{name}.bin"], values)
                _append(self._files[f"{name}.counts"], counts)
            _append(self._files["numbers"], numbers[real])
        self._torn = False
        self._there[numbers[real]] = True
        self._pending += 1

    def commit(self) -> None:
        """Bring all that was written to the disk, so that it is there after a kill.

        Raises:
            RuntimeError: the writer was closed, or a write broken off; opened anew, it goes on
                behind the last commit.
            OSError: the disk is full.
        """
        if not (self._pending or self._torn):
            return
        self._require_open()
        self._torn = True  # what a system could not bring to the disk, it may forget
        with writing_to(self.folder, _WHAT):
            for stream in self._files.values():
                os.fsync(stream.fileno())
            done = self.position + self._pending
            sizes = {name: os.fstat(s.fileno()).st_size for name, s in self._files.items()}
            self._say("progress.json", sizes, position=done, written=int(self._there.sum()))
        self.position, self._pending, self._torn = done, 0, False

    def finish(self) -> TeacherStore:
        """Commit, make the store readable, close it and open it.

        Raises:
            ValueError: examples lack; says how many.
            RuntimeError: see `commit`.
            OSError: the disk is full.
        """
        self.commit()
        if lacking := int((~self._there).sum()):
            raise ValueError(
                f"{lacking:,} of {self.examples:,} examples lack, the first is number "
                f"{int(self._there.argmin())}; write them before finish()"
            )
        if not self.finished:
            self._require_open()
            with writing_to(self.folder, _WHAT):
                self._index()
            self.finished = True
        self.close()
        return TeacherStore.open(self.folder, self.key)

    def close(self) -> None:
        """Close the files and let others write; what was not committed is lost."""
        for stream in self._files.values():
            stream.close()
        self._files.clear()
        self._lock.release()

    def _restore(self) -> None:
        meta = read_entry(self.folder / "meta.json")
        entry = meta or read_entry(self.folder / "progress.json")
        if entry is None:
            if strange := {path.name for path in self.folder.iterdir()} - _OWN:
                raise ValueError(f"{self.folder} has {min(strange)}, and is no store: pass another")
            return self._say("progress.json", {}, position=0, written=0)
        check_key(self.folder, entry["key"], self.key)
        if entry["examples"] != self.examples:
            raise ValueError(
                f"the store {self.folder} is of {entry['examples']} examples, and not of "
                f"{self.examples}; pass another folder, or remove it"
            )
        if fault := damage(self.folder, entry["sizes"], exact=bool(meta)):
            log.warning("the store %s is made anew: %s", self.folder, fault)
            self._say("progress.json", {}, position=0, written=0)
            return self._remove_all_but({"progress.json"})
        self.position, self._fields = int(entry["position"]), fields_of(entry)
        self._remove_all_but({*entry["sizes"], "meta.json" if meta else "progress.json"})
        if meta:
            self.finished = True
            self._there[:] = True
        elif self._fields:
            for name, size in entry["sizes"].items():
                os.truncate(self.folder / name, size)
            self._open()
            self._there[np.fromfile(self.folder / "numbers", np.int64)] = True
        return None

    def _remove_all_but(self, names: set[str]) -> None:
        for path in self.folder.iterdir():
            if path.name not in names | {"lock"}:
                path.unlink()

    def _open(self) -> None:
        names = [f"{n}.{kind}" for n in self._fields for kind in ("bin", "counts")]
        for name in (*names, "numbers"):
            self._files[name] = (self.folder / name).open("ab", buffering=0)

    def _require_open(self) -> None:
        if self._torn or self.finished or not self._lock.held:
            raise RuntimeError(
                f"the store {self.folder} is finished, was closed, or a write to it broken off: "
                "open it anew, to go on behind the last commit"
            )

    def _check(self, numbers: NDArray[np.int64]) -> None:
        if numbers.max(initial=-1) >= self.examples:
            raise ValueError(f"numbers must lie below {self.examples}, got {numbers.max()}")
        found, times = np.unique(numbers, return_counts=True)
        if len(again := found[self._there[found] | (times > 1)]):
            raise ValueError(
                f"each example is written once: {len(again)} of these were written before, the "
                f"first is number {again[0]}; leave out those that the writer does not lack"
            )

    def _index(self) -> None:
        numbers = np.fromfile(self.folder / "numbers", np.int64)
        for name in self._fields:
            counts = np.fromfile(self.folder / f"{name}.counts", np.int64)
            index = np.empty((2, self.examples), np.int64)
            index[:, numbers] = counts.cumsum() - counts, counts
            with (self.folder / f"{name}.index.npy").open("wb") as stream:
                np.save(stream, index)
                stream.flush()
                os.fsync(stream.fileno())
        names = [f"{n}{end}" for n in self._fields for end in (".bin", ".index.npy")]
        sizes = {name: (self.folder / name).stat().st_size for name in names}
        self._say("meta.json", sizes, position=self.position)
        self._remove_all_but({*names, "meta.json"})

    def _say(self, name: str, sizes: Mapping[str, int], **more: int) -> None:
        entry = {
            "version": FORMAT_VERSION,
            "key": self.key,
            "examples": self.examples,
            "fields": {n: (f.dtype.name, f.shape) for n, f in self._fields.items()},
            "sizes": sizes,
            **more,
        }
        write_whole(self.folder / name, json.dumps(entry))


def _append(stream: IO[bytes], values: NDArray[Any]) -> None:
    # Without a buffer, which the workers of a loader would take along when they are forked.
    octets = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    while len(octets):  # the system takes 2 GiB at once
        octets = octets[stream.write(octets.data) :]
