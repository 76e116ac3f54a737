"""What units are worth, measured on the steps of a training as it goes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..functional.unit_importance import (
    activation_importance,
    magnitude_importance,
    random_importance,
)
from ..surgery.calibration import real_positions
from .unit_masks import UnitMasks

__all__ = ["MEASURED", "UnitMeasure", "unseen"]

#: What has to be measured, and is not in the weights alone.
MEASURED = ("taylor", "activation")

#: Joins a tensor over all ranks.
Reduce = Callable[[Tensor], Tensor]


class UnitMeasure:
    r"""Adds up what steps say of units, and makes scores of it.

    By `taylor` a step adds $|\partial L / \partial \xi_u|$ with $L$ the mean over all items of the
    step, of all its batches and ranks; by `activation`, $\sum |x_j|$ over the real tokens that it
    reads. `magnitude` and `random` need no steps. At each choice what was added up before counts
    half from then on, so that scores follow the network and are no matter of a few batches.

    What a step has said counts by `commit`, when it is done, so that one that is struck down does
    not count.

    Args:
        importance: of `functional.unit_importance.IMPORTANCES`.
        seed: of `random`.

    Example:
        >>> from lmkit.surgery.units import Units
        >>> network, masks = nn.Sequential(nn.Linear(2, 1, bias=False)), UnitMasks()
        >>> masks.start(network, [Units("ffn", "0", ("0",), 2, 1, 0, "")])
        >>> measure = UnitMeasure("taylor")
        >>> measure.start(masks)
        >>> (network[0].weight * torch.tensor([[2.0, -3.0]])).sum().backward()
        >>> measure.observe(1.0, {id(network[0].weight)})
        >>> measure.commit()
        >>> torch.equal(measure.scores()["0"], (network[0].weight[0] * 2 * torch.tensor([1, 1.5])
        ...     ).abs().detach())
        True
    """

    def __init__(self, importance: str, seed: int = 0) -> None:
        self.importance, self.seed = importance, seed
        #: How many steps were added up, those before the last choices in part.
        self.steps = 0.0
        self._masks = UnitMasks()
        self._sums: dict[str, Tensor] = {}
        # Of the step that is being taken.
        self._window: dict[str, Tensor] = {}
        self._batch: Any = None
        self._in_decoder: set[str] = set()
        self._handles: list[RemovableHandle] = []
        self._loaded: dict[str, Any] = {}

    @property
    def has_seen(self) -> bool:
        """Whether there is something to choose by."""
        return self.steps > 0 or self.importance not in MEASURED

    def start(self, masks: UnitMasks, network: nn.Module | None = None) -> None:
        """Begin a run, or go on with what `load_state_dict` brought.

        Args:
            masks: of the units.
            network: that has them; tells an encoder from a decoder.
        """
        self.close()
        self._masks, loaded, self._loaded = masks, self._loaded, {}
        self.steps = float(loaded.get("steps", 0.0))
        self._sums, self._window = {}, {}
        for word, own in (("sums", self._sums), ("window", self._window)):
            for name, tensor in loaded.get(word, {}).items():
                device = self._device(name)
                own[name] = tensor.to(device, copy=True)
        if self.importance == "activation":
            both = getattr(getattr(network, "config", None), "is_encoder_decoder", False)
            self._in_decoder = {name for name in masks.layers if both and ".decoder." in f".{name}"}
            for reader, layer in masks.layers.items():
                hook = partial(self._see, reader)
                self._handles.append(layer.register_forward_pre_hook(hook))

    def begin(self, batch: Any) -> None:
        """Measure what is read from now on, by this batch's masks; by `activation` alone."""
        self._batch = batch if isinstance(batch, Mapping) else {}

    def end(self) -> None:
        """Measure no more: an evaluation may follow."""
        self._batch = None

    def observe(self, factor: Tensor | float, owned: Collection[int]) -> None:
        """Look at the gradients before a step; by `taylor` alone.

        Args:
            factor: what the gradients are still to be multiplied by.
            owned: identities of the weights that the step is of.
        """
        if self.importance != "taylor":
            return
        for name in self._masks.units:
            found = self._masks.gate_gradients(name, owned)
            if found is not None:
                # A step that a loss scaler skips has gradients that are no numbers.
                self._window[name] = (found * factor).abs_().nan_to_num_(0.0, 0.0, 0.0)

    def commit(self) -> None:
        """Take what was measured into the sums, once the step is done."""
        for name, tensor in self._window.items():
            before = self._sums.get(name)
            self._sums[name] = tensor if before is None else before + tensor
        self.steps += bool(self._window)
        self._window = {}

    def fade(self) -> None:
        """Let all that was added up count half from now on."""
        self.steps /= 2
        for tensor in self._sums.values():
            tensor /= 2

    def reset(self) -> None:
        """Forget all."""
        self.steps, self._sums, self._window = 0.0, {}, {}

    def scores(self, reduce: Reduce | None = None) -> dict[str, Tensor]:
        """Return the importance of all units by name, `[count]`.

        Args:
            reduce: adds up over ranks; for what each has read for itself.

        Raises:
            ValueError: nothing was measured of some units; names what reads them.
        """
        scores = {}
        for name, units in self._masks.units.items():
            if self.importance == "random":
                scores[name] = random_importance(units.count, units.width, self.seed, name)
            elif self.importance == "magnitude":
                scores[name] = magnitude_importance(list(self._masks.whole(name)), units.count)
            elif self.importance == "taylor":
                if name not in self._sums:
                    raise ValueError(unseen(name, "no gradient has reached it"))
                scores[name] = self._sums[name]
            else:
                scores[name] = self._by_activation(name, reduce)
        return scores

    def state_dict(self, reduce: Reduce | None = None) -> dict[str, Any]:
        """Return the sums, and what was measured since the last `commit`; empty if there is none.

        Args:
            reduce: takes the mean over ranks, each of which then goes on from it.
        """
        if not (self._sums or self._window):
            return {}
        # The sums of `taylor` are the same on each rank.
        joined = reduce if self.importance == "activation" else None
        return {
            "steps": self.steps,
            "sums": _joined(self._sums, joined),
            "window": _joined(self._window, joined) if self.importance == "activation" else {},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Keep a state for the next `start`."""
        self._loaded = {word: state[word] for word in ("steps", "sums", "window") if word in state}

    def close(self) -> None:
        """Let go of the layers."""
        self.end()
        while self._handles:
            self._handles.pop().remove()

    def _by_activation(self, name: str, reduce: Reduce | None) -> Tensor:
        units, total = self._masks.units[name], None
        for reader, weight in zip(units.readers, self._masks.whole(name), strict=True):
            if reader not in self._sums:
                raise ValueError(unseen(reader, "no batch has passed it"))
            summed = self._sums[reader] if reduce is None else reduce(self._sums[reader].clone())
            # The last number counts the tokens.
            found = activation_importance(summed[:-1] / summed[-1], weight, units.count)
            total = found if total is None else total + found
        assert total is not None
        return total

    # What is added up outlives the call, which a compiled layer must not see.
    @torch.compiler.disable
    @torch.no_grad()
    def _see(self, reader: str, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self._batch is None or not inputs:
            return
        x = inputs[0].detach()
        real = real_positions(self._batch, x.shape[:-1], reader in self._in_decoder)
        rows = x.flatten(0, -2).float()
        rows = rows if real is None else rows * real.view(-1, 1).to(rows)
        count = rows.new_tensor([len(rows)]) if real is None else real.sum().view(1).to(rows)
        summed = torch.cat([rows.abs().sum(0), count])
        before = self._window.get(reader)
        self._window[reader] = summed if before is None else before + summed

    def _device(self, name: str) -> torch.device:
        layer = self._masks.layers.get(name)
        if layer is None:
            layer = self._masks.layers[self._masks.units[name].readers[0]]
        device: torch.device = layer.weight.device
        return device


def unseen(name: str, fault: str) -> str:
    """Say that there is nothing to choose units by, and what can be done.

    Example:
        >>> unseen("fc2", "it is frozen").split(": ")[0]
        'there is nothing to choose the units of fc2 by'
    """
    return (
        f"there is nothing to choose the units of {name} by: {fault} (LoRA and its like freeze "
        "weights, gradual unfreezing does for a while). Take importance='activation' or "
        "'magnitude', remove all before the first step (start=0, end=0), or train it"
    )


def _joined(sums: Mapping[str, Tensor], reduce: Reduce | None) -> dict[str, Tensor]:
    """Copy sums to the CPU, or join them over ranks at once."""
    if reduce is None or not sums:
        return {name: each.cpu().clone() for name, each in sums.items()}
    together = reduce(torch.cat(list(sums.values()))).cpu()
    parts = together.split([len(each) for each in sums.values()])
    return {name: part.clone() for name, part in zip(sums, parts, strict=True)}
