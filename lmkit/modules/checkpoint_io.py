"""Checkpoint files: written whole or not at all, read without running anything."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

__all__ = ["AtomicCheckpointIO", "read_checkpoint", "write_atomically"]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, has the disk confirm it, and only then moves it there.

    A process killed in the middle, or a disk that fills, leaves the checkpoint that was there
    before. Lightning's own writer holds a second copy in memory and does not wait for the disk.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write `checkpoint` to `path`.

        Raises:
            OSError: the disk is full or not writable; what stood at `path` still stands.
        """
        if "://" in str(path):  # an object store, whose uploads are atomic themselves
            super().save_checkpoint(checkpoint, str(path), storage_options)
            return
        target = Path(path)
        part = target.with_name(f"{target.name}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
            _sync_folder(target.parent)
        except (OSError, RuntimeError) as error:
            part.unlink(missing_ok=True)
            # torch turns a failed write into a RuntimeError of its zip file.
            cause = error.__context__ if isinstance(error, RuntimeError) else error
            if not isinstance(cause, OSError):
                raise
            before = "; the one before still stands" if target.exists() else ""
            raise OSError(
                f"the checkpoint {target} could not be written ({cause}){before}. Free some space, "
                "or set another folder, and go on with ckpt_path='last'."
            ) from error

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any = "cpu",
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint, see `read_checkpoint`; `weights_only=False` is Lightning's own way."""
        if weights_only is False or "://" in str(path):
            loaded: dict[str, Any] = super().load_checkpoint(str(path), map_location, weights_only)
            return loaded
        checkpoint = read_checkpoint(path, map_location)
        if "pytorch-lightning_version" not in checkpoint:
            raise ValueError(
                f"{path} is no checkpoint of a fit; weights from elsewhere come in as "
                "model='folder or hub name'"
            )
        return checkpoint


def write_atomically(strategy: Any) -> None:
    """Let a strategy write by `AtomicCheckpointIO`, unless the user gave it a writer."""
    if type(strategy.checkpoint_io) is TorchCheckpointIO:
        strategy.checkpoint_io = AtomicCheckpointIO()


def read_checkpoint(
    path: str | os.PathLike[str], map_location: Any = "cpu", mmap: bool = False
) -> dict[str, Any]:
    """Read a checkpoint that holds tensors and plain data; nothing in it is ever run.

    Args:
        path: the file.
        map_location: where tensors go, as in `torch.load`.
        mmap: map the file into memory, so that only what is used is read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is cut short, no checkpoint, or holds something other than plain data.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        if "weights_only" not in str(error) and "Unsupported" not in str(error):
            raise ValueError(_broken(path)) from error
        raise ValueError(
            f"the checkpoint {path} holds objects other than tensors and plain data, and "
            "unpacking those could run code, so it is refused"
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise ValueError(_broken(path)) from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint")
    return checkpoint


def _broken(path: str | os.PathLike[str]) -> str:
    size = Path(path).stat().st_size
    return (
        f"the checkpoint {path} ({size} bytes) is cut short or no checkpoint at all; use an "
        "earlier one"
    )


def _sync_folder(folder: Path) -> None:
    # Without this a power cut may forget the rename. Not every system lets a folder be opened.
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
