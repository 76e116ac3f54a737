"""The attention of a network, by the kernel that is fastest for its device and precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

__all__ = ["MAPS", "attend", "attend_with_maps", "keeping_maps", "use_fast_attention"]

#: Under this name `attend` is known to transformers.
NAME = "lmkit"
#: And under this one `attend_with_maps`.
MAPS = "lmkit_maps"

_kept: ContextVar[dict[nn.Module, Tensor] | None] = ContextVar("kept_maps", default=None)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    r"""Compute $\operatorname{softmax}(QK^\top s + M) V$, by one of three kernels.

    - On CUDA in half precision, texts that share a row (`segment_bounds` are given) go through
      flash attention over sequences of different lengths: no mask, no work between the texts.
    - On a CPU in bfloat16, two matrix products and a softmax, which its matrix units do two to
      three times as fast as the fused kernel; in float32 with dropout the same, since dropout
      throws the fused kernel back to a slower path.
    - Else `torch.nn.functional.scaled_dot_product_attention`.

    Args:
        module: the layer; `num_key_value_groups` and `is_causal` are read if it has them.
        query: `[B, H, L, D]`.
        key: `[B, H_k, L, D]`, with $H_k$ a divisor of $H$.
        value: `[B, H_k, L, D]`.
        attention_mask: bool or additive, broadcasting to `[B, H, L, L]`.
        dropout: of the attention weights, in `[0, 1)`.
        scaling: $s$, by default $D^{-1/2}$.
        is_causal: whether no mask means a causal one; by default the module's.
        **kwargs: what else transformers passes; `segment_bounds` int32 `[N + 1]` and
            `segment_width`, see `network_inputs`.

    Returns:
        The output `[B, L, H, D]`, and no weights.
    """
    bounds = kwargs.pop("segment_bounds", None)
    width = kwargs.pop("segment_width", 0)
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    if bounds is not None and query.dtype in (torch.float16, torch.bfloat16):
        return _varlen(module, query, key, value, bounds, width, scaling, causal), None
    on_cpu = query.device.type == "cpu"
    if on_cpu and (query.dtype != torch.float32 or dropout) and not torch.compiler.is_exporting():
        causal = causal and attention_mask is None and query.shape[2] > 1
        bias = kwargs.get("position_bias")
        return _products(
            module, query, key, value, attention_mask, dropout, scaling, causal, bias
        ), None
    return sdpa_attention_forward(
        module,
        query,
        key,
        value,
        attention_mask,
        dropout=dropout,
        scaling=scaling,
        is_causal=is_causal,
        **kwargs,
    )


def attend_with_maps(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend as `attend` does, and keep the maps where `keeping_maps` asks for them."""
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    causal = causal and attention_mask is None and query.shape[2] > 1
    bias = kwargs.get("position_bias")
    weights = _weights(module, query, key, attention_mask, scaling, causal, bias)
    kept = _kept.get()
    if kept is not None:
        kept[module] = weights
    return _weighted(module, weights, value, dropout), None


@contextmanager
def keeping_maps() -> Iterator[dict[nn.Module, Tensor]]:
    """Keep the attention maps of networks that attend by `attend_with_maps` inside the block.

    Yields:
        By attention layer the probabilities `[B, H, L, L]`, before dropout and with their graph.
    """
    kept: dict[nn.Module, Tensor] = {}
    token = _kept.set(kept)
    try:
        yield kept
    finally:
        _kept.reset(token)


def use_fast_attention(network: PreTrainedModel, name: str = NAME) -> str | None:
    """Let a network attend by `attend`, unless it asks for another kernel than the default.

    Args:
        network: changed in place; its config is saved as before.
        name: what to use in place of `attend`, to undo it.

    Returns:
        The name of what it used before, or `None` if it was left as it is.
    """
    before = network.config._attn_implementation
    changeable = network._supports_sdpa and network._can_set_attn_implementation()
    if before == name or before not in ("sdpa", NAME, MAPS) or not changeable:
        return None
    network.set_attn_implementation(name)
    return str(before)


def _products(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    scaling: float | None,
    causal: bool,
    bias: Tensor | None,
) -> Tensor:
    weights = _weights(module, query, key, mask, scaling, causal, bias)
    return _weighted(module, weights, value, dropout)


def _weights(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    causal: bool,
    bias: Tensor | None,
) -> Tensor:
    groups = getattr(module, "num_key_value_groups", 1)
    if groups > 1 and key.shape[1] != query.shape[1]:
        key = key.repeat_interleave(groups, dim=1)
    # Scaled before the product: there are fewer numbers, and bfloat16 loses nothing by it.
    scores = (query * (query.shape[-1] ** -0.5 if scaling is None else scaling)) @ key.mT
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        least = torch.finfo(scores.dtype).min
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, least)
        scores = scores + mask.to(scores.dtype).clamp(min=least)
    return scores.softmax(-1)


def _weighted(module: nn.Module, weights: Tensor, value: Tensor, dropout: float) -> Tensor:
    groups = getattr(module, "num_key_value_groups", 1)
    if groups > 1 and value.shape[1] != weights.shape[1]:
        value = value.repeat_interleave(groups, dim=1)
    dropped = nn.functional.dropout(weights, dropout, module.training)
    return (dropped.to(value.dtype) @ value).transpose(1, 2).contiguous()


def _varlen(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Tensor,
    width: int,
    scaling: float | None,
    causal: bool,
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    batch, heads, length, size = query.shape
    queries, keys, values = (
        t.transpose(1, 2).reshape(batch * length, -1, size) for t in (query, key, value)
    )
    window = getattr(module, "sliding_window", None)
    # A window counts the token itself, on both sides for a bidirectional layer.
    left = -1 if window is None else window - 1
    output = varlen_attn(
        queries,
        keys,
        values,
        bounds,
        bounds,
        width,
        width,
        scale=scaling,
        window_size=(left, 0 if causal else left),
        enable_gqa=key.shape[1] != heads,
    )
    return cast(Tensor, output).view(batch, length, heads, size)


for _name, _function in ((NAME, attend), (MAPS, attend_with_maps)):
    AttentionInterface.register(_name, _function)
    # The masks are those of the default kernel: bool, or none where nothing is hidden.
    AttentionMaskInterface.register(_name, sdpa_mask)
