"""What a teacher says of each training example, kept on disk and read as a memory map.

A store is a folder of fields. A field keeps, for each of $N$ examples, a run of rows of one shape
and type: the logits of a class (one row of `[C]`), the logits or hidden states of each token (as
many rows of `[C]` or `[D]` as there are tokens), ids and log-probabilities of the likeliest tokens.

Files: of each field `NAME.bin`, the runs end to end in the order in which they were written, and
`NAME.index.npy`, int64 `[2, N]`, the first row and the number of rows of each example's run; and
`meta.json`. A store in the making (`store_writer.py`) has `progress.json` instead.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Field", "HalfWrittenError", "TeacherStore", "check_key", "plain_key", "store_folder"]

#: Part of every key: raise it when the files change.
FORMAT_VERSION = 1


class HalfWrittenError(RuntimeError):
    """A store is there, and not whole."""


class Field(NamedTuple):
    """What the rows of a field are.

    Attributes:
        dtype: type of their numbers.
        shape: of each row.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class TeacherStore:
    """A finished store. It pickles as its path, and each process maps the files anew.

    Attributes:
        path: its folder.
        examples: how many there are, $N$.
        key: what the store was made of, as plain data.
        fields: by name, what its rows are.

    Example:
        >>> import tempfile
        >>> from lmkit.modules.store_writer import StoreWriter
        >>> folder = store_folder(Path(tempfile.mkdtemp()), {"teacher": "a"})
        >>> writer = StoreWriter(folder, examples=2, key={"teacher": "a"})
        >>> writer.write([1, 0], {"hidden": [np.ones((2, 3)), np.full((1, 3), 5.0)]})
        >>> store = writer.finish()
        >>> store.rows("hidden", [0, 1, -1], width=2)[:, :, 0].tolist()
        [[5.0, 0.0], [1.0, 1.0], [0.0, 0.0]]
        >>> store.segments("hidden", [[1, 0], [0, -1]], width=4)[:, :, 0].tolist()
        [[1.0, 1.0, 5.0, 0.0], [5.0, 0.0, 0.0, 0.0]]
    """

    def __init__(self, path: Path, meta: Mapping[str, Any]) -> None:
        self.path = path
        self.examples = int(meta["examples"])
        self.key: dict[str, Any] = dict(meta["key"])
        self.fields = fields_of(meta)
        self._values = {name: _mapped(path, name, field) for name, field in self.fields.items()}
        self._index = {name: _plain(np.load(_index(path, name), "r")) for name in self.fields}

    @classmethod
    def open(cls, folder: Path, key: Mapping[str, Any] | None = None) -> TeacherStore:
        """Open the store in a folder.

        Args:
            folder: its path.
            key: what it must have been made of; `None` takes any.

        Raises:
            FileNotFoundError: there is none.
            HalfWrittenError: it is not finished, or damaged; says how far it is.
            ValueError: it was made of something else; names the entries of the key that differ.
        """
        folder = Path(folder)
        if meta := read_entry(folder / "meta.json"):
            check_key(folder, meta["key"], key)
            if fault := damage(folder, meta["sizes"], exact=True):
                raise HalfWrittenError(
                    f"the store {folder} is damaged: {fault}; remove the folder, to have it made "
                    "anew"
                )
            try:
                return cls(folder, meta)
            except (ValueError, OSError) as error:
                raise HalfWrittenError(
                    f"the store {folder} is damaged: {error}; remove the folder, to have it made "
                    "anew"
                ) from error
        if progress := read_entry(folder / "progress.json"):
            check_key(folder, progress["key"], key)
            raise HalfWrittenError(
                f"the store {folder} is half written: {progress['written']} of "
                f"{progress['examples']} examples are there; let the teacher go on, by a "
                "StoreWriter on the folder"
            )
        raise FileNotFoundError(f"there is no store of a teacher at {folder}")

    def counts(self, field: str, numbers: ArrayLike) -> NDArray[np.int64]:
        """Return how many rows examples have.

        Args:
            field: its name.
            numbers: of the examples, int64 of any shape; -1 is none, of no rows.

        Returns:
            int64, of the shape of `numbers`.
        """
        return self._runs(field, numbers)[1]

    def rows(self, field: str, numbers: ArrayLike, width: int | None = None) -> NDArray[Any]:
        """Return the rows of examples, filled up with zeros.

        Args:
            field: its name.
            numbers: of the examples, int64 `[B]`; -1 is a filler, all zeros.
            width: rows of each, at least those of the longest run; as many by default.

        Returns:
            `[B, width, *shape]` of the type of the field.

        Raises:
            ValueError: there is no such field, or a run is longer than `width`.
        """
        return self.segments(field, np.asarray(numbers, np.int64)[:, np.newaxis], width)

    def segments(self, field: str, numbers: ArrayLike, width: int | None = None) -> NDArray[Any]:
        """Return the rows of examples that are laid end to end, filled up with zeros.

        Args:
            field: its name.
            numbers: the examples of each row of a batch in their order, int64 `[R, S]`; -1 is none,
                wherever it stands.
            width: rows of each, at least those of the longest; as many by default.

        Returns:
            `[R, width, *shape]` of the type of the field.

        Raises:
            ValueError: there is no such field, or runs are together longer than `width`.
        """
        starts, counts = self._runs(field, numbers)
        ends = counts.cumsum(1)
        longest = int(ends[:, -1:].max(initial=0))
        if width is None:
            width = longest
        elif longest > width:
            raise ValueError(
                f"width must be at least {longest}, the rows that {field} has for these examples, "
                f"got {width}: are they the examples, and the tokens, that the teacher saw?"
            )
        values, (dtype, shape) = self._values[field], self.fields[field]
        made = np.zeros((len(counts), width, *shape), dtype)
        row, segment = counts.nonzero()
        places = starts[row, segment], counts[row, segment], ends[row, segment]
        # One slice after the other: a run is long, and a table of all its places would be longer.
        for r, start, count, end in zip(row.tolist(), *(p.tolist() for p in places), strict=True):
            made[r, end - count : end] = values[start : start + count]
        return made

    def _runs(self, field: str, numbers: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
        if field not in self.fields:
            raise ValueError(f"there is no field {field!r}; there are {', '.join(self.fields)}")
        numbers = np.asarray(numbers, np.int64)
        starts, counts = self._index[field]
        real = numbers.clip(0)
        if numbers.max(initial=-1) >= self.examples:
            raise ValueError(
                f"numbers must lie below {self.examples}, the examples of the store, got "
                f"{numbers.max()}"
            )
        return starts[real], np.where(numbers < 0, 0, counts[real])

    @property
    def disk_bytes(self) -> int:
        """Size of the store on disk."""
        return sum(path.stat().st_size for path in self.path.iterdir())

    def __reduce__(self) -> tuple[Callable[[Path], TeacherStore], tuple[Path]]:
        return TeacherStore.open, (self.path,)


def store_folder(cache: Path, key: Mapping[str, Any]) -> Path:
    """Return the folder of a store.

    Args:
        cache: folder of the cache.
        key: all that the store depends on, as plain data: teacher, tokenizer, data, fields.

    Raises:
        TypeError: the key is not plain data.
    """
    content = json.dumps([FORMAT_VERSION, plain_key(key)], sort_keys=True)
    return cache / "teachers" / hashlib.sha256(content.encode()).hexdigest()[:32]


def plain_key(key: Mapping[str, Any]) -> dict[str, Any]:
    """Return a key as it comes back from disk: tuples as lists, names as strings.

    Raises:
        TypeError: it is not plain data.
    """
    try:
        made: dict[str, Any] = json.loads(json.dumps(dict(key)))
    except (TypeError, ValueError) as error:
        raise TypeError(f"key must be plain data (numbers, texts, lists, dicts): {error}") from None
    return made


def check_key(folder: Path, stored: Mapping[str, Any], given: Mapping[str, Any] | None) -> None:
    """Check that a store was made of what it should be made of.

    Raises:
        ValueError: it was not; names the entries that differ.
    """
    if given is not None and (differ := _differences(stored, plain_key(given))):
        raise ValueError(
            f"the store {folder} was made of something else: {'; '.join(differ)}; pass another "
            "folder, or remove it"
        )


def _differences(stored: Mapping[str, Any], given: Mapping[str, Any], above: str = "") -> list[str]:
    found = []
    for name in sorted({*stored, *given}):
        one, other = stored.get(name), given.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            found += _differences(one, other, f"{above}{name}.")
        elif one != other:
            found.append(f"{above}{name} is {one!r} in the store and should be {other!r}")
    return found


def read_entry(path: Path) -> dict[str, Any] | None:
    """Return what a file of JSON says of a store, `None` where there is no such file.

    Raises:
        HalfWrittenError: it cannot be read.
    """
    try:
        entry = dict(json.loads(path.read_text(encoding="utf-8")))
        whole = entry["version"] == FORMAT_VERSION and {"key", "examples", "fields"} <= {*entry}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, KeyError):
        whole = False
    if not whole:
        raise HalfWrittenError(
            f"{path} is damaged, or is that of something else than a store of a teacher; remove "
            f"the folder {path.parent}, to have it made anew, or choose another"
        )
    return entry


def damage(folder: Path, sizes: Mapping[str, int], exact: bool) -> str:
    """Return which file has not the bytes that it should have (at least), or an empty text."""
    for name, size in sizes.items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else -1
        if found < 0:
            return f"{name} is missing"
        if found < size or (exact and found != size):
            return f"{name} has {found:,} bytes, and should have {size:,}"
    return ""


def fields_of(entry: Mapping[str, Any]) -> dict[str, Field]:
    """Return what the rows of each field are, from what is written of a store."""
    return {n: Field(np.dtype(kind), tuple(shape)) for n, (kind, shape) in entry["fields"].items()}


def _index(folder: Path, field: str) -> Path:
    return folder / f"{field}.index.npy"


def _mapped(folder: Path, name: str, field: Field) -> NDArray[Any]:
    path = folder / f"{name}.bin"
    if not path.stat().st_size:  # nothing can be mapped
        return np.zeros((0, *field.shape), field.dtype)
    return _plain(np.memmap(path, field.dtype, "r")).reshape(-1, *field.shape)


def _plain(mapped: NDArray[Any]) -> NDArray[Any]:
    # Each access of a memmap costs microseconds more than one of a plain array on it.
    return mapped.view(np.ndarray)
