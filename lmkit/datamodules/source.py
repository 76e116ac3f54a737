"""Where text comes from: local files, a `datasets` object, the hub, or the embedded corpus."""

from __future__ import annotations

import difflib
import glob
import hashlib
import json
import platform
import re
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from .embedded import embedded_corpus
from .table_files import file_format
from .text_files import read_texts
from .text_rows import BadRows, Document, OnBadRow, Text, guess_column

if TYPE_CHECKING:
    import datasets

__all__ = [
    "DatasetSource",
    "FileSource",
    "TextOptions",
    "TextSource",
    "expand_files",
    "files_facts",
    "short_hash",
    "split_files",
]

_SPLIT_NAME = re.compile(r"(?<![a-z])(train|validation|valid|val|dev|test)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class TextOptions:
    """How to read text: see `read_texts`."""

    text_column: str | None = None
    document: Document = "line"
    encoding: str = "utf-8"
    on_bad_row: OnBadRow = "error"
    endings: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for name, value, known in (
            ("document", self.document, ("line", "paragraph", "file")),
            ("on_bad_row", self.on_bad_row, ("error", "skip")),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")

    def of_files(self, files: tuple[Path, ...]) -> TextSource:
        """Return the text of files."""
        return FileSource(files, self)

    def of_dataset(
        self, dataset: datasets.Dataset | datasets.IterableDataset, name: str
    ) -> TextSource:
        """Return the text of a data set."""
        return DatasetSource(dataset, name, self.text_column, self.on_bad_row)

    def of_nothing(self, cache: Path) -> dict[str, TextSource]:
        """Return the embedded corpus, in its own format, whatever is asked of the user's files."""
        title = f"the embedded corpus (documentation of Python {platform.python_version()})"
        corpus = embedded_corpus(cache)
        return {split: FileSource((path,), TextOptions(), title) for split, path in corpus.items()}


@dataclass(frozen=True)
class FileSource:
    """Local text files, read one after the other.

    Attributes:
        files: their paths.
        options: how to read them.
        title: what to call them in messages; by default the first one's path.
    """

    files: tuple[Path, ...]
    options: TextOptions
    title: str | None = None

    @property
    def name(self) -> str:
        """For messages."""
        if self.title:
            return self.title
        more = f" and {len(self.files) - 1} more files" if len(self.files) > 1 else ""
        return f"{self.files[0]}{more}"

    def texts(self, report: bool = False) -> Iterator[Text]:
        """Yield the documents; raises `ValueError` for bad input, naming file and line.

        Args:
            report: log at the end how many bad rows were skipped; asked for in one of several
                readings.
        """
        bad = BadRows(self.options.on_bad_row)
        for path in self.files:
            yield from read_texts(
                path,
                text_column=self.options.text_column,
                document=self.options.document,
                encoding=self.options.encoding,
                bad=bad,
            )
        if report:
            bad.report()

    def key(self, cache: Path) -> str:
        """Return a hash of the files' content, in order, and of how they are read."""
        return short_hash(["files", *files_facts(self.files, cache), repr(self.options)])


@dataclass(frozen=True)
class DatasetSource:
    """One split of a `datasets.Dataset`, or in a stream of a `datasets.IterableDataset`.

    Attributes:
        dataset: the rows.
        name: for messages.
        text_column: the column of the text, guessed when obvious.
        on_bad_row: what to do with a row whose text is missing.
    """

    dataset: datasets.Dataset | datasets.IterableDataset
    name: str
    text_column: str | None = None
    on_bad_row: OnBadRow = "error"

    def texts(self, report: bool = False) -> Iterator[Text]:
        """Yield the rows that are not blank; `report` as in `FileSource.texts`."""
        column = self._column()
        bad = BadRows(self.on_bad_row)
        number = 0
        for batch in self.dataset.select_columns([column]).iter(batch_size=1000):
            for value in batch[column]:
                number += 1
                if value is None:
                    fault = f"the value of {column!r} is missing"
                    bad(self.name, number, fault, "Filter such rows out")
                elif value.strip():
                    yield Text(value, self.name, number)
        if report:
            bad.report()

    def key(self, cache: Path) -> str:
        """Return a hash of the data set's fingerprint and the column."""
        state = getattr(self.dataset, "_fingerprint", None)
        if state is None:  # it has none, and is read to know what it holds
            digest = hashlib.sha256()
            for text in self.texts():
                digest.update(text.text.encode("utf-8", "surrogatepass") + b"\0")
            state = digest.hexdigest()
        return short_hash(["dataset", state, self._column(), self.on_bad_row])

    def _column(self) -> str:
        if self.dataset.features is None:  # an iterable one may not know
            row: dict[str, Any] = next(iter(self.dataset), {})
            strings = [name for name, value in row.items() if isinstance(value, str)]
        else:
            strings = [
                name
                for name, feature in self.dataset.features.items()
                if getattr(feature, "dtype", None) in ("string", "large_string")
            ]
        return guess_column(strings, self.text_column, self.name)


TextSource = FileSource | DatasetSource


def expand_files(
    names: str | Path | Sequence[str | Path], argument: str, endings: Collection[str] = ()
) -> tuple[Path, ...]:
    """Return the files that names, globs and folders stand for, sorted within each.

    Args:
        names: one or more paths, globs (`**` too) or folders, whose text files are taken.
        argument: for the error.
        endings: further ends of names that are taken from a folder, e.g. `.conll`.

    Raises:
        ValueError: a name stands for no file; names the nearest one.
    """
    found: list[Path] = []
    for name in [names] if isinstance(names, str | Path) else names:
        path = Path(name).expanduser()
        if path.is_file():
            found.append(path)
        elif path.is_dir():
            inside = sorted(file for file in path.rglob("*") if _is_text_file(file, path, endings))
            if not inside:
                raise ValueError(
                    f"{argument}: the folder {path} holds no text files; expected .txt, .jsonl, "
                    ".json, .csv, .tsv or .parquet, also with .gz"
                )
            found += inside
        elif glob.has_magic(str(path)):
            # Not Path.glob, which refuses absolute patterns.
            matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
            if not any(Path(match).is_file() for match in matches):
                raise ValueError(f"{argument}: no file matches {name} (from {Path.cwd()})")
            found += [Path(match) for match in matches if Path(match).is_file()]
        else:
            raise ValueError(f"{argument}: no file or folder {path}{_nearest(path)}")
    if not found:
        raise ValueError(f"{argument} is an empty list; name at least one file")
    return tuple(dict.fromkeys(found))


def split_files(files: tuple[Path, ...]) -> dict[str, tuple[Path, ...]]:
    """Sort files with `train`, `val` (`valid`, `dev`) or `test` in their names into splits.

    A file with none of these words in its name is for training.

    Example:
        >>> split_files((Path("a/dev.txt"), Path("a/latest.txt")))
        {'val': (PosixPath('a/dev.txt'),), 'train': (PosixPath('a/latest.txt'),)}
    """
    splits: dict[str, list[Path]] = {}
    for path in files:
        match = _SPLIT_NAME.search(path.name)
        word = match[1].lower() if match else "train"
        split = "train" if word == "train" else "test" if word == "test" else "val"
        splits.setdefault(split, []).append(path)
    return {split: tuple(paths) for split, paths in splits.items()}


def files_facts(files: Sequence[Path], cache: Path) -> list[list[str]]:
    """Return what decides what files say: format and content hash of each."""
    kinds = [file_format(path) or "txt" for path in files]
    return [kinds, [_content_hash(path, cache) for path in files]]


def _is_text_file(path: Path, root: Path, endings: Collection[str]) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    known = file_format(path) is not None or path.name.removesuffix(".gz").endswith(tuple(endings))
    return path.is_file() and not hidden and known


def _nearest(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (the folder {path.parent} does not exist)"
    names = [entry.name for entry in path.parent.iterdir()]
    match = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / match[0]}?" if match else ""


def _content_hash(path: Path, cache: Path) -> str:
    """Hash a file by its bytes; remembered as long as the file system says it is unchanged."""
    state = path.stat()
    # Any write changes the time of change (ctime), which no program can set back.
    identity = [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
    note = cache / "hashes" / f"{short_hash([str(path.absolute())])}.json"
    try:
        known = json.loads(note.read_text())
        if known["identity"] == identity:
            return str(known["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    # A file just written may be written again within the clock's tick: remember it next time.
    if time.time_ns() - max(state.st_mtime_ns, state.st_ctime_ns) > 2_000_000_000:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps({"identity": identity, "digest": digest.hexdigest()}))
    return digest.hexdigest()


def short_hash(value: Any) -> str:
    """Return 32 hex digits for plain data, the same in every process."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]
