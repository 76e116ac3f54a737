"""What layers read, measured: the ranges of static quantization and the factors of smoothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from ..functional.quantization import affine_parameters
from ..functional.smoothing import smoothing_factors
from .bottleneck import layer_width
from .calibration import Calibration, real_positions

__all__ = [
    "InputRanges",
    "input_scales",
    "put_calibration",
    "scale_weights",
    "smoothing_of",
]


class InputRanges(Calibration):
    r"""Gathers the least and the largest value of each input of linear layers.

    Over real tokens alone. `sums` are no sums here but $-\min$ and $\max$, `[2, i]`, so that the
    larger ones of two are those of both; `counts` are batches.

    Attributes:
        readers: for each layer the names of all that read the same tensor, itself among them.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 2))
        >>> with InputRanges(network, ["0"]) as ranges, torch.no_grad():
        ...     with ranges.watching({"attention_mask": torch.tensor([[1, 1, 0]])}):
        ...         _ = network(torch.tensor([[[1.0, 2.0], [3.0, -4.0], [9.0, 9.0]]]))
        >>> ranges.sums["0"].tolist(), ranges.counts["0"]
        ([[-1.0, 4.0], [3.0, 2.0]], 1.0)
    """

    def __init__(self, network: nn.Module, names: list[str]) -> None:
        super().__init__(network, names)
        self._network = network
        self.readers: dict[str, list[str]] = {name: [name] for name in names}
        self._read: dict[str, Tensor] = {}

    def _hook(self, name: str, layer: Any) -> list[RemovableHandle]:
        def see(module: Any, inputs: tuple[Tensor, ...]) -> None:
            if self._batch is None:
                return
            x = inputs[0].detach()
            for other, known in self._read.items():
                same = known.data_ptr() == x.data_ptr() and known.shape == x.shape
                if same and name not in self.readers[other]:
                    together = sorted({*self.readers[other], *self.readers[name]})
                    for each in together:
                        self.readers[each] = together
            # Held until the run is over, so that no other tensor takes its place.
            self._read[name] = x
            rows = x.reshape(-1, x.shape[-1])
            real = real_positions(self._batch, x.shape[:-1], name in self.in_decoder)
            rows = rows if real is None else rows[real]
            if not len(rows):
                return
            least, most = torch.aminmax(rows, dim=0)
            both = torch.stack([-least, most]).double()
            before = self.sums.get(name)
            self.sums[name] = both if before is None else torch.maximum(before, both)
            self.counts[name] += 1

        def forget(*_: Any) -> None:
            self._read.clear()

        last = [] if self._handles else [self._network.register_forward_hook(forget)]
        return [*last, layer.register_forward_pre_hook(see)]

    def _shape(self, layer: Any) -> tuple[int, ...]:
        return (2, layer_width(layer)[0])


def smoothing_of(
    network: nn.Module,
    ranges: Mapping[str, Tensor],
    readers: Mapping[str, list[str]],
    alpha: float,
) -> dict[str, Tensor]:
    r"""Compute the factors of all layers: one for each input, the same for all that read it.

    Args:
        network: has the layers, not yet quantized.
        ranges: $-\min$ and $\max$, `[2, i]` by dotted name, as of the `InputRanges`.
        readers: as of the `InputRanges`.
        alpha: in `[0, 1]`, see `smoothing_factors`.

    Returns:
        `[i]` by dotted name, float32. A layer that shares its weight is left out, and so are those
        that read what it reads.
    """
    users: dict[int, int] = {}
    for module in network.modules():
        weight = module._parameters.get("weight")
        users[id(weight)] = users.get(id(weight), 0) + 1
    factors: dict[str, Tensor] = {}
    for name in ranges:
        together = [each for each in readers[name] if each in ranges]
        layers = [network.get_submodule(each) for each in together]
        if name in factors or any(users[id(layer.weight)] > 1 for layer in layers):
            continue
        most = torch.stack([_largest(layer) for layer in layers]).amax(0)
        read = torch.stack([ranges[each].amax(0) for each in together]).amax(0).clamp_min(0)
        own = smoothing_factors(read.to(most), most, alpha)
        factors |= dict.fromkeys(together, own)
    return factors


def input_scales(
    ranges: Mapping[str, Tensor], factors: Mapping[str, Tensor] | None = None
) -> dict[str, tuple[Tensor, Tensor]]:
    r"""Compute step and zero point of what each layer reads, one of the whole tensor.

    Args:
        ranges: $-\min$ and $\max$, `[2, i]` by dotted name.
        factors: `[i]` by dotted name, by which inputs are divided before.

    Returns:
        Two scalars by dotted name.

    Example:
        >>> input_scales({"a": torch.tensor([[1.0, 0.0], [1.0, 1.55]])})["a"]
        (tensor(0.0100), tensor(100.))
    """
    found = {}
    for name, both in ranges.items():
        scaled = both.float()
        if factors and name in factors:
            scaled = scaled / factors[name].float()
        found[name] = affine_parameters(-scaled[0].amax(), scaled[1].amax())
    return found


@torch.no_grad()
def scale_weights(network: nn.Module, factors: Mapping[str, Tensor]) -> None:
    """Multiply the weights of layers by factors of their inputs, to be quantized with `smooth`.

    Until `put_calibration` tells them the factors they compute something else.

    Args:
        network: changed in place.
        factors: `[i]` by dotted name.
    """
    for name, own in factors.items():
        layer: Any = network.get_submodule(name)
        weight = layer.weight
        weight.mul_(own.to(weight).unsqueeze(1) if isinstance(layer, Conv1D) else own.to(weight))


@torch.no_grad()
def put_calibration(
    network: nn.Module,
    factors: Mapping[str, Tensor] | None = None,
    scales: Mapping[str, tuple[Tensor, Tensor]] | None = None,
) -> None:
    """Set what was found in a calibration.

    Args:
        network: with the layers replaced; changed in place.
        factors: of the inputs, `[i]` by dotted name.
        scales: step and zero point of the inputs by dotted name.
    """
    for name, own in (factors or {}).items():
        layer: Any = network.get_submodule(name)
        layer.smooth.copy_(own)
    for name, (scale, zero_point) in (scales or {}).items():
        layer = network.get_submodule(name)
        layer.input_scale.copy_(scale)
        layer.input_zero_point.copy_(zero_point)


def _largest(layer: Any) -> Tensor:
    """Return the largest absolute weight of each input, `[i]`."""
    weight: Tensor = layer.weight.detach()
    return weight.abs().amax(1 if isinstance(layer, Conv1D) else 0).float()
