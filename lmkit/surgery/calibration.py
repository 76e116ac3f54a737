"""What layers read, and what gradients reach them, gathered while a network runs."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..types import IGNORE_INDEX, Batch
from .bottleneck import layer_width

__all__ = ["Calibration", "RowFisher", "SecondMoments", "real_positions"]

# Projections of a decoder that read what the encoder gives.
_CROSSED = re.compile(
    r".*(EncDecAttention|encoder_attn|crossattention)\.(.*\.)?(k|v|key|value|k_proj|v_proj|c_attn)"
)


class Calibration(ABC):
    """Hooks on layers for as long as a `with` block lasts; the base of the two kinds.

    They count the runs of the network that are made inside `watching`, and no others: whoever
    prepares the data may try the network too.

    Args:
        network: has the layers.
        names: of linear layers, and of tables of embeddings, by dotted name.

    Attributes:
        sums: float64, by name; what is in them is the kind's own. Divide them by `counts`.
        counts: of what was summed up, by name.
    """

    def __init__(self, network: nn.Module, names: list[str]) -> None:
        self.layers: dict[str, Any] = {name: network.get_submodule(name) for name in names}
        config = getattr(network, "config", None)
        both = bool(getattr(config, "is_encoder_decoder", False))
        #: Layers that read the target and not the text.
        self.in_decoder = {
            name
            for name in names
            if both and re.search(r"(^|\.)decoder\.", name) and not _CROSSED.fullmatch(name)
        }
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, float] = dict.fromkeys(names, 0.0)
        self._batch: Batch | None = None
        self._handles: list[RemovableHandle] = []

    @contextmanager
    def watching(self, batch: Batch) -> Iterator[None]:
        """Count the run of the network on a batch."""
        self._batch = batch
        try:
            yield
        finally:
            self._batch = None

    def __enter__(self) -> Self:
        for name, layer in self.layers.items():
            self._handles += self._hook(name, layer)
        return self

    def __exit__(self, *_: object) -> None:
        while self._handles:
            self._handles.pop().remove()

    def total(self, name: str) -> Tensor:
        """Return what was summed up for a layer; zeros if no batch has passed it."""
        if name in self.sums:
            return self.sums[name]
        return torch.zeros(self._shape(self.layers[name]), dtype=torch.float64)

    @abstractmethod
    def _hook(self, name: str, layer: Any) -> list[RemovableHandle]:
        """Begin to sum up what passes a layer."""

    @abstractmethod
    def _shape(self, layer: Any) -> tuple[int, ...]:
        """Return the shape of what is summed up of a layer."""

    def _add(self, name: str, summed: Tensor, count: float) -> None:
        before = self.sums.get(name)
        self.sums[name] = summed if before is None else before.add_(summed)
        self.counts[name] += count


class SecondMoments(Calibration):
    r"""Sums up $x x^\top$ of what linear layers read, and how often tables are asked for each row.

    Over real tokens alone. `sums` are `[i, i]`, of a table $[V]$, the diagonal; `counts` tokens.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 2))
        >>> with SecondMoments(network, ["0"]) as moments, torch.no_grad():
        ...     with moments.watching({"attention_mask": torch.tensor([[1, 0]])}):
        ...         _ = network(torch.tensor([[[1.0, 2.0], [5.0, 5.0]]]))
        >>> moments.sums["0"].tolist(), moments.counts["0"]
        ([[1.0, 2.0], [2.0, 4.0]], 1.0)
    """

    def _hook(self, name: str, layer: Any) -> list[RemovableHandle]:
        def see(module: Any, inputs: tuple[Tensor, ...]) -> None:
            if self._batch is None:
                return
            x, is_table = inputs[0].detach(), isinstance(layer, nn.Embedding)
            real = real_positions(
                self._batch, x.shape if is_table else x.shape[:-1], name in self.in_decoder
            )
            if is_table:
                ids = x.flatten() if real is None else x.flatten()[real]
                self._add(
                    name, torch.bincount(ids, minlength=layer.num_embeddings).double(), ids.numel()
                )
                return
            rows = x.reshape(-1, x.shape[-1]).double()
            rows = rows if real is None else rows[real]
            self._add(name, rows.T @ rows, len(rows))

        return [layer.register_forward_pre_hook(see)]

    def _shape(self, layer: Any) -> tuple[int, ...]:
        if isinstance(layer, nn.Embedding):
            return (layer.num_embeddings,)
        return (layer_width(layer)[0],) * 2


class RowFisher(Calibration):
    r"""Sums up $\sum_i (\partial L_e / \partial W_{oi})^2$ over texts $e$, for each row $o$.

    The empirical Fisher information of a weight is the mean over texts of its squared gradient,
    each text's by itself (FWSVD, arXiv:2207.00112). With $x_e$ what the layer reads and
    $\delta_e$ the gradient of what it gives, the gradient of the weight is $\delta_e^\top x_e$.
    `sums` are `[o]`, of a table `[V]`; `counts` texts. Inside `watching`, behind the run,
    `accumulate` takes the loss.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 1, bias=False))
        >>> with RowFisher(network, ["0"]) as fisher:
        ...     with fisher.watching({"input_ids": torch.zeros(2, 1)}):
        ...         fisher.accumulate(network(torch.tensor([[1.0, 2.0], [3.0, 0.0]])).sum())
        >>> fisher.sums["0"].tolist(), fisher.counts["0"]
        ([14.0], 2.0)
    """

    def __init__(self, network: nn.Module, names: list[str]) -> None:
        super().__init__(network, names)
        self._seen: list[tuple[str, Tensor, Tensor]] = []
        self._frozen: list[nn.Parameter] = []

    def __enter__(self) -> Self:
        # A frozen layer has a gradient too.
        weights = [p for layer in self.layers.values() for p in layer.parameters()]
        self._frozen = [p.requires_grad_() for p in weights if not p.requires_grad]
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._seen.clear()
        while self._frozen:
            self._frozen.pop().requires_grad_(False)

    def _hook(self, name: str, layer: Any) -> list[RemovableHandle]:
        def see(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if self._batch is not None and output.requires_grad:
                self._seen.append((name, inputs[0].detach(), output))

        return [layer.register_forward_hook(see)]

    def _shape(self, layer: Any) -> tuple[int, ...]:
        is_table = isinstance(layer, nn.Embedding)
        return (layer.num_embeddings if is_table else layer_width(layer)[1],)

    def accumulate(self, loss: Tensor) -> None:
        """Add the texts of the run.

        Args:
            loss: the sum, not the mean, of the losses of its items.
        """
        seen, self._seen = self._seen, []
        if not seen or self._batch is None:
            return
        outputs = [output for _, _, output in seen]
        found = torch.autograd.grad(loss, outputs, allow_unused=True)
        gradients = cast("tuple[Tensor | None, ...]", found)
        for (name, read, _), gradient in zip(seen, gradients, strict=True):
            if gradient is None:
                continue
            layer = self.layers[name]
            is_table = isinstance(layer, nn.Embedding)
            inputs = _texts(read.unsqueeze(-1) if is_table else read, self._batch)
            total, texts = self.total(name).to(gradient.device), _texts(gradient, self._batch)
            # One text after the other, so that no [texts, o, i] has to be held.
            for x, delta in zip(inputs, texts, strict=True):
                if is_table:
                    _add_rows(total, x.flatten(), delta.float())
                else:
                    total += (delta.float().T @ x.float()).square().sum(1)
            self.sums[name], self.counts[name] = total, self.counts[name] + len(texts)


def real_positions(batch: Batch, shape: torch.Size, in_decoder: bool = False) -> Tensor | None:
    """Tell which positions of what a layer reads are real tokens.

    Args:
        batch: perhaps with `attention_mask`, `[B, L]` or `[B, C, L]`; in an encoder-decoder with
            `labels`, `[B, T]`, -100 behind the end.
        shape: of what the layer reads, without its width.
        in_decoder: whether it reads the target of an encoder-decoder.

    Returns:
        bool over the flattened positions; `None` where all count: the layer sees no padding, such
        as a head that reads labelled positions alone.

    Example:
        >>> batch = {"attention_mask": torch.tensor([[1, 1, 0], [0, 0, 0]])}
        >>> real_positions(batch, torch.Size([2, 3])).tolist()
        [True, True, False, False, False, False]
        >>> real_positions(batch, torch.Size([2])).tolist()
        [True, False]
    """
    masks = []
    if (mask := batch.get("attention_mask")) is not None:
        masks.append(mask.bool())
    if in_decoder and (labels := batch.get("labels")) is not None:
        masks.insert(0, labels != IGNORE_INDEX)
    count = math.prod(shape)
    for mask in masks:
        # Of pooled texts each position is a whole row.
        for known in (mask, mask.any(-1)):
            if known.numel() == count:
                return known.flatten()
    return None


def _texts(states: Tensor, batch: Batch) -> list[Tensor]:
    """Return the states of each text, `[positions, width]`; of texts that share a row, too.

    Of states that are of no row, such as those at labelled positions, each stands alone.
    """
    rows, width = len(batch["input_ids"]), states.shape[-1]
    if len(states) % max(1, rows):
        return list(states.reshape(-1, 1, width))
    grouped, segments = states.reshape(rows, -1, width), batch.get("segment_ids")
    if segments is None or segments.shape != grouped.shape[:2]:
        return list(grouped)
    pairs = zip(grouped, segments, strict=True)
    return [row[segment == n] for row, segment in pairs for n in segment.unique() if n > 0]


def _add_rows(total: Tensor, ids: Tensor, gradient: Tensor) -> None:
    """Add the squared gradients of the rows of a table that one text asks for, to `[V]`."""
    known, places = ids.unique(return_inverse=True)
    summed = gradient.new_zeros(len(known), gradient.shape[-1]).index_add_(0, places, gradient)
    total[known] += summed.square().sum(1)
