"""What gates on units, layers and hidden dimensions are worth, gathered while a network runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from ..functional.unit_importance import gate_gradient
from .calibration import Calibration, RowFisher, real_positions
from .units import Units

__all__ = [
    "ALL",
    "DimensionGates",
    "LayerChanges",
    "LayerGates",
    "MeanActivity",
    "NormActivity",
    "UnitGates",
    "straight_weight",
]

#: The one name of what `DimensionGates` sums up.
ALL = "all"


def straight_weight(layer: Any, like: Tensor | None = None) -> Tensor:
    """Return a layer's weight, or a tensor of its shape, as `[out, in]`; a view of it.

    Args:
        layer: linear, or transformers' `Conv1D`.
        like: in place of the weight.

    Example:
        >>> straight_weight(Conv1D(3, 2)).shape
        torch.Size([3, 2])
    """
    tensor: Tensor = layer.weight if like is None else like
    return tensor.T if isinstance(layer, Conv1D) else tensor


class Gates(RowFisher):
    """Sums up, over batches, absolute derivatives of the loss by gates; counts batches.

    As with `RowFisher`, frozen weights have gradients for a while, and `accumulate` takes the loss.

    Args:
        network: has the layers.
        names: of layers, by dotted name.
    """

    def __init__(self, network: nn.Module, names: list[str]) -> None:
        super().__init__(network, names)
        self.seen: dict[str, tuple[Tensor, Tensor]] = {}

    def accumulate(self, loss: Tensor) -> None:
        """Add the batch of the run.

        Args:
            loss: the sum, not the mean, of the losses of its items.
        """
        seen, self.seen = self.seen, {}
        outputs = [output for output, _ in seen.values()]
        found = torch.autograd.grad(loss, outputs, allow_unused=True) if outputs else ()
        for name, gradient in zip(seen, found, strict=True):
            if gradient is not None:
                self.take(name, seen[name][1], gradient)
        self.close_batch()

    def take(self, name: str, what: Tensor, gradient: Tensor) -> None:
        """Take one of what was seen of a batch."""
        self._add(name, (gradient.double() * what.double()).sum().abs().view(1), 1)

    def close_batch(self) -> None:
        """Take what only the whole batch gives."""

    def _shape(self, layer: Any) -> tuple[int, ...]:
        return (1,)


class LayerGates(Gates):
    r"""Gates on what whole layers add: $x + \xi (f(x) - x)$, at $\xi = 1$; one number for each."""

    def _hook(self, name: str, layer: Any) -> list[RemovableHandle]:
        def see(_: Any, args: Any, kwargs: Any, output: Any) -> None:
            given = args[0] if args else kwargs["hidden_states"]
            out = output if isinstance(output, Tensor) else output[0]
            if self._batch is not None and out.requires_grad:
                self.seen[name] = out, (out - given).detach()

        return [layer.register_forward_hook(see, with_kwargs=True)]


class DimensionGates(Gates):
    """Gates on hidden dimensions, each the same in all normalizations; `sums[ALL]` is `[hidden]`.

    Args:
        network: has the normalizations.
        names: of these, by dotted name.
    """

    def __init__(self, network: nn.Module, names: list[str]) -> None:
        super().__init__(network, names)
        first: Any = network.get_submodule(names[0])
        self.width = tuple(first.weight.shape)
        self.layers[ALL] = nn.Identity()
        self.counts = {ALL: 0.0}
        self._signed: Tensor | None = None

    def _hook(self, name: str, layer: Any) -> list[RemovableHandle]:
        def see(_: Any, args: Any, output: Tensor) -> None:
            if self._batch is not None and output.requires_grad:
                # A layer may run more than once.
                self.seen[f"{name} {len(self.seen)}"] = output, output.detach()

        return [layer.register_forward_hook(see)]

    def take(self, name: str, what: Tensor, gradient: Tensor) -> None:
        """Add it to what other normalizations say, with its sign."""
        found = (gradient.double() * what.double()).flatten(0, -2).sum(0)
        self._signed = found if self._signed is None else self._signed + found

    def close_batch(self) -> None:
        """Take the absolute values."""
        if self._signed is not None:
            self._add(ALL, self._signed.abs(), 1)
        self._signed = None

    def _shape(self, layer: Any) -> tuple[int, ...]:
        return self.width


class UnitGates(Gates):
    """Gates on heads and neurons: by the names of `Units`, `[count]`.

    Their derivatives come from those of the weights that read the units; no gate has to be there.

    Args:
        network: has the units.
        units: of `find_units`.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 1, bias=False))
        >>> _ = network[0].weight.data.copy_(torch.tensor([[3.0, -2.0]]))
        >>> units = Units("ffn", "0", ("0",), count=2, width=1, layer=0, stack="")
        >>> with UnitGates(network, [units]) as gates, gates.watching({}):
        ...     gates.accumulate(network(torch.tensor([[1.0, 5.0]])).sum())
        >>> gates.sums["0"].tolist(), gates.counts["0"]
        ([3.0, 10.0], 1.0)
    """

    def __init__(self, network: nn.Module, units: Sequence[Units]) -> None:
        super().__init__(network, [reader for each in units for reader in each.readers])
        self.units = {each.name: each for each in units}
        self.counts = dict.fromkeys(self.units, 0.0)

    def _hook(self, name: str, layer: Any) -> list[RemovableHandle]:
        return []

    def accumulate(self, loss: Tensor) -> None:
        """Add the batch of the run.

        Args:
            loss: the sum, not the mean, of the losses of its items.
        """
        weights = [self.layers[r].weight for each in self.units.values() for r in each.readers]
        found = iter(torch.autograd.grad(loss, weights, allow_unused=True))
        for name, each in self.units.items():
            parts = []
            for reader in each.readers:
                gradient, layer = next(found), self.layers[reader]
                if gradient is not None:
                    straight = straight_weight(layer, gradient).double()
                    weight = straight_weight(layer).detach().double()
                    parts.append(gate_gradient(weight, straight, each.count))
            if parts:
                self._add(name, torch.stack(parts).sum(0).abs(), 1)

    def _shape(self, layer: Any) -> tuple[int, ...]:
        known = (each.count for each in self.units.values() if self.layers[each.name] is layer)
        return (next(known),)


class MeanActivity(Calibration):
    """Sums up the absolute values that layers read, over real tokens; counts these.

    Args:
        network: has the layers.
        names: of linear layers, by dotted name.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 1))
        >>> with MeanActivity(network, ["0"]) as seen, torch.no_grad():
        ...     with seen.watching({"attention_mask": torch.tensor([[1, 1, 0]])}):
        ...         _ = network(torch.tensor([[[1.0, -2.0], [-1.0, 1.0], [9.0, 9.0]]]))
        >>> seen.sums["0"].tolist(), seen.counts["0"]
        ([2.0, 3.0], 2.0)
    """

    def _hook(self, name: str, layer: Any) -> list[RemovableHandle]:
        def see(_: Any, inputs: tuple[Tensor, ...]) -> None:
            self._see(name, inputs[0].detach().abs())

        return [layer.register_forward_pre_hook(see)]

    def _see(self, name: str, values: Tensor) -> None:
        if self._batch is None:
            return
        real = real_positions(self._batch, values.shape[:-1], name in self.in_decoder)
        rows = values.flatten(0, -2).double()
        rows = rows if real is None else rows[real]
        self._add(name, rows.sum(0), len(rows))

    def _shape(self, layer: Any) -> tuple[int, ...]:
        return (straight_weight(layer).shape[1],)


class NormActivity(MeanActivity):
    """Sums up the absolute values that normalizations give, over real tokens; counts these."""

    def _hook(self, name: str, layer: Any) -> list[RemovableHandle]:
        def see(_: Any, inputs: Any, output: Tensor) -> None:
            self._see(name, output.detach().abs())

        return [layer.register_forward_hook(see)]

    def _shape(self, layer: Any) -> tuple[int, ...]:
        return tuple(layer.weight.shape)


class LayerChanges(MeanActivity):
    r"""Sums up $\lVert f(x) - x \rVert_2 / \lVert x \rVert_2$ of layers, over real tokens."""

    def _hook(self, name: str, layer: Any) -> list[RemovableHandle]:
        def see(_: Any, args: Any, kwargs: Any, output: Any) -> None:
            given = args[0] if args else kwargs["hidden_states"]
            out = (output if isinstance(output, Tensor) else output[0]).detach()
            change = (out - given).norm(dim=-1, keepdim=True)
            tiny = torch.finfo(given.dtype).tiny
            self._see(name, change / given.norm(dim=-1, keepdim=True).clamp(min=tiny))

        return [layer.register_forward_hook(see, with_kwargs=True)]

    def _shape(self, layer: Any) -> tuple[int, ...]:
        return (1,)
