"""Units that are shut while a network trains: the columns of what reads them are zero."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..functional.unit_importance import gate_gradient
from ..surgery.unit_gates import straight_weight
from ..surgery.units import Units

__all__ = ["UnitMasks", "check_apart", "columns_of"]


class UnitMasks:
    r"""Shuts units of a network, and opens them again.

    A unit is shut where the columns $J_u$ of each weight that reads it are zero: as with a gate of
    0 nothing of it arrives, and nothing of it learns, while the gradient of those columns still
    tells what it would be worth. Their values are held meanwhile, and a unit that is opened comes
    back with them. Since the zeros are in the weights, whatever evaluates, saves or exports the
    network sees them.

    Example:
        >>> network = nn.Sequential(nn.Linear(3, 1, bias=False))
        >>> masks = UnitMasks()
        >>> masks.start(network, [Units("ffn", "0", ("0",), 3, 1, 0, "")])
        >>> masks.shut({"0": torch.tensor([True, False, True])})
        >>> network[0].weight.count_nonzero().item(), masks.left
        (1, {'0': 1})
    """

    def __init__(self) -> None:
        self.units: dict[str, Units] = {}
        #: Which units are shut, bool `[count]`, by name.
        self.masked: dict[str, Tensor] = {}
        self.layers: dict[str, Any] = {}
        # What the zero columns of each reader were, [out, columns].
        self._held: dict[str, Tensor] = {}
        self._columns: dict[str, Tensor] = {}
        self._places: dict[str, Tensor] = {}  # of shut units, by the readers' names
        self._loaded: dict[str, Any] = {}

    @property
    def left(self) -> dict[str, int]:
        """How many units are open, by name."""
        return {name: int((~mask).sum()) for name, mask in self.masked.items()}

    @torch.no_grad()
    def start(self, network: nn.Module, units: Sequence[Units]) -> None:
        """Begin a run with all units open, or go on with what `load_state_dict` brought.

        Args:
            network: has the units.
            units: of `find_units`.

        Raises:
            ValueError: the state that was loaded is of other units.
        """
        self.units = {each.name: each for each in units}
        readers = [reader for each in units for reader in each.readers]
        self.layers = {reader: network.get_submodule(reader) for reader in readers}
        loaded, self._loaded = self._loaded, {}
        self._held, self._columns = {}, {}
        if not loaded:
            self.masked = {each.name: torch.zeros(each.count, dtype=torch.bool) for each in units}
            return
        masks: Mapping[str, Tensor] = loaded["masked"]
        if {n: len(m) for n, m in masks.items()} != {e.name: e.count for e in units}:
            raise ValueError(
                f"the checkpoint's masks are of {len(masks)} groups of units, and {len(units)} are "
                "to be pruned, or they have other sizes: give the model that it was made with"
            )
        self.masked = {name: mask.clone() for name, mask in masks.items()}
        for name in self.units:
            self._index(name)
        for reader, held in loaded["held"].items():
            self._held[reader] = held.to(self.layers[reader].weight, copy=True)
        self.apply()

    @torch.no_grad()
    def shut(self, masked: Mapping[str, Tensor]) -> None:
        """Shut these units and open all others.

        Args:
            masked: bool `[count]`, by name; of all units.
        """
        self.open()
        for name, mask in masked.items():
            self.masked[name] = mask.cpu().clone()
            self._index(name)
            for reader in self.units[name].readers:
                if reader in self._columns:
                    weight = straight_weight(self.layers[reader])
                    self._held[reader] = weight[:, self._columns[reader]].clone()
        self.apply()

    @torch.no_grad()
    def open(self) -> None:
        """Open all units: put what was held back into the weights."""
        for reader, held in self._held.items():
            straight_weight(self.layers[reader])[:, self._columns[reader]] = held
        self._held, self._columns = {}, {}
        self.masked = {name: torch.zeros_like(mask) for name, mask in self.masked.items()}

    @torch.no_grad()
    def restore(self, whole: Mapping[str, Tensor]) -> None:
        """Set the weights that read units.

        Args:
            whole: by the readers' names.
        """
        for reader, weight in whole.items():
            self.layers[reader].weight.copy_(weight)

    @torch.no_grad()
    def apply(self) -> None:
        """Set the columns to zero, whatever a step has made of them."""
        for reader, columns in self._columns.items():
            straight_weight(self.layers[reader])[:, columns] = 0.0

    @torch.no_grad()
    def apply_to(self, copies: Mapping[int, Tensor]) -> None:
        """Set the same to zero in copies of the weights, by the identities of these."""
        for reader, columns in self._columns.items():
            layer = self.layers[reader]
            copy = copies.get(id(layer.weight))
            if copy is not None:
                turned = copy.T if isinstance(layer, Conv1D) else copy
                turned[:, columns.to(copy.device)] = 0.0

    @torch.no_grad()
    def drop_gradients(self, owned: Collection[int]) -> None:
        """Let no step move what is zero, and count it for no clipping.

        Args:
            owned: identities of the weights that the step is of.
        """
        for reader, columns in self._columns.items():
            layer = self.layers[reader]
            if layer.weight.grad is not None and id(layer.weight) in owned:
                straight_weight(layer, layer.weight.grad)[:, columns] = 0.0

    @torch.no_grad()
    def gate_gradients(self, name: str, owned: Collection[int]) -> Tensor | None:
        """Return the derivatives of the loss by gates on units, open and shut ones.

        Args:
            name: of the units.
            owned: identities of the weights that the step is of.

        Returns:
            `[count]`, as `functional.unit_importance.gate_gradient` gives them; `None` where a
            reader is not of the step, or has no gradient.
        """
        units, total = self.units[name], None
        for reader in units.readers:
            layer = self.layers[reader]
            if layer.weight.grad is None or id(layer.weight) not in owned:
                return None
            gradient = straight_weight(layer, layer.weight.grad)
            found = gate_gradient(straight_weight(layer), gradient, units.count)
            if reader in self._columns:
                held, places = self._held[reader], self._places[reader]
                parts = gate_gradient(held, gradient[:, self._columns[reader]], len(places))
                found.index_copy_(0, places, parts)
            total = found if total is None else total + found
        return total

    @torch.no_grad()
    def whole(self, name: str) -> Iterator[Tensor]:
        """Yield the weights that read units, as they are with all of them open, `[out, in]`."""
        for reader in self.units[name].readers:
            weight = straight_weight(self.layers[reader]).detach()
            if reader in self._columns:
                weight = weight.clone()
                weight[:, self._columns[reader]] = self._held[reader]
            yield weight

    def state_dict(self) -> dict[str, Any]:
        """Return masks by the names of units, and what is held by those of readers."""
        return {
            "masked": {name: mask.clone() for name, mask in self.masked.items()},
            "held": {name: held.cpu().clone() for name, held in self._held.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Keep a state for the next `start`."""
        self._loaded = {word: state[word] for word in ("masked", "held") if word in state}

    def _index(self, name: str) -> None:
        mask, units = self.masked[name], self.units[name]
        if bool(mask.any()):
            for reader in units.readers:
                device = self.layers[reader].weight.device
                self._columns[reader] = columns_of(mask, units.width).to(device)
                self._places[reader] = mask.nonzero().flatten().to(device)


def columns_of(chosen: Tensor, width: int) -> Tensor:
    """Return the inputs of a reader that belong to units, int64.

    Args:
        chosen: bool `[count]`.
        width: of a unit.

    Example:
        >>> columns_of(torch.tensor([False, True]), 2).tolist()
        [2, 3]
    """
    return chosen.repeat_interleave(width).nonzero().flatten()


def check_apart(network: nn.Module, units: Sequence[Units]) -> None:
    """Check that no weight reads units of two groups.

    Args:
        network: has the units.
        units: of `find_units`.

    Raises:
        ValueError: one does, as where two stacks share their layers.
    """
    known: dict[int, str] = {}
    for each in units:
        for reader in each.readers:
            weight: Any = getattr(network.get_submodule(reader), "weight", None)
            if not isinstance(weight, nn.Parameter):  # told of when it is to be cut
                continue
            first = known.setdefault(id(weight), each.name)
            if first != each.name:
                raise ValueError(
                    f"{reader} and {first} are one weight and read different units, so no unit of "
                    "one can go alone: untie the stacks, or prune them before they are tied"
                )
