"""Tokenize a stream of texts into token stores, in constant memory and safe against a kill."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..cache import building_folder, put_in_place
from ..tokenization import EncodedText
from .sentences import sentence_starts
from .text_rows import Text, text_batches
from .token_store import FORMAT_VERSION, TokenStore

__all__ = ["Encode", "EncodeWords", "Route", "write_stores"]

Encode = Callable[[list[str]], list[list[int]]]
EncodeWords = Callable[[list[str]], list[EncodedText]]
Route = Callable[[Text], str]


def write_stores(
    texts: Iterable[Text],
    targets: dict[str, Path],
    *,
    encode: Encode | EncodeWords,
    separator: int,
    vocab_size: int,
    route: Route | None = None,
    words: bool = False,
    sentences: bool = False,
    name: str = "text",
) -> dict[str, TokenStore]:
    """Tokenize a stream of texts into one store, or into several by a route.

    Memory does not grow with the text: ids and offsets go to disk as they come.

    Args:
        texts: documents, or pieces of long ones in order.
        targets: split -> folder of its store; the folder's name is the store's key.
        encode: from texts to ids, without special tokens; for words and sentences, to
            `EncodedText`.
        separator: id written after each document.
        vocab_size: number of ids; decides between 2 and 4 bytes per token.
        route: from a text to its split; needed with more than one target. All pieces of a
            document go where its first piece goes.
        words: write where words begin, too.
        sentences: write where sentences begin, too, by `sentence_starts`.
        name: for the progress bar, which shows on a terminal after two seconds.

    Raises:
        OSError: the disk is full or not writable; nothing half-written is left behind.
    """
    dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
    only = next(iter(targets))
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(_Writer(path, dtype, words, sentences))
            for split, path in targets.items()
        }
        bar = stack.enter_context(
            tqdm(desc=f"tokenizing {name}", unit=" documents", delay=2, disable=None, leave=False)
        )
        split, starts = only, True
        try:
            for batch in text_batches(texts):
                encoded: Sequence[Any] = encode([text.text for text in batch])
                for text, tokens in zip(batch, encoded, strict=True):
                    if starts:
                        split = route(text) if route else only
                    writers[split].add(text, tokens, starts, separator)
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

    def __init__(self, final: Path, dtype: np.dtype[Any], words: bool, sentences: bool) -> None:
        self.final, self.dtype = final, dtype
        self.words, self.sentences = words, sentences
        self.folder = building_folder(final)
        self.documents = self.tokens = self.text_bytes = self.sentence_count = 0
        self.held: list[int] = []
        self.starts: list[int] = []
        self.starts_word: list[bool] = []
        self.starts_sentence: list[int] = []
        self.files: dict[str, IO[bytes]] = {}

    def __enter__(self) -> _Writer:
        self.folder.mkdir()
        asked = {"tokens": True, "offsets": True, "words": self.words, "sentences": self.sentences}
        for name, wanted in asked.items():
            if wanted:
                self.files[name] = (self.folder / f"{name}.bin").open("wb")
        return self

    def __exit__(self, *exception: object) -> None:
        # Closing a file on a full disk raises too; the folder has to go in any case.
        try:
            for stream in self.files.values():
                stream.close()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def add(
        self, text: Text, tokens: Sequence[int] | EncodedText, starts: bool, separator: int
    ) -> None:
        place = self.tokens + len(self.held)
        if starts:
            self.starts.append(place)
        if isinstance(tokens, EncodedText):
            self.held.extend(tokens.ids)
            self._note(text, tokens, place)
        elif self.words or self.sentences:
            raise TypeError("encode must return EncodedText, for words and sentences")
        else:
            self.held.extend(tokens)
        if text.ends:
            self.held.append(separator)
        self.text_bytes += len(text.text.encode("utf-8", "surrogatepass"))

    def _note(self, text: Text, tokens: EncodedText, place: int) -> None:
        if self.words:
            self.starts_word.extend(tokens.starts_word.tolist())
            self.starts_word.extend([True] * text.ends)  # the separator
        if self.sentences and tokens.ids:
            # A sentence begins with the first token that reaches beyond its first character; one
            # without a token of its own is none.
            first = np.searchsorted(tokens.ends, sentence_starts(text.text), "right")
            first = np.unique(np.append(first[1:], 0))
            self.starts_sentence.extend((place + first[first < len(tokens.ids)]).tolist())

    def flush(self, last: bool = False) -> None:
        self._write("tokens", np.asarray(self.held, self.dtype))
        self._write("offsets", np.asarray(self.starts, np.int64))
        self._write("sentences", np.asarray(self.starts_sentence, np.int64))
        # Eight tokens to a byte: what does not fill one waits for the next.
        whole = len(self.starts_word) if last else len(self.starts_word) // 8 * 8
        self._write("words", np.packbits(np.asarray(self.starts_word[:whole], bool)))
        self.tokens += len(self.held)
        self.documents += len(self.starts)
        self.sentence_count += len(self.starts_sentence)
        self.held, self.starts, self.starts_sentence = [], [], []
        del self.starts_word[:whole]

    def _write(self, name: str, values: NDArray[Any]) -> None:
        if name in self.files:
            self.files[name].write(values.tobytes())

    def finish(self) -> TokenStore:
        self.flush(last=True)
        meta = {
            "version": FORMAT_VERSION,
            "documents": self.documents,
            "tokens": self.tokens,
            "text_bytes": self.text_bytes,
            "dtype": self.dtype.name,
            **({"words": True} if self.words else {}),
            **({"sentences": self.sentence_count} if self.sentences else {}),
        }
        for stream in self.files.values():
            stream.flush()
            os.fsync(stream.fileno())
            stream.close()
        (self.folder / "meta.json").write_text(json.dumps(meta))
        return put_in_place(self.folder, self.final, TokenStore)
