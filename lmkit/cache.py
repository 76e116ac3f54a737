"""The cache on disk: where it is, and how what is in it comes to be whole or not there."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Any, TypeVar

__all__ = [
    "BusyError",
    "FolderLock",
    "building_folder",
    "cache_folder",
    "put_in_place",
    "write_whole",
    "writing_to",
]

Entry = TypeVar("Entry")

fcntl: Any
try:
    fcntl = import_module("fcntl")
except ImportError:  # Windows
    fcntl = None


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


def building_folder(final: Path) -> Path:
    """Name a folder beside `final` to build in, and remove what killed processes left there."""
    final.parent.mkdir(parents=True, exist_ok=True)
    for path in final.parent.glob(f".building-{socket.gethostname()}-*"):
        pid = path.name.rsplit("-", 2)[1]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(path, ignore_errors=True)
    token = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    return final.parent / f".building-{token}"


def put_in_place(building: Path, final: Path, open_entry: Callable[[Path], Entry]) -> Entry:
    """Rename what was built to its name, and open it.

    Args:
        building: the finished folder.
        final: its name, a hash of all that it depends on.
        open_entry: opens the folder, or raises `FileNotFoundError` for one that is not whole.
    """
    try:
        building.rename(final)
    except OSError:
        # Another process was first, with the same content, or left a broken one.
        try:
            return open_entry(final)
        except FileNotFoundError:
            shutil.rmtree(final, ignore_errors=True)
            building.rename(final)
    return open_entry(final)


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it has its old or its new content, whenever the power goes."""
    building = path.with_name(f".{path.name}.building")
    with building.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    building.replace(path)
    with suppress(OSError):  # not every system lets a folder be opened, or flushed
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def writing_to(folder: Path, what: str) -> Iterator[None]:
    """Say of an `OSError` inside what could not be written where, and what to do.

    Args:
        folder: that is there.
        what: is written, as words.
    """
    try:
        yield
    except OSError as error:
        free = shutil.disk_usage(folder).free / 2**20
        raise OSError(
            error.errno,
            f"cannot write {what} to {folder} ({error.strerror}; {free:.0f} MiB free); make room, "
            "pass another cache_dir or set LMKIT_CACHE",
        ) from error


class BusyError(RuntimeError):
    """Another process writes to the same folder."""


class FolderLock:
    """Lets one process at a time write to a folder, by a file `lock` with its host and number.

    The system lets go of the lock of a process that ends, however it ends. Where files cannot be
    locked, the lock of a process of this host that is no more is taken over.

    Args:
        folder: that is there.
        wait: seconds to wait for another process.

    Raises:
        BusyError: another process has the lock; says which.
    """

    def __init__(self, folder: Path, wait: float = 0.0) -> None:
        self.path = folder / "lock"
        self._stream: IO[str] | None = None
        end = time.monotonic() + wait
        while (holder := self._taken_by()) is not None:
            if time.monotonic() >= end:
                raise BusyError(
                    f"{holder} is writing to {folder}; wait until it is done, or end it (if it is "
                    f"no more, remove {self.path})"
                )
            time.sleep(0.05)

    @property
    def held(self) -> bool:
        """Whether this process has the lock still."""
        return self._stream is not None

    def release(self) -> None:
        """Let others write; a second call does nothing."""
        stream, self._stream = self._stream, None
        if stream is None:
            return
        # Not by closing alone: workers that were forked have the file open, and locked, still.
        stream.truncate(0)
        with suppress(OSError):  # Windows removes no open file: an empty one is nobody's
            self.path.unlink()
        stream.close()

    def _taken_by(self) -> str | None:
        """Take the lock, or say who has it."""
        while True:
            stream = self.path.open("a+", encoding="utf-8")
            locked, holder = _lock(stream), _holder(stream)
            gone = holder is None or (holder[0] == socket.gethostname() and not _alive(holder[1]))
            if not (gone if locked is None else locked):
                stream.close()
                return "process {1} on {0}".format(*holder) if holder else "another process"
            if _is_file(stream, self.path):
                stream.truncate(0)
                json.dump([socket.gethostname(), os.getpid()], stream)
                stream.flush()
                self._stream = stream
                return None
            stream.close()  # its owner has removed it since it was opened


def _lock(stream: IO[str]) -> bool | None:
    """Return whether the file could be locked; `None` where the system cannot tell."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True


def _holder(stream: IO[str]) -> tuple[str, int] | None:
    stream.seek(0)
    try:
        host, pid = json.load(stream)
        return str(host), int(pid)
    except (ValueError, TypeError):
        return None


def _is_file(stream: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _alive(pid: int) -> bool:
    if os.name == "nt":  # there, signal 0 would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
