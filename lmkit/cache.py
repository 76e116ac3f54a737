"""The cache on disk: where it is, and folders in it that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import socket
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

__all__ = ["building_folder", "cache_folder", "put_in_place"]

Entry = TypeVar("Entry")


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
