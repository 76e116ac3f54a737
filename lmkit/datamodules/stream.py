"""Batches of text that is read once, tokenized on the way and never written to disk.

The text is taken in windows: some documents are read, tokenized, laid out in rows and shuffled, as
a whole data set would be, and their batches handed out while the next window is made in a thread.
A window is a pure function of its number and of the document it begins with, so that a run resumes
exactly: it reads on to that document, without tokenizing, and skips the batches it had.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, Protocol

from ..types import Batch
from .batch_plan import Plan
from .loader import Collate
from .stream_window import TextWindow
from .text_rows import Text, text_batches

__all__ = ["StreamLoader", "WindowBatches", "WindowStart"]

log = logging.getLogger("lmkit")

# How many windows back a state can be set, when an interrupted step is done again.
_REMEMBERED = 8


class WindowBatches(NamedTuple):
    """How the batches of a window are planned and made."""

    plan: Plan
    collate: Collate


class WindowStart(NamedTuple):
    """Where a window begins.

    Attributes:
        number: windows before it.
        batch: batches before it, over all epochs.
        document: documents of the text before it, in this pass.
        turn: how often the text was gone through before.
    """

    number: int
    batch: int
    document: int
    turn: int


@dataclass
class _Window:
    start: WindowStart
    documents: int
    batches: WindowBatches


class Documents(Protocol):
    """The text: can be read from the beginning any number of times."""

    def texts(self, report: bool = False) -> Iterator[Text]:
        """Yield the documents."""


class StreamLoader:
    """Hands out the batches of a stream, and goes on from a saved state.

    A stream has no end: at the end of the text it begins again. An epoch is so many batches.

    Args:
        source: the text.
        encode: from texts to ids, without special tokens.
        separator: id that ends a document.
        arrange: makes plan and collator of a window; gets the window and its number.
        window_tokens: a window has at least so many, if the text has.
        epoch_batches: batches in an epoch.
        global_batch: size of a batch over all ranks, by which a changed run is known.
        clock: tells the epoch.
        state: of an interrupted run.
    """

    def __init__(
        self,
        source: Documents,
        *,
        encode: Callable[[list[str]], list[list[int]]],
        separator: int,
        arrange: Callable[[TextWindow, int], WindowBatches],
        window_tokens: int,
        epoch_batches: int,
        global_batch: int,
        clock: Callable[[], int] | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self.source, self.encode, self.separator = source, encode, separator
        self.arrange = arrange
        self.window_tokens, self.epoch_batches = window_tokens, epoch_batches
        self.global_batch = global_batch
        self._clock = clock
        self.epoch = self.position = 0
        self._batch = 0
        self._starts = [WindowStart(0, 0, 0, 0)]
        self._reader: tuple[int, int, Iterator[Text]] | None = None
        self._windows: Iterator[_Window] | None = None
        self._current: _Window | None = None
        if state:
            self.load_state_dict(state)

    def __len__(self) -> int:
        return self.epoch_batches

    def __iter__(self) -> Iterator[Batch]:
        told = self._clock() if self._clock else self.epoch
        if self.position >= self.epoch_batches:
            self.epoch, self.position = max(self.epoch + 1, told), 0
        while self.position < self.epoch_batches:
            window = self._window()
            number = self._batch - window.start.batch
            batch = window.batches.collate(
                window.start.number, window.batches.plan.batch(0, number)
            )
            self._batch += 1
            self.position += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return how many batches were handed over, and where their windows begin."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "first": self._batch - self.position,
            "global_batch": self.global_batch,
            "windows": [list(start) for start in self._starts],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on behind the last batch of `state`.

        With another batch size or number of ranks the run goes on at the beginning of the window.
        """
        self.epoch, self.position = int(state["epoch"]), int(state["position"])
        self._batch = int(state["first"]) + self.position
        starts = [WindowStart(*map(int, start)) for start in state["windows"]]
        self._starts = [start for start in starts if start.batch <= self._batch] or starts[:1]
        if int(state["global_batch"]) != self.global_batch:
            log.warning(
                "the checkpoint was written with another batch size or number of ranks: the stream "
                "goes on at about the same place, and not exactly"
            )
            self._starts[-1] = self._starts[-1]._replace(batch=self._batch)
        self._windows = self._current = None

    def _window(self) -> _Window:
        """Return the window that has the next batch."""
        if self._windows is None:
            self._windows = self._ahead(self._starts[-1])
        while self._current is None or self._batch >= self._current.start.batch + len(
            self._current.batches.plan
        ):
            self._current = next(self._windows)
            if self._current.start != self._starts[-1]:
                self._starts = [*self._starts, self._current.start][-_REMEMBERED:]
        return self._current

    def _ahead(self, start: WindowStart) -> Iterator[_Window]:
        """Yield the windows from `start` on, the next one being made meanwhile."""
        with ThreadPoolExecutor(1, "lmkit-stream") as executor:
            coming = executor.submit(self._make, start)
            while True:
                window = coming.result()
                batches = len(window.batches.plan)
                start = WindowStart(
                    window.start.number + 1,
                    window.start.batch + batches,
                    window.start.document + window.documents,
                    window.start.turn,
                )
                coming = executor.submit(self._make, start)
                yield window

    def _make(self, start: WindowStart) -> _Window:
        encoded: list[list[int]] = []
        held: list[int] = []
        tokens = documents = 0
        for some in text_batches(self._texts(start)):
            for text, ids in zip(some, self.encode([t.text for t in some]), strict=True):
                held += ids
                tokens += len(ids)
                if text.ends:
                    encoded.append(held)
                    held = []
            documents += len(some)
            if tokens >= self.window_tokens:
                break
        if not tokens:  # the text has ended
            if start.document == 0:
                fault = "the tokenizer finds no token in it" if documents else "only blank lines"
                raise ValueError(f"the stream has no text: {fault}")
            return self._make(start._replace(document=0, turn=start.turn + 1))
        if held:  # a long document that goes on in the next window
            encoded.append(held)
        window = TextWindow(encoded, self.separator)
        return _Window(start, documents, self.arrange(window, start.number))

    def _texts(self, start: WindowStart) -> Iterator[Text]:
        """Return the text from a document on; the one that is being read, if that is there."""
        if self._reader is None or self._reader[:2] != (start.turn, start.document):
            texts = self.source.texts(report=start.document == 0 and start.turn == 0)
            self._reader = (start.turn, start.document, islice(texts, start.document, None))
        texts = self._reader[2]

        def counted() -> Iterator[Text]:
            for text in texts:
                assert self._reader is not None
                self._reader = (start.turn, self._reader[1] + 1, texts)
                yield text

        return counted()
