"""Targets that a model has written in place of those of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..functional import mix, uniform
from ..types import IGNORE_INDEX, Batch
from .base import LMModule
from .generation import evaluating

__all__ = [
    "OWN_WORDS",
    "check_writes",
    "takes_turn",
    "with_own_words",
    "with_targets",
    "write_targets",
]

#: In a batch, that the student has written the targets, which then are none to be learned.
OWN_WORDS = "own_words"

# The turns' own stream of random numbers.
_TURNS = 0x27D4EB2F


def check_writes(module: LMModule) -> None:
    """Check that a task has targets that a model can write.

    Raises:
        ValueError: it has none.
    """
    config = module.network.config
    if not (module.is_causal or config.is_encoder_decoder) or not module.network.can_generate():
        raise ValueError(
            f"{type(module).__name__} writes no text: sequence_level and on_policy are for "
            "CausalLMModule and for encoder-decoders"
        )


def takes_turn(share: float, seed: int, step: int) -> bool:
    """Whether the student writes the targets of a step; the same for each batch and rank of it.

    Args:
        share: of the steps, in `[0, 1]`.
        seed: of the run.
        step: number of the optimizer step.
    """
    return share > 0 and float(uniform(torch.tensor([mix(_TURNS, seed, step)]), 1)) < share


def with_own_words(module: LMModule, batch: Batch, prompt_share: float) -> Batch:
    """Return a batch with targets that the student draws: none to be learned, but to be judged."""
    written = write_targets(module, batch, prompt_share, draw=True)
    if "index" in batch:  # what fills up a batch says nothing
        numbers = batch["index"].tolist()
        written = [row if n >= 0 else [] for n, row in zip(numbers, written, strict=True)]
    mark = torch.ones(1, device=batch["input_ids"].device)
    return {**with_targets(module, batch, written, prompt_share), OWN_WORDS: mark}


@torch.no_grad()
def write_targets(
    module: LMModule, batch: Batch, prompt_share: float, draw: bool
) -> list[list[int]]:
    """Let a model write the targets of a batch.

    An encoder-decoder writes the target of each source. A causal language model goes on with the
    first part of each row, for as many tokens as the row has left.

    Args:
        module: the model, of either kind.
        batch: `input_ids` and `attention_mask`, int64 `[B, L]`, one text in a row.
        prompt_share: of a causal model, the share of each row that it goes on with, in `(0, 1)`.
        draw: whether tokens are drawn at temperature 1, or are the most probable ones, by the
            search that the model's generation config asks for.

    Returns:
        The ids that were written for each row, their end included.

    Raises:
        ValueError: the rows hold several texts.
    """
    if "segment_ids" in batch:
        raise ValueError(
            "rows that hold several texts cannot be gone on with: pass batching='chunk' or "
            "'bucket' to the data module"
        )
    network: Any = module.network
    inputs, width = _prompts(module, batch, prompt_share)
    how: dict[str, Any] = {"do_sample": draw}
    if draw:
        how |= {"num_beams": 1, "top_k": 0, "temperature": 1.0}
    elif module.is_causal:
        how |= {"num_beams": 1}
    if module.is_causal:
        how["max_new_tokens"] = width
    elif (longest := _longest(network)) is not None:
        how["max_new_tokens"] = longest
    with evaluating(network):
        ids: Tensor = network.generate(**inputs, pad_token_id=_padding(network), **how)
    begin = inputs["input_ids"].shape[1] if module.is_causal else 1
    ends = _ends(network)
    written = [_closed(row, ends) for row in ids[:, begin:].tolist()]
    if not module.is_causal:
        return written
    left = batch["attention_mask"].sum(1) - _prompt_lengths(batch, prompt_share)
    return [row[:most] for row, most in zip(written, left.tolist(), strict=True)]


def with_targets(
    module: LMModule, batch: Batch, targets: Sequence[Sequence[int]], prompt_share: float
) -> Batch:
    """Put written targets into a batch.

    Args:
        module: of either kind.
        batch: of which they were written.
        targets: ids of each row.
        prompt_share: as they were written.

    Returns:
        The batch with other `labels`, and of a causal model other `input_ids` and
        `attention_mask`: there only what was written is a target.
    """
    device = batch["input_ids"].device
    if not module.is_causal:
        labels = _padded(targets, IGNORE_INDEX).to(device)
        return {**_without_positions(batch), "labels": labels}
    ids = batch["input_ids"]
    lengths = _prompt_lengths(batch, prompt_share).tolist()
    prompts = [row[:length] for row, length in zip(ids.tolist(), lengths, strict=True)]
    rows = [[*prompt, *target] for prompt, target in zip(prompts, targets, strict=True)]
    marks = [
        [*[IGNORE_INDEX] * len(prompt), *target]
        for prompt, target in zip(prompts, targets, strict=True)
    ]
    mask = [[1] * len(row) for row in rows]
    made = {
        "input_ids": _padded(rows, _padding(module.network)),
        "labels": _padded(marks, IGNORE_INDEX),
        "attention_mask": _padded(mask, 0),
    }
    return {**_without_positions(batch), **{name: t.to(device) for name, t in made.items()}}


def _prompts(module: LMModule, batch: Batch, share: float) -> tuple[dict[str, Tensor], int]:
    """Return what a model reads before it writes, and how many tokens it has to write."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    if not module.is_causal:
        return {"input_ids": ids, "attention_mask": mask}, 0
    lengths = _prompt_lengths(batch, share)
    width = int(lengths.max())
    # What is to be gone on with stands at the right end.
    place = torch.arange(width, device=ids.device) - width + lengths.unsqueeze(1)
    prompts = ids.gather(1, place.clamp(min=0))
    prompts[place < 0] = _padding(module.network)
    left = int((mask.sum(1) - lengths).max())
    return {"input_ids": prompts, "attention_mask": (place >= 0).long()}, max(1, left)


def _prompt_lengths(batch: Batch, share: float) -> Tensor:
    lengths = batch["attention_mask"].sum(1)
    return (lengths * share).long().clamp(min=1)


def _without_positions(batch: Batch) -> Batch:
    return {name: tensor for name, tensor in batch.items() if name != "label_positions"}


def _padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    width = max(1, max(map(len, rows), default=1))
    made = torch.full((len(rows), width), fill, dtype=torch.int64)
    for number, row in enumerate(rows):
        made[number, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return made


def _closed(row: list[int], ends: set[int]) -> list[int]:
    """Return what was written up to its end, and with it."""
    for place, token in enumerate(row):
        if token in ends:
            return row[: place + 1]
    return row


def _ends(network: PreTrainedModel) -> set[int]:
    ends = cast(Any, network).generation_config.eos_token_id
    ends = network.config.eos_token_id if ends is None else ends
    if ends is None:
        return set()
    return {ends} if isinstance(ends, int) else set(ends)


def _longest(network: Any) -> int | None:
    found: Mapping[str, Any] = getattr(network.config, "seq2seq", None) or {}
    longest = found.get("max_target_length")
    return None if longest is None else int(longest)


def _padding(network: PreTrainedModel) -> int:
    config = network.config
    for name in ("pad_token_id", "eos_token_id"):
        found = getattr(config, name, None)
        if isinstance(found, int):
            return found
    return 0
