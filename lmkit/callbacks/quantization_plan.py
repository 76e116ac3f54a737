"""How a network is quantized: the arguments, and what a look at the data makes of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, cast

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from ..functional.smoothing import check_alpha
from ..modules import LMModule
from ..surgery.arguments import check_finite, check_whole
from ..surgery.quantization import FakeQuantize, Quantize
from ..surgery.quantization_ranges import (
    InputRanges,
    input_scales,
    put_calibration,
    scale_weights,
    smoothing_of,
)
from ..surgery.sites import base_name
from .calibration import in_evaluation, prepared_batches
from .sensitivity import scan

__all__ = ["METHODS", "Decision", "QuantizationPlan", "gather_ranges"]

#: Training with rounding; or after the training inputs by their own range, not at all, or by one
#: that was measured.
METHODS = ("qat", "dynamic", "weight_only", "static")


class Decision(NamedTuple):
    """What is to be done to a network.

    Attributes:
        surgery: to be performed.
        factors: of the inputs, `[i]` by the name of the layer, that its weights are multiplied by.
        scales: step and zero point of the inputs by the name of the layer.
        layers: of all layers that were looked at.
        sensitivity: what each does to what the network says, if that was measured; under the empty
            name what all of them do.
        left_out: those that stay as they are for that.
    """

    surgery: FakeQuantize
    factors: dict[str, Tensor]
    scales: dict[str, tuple[Tensor, Tensor]]
    layers: list[str]
    sensitivity: dict[str, float]
    left_out: list[str]

    def perform(self, module: LMModule) -> None:
        """Change the network of a module, and leave each part in its mode."""
        modes = {name: part.training for name, part in module.network.named_modules()}
        scale_weights(module.network, self.factors)
        module.operate(self.surgery)
        put_calibration(module.network, self.factors, self.scales)
        for name, part in module.network.named_modules():
            part.training = modes.get(name, part.training)


@dataclass(frozen=True)
class QuantizationPlan:
    """The arguments of `QuantizationCallback`, which says what they are.

    Raises:
        ValueError: one lies outside its range, or two of them contradict each other.

    Example:
        >>> QuantizationPlan("weight_only", bits=4).surgery().scheme
        Scheme(bits=4, group_size=32, activations=None, smooth=False)
    """

    method: str = "qat"
    bits: int = 8
    group_size: int | None = None
    activations: str | None = "per_token"
    targets: Sequence[str] = ("all",)
    embeddings: bool = True
    exclude: Sequence[str] = ()
    sensitivity: int | float = 0
    smooth: float | None = None
    calibration_batches: int = 32

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        for word in ("targets", "exclude"):
            given = getattr(self, word)
            object.__setattr__(self, word, (given,) if isinstance(given, str) else tuple(given))
        if not self.targets and not self.embeddings:
            raise ValueError("targets must name linear layers, e.g. ['all'], or embeddings be set")
        if self.method == "dynamic" and self.activations is None:
            raise ValueError(
                "method='dynamic' rounds what layers read: give activations='per_token' or "
                "'per_tensor', or method='weight_only'"
            )
        self._check_sensitivity()
        check_whole("calibration_batches", self.calibration_batches, 1)
        self.surgery()  # which checks bits, groups and activations
        if self.smooth is None:
            return
        check_alpha("smooth", self.smooth)
        if self.rounded_inputs is None:
            raise ValueError(
                "smooth eases the rounding of what layers read, and that is not rounded here: "
                "leave it out, or choose activations or another method"
            )

    @property
    def rounded_inputs(self) -> str | None:
        """How inputs are rounded, by this method."""
        own = {"weight_only": None, "static": "static"}
        return own.get(self.method, self.activations)

    @property
    def needs_data(self) -> bool:
        """Whether training batches are looked at."""
        return bool(self.method == "static" or self.smooth is not None or self.sensitivity)

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments as plain data, as the ledger has them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def surgery(self, left_out: Sequence[str] = ()) -> FakeQuantize:
        """Make the surgery, but for layers that are left out."""
        groups = 0 if self.bits == 8 else 32
        kind = FakeQuantize if self.method == "qat" else Quantize
        return kind(
            self.targets,
            (*self.exclude, *left_out),
            self.embeddings,
            self.bits,
            groups if self.group_size is None else self.group_size,
            self.rounded_inputs,
            self.smooth is not None,
            self.settings,
        )

    def decide(self, trainer: Trainer, module: LMModule) -> Decision:
        """Look at the network, and at training batches if need be; the same on each rank.

        Raises:
            ValueError: a layer cannot be quantized, no batch passes one, there are no batches, or
                nothing would be left.
            NothingMatchedError: a target, or what is excluded, matches nothing.
        """
        network, surgery = module.network, self.surgery()
        layers = surgery.layers(network)
        surgery.check(layers)
        linear = [name for name, layer in layers.items() if not isinstance(layer, nn.Embedding)]
        factors: dict[str, Tensor] = {}
        scales: dict[str, tuple[Tensor, Tensor]] = {}
        if self.smooth is not None or self.method == "static":
            watch = InputRanges(network, linear)
            ranges = gather_ranges(watch, trainer, module, self.calibration_batches)
            if never := [name for name in linear if name not in ranges]:
                raise ValueError(f"no batch passes {never[0]}: leave it out (exclude)")
            if self.smooth is not None:
                factors = smoothing_of(network, ranges, watch.readers, self.smooth)
            if self.method == "static":
                scales = input_scales(ranges, factors)
        found = Decision(surgery, factors, scales, list(layers), {}, [])
        return self._without_worst(trainer, module, found) if self.sensitivity else found

    def _without_worst(self, trainer: Trainer, module: LMModule, found: Decision) -> Decision:
        """Measure what each layer does, and leave out those that do the most."""
        rounded = copy.deepcopy(module.network)
        scale_weights(rounded, found.factors)
        Quantize(**vars(found.surgery))(rounded)
        put_calibration(rounded, found.factors, found.scales)
        groups = _sharing(module.network, found.layers)
        count = self.sensitivity
        count = count if isinstance(count, int) else math.ceil(count * len(groups))
        if count >= len(groups):
            raise ValueError(
                f"sensitivity would leave all {len(groups)} layers out ({self.sensitivity}): give "
                "less"
            )
        replacements = {name: rounded.get_submodule(name) for name in found.layers}
        rank_zero_info(f"sensitivity: measuring {len(groups)} layers, one after the other")
        measured = scan(trainer, module, groups, replacements, self.calibration_batches)
        # Of equal ones the first in the network.
        worst = sorted(groups, key=lambda name: -measured[name])[:count]
        gone = {each for name in worst for each in groups[name]}
        return found._replace(
            surgery=self.surgery([base_name(name) for name in worst]),
            factors={name: own for name, own in found.factors.items() if name not in gone},
            scales={name: own for name, own in found.scales.items() if name not in gone},
            sensitivity=measured,
            left_out=worst,
        )

    def _check_sensitivity(self) -> None:
        given = self.sensitivity
        if isinstance(given, float):
            check_finite("sensitivity", given)
            if not 0.0 <= given < 1.0:
                raise ValueError(f"sensitivity must be a share in [0, 1), got {given}")
        else:
            check_whole("sensitivity", given, 0)


@torch.no_grad()
def gather_ranges(
    ranges: InputRanges, trainer: Trainer, module: LMModule, batches: int
) -> dict[str, Tensor]:
    r"""Run a module on training batches, and return the ranges of what its layers read.

    Args:
        ranges: hooks on layers of the module's network.
        trainer: of a fit.
        module: with its network built; stays as it is.
        batches: of each rank.

    Returns:
        $-\min$ and $\max$ over all ranks, `[2, i]` by name; without layers that no batch has
        passed. The same on each rank.

    Raises:
        ValueError: there are no batches, or they have no real token.
    """
    seen = 0
    with in_evaluation(module, trainer), ranges:
        device = next(module.parameters()).device
        for batch in prepared_batches(trainer, module, batches):
            with ranges.watching(batch):
                module.step(batch)
            seen += 1
    found = {}
    for name in ranges.layers:
        # What a rank has not seen is not to be taken for zero.
        empty = torch.full_like(ranges.total(name), -torch.inf)
        own = (ranges.sums.get(name, empty)).to(device)
        joined = cast(Tensor, trainer.strategy.reduce(own, reduce_op="max")).cpu()
        if bool(joined.isfinite().all()):
            found[name] = joined
    if not found:
        raise ValueError(
            f"the {seen} training batches to calibrate on have no real token: give more data, or "
            "take method='dynamic' without smooth, which needs none"
        )
    return found


def _sharing(network: nn.Module, names: Sequence[str]) -> dict[str, list[str]]:
    """Group layers that share a weight, by the name of the first of them."""
    groups: dict[int, list[str]] = {}
    for name in names:
        layer: Any = network.get_submodule(name)
        groups.setdefault(id(layer.weight), []).append(name)
    return {together[0]: together for together in groups.values()}
