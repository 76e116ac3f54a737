"""Tokenize a stream of texts into token stores, in constant memory and safe against a kill."""

from __future__ import annotations

import json
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from .text_rows import Text
from .token_store import FORMAT_VERSION, TokenStore

__all__ = ["Encode", "Route", "write_stores"]

# One call of the tokenizer: enough documents to feed its threads, few enough to stay small.
_DOCUMENTS = 1000
_CHARACTERS = 1 << 20

Encode = Callable[[list[str]], list[list[int]]]
Route = Callable[[Text], str]


def write_stores(
    texts: Iterable[Text],
    targets: dict[str, Path],
    *,
    encode: Encode,
    separator: int,
    vocab_size: int,
    route: Route | None = None,
    name: str = "text",
) -> dict[str, TokenStore]:
    """Tokenize a stream of texts into one store, or into several by a route.

    Memory does not grow with the text: ids and offsets go to disk as they come.

    Args:
        texts: documents, or pieces of long ones in order.
        targets: split -> folder of its store; the folder's name is the store's key.
        encode: from texts to ids, without special tokens.
        separator: id written after each document.
        vocab_size: number of ids; decides between 2 and 4 bytes per token.
        route: from a text to its split; needed with more than one target. All pieces of a
            document go where its first piece goes.
        name: for the progress bar, which shows on a terminal after two seconds.

    Raises:
        OSError: the disk is full or not writable; nothing half-written is left behind.
    """
    dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
    only = next(iter(targets))
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(_Writer(path, dtype)) for split, path in targets.items()
        }
        bar = stack.enter_context(
            tqdm(desc=f"tokenizing {name}", unit=" documents", delay=2, disable=None, leave=False)
        )
        split, starts = only, True
        try:
            for batch in _batches(texts):
                encoded = encode([text.text for text in batch])
                for text, ids in zip(batch, encoded, strict=True):
                    if starts:
                        split = route(text) if route else only
                    writers[split].add(text, ids, starts, separator)
                    starts = text.ends
                for writer in writers.values():
                    writer.flush()
                bar.update(len(batch))
            return {split: writer.finish() for split, writer in writers.items()}
        except OSError as error:
            folder = targets[only].parent
            free = shutil.disk_usage(folder).free / 2**20
            raise OSError(
                error.errno,
                f"cannot write token ids under {folder} ({error.strerror}; {free:.0f} MiB free); "
                "make room, pass another cache_dir or set LMKIT_CACHE",
            ) from error


class _Writer:
    """One store in the making, in a folder of its own that is removed unless it is finished."""

    def __init__(self, final: Path, dtype: np.dtype[Any]) -> None:
        self.final, self.dtype = final, dtype
        final.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(final.parent)
        token = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.folder = final.parent / f".building-{token}"
        self.documents = self.tokens = self.text_bytes = 0
        self.held: list[int] = []
        self.starts: list[int] = []

    def __enter__(self) -> _Writer:
        self.folder.mkdir()
        self.ids: IO[bytes] = (self.folder / "tokens.bin").open("wb")
        self.offsets: IO[bytes] = (self.folder / "offsets.bin").open("wb")
        return self

    def __exit__(self, *exception: object) -> None:
        # Closing a file on a full disk raises too; the folder has to go in any case.
        try:
            self.ids.close()
            self.offsets.close()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def add(self, text: Text, ids: Sequence[int], starts: bool, separator: int) -> None:
        if starts:
            self.starts.append(self.tokens + len(self.held))
        self.held.extend(ids)
        if text.ends:
            self.held.append(separator)
        self.text_bytes += len(text.text.encode("utf-8", "surrogatepass"))

    def flush(self) -> None:
        self.ids.write(np.asarray(self.held, dtype=self.dtype).tobytes())
        self.offsets.write(np.asarray(self.starts, dtype=np.int64).tobytes())
        self.tokens += len(self.held)
        self.documents += len(self.starts)
        self.held, self.starts = [], []

    def finish(self) -> TokenStore:
        meta = {
            "version": FORMAT_VERSION,
            "documents": self.documents,
            "tokens": self.tokens,
            "text_bytes": self.text_bytes,
            "dtype": self.dtype.name,
        }
        for stream in (self.ids, self.offsets):
            stream.flush()
            os.fsync(stream.fileno())
            stream.close()
        (self.folder / "meta.json").write_text(json.dumps(meta))
        try:
            self.folder.rename(self.final)
        except OSError:
            # Somebody else finished first, with the same content, or left a broken one.
            try:
                return TokenStore(self.final)
            except FileNotFoundError:
                shutil.rmtree(self.final, ignore_errors=True)
                self.folder.rename(self.final)
        return TokenStore(self.final)


def _batches(texts: Iterable[Text]) -> Iterator[list[Text]]:
    batch: list[Text] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text.text)
        if len(batch) >= _DOCUMENTS or size >= _CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _remove_abandoned(folder: Path) -> None:
    """Remove what processes of this machine left when they were killed."""
    for path in folder.glob(f".building-{socket.gethostname()}-*"):
        pid = path.name.rsplit("-", 2)[1]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(path, ignore_errors=True)


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
