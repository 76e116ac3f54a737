"""Which task a batch is of, or the parts of one that is of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..types import Batch

__all__ = ["TASK", "MixedBatch", "join_parts", "parts_of"]

#: The entry of a batch of one task: the number of the task, int64 `[B]`.
TASK = "task"


class MixedBatch(dict[str, Tensor]):
    """A batch of several tasks, with the entries of each under `<task>/<entry>`.

    It has no `input_ids` of its own, and says so to those that ask.
    """

    def __missing__(self, name: str) -> Tensor:
        """Refuse.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"a batch of all tasks has no {name!r} of its own, which a technique asks for: give "
            "the MultiTaskDataModule batches='one', so that each batch is of one task"
        )


def parts_of(batch: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Batch]:
    """Return the batch of each task that is in a batch.

    Args:
        batch: of one task, with its number as `task`, or of several.
        names: of the tasks, in the order of their numbers.

    Raises:
        ValueError: it is of no task.

    Example:
        >>> import torch
        >>> list(parts_of({"a/labels": torch.ones(2), "b/labels": torch.ones(3)}, ["a", "b"]))
        ['a', 'b']
    """
    if TASK in batch:
        return {names[int(batch[TASK][0])]: dict(batch)}
    if len(names) == 1 and "input_ids" in batch:
        return {names[0]: dict(batch)}
    parts: dict[str, Batch] = {}
    for key, tensor in batch.items():
        name, _, entry = key.partition("/")
        if not entry or name not in names:
            raise ValueError(
                f"the batch does not say which task it is of: it has the entry {key!r} and no "
                f"{TASK!r}. MultiTaskDataModule makes such batches, of {', '.join(names)}"
            )
        parts.setdefault(name, {})[entry] = tensor
    return parts


def join_parts(parts: Mapping[str, Batch]) -> Any:
    """Return the batch that `parts_of` takes apart.

    Args:
        parts: the batch of each task; each with its number as `task`, if there was one.
    """
    if len(parts) == 1:
        return next(iter(parts.values()))
    return MixedBatch(
        {f"{name}/{entry}": t for name, part in parts.items() for entry, t in part.items()}
    )
