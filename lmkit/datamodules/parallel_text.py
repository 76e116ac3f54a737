"""Texts and what they become, line by line in two files: `train.en` beside `train.de`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .records import FileRecords, Record, RecordOptions, RecordSource
from .source import short_hash
from .table_files import file_format
from .text_lines import numbered_lines
from .text_rows import BadRows

__all__ = ["AlignedRecords", "LineRecords", "ParallelOptions", "read_aligned"]


@dataclass(frozen=True)
class ParallelOptions(RecordOptions):
    """How to read tables, and plain files of which two belong together.

    Two plain files are the sources and the targets, in this order. With languages, `train.en` is
    joined to `train.de` wherever they stand in the list, and a folder may hold many such.
    """

    source_lang: str | None = None
    target_lang: str | None = None

    @property
    def endings(self) -> tuple[str, ...]:  # type: ignore[override]
        """Ends of the names of files that are read from a folder."""
        return tuple(f".{lang}" for lang in (self.source_lang, self.target_lang) if lang)

    def of_files(self, files: tuple[Path, ...]) -> RecordSource:
        """Return the rows of files.

        Raises:
            ValueError: plain files that do not come in pairs, or stand among tables.
        """
        plain = [path for path in files if file_format(path) in (None, "txt")]
        if not plain:
            return FileRecords(files, self)
        if len(plain) < len(files):
            table = next(path for path in files if path not in plain)
            raise ValueError(
                f"{plain[0]} is plain text, and {table} a table; give either tables with a column "
                "of sources and one of targets, or pairs of plain files"
            )
        if len(files) == 1:
            return LineRecords(files, self)
        pairs = self._paired(files) or ([files] if len(files) == 2 else [])
        if not pairs:
            raise ValueError(
                f"{len(files)} plain files, such as {files[0]}, and it is not told which two "
                "belong together; name two, the sources first, or pass source_lang and "
                "target_lang, the endings of their names (en and de for train.en and train.de)"
            )
        return AlignedRecords(tuple(path for pair in pairs for path in pair), self)

    def _paired(self, files: tuple[Path, ...]) -> list[tuple[Path, ...]]:
        """Join the files that differ in the language at the end of their names alone."""
        if len(self.endings) < 2:
            return []
        sides: dict[str, dict[str, Path]] = {}
        for path in files:
            name = str(path).removesuffix(".gz")
            for ending in self.endings:
                if name.endswith(ending):
                    sides.setdefault(name.removesuffix(ending), {})[ending] = path
        for found in sides.values():
            for ending in self.endings:
                if ending not in found and len(files) > 2:
                    (alone,) = found.values()
                    raise ValueError(
                        f"{alone} has no partner that ends in {ending}; give both files, or leave "
                        "this one out"
                    )
        whole = [tuple(found[ending] for ending in self.endings) for found in sides.values()]
        if sum(map(len, whole)) < len(files):
            return []
        return whole


@dataclass(frozen=True)
class AlignedRecords(FileRecords):
    """Pairs of plain files: line for line a source, and in the next file its target."""

    def records(self, bad: BadRows) -> Iterator[Record]:
        """Yield rows with the columns `source` and `target`."""
        for source, target in zip(self.files[::2], self.files[1::2], strict=True):
            yield from read_aligned(source, target, self.options.encoding, bad)

    def key(self, cache: Path) -> str:
        """Return a hash of the files' content, in order, and of how they are read."""
        return short_hash(["aligned", super().key(cache)])


@dataclass(frozen=True)
class LineRecords(FileRecords):
    """A plain file alone, each line a source: to predict on."""

    def records(self, bad: BadRows) -> Iterator[Record]:
        """Yield rows with the column `source`; blank lines are left out."""
        for path in self.files:
            for number, line in numbered_lines(path, self.options.encoding, bad):
                if line.strip():
                    yield Record({"source": line}, str(path), number)

    def key(self, cache: Path) -> str:
        """Return a hash of the files' content, and of how they are read."""
        return short_hash(["lines", super().key(cache)])


def read_aligned(source: Path, target: Path, encoding: str, bad: BadRows) -> Iterator[Record]:
    """Yield the lines of two files together, as the columns `source` and `target`.

    Where both lines are blank there is no example; where one is, it is a bad row.

    Args:
        source: a plain file, perhaps with `.gz`.
        target: the one that belongs to it.
        encoding: of the characters of both.
        bad: what to do with bad rows.

    Raises:
        ValueError: a file is empty, or they have not as many lines, which no row can be blamed for.
    """
    ours, theirs = (_lines(path, encoding, bad) for path in (source, target))
    if len(ours) != len(theirs):
        raise ValueError(
            f"{source} has {len(ours)} lines and {target} {len(theirs)}: from some line on each "
            "source would stand beside the target of another. Give the files that belong together, "
            "or write them again with one line for each example"
        )
    for number, (text, written) in enumerate(zip(ours, theirs, strict=True), 1):
        if text is None or written is None or not (text.strip() or written.strip()):
            continue
        if text.strip() and written.strip():
            yield Record({"source": text, "target": written}, str(source), number)
            continue
        empty, other = (target, source) if text.strip() else (source, target)
        bad(empty, number, f"the line is blank, and that of {other} is not", "Fill or remove both")


def _lines(path: Path, encoding: str, bad: BadRows) -> list[str | None]:
    """Return the lines; `None` for one that cannot be decoded and is skipped."""
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty; give the file that has the text")
    skipped = bad.count
    lines: list[str | None] = []
    for number, line in numbered_lines(path, encoding, bad):
        lines += [None] * (number - 1 - len(lines))
        lines.append(line)
    missing = bad.count - skipped - lines.count(None)
    return lines + [None] * missing
