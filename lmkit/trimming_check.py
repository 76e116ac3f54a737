"""Whether a trimmed model says of texts what it said before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .modules.network import usable_positions

__all__ = ["Said", "check_unchanged", "say_of"]

# How much of a text is read.
_LONGEST = 64


class Said(NamedTuple):
    """What a network says of a text: the ids that it read `[L]`, and its first output."""

    ids: list[int]
    output: Tensor


@torch.no_grad()
def say_of(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> Said:
    """Let a network read a text, in evaluation mode; its mode stays as it was.

    Args:
        network: of any task, with or without a head.
        tokenizer: its own.
        text: cut to 64 tokens.
    """
    longest = min(_LONGEST, usable_positions(network) or _LONGEST)
    ids = tokenizer(text, truncation=True, max_length=longest)["input_ids"]
    tensor = torch.tensor([ids], device=next(network.parameters()).device)
    if type(network).__name__.endswith("ForMultipleChoice"):
        tensor = tensor.unsqueeze(1)
    inputs = {"input_ids": tensor, "attention_mask": torch.ones_like(tensor)}
    if network.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tensor
    modes = [(part, part.training) for part in network.modules()]
    try:
        return Said(ids, network.eval()(**inputs)[0].float().cpu())
    finally:
        for part, mode in modes:
            part.training = mode


def check_unchanged(
    before: Sequence[Said], after: Sequence[Said], kept: Sequence[int], rows: int
) -> None:
    """Check that texts of kept tokens are read as they were.

    Args:
        before: what the old network said of some texts.
        after: what the trimmed one says of the same.
        kept: the old ids that are left, in order.
        rows: of the old vocabulary.

    Raises:
        ValueError: they are not.
    """
    new = {old: number for number, old in enumerate(kept)}
    index = torch.tensor(kept)
    for first, then in zip(before, after, strict=True):
        if not new.keys() >= set(first.ids):
            continue
        if then.ids != [new[number] for number in first.ids]:
            raise ValueError(
                "the trimmed tokenizer cuts a text otherwise, though all of its tokens are kept: "
                "this kind of tokenizer cannot be trimmed. The model is of no use now; load it anew"
            )
        theirs, ours = first.output, then.output
        if theirs.shape[-1] == rows:
            theirs = theirs[..., index]
        # Sums over fewer columns may be rounded otherwise.
        if theirs.shape != ours.shape or (theirs - ours).abs().max() > 1e-5 * theirs.abs().max():
            raise ValueError(
                "the trimmed network says something else of a text, though all of its tokens are "
                "kept: this architecture uses ids in a way of its own. The model is of no use now; "
                "load it anew"
            )
