"""The rows of a batch of examples as a store keeps them: end to end, and of one type."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..types import Batch
from .teacher_store import Field

__all__ = [
    "Runs",
    "as_array",
    "check_fields",
    "example_counts",
    "runs_of",
    "to_float16",
    "token_runs",
    "token_slots",
    "words_of",
]


class Runs(NamedTuple):
    """The runs of a batch of examples, laid end to end.

    Attributes:
        values: `[total, *shape]`, on any device.
        counts: rows of each example's run, int64 `[B]`, with the sum `total`.
    """

    values: NDArray[Any] | Tensor
    counts: ArrayLike | Tensor


def token_runs(values: Tensor, batch: Batch, tokens: Tensor | None = None) -> tuple[Tensor, Runs]:
    """Return what is said of each token of a batch as runs of its examples, without padding.

    Args:
        values: `[R, L, *shape]`.
        batch: of `R` rows of `L` tokens, or of examples of several rows each. With `segment_index`,
            the examples that share a row, and `segment_ids` the examples are the segments, without
            they are the rows.
        tokens: bool `[R, L]`, which count; by default all but padding.

    Returns:
        Numbers of the examples, int64 `[B]`, -1 for a filler, and their runs, in the order in which
        `TeacherStore.segments`, or `rows`, lays them in such a batch.

    Example:
        >>> segments = torch.tensor([[1, 1, 2, 0], [1, 1, 1, 1]])
        >>> batch = {"segment_ids": segments, "segment_index": torch.tensor([[7, 5], [6, -1]])}
        >>> numbers, runs = token_runs(torch.arange(8).reshape(2, 4), batch)
        >>> numbers.tolist(), runs.values.tolist(), runs.counts.tolist()
        ([7, 5, 6], [0, 1, 2, 4, 5, 6, 7], [2, 1, 4])
    """
    if tokens is None:
        tokens = batch["segment_ids" if "segment_index" in batch else "attention_mask"] > 0
    numbers, counts = example_counts(token_slots(batch, tokens)[tokens], batch)
    return numbers, Runs(values[tokens], counts)


def token_slots(batch: Batch, tokens: Tensor) -> Tensor:
    """Return of each token which of the batch's examples it is of, counted from 0: int64 `[R, L]`.

    Args:
        batch: with `index`, or `segment_ids` and `segment_index`.
        tokens: `[R, L]`.
    """
    rows = torch.arange(len(tokens), device=tokens.device).unsqueeze(1)
    if "segment_index" in batch:
        place = (batch["segment_ids"].to(tokens.device) - 1).clamp(min=0)
        return rows * batch["segment_index"].shape[1] + place
    return (rows // max(1, len(tokens) // len(batch["index"]))).expand_as(tokens)


def example_counts(slots: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the examples of a batch, int64 `[B]`, and how often each is named, int64 `[B]`.

    Args:
        slots: as of `token_slots`, int64 `[n]`.
        batch: with `index`, or `segment_index`, whose empty places are left out.
    """
    packed = "segment_index" in batch
    numbers = batch["segment_index" if packed else "index"].flatten().to(slots.device)
    counts = torch.bincount(slots, minlength=len(numbers))
    there = numbers >= 0 if packed else torch.ones_like(numbers, dtype=torch.bool)
    return numbers[there], counts[there]


def to_float16(values: Tensor) -> Tensor:
    r"""Return numbers as float16, on their device.

    What lies beyond its range, $\pm 65504$, becomes the end of the range, infinity too; but
    $-\infty$, the logit of what cannot be, stays as it is, and so does NaN.

    Args:
        values: of any shape.

    Example:
        >>> to_float16(torch.tensor([1e6, -1e6, float("inf"), -float("inf"), 0.5])).tolist()
        [65504.0, -65504.0, 65504.0, -inf, 0.5]
    """
    # Clipped when they are float16: bfloat16 has no 65504, and would go up to 65536.
    clipped = values.half().clamp(-65504.0, 65504.0)
    return clipped.masked_fill_(values == -torch.inf, -torch.inf)


