"""What is said of weights that start at random, unless a checkpoint is about to replace them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from lightning.pytorch.utilities import rank_zero_info

__all__ = ["checkpoint_follows", "say_fresh"]

_follows: ContextVar[bool] = ContextVar("checkpoint_follows", default=False)


@contextmanager
def checkpoint_follows(follows: bool = True) -> Iterator[None]:
    """Let what is built inside say nothing of weights that start at random.

    Args:
        follows: whether a checkpoint is to be loaded into it; if not, this changes nothing.
    """
    token = _follows.set(_follows.get() or follows)
    try:
        yield
    finally:
        _follows.reset(token)


def say_fresh(message: str) -> None:
    """Say on rank 0 which weights start at random, unless `checkpoint_follows`."""
    if not _follows.get():
        rank_zero_info(message)
