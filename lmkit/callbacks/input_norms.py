"""The norms of what linear layers read in training, for the callback that prunes by them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..types import IGNORE_INDEX

__all__ = ["InputNorms"]

# Layers of a decoder that read what the encoder gives: T5, BART, BERT.
_READS_SOURCE = re.compile(
    r"(EncDecAttention|encoder_attn|crossattention)\..*?(k|v|[kv]_proj|key|value)"
)

#: Joins a tensor over all ranks.
Reduce = Callable[[Tensor], Tensor]


class InputNorms:
    r"""Adds up the squares of the inputs of linear layers, over real tokens.

    After `watch`, what layers read between `begin` and `end` is counted: rows that the batch's
    `attention_mask` or its `index` knows as padding are left out, and those of a decoder that have
    no label. Where the rows are other ones than the batch's tokens (behind virtual tokens, or in a
    batch without a mask), all are counted. What was read goes into the sum by `commit`, when the
    step that it belongs to is done, so that a step that is struck down counts for nothing.

    Example:
        >>> norms, layer = InputNorms(), nn.Linear(2, 1)
        >>> norms.watch({"w": layer})
        >>> norms.begin({"attention_mask": torch.tensor([[1, 1, 0]])})
        >>> _ = layer(torch.tensor([[[3.0, 0.0], [4.0, 1.0], [9.0, 9.0]]]))
        >>> norms.end()
        >>> norms.commit()
        >>> norms.read()["w"]
        tensor([5., 1.])
    """

    def __init__(self) -> None:
        self._squares: dict[str, Tensor] = {}
        self._window: dict[str, Tensor] = {}
        self._masks: list[Tensor] | None = None
        self._has_encoder = False
        self._handles: list[RemovableHandle] = []
        self._loaded: dict[str, Any] = {}

    def watch(self, layers: Mapping[str, nn.Module], has_encoder: bool = False) -> None:
        """Begin a run, or go on with what `load_state_dict` brought.

        Args:
            layers: linear layers by the names of their weights.
            has_encoder: whether the network has a decoder beside its encoder, and so the batch's
                labels `[B, T]` are what the decoder reads.
        """
        self.close()
        self._has_encoder = has_encoder
        loaded, self._loaded = self._loaded, {}
        sums = self._squares, self._window
        for word, own in zip(("inputs", "window"), sums, strict=True):
            own.clear()
            for name, layer in layers.items():
                weight: Any = layer.weight
                width = getattr(layer, "in_features", weight.shape[0])
                own[name] = torch.zeros(width, device=weight.device)
                if word in loaded:
                    own[name].copy_(loaded[word][name])
        for name, layer in layers.items():
            in_decoder = has_encoder and ".decoder." in f".{name}"
            reads_target = in_decoder and not _READS_SOURCE.search(name)
            hook = partial(self._count, name, int(reads_target))
            self._handles.append(layer.register_forward_pre_hook(hook))

    def begin(self, batch: Any) -> None:
        """Count what is read from now on, by this batch's masks."""
        self._masks = _real_tokens(batch, self._has_encoder)

    def end(self) -> None:
        """Count no more."""
        self._masks = None

    def commit(self) -> None:
        """Take what was read into the sums."""
        for name, window in self._window.items():
            self._squares[name] += window
            window.zero_()

    def reset(self) -> None:
        """Begin the sums anew."""
        for sums in (self._squares, self._window):
            for each in sums.values():
                each.zero_()

    def read(self, reduce: Reduce | None = None) -> dict[str, Tensor]:
        r"""Return $\lVert X_j \rVert_2$, `[in]`, of each layer that has read something.

        Args:
            reduce: adds up over ranks.
        """
        squares = _joined(self._squares, reduce)
        return {name: total.sqrt() for name, total in squares.items() if bool(total.any())}

    def state_dict(self, reduce: Reduce | None = None) -> dict[str, Any]:
        """Return the sums, and what was read since the last `commit`.

        Args:
            reduce: takes the mean over ranks, each of which then goes on from it.
        """
        named = {"inputs": self._squares, "window": self._window}
        return {
            word: {name: sums.cpu() for name, sums in _joined(part, reduce).items()}
            for word, part in named.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Keep a state for the next `watch`."""
        self._loaded = {word: state[word] for word in ("inputs", "window") if word in state}

    def close(self) -> None:
        """Let go of the layers."""
        self.end()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    # What is added up outlives the call, which a compiled layer must not see.
    @torch.compiler.disable
    @torch.no_grad()
    def _count(self, name: str, kind: int, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self._masks is None or not inputs:
            return
        rows = inputs[0].detach().flatten(0, -2).float()
        masks = self._masks[kind : kind + 1]
        if masks and masks[0].numel() == len(rows):
            rows = rows * masks[0].reshape(-1, 1).to(rows)
        self._window[name] += rows.square().sum(0)


def _real_tokens(batch: Any, has_encoder: bool) -> list[Tensor]:
    """Return where the source, and where the target has real tokens: bool `[B, ..., L]`."""
    if not isinstance(batch, Mapping) or "attention_mask" not in batch:
        return []
    masks = [batch["attention_mask"] > 0]
    if has_encoder and "labels" in batch:
        masks.append(batch["labels"] != IGNORE_INDEX)
    index = batch.get("index")
    if index is None:
        return masks
    real = index >= 0
    return [mask & real.view(-1, *[1] * (mask.dim() - 1)) for mask in masks]


def _joined(sums: Mapping[str, Tensor], reduce: Reduce | None) -> dict[str, Tensor]:
    """Copy the sums, or join them over ranks at once."""
    if reduce is None or not sums:
        return {name: each.clone() for name, each in sums.items()}
    together = reduce(torch.cat(list(sums.values())))
    parts = together.split([len(each) for each in sums.values()])
    return dict(zip(sums, parts, strict=True))