def runs_of(
    name: str, given: Any, real: NDArray[np.bool_], dtype: np.dtype[Any] | None
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the rows of a field end to end, without those of fillers.

    Args:
        name: of the field.
        given: `Runs`, or for each example `[rows, *shape]`, or all in one, `[B, rows, *shape]`.
        real: which examples are none of the fillers, bool `[B]`.
        dtype: to keep the numbers in; as they come by default.

    Returns:
        The rows, `[total, *shape]`, and how many each example has, int64 `[examples]`.

    Raises:
        ValueError: the rows are not of one shape, not of `B` examples, or do not fit `dtype`.
    """
    if isinstance(given, Tensor | np.ndarray):
        given = given if given.ndim > 1 else given[:, np.newaxis]
        examples, rows, *shape = given.shape
        given = Runs(given.reshape(examples * rows, *shape), np.full(examples, rows))
    elif not isinstance(given, Runs):
        each = [np.atleast_1d(as_array(rows)) for rows in given]
        if len({rows.shape[1:] for rows in each}) != 1:
            raise ValueError(
                f"{name} must have rows of one shape for {len(real)} examples, got "
                f"{sorted({rows.shape[1:] for rows in each})}"
            )
        given = Runs(np.concatenate(each), [len(rows) for rows in each])
    values, counts = as_array(given.values, dtype), np.asarray(as_array(given.counts), np.int64)
    if counts.shape != real.shape or counts.min(initial=0) < 0 or counts.sum() != len(values):
        raise ValueError(
            f"{name} must have counts of {len(real)} examples, {len(values)} rows together, got "
            f"{counts.tolist()}"
        )
    if not real.all():
        values, counts = values[real.repeat(counts)], counts[real]
    return values, counts


def as_array(values: ArrayLike | Tensor, dtype: np.dtype[Any] | None = None) -> NDArray[Any]:
    """Return numbers as an array of a type, or of their own; bfloat16 as float32.

    Raises:
        ValueError: they do not fit an integer `dtype`.
    """
    if dtype == np.float16:  # on its device: half as many bytes leave it
        values = to_float16(_tensor(values))
    elif isinstance(values, Tensor) and values.dtype == torch.bfloat16:  # numpy does not know it
        values = values.float()
    given = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    dtype = dtype or given.dtype.newbyteorder("=")
    if given.dtype == dtype:
        return given
    made = given.astype(dtype)
    if dtype.kind in "iu" and not np.array_equal(made, given):
        raise ValueError(
            f"numbers from {given.min()} to {given.max()} do not fit {dtype}; pass other dtypes"
        )
    return made


def check_fields(fields: Mapping[str, Field], wanted: Collection[str]) -> None:
    """Check that fields can be kept.

    Args:
        fields: by name, what their rows are.
        wanted: names that must be among them.

    Raises:
        ValueError: a name or a type is none, or a field lacks.
    """
    for name, field in fields.items():
        if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
            raise ValueError(f"a field must be named by letters and digits, got {name!r}")
        if field.dtype.kind not in "fiub" or 0 in field.shape:
            raise ValueError(f"rows of numbers are kept, got {words_of({name: field})}")
    if not fields or {*wanted} - {*fields}:
        raise ValueError(
            f"fields must be those of dtypes, {sorted(wanted)}, or more, got {sorted(fields)}"
        )


def words_of(fields: Mapping[str, Field]) -> str:
    """Return what the rows of fields are, in words."""
    return ", ".join(f"{n} ({f.dtype} {list(f.shape)})" for n, f in fields.items())


def _tensor(values: ArrayLike | Tensor) -> Tensor:
    if isinstance(values, Tensor):
        return values
    return torch.from_numpy(np.require(values, requirements=["C", "W"]))
