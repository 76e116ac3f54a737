"""How much of what a device can compute goes into the model: model FLOPs utilization."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..functional.flops import rated_flops, training_flops_per_token
from ..surgery.virtual_tokens import VirtualTokens
from ..types import IGNORE_INDEX, Batch

__all__ = ["attended_context", "flops_per_second", "matrix_flops", "peak_flops"]

# Two of these fit no cache, so that the figure is that of real layers.
_SIZE = 2048


def attended_context(batch: Any) -> float | None:
    """Return how many tokens a real token of this batch may attend to, on average.

    Args:
        batch: `attention_mask` `[..., L]`, or `segment_ids` `[B, L]` of packed rows.

    Example:
        >>> attended_context({"segment_ids": torch.tensor([[1, 1, 1, 2, 0]])})
        2.5
    """
    if not isinstance(batch, dict) or not {"segment_ids", "attention_mask"} & set(batch):
        return None
    segments = batch["segment_ids" if "segment_ids" in batch else "attention_mask"].cpu()
    segments = segments.reshape(-1, segments.shape[-1])
    rows = torch.arange(len(segments)).unsqueeze(1) * (int(segments.max()) + 1)
    sizes = (segments + rows)[segments > 0].bincount().double()
    return float(sizes.square().sum() / sizes.sum().clamp(min=1))


def flops_per_second(
    module: LightningModule, batch: Batch, context: float, tokens_per_second: float
) -> float | None:
    """Return the operations per second that real tokens need; `None` for an unknown network.

    Frozen weights cost less: they get no gradient, and their input gets one only where something
    below them is trained. What stands below is read from the order of the modules: all that comes
    after the first trained weight counts as above it.

    Args:
        module: its `networks`, encoders or decoders of transformers, are counted.
        batch: `labels` tell the share of the tokens that the head sees.
        context: of `attended_context`.
        tokens_per_second: real tokens of one device.
    """
    networks = getattr(module, "networks", [])
    if not networks or "labels" not in batch:
        return None
    real = batch["attention_mask"].sum().clamp(min=1)
    labelled = min(1.0, float((batch["labels"] != IGNORE_INDEX).sum() / real))
    needed = 0.0
    for network in networks:
        config = network.config
        layers, width = (getattr(config, n, None) for n in ("num_hidden_layers", "hidden_size"))
        if layers is None or width is None or config.is_encoder_decoder:
            return None
        # A head over the vocabulary reads the labelled tokens, another one all.
        share = 1.0 if network.get_output_embeddings() is None else labelled
        body, head = _count(network)
        needed += training_flops_per_token(
            body.weights,
            head.weights,
            layers,
            width,
            context,
            share,
            crossed=(body.share(body.crossed), head.share(head.crossed)),
            trained=(body.share(body.trained), head.share(head.trained)),
        )
    return needed * tokens_per_second


def peak_flops(trainer: Trainer) -> float | None:
    """Return the operations per second that one device of a Trainer can do, `None` if unknown."""
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return rated_flops(torch.cuda.get_device_name(device))
    if device.type != "cpu":
        return None
    half = str(trainer.precision).startswith("bf16")
    return matrix_flops(torch.bfloat16 if half else torch.float32, torch.get_num_threads())


@cache
def matrix_flops(dtype: torch.dtype, threads: int, seconds: float = 0.5) -> float:
    """Measure the operations per second of this CPU in products of matrices of 2048 x 2048.

    Args:
        dtype: of the matrices.
        threads: of torch, by which the figure is remembered.
        seconds: how long to measure; the best of the products counts.
    """
    matrix = torch.ones(_SIZE, _SIZE, dtype=dtype)
    best = float("inf")
    stop = time.perf_counter() + seconds
    with torch.inference_mode():
        for turn in range(1000):
            began = time.perf_counter()
            if turn > 1 and began > stop:
                break
            nn.functional.linear(matrix, matrix)
            if turn:  # the first one warms up
                best = min(best, time.perf_counter() - began)
    return 2 * _SIZE**3 / best


@dataclass
class _Maps:
    """How many weights linear maps have, are crossed by the gradient, and are trained."""

    weights: int = 0
    crossed: int = 0
    trained: int = 0

    def add(self, weight: Tensor, is_crossed: bool) -> None:
        """Count one more map."""
        self.weights += weight.numel()
        self.crossed += weight.numel() * is_crossed
        self.trained += weight.numel() * weight.requires_grad

    def share(self, count: int) -> float:
        """Return a count as a share of all weights."""
        return count / max(1, self.weights)


def _count(network: PreTrainedModel) -> tuple[_Maps, _Maps]:
    """Count the linear maps of the base and those of the head."""
    body, head = _Maps(), _Maps()
    inside = list(network.base_model.modules())
    virtual = [module for module in inside if isinstance(module, VirtualTokens)]
    # Virtual tokens enter below all layers, and no token of the text passes maps of theirs.
    aside = {part for tokens in virtual for part in tokens.modules()}
    is_crossed = any(p.requires_grad for tokens in virtual for p in tokens.parameters())
    for place, module in enumerate(dict.fromkeys([*inside, *network.modules()])):
        if isinstance(module, nn.Linear | Conv1D) and module not in aside:
            # A low-rank layer is two maps, and its weight none that it has.
            for weight in (p for p in module.parameters(recurse=False) if p.dim() == 2):
                (body if place < len(inside) else head).add(weight, is_crossed)
        own = module.parameters(recurse=False)
        is_crossed = is_crossed or any(p.requires_grad for p in own)
    return body, head
