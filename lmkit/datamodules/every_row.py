"""Rows that are the same in every epoch, so that what is found out of each can be kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .batch_plan import check_positive
from .row_table import ROWS_VERSION
from .source import short_hash
from .task_tables import EXAMPLES_VERSION
from .token_store import FORMAT_VERSION

if TYPE_CHECKING:
    from .base import LMDataModule
    from .task import TaskDataModule

__all__ = ["check_fixed", "rows_hash"]

_SPLITS = ("train", "val", "test")


def check_fixed(data: LMDataModule | TaskDataModule, split: str, batch_size: int | None) -> None:
    """Check that a data module has the same rows in every epoch, and what is asked of them.

    Raises:
        ValueError: it has not, or there is no such split or size; says why, and what to do.
    """
    if split not in _SPLITS:
        raise ValueError(f"split must be one of {', '.join(_SPLITS)}, got {split!r}")
    check_positive(batch_size=batch_size)
    remedy = "what a teacher says of a row cannot be kept: ask it anew for each batch"
    how = getattr(data, "augmentation", None)
    if split != "train" and how is not None and how.changes(split) and not how.view:
        raise ValueError(
            f"transforms change the rows of {split} (transform_options: splits), so {remedy}, or "
            f"leave {split} out of splits"
        )
    if data.fixed_rows:
        return
    if not getattr(data, "draws_each_epoch", True):
        raise ValueError(
            f"a stream has no rows that could be found again, so {remedy}, or pass streaming=False"
        )
    raise ValueError(f"{type(data).__name__} draws its rows anew in each epoch, so {remedy}")


def rows_hash(data: LMDataModule | TaskDataModule, split: str) -> str:
    """Return a hash of what decides which rows a split has, and what stands in them."""
    data.setup()
    facts = data.state_dict()["facts"]
    # A split without a text of its own is held out from the training text.
    own = split if f"{split} text" in facts else "train"
    left_out = {f"{name} text" for name in _SPLITS if name != own}
    if not getattr(data, "draws_rows", False):  # else the seed decides which ones there are
        left_out.add("seed")
    kept = {name: fact for name, fact in facts.items() if name not in left_out}
    if split != "train":
        kept["batching"] = getattr(data, "eval_batching", None)
    versions = EXAMPLES_VERSION, FORMAT_VERSION, ROWS_VERSION
    return short_hash(["every row", *versions, type(data).__name__, split, kept])
