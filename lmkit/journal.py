"""A file that a long pass over rows adds to, so that a killed one goes on where it was."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from .cache import FolderLock

__all__ = ["Journal"]

_FILE = "journal.jsonl"


class Journal:
    """Entries that are whole on disk once they are added, beneath a header that says of what.

    It is a folder of its own with one file, and one process at a time may have it open. A line
    that a killed process left half written is cut off.

    Args:
        folder: to make, or to go on with.
        header: plain data that all entries depend on, by name.

    Raises:
        ValueError: what is there is of another header; says what differs.
        BusyError: another process has it open.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with Journal(Path(folder, "pass"), {"seed": 0}) as journal:
        ...         journal.add({"row": 0})
        ...     with Journal(Path(folder, "pass"), {"seed": 0}) as journal:
        ...         print(journal.entries)
        [{'row': 0}]
    """

    def __init__(self, folder: Path, header: Mapping[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FolderLock(folder)
        try:
            self.entries = self._read(json.loads(json.dumps(header)))
            self._stream: IO[bytes] = (folder / _FILE).open("ab")
            if self._stream.tell() == 0:
                self.add(header)
                self.entries = []
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()
        self._lock.release()
        if error[0] is not None and not self.entries:
            shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, entry: Mapping[str, Any]) -> None:
        """Add an entry, plain data; it is on the disk when this returns."""
        self._stream.write(json.dumps(entry).encode() + b"\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self.entries.append(dict(entry))

    def remove(self) -> None:
        """Remove the folder, when what it was for is done."""
        shutil.rmtree(self.folder)

    def _read(self, header: dict[str, Any]) -> list[dict[str, Any]]:
        """Cut off what is half written, and return the entries behind the header."""
        path = self.folder / _FILE
        if not path.exists():
            return []
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(path, len(whole))
        lines = [json.loads(line) for line in whole.splitlines()]
        if not lines:
            return []
        found = lines[0]
        if found != header:
            names = [n for n in {**found, **header} if found.get(n) != header.get(n)]
            said = "; ".join(f"{n}={found.get(n)!r}, now {header.get(n)!r}" for n in names)
            raise ValueError(
                f"{self.folder} was begun otherwise ({said}); go on as before, or remove the "
                "folder to begin anew"
            )
        return lines[1:]
