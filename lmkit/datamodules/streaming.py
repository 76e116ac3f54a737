"""A data module's training text as a stream."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from ..functional.random import mix
from ..tokenization import require_separator, text_encoder
from .source import TextSource
from .stream import StreamLoader, WindowBatches
from .stream_window import TextWindow
from .trainer_facts import epoch_length, epoch_number, ranks

if TYPE_CHECKING:
    from .base import LMDataModule

__all__ = ["stream_loader"]

# How many batches the text of a stream is shuffled over.
_WINDOW_BATCHES = 64


def stream_loader(
    data: LMDataModule, source: TextSource | None, state: Mapping[str, Any] | None
) -> StreamLoader:
    """Return the loader of a data module that streams.

    Args:
        data: makes rows, plans and collators of each window.
        source: the training text.
        state: of an interrupted run.

    Raises:
        ValueError: there is no training text.
    """
    if source is None or data.tokenizer is None:
        raise ValueError("there is no train text to stream; pass train_file or source")

    def arrange(window: TextWindow, number: int) -> WindowBatches:
        rows = data.rows(window, data.batching)
        plan = data.plan(rows, data.batch_size, mix(data.seed, number))
        return WindowBatches(plan, data.collator(rows, training=True))

    trainer = data.trainer
    global_batch = data.batch_size * ranks(trainer)[1]
    return StreamLoader(
        source,
        encode=text_encoder(data.tokenizer),
        separator=require_separator(data.tokenizer, *data.separator_roles),
        arrange=arrange,
        window_tokens=_WINDOW_BATCHES * global_batch * data.max_length,
        epoch_batches=epoch_length(trainer, data.epoch_batches),
        global_batch=global_batch,
        clock=partial(epoch_number, trainer) if trainer else None,
        state=state,
    )
