"""Vocabulary logits only where there is a label."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from ..types import IGNORE_INDEX, Batch

__all__ = ["labelled", "logits_at", "outputs_at"]


def labelled(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return where a batch has labels, and these.

    With `label_positions` in the batch the result has the same shape for each batch, and nothing
    has to wait for the device to count labels.

    Args:
        batch: `labels` int64 `[B, L]`, -100 for none; perhaps `label_positions` int64 `[B, k]`, the
            columns of the labels.

    Returns:
        Positions in the flattened batch, int64 `[K]`, and the labels there, int64 `[K]`; -100 in
        the slots of `label_positions` that no label needs.

    Example:
        >>> labels = torch.tensor([[-100, 7, -100], [-100, -100, 9]])
        >>> [t.tolist() for t in labelled({"labels": labels})]
        [[1, 5], [7, 9]]
    """
    labels = batch["labels"].flatten()
    columns = batch.get("label_positions")
    if columns is None:
        positions = (labels != IGNORE_INDEX).nonzero().flatten()
    else:
        rows, width = batch["labels"].shape
        first = torch.arange(0, rows * width, width, device=labels.device)
        positions = (columns + first.unsqueeze(1)).flatten()
    return positions, labels[positions]


def logits_at(network: PreTrainedModel, positions: Tensor, **inputs: Any) -> Tensor:
    """Compute the logits of a language model at some positions.

    Of a masked language model's positions 15 % have a label, and the head is the widest matrix of
    a small network: to skip the others saves a third of the time and most of the memory. The
    encoder's hidden states are cut down between encoder and head, by a hook, so that it works for
    every architecture whose head reads them one by one, and the head's own code runs.

    Args:
        network: with a language-model head; of an encoder-decoder the decoder's positions count.
        positions: int64 `[K]`, in the flattened batch.
        **inputs: what the network takes, e.g. `input_ids` int64 `[B, L]`.

    Returns:
        float `[K, V]`, in the order of the positions.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> network = BertForMaskedLM(BertConfig(vocab_size=99, hidden_size=8,
        ...     num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)).eval()
        >>> ids = torch.tensor([[2, 7, 4, 3], [2, 9, 9, 3]])
        >>> logits = logits_at(network, torch.tensor([5, 1]), input_ids=ids)
        >>> torch.allclose(logits, network(input_ids=ids).logits[[1, 0], [1, 1]], atol=1e-6)
        True
    """
    logits: Tensor = outputs_at(network, positions, **inputs)["logits"][0]
    return logits


def outputs_at(network: PreTrainedModel, positions: Tensor, **inputs: Any) -> ModelOutput:
    """Call a network whose head reads the hidden states at some positions only.

    Args:
        network: as of `logits_at`.
        positions: int64 `[K]`, in the flattened batch.
        **inputs: what the network takes.

    Returns:
        Its output, with logits over the vocabulary `[1, K, V]`; what a head makes of the whole
        text, from the pooled state, is as ever.
    """

    def cut(module: nn.Module, arguments: Any, output: Any) -> Any:
        hidden = output[0].flatten(0, 1).index_select(0, positions).unsqueeze(0)
        if isinstance(output, ModelOutput):
            output["last_hidden_state"] = hidden
            return output
        return (hidden, *output[1:])

    both = network.config.is_encoder_decoder
    # Of two networks that were joined, the decoder has its head with it.
    stack = network.get_decoder().base_model if both else network.base_model
    handle = stack.register_forward_hook(cut)
    try:
        output: ModelOutput = network(**inputs)
    finally:
        handle.remove()
    return output
