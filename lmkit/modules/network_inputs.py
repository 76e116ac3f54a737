"""What a network is called with for a batch, and whether it keeps texts of one row apart."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..types import Batch
from .attention import NAME

__all__ = ["check_packing", "knows_types", "network_inputs"]

# They tell texts apart, and their configurations do not say how many.
_TWO_TYPES = "funnel", "xlnet"


def network_inputs(
    network: PreTrainedModel, batch: Batch, *, causal: bool = False
) -> dict[str, Any]:
    """Return the arguments that a network takes for a batch.

    Texts that share a row see themselves alone: positions begin anew with each, and attention is
    block-diagonal. The mask is built here, on the network's device, from one number per token.

    Args:
        network: any encoder or decoder of transformers.
        batch: `input_ids` and `attention_mask` int64 `[B, L]`; of packed rows `segment_ids` and
            `position_ids` `[B, L]`, and perhaps `segment_bounds`, int32 `[N + 1]`.
        causal: whether a token sees only those before it.

    Returns:
        `input_ids`, an attention mask (2-D of plain rows; of packed ones bool `[B, 1, L, L]`, or
        one for each kind of layer), `position_ids` of packed rows, `token_type_ids` if there are.
    """
    inputs: dict[str, Any] = {"input_ids": batch["input_ids"]}
    if "token_type_ids" in batch and knows_types(network):
        inputs["token_type_ids"] = batch["token_type_ids"]
    if "segment_ids" not in batch:
        return {**inputs, "attention_mask": batch["attention_mask"]}
    inputs["position_ids"] = batch["position_ids"] + _first_position(network)
    if "segment_bounds" in batch and network.config._attn_implementation == NAME:
        inputs["segment_bounds"] = batch["segment_bounds"]
        inputs["segment_width"] = batch["input_ids"].shape[1]
        # Four dimensions tell transformers to build none of its own; the kernel needs none.
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=batch["input_ids"].device)
        return {**inputs, "attention_mask": _per_layer(network, mask, mask)}
    return {**inputs, "attention_mask": _block_mask(network, batch["segment_ids"], causal)}


def check_packing(network: PreTrainedModel, max_length: int, causal: bool) -> None:
    """Check, by trying, that two texts in one row get what each gets alone.

    Raises:
        ValueError: they do not: the architecture does not take positions and masks as others do.
    """
    length = min(max_length // 2, max(4, _window(network) + 2))
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(network.config.vocab_size, (2, length), generator=draw)
    segments = torch.ones_like(ids)
    alone = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    positions = torch.arange(length)
    together = {
        "input_ids": ids.reshape(1, -1),
        "attention_mask": torch.ones(1, 2 * length, dtype=torch.int64),
        "segment_ids": torch.stack([segments[0], segments[1] + 1]).reshape(1, -1),
        "position_ids": torch.cat([positions, positions]).unsqueeze(0),
    }
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            expected = _hidden(network, network_inputs(network, alone, causal=causal))
            packed = _hidden(network, network_inputs(network, together, causal=causal))
        gap = (packed.reshape(expected.shape) - expected).abs().max() / expected.abs().max()
        fault = "" if gap < 1e-3 else f"they differ by {float(gap):.1%}"
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        fault = str(error).splitlines()[0] if str(error) else type(error).__name__
    finally:
        for module, mode in modes:
            module.training = mode
    if fault:
        raise ValueError(
            f"the architecture {network.config.model_type!r} does not keep texts apart that share "
            f"a row ({fault}); pass batching='chunk' or 'bucket' to the data module"
        )


def _hidden(network: PreTrainedModel, inputs: dict[str, Any]) -> Tensor:
    device = next(network.parameters()).device
    moved = {
        name: {k: v.to(device) for k, v in value.items()}
        if isinstance(value, dict)
        else value.to(device)
        for name, value in inputs.items()
    }
    hidden: Tensor = network.base_model(**moved)[0]
    return hidden.float()


def _block_mask(
    network: PreTrainedModel, segments: Tensor, causal: bool
) -> Tensor | dict[str, Tensor]:
    # Padding sees padding, so that no row of the mask is empty.
    mask = (segments.unsqueeze(2) == segments.unsqueeze(1)).unsqueeze(1)
    place = torch.arange(segments.shape[1], device=segments.device)
    ahead = place - place.unsqueeze(1)  # how far the key stands behind the query
    if causal:
        mask = mask & (ahead <= 0)
    window = _window(network)
    if not window:
        return _per_layer(network, mask, mask)
    near = ahead > -window if causal else ahead.abs() <= window
    return _per_layer(network, mask, mask & near)


def _per_layer(
    network: PreTrainedModel, full: Tensor, sliding: Tensor
) -> Tensor | dict[str, Tensor]:
    kinds = set(getattr(network.config, "layer_types", None) or [])
    if "sliding_attention" in kinds:
        return {"full_attention": full, "sliding_attention": sliding}
    return full if kinds else sliding


def _window(network: PreTrainedModel) -> int:
    if getattr(network.config, "use_sliding_window", True) is False:
        return 0
    return int(getattr(network.config, "sliding_window", None) or 0)


def knows_types(network: PreTrainedModel) -> bool:
    """Whether a network tells the two texts of a pair apart by `token_type_ids`.

    Some take them and know one type. Others mean something else: GPT-2 and its kin look them up
    among the words, Gemma tells images by them.
    """
    counted = 2 if network.config.model_type in _TWO_TYPES else 0
    known = getattr(network.config, "type_vocab_size", counted) or 0
    return known > 1 and "token_type_ids" in inspect.signature(network.forward).parameters


def _first_position(network: PreTrainedModel) -> int:
    """RoBERTa and its kin number positions from behind the padding id on."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Embedding) and name.endswith("position_embeddings"):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0
