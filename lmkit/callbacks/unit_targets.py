"""How many units each layer keeps, on the way to what is asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..functional.unit_allocation import UnitGroup, allocate, best, nearest_multiple
from ..functional.unit_importance import unit_length
from ..surgery.unit_costs import LayerParameters
from ..surgery.units import Units
from .layer_times import LayerTimes
from .structured_plan import StructuredPlan

__all__ = ["UnitTargets"]

_LEAST_NEURONS = 8


class UnitTargets:
    """Turns a plan and scores into the units that are kept.

    Args:
        plan: with a target for units.
        units: of the network.
        parameters: of its layers.
        times: of its layers; for a `speedup`.
        queries: heads of queries of a unit, by name; those that are not named have one.

    Raises:
        ValueError: the target cannot be met, or is met already; says what is possible.

    Example:
        >>> units = [Units("ffn", f"{i}.fc2", (f"{i}.fc2",), 16, 1, i, "") for i in range(2)]
        >>> known = LayerParameters(1000, dict.fromkeys(["0.fc2", "1.fc2"], 17))
        >>> targets = UnitTargets(StructuredPlan(ffn=8), units, known)
        >>> kept = targets.choose({each.name: torch.arange(16.0) for each in units}, done=1.0)
        >>> kept["0.fc2"].nonzero().flatten().tolist()
        [8, 9, 10, 11, 12, 13, 14, 15]
    """

    def __init__(
        self,
        plan: StructuredPlan,
        units: Sequence[Units],
        parameters: LayerParameters,
        times: LayerTimes | None = None,
        queries: Mapping[str, int] | None = None,
    ) -> None:
        self.plan, self.units, self.parameters, self.times = plan, list(units), parameters, times
        self.queries = dict(queries or {})
        if plan.parameters is not None or plan.speedup is not None:
            self._budget = self._check_budget()
        alike = {each.name: torch.ones(each.count) for each in units}
        if units and all(bool(mask.all()) for mask in self.choose(alike, 1.0).values()):
            words = ("heads", "ffn", "parameters", "speedup")
            given = ((word, getattr(plan, word)) for word in words)
            asked = ", ".join(f"{word}={value}" for word, value in given if value is not None)
            raise ValueError(f"{asked} removes nothing from what is there: ask for less")

    def choose(self, scores: Mapping[str, Tensor], done: float) -> dict[str, Tensor]:
        """Return which units are kept, bool `[count]` on the CPU, by name.

        Args:
            scores: importance of each unit by name, `[count]`.
            done: which share of what is to go is gone, in `[0, 1]`.
        """
        plan = self.plan
        if done <= 0:
            return {each.name: torch.ones(each.count, dtype=torch.bool) for each in self.units}
        if plan.parameters is not None or plan.speedup is not None:
            groups = [self._group(each, scores[each.name]) for each in self.units]
            whole = sum(float(group.costs[-1]) for group in groups)
            budget = whole - done * (whole - self._budget)
            counts = allocate(groups, budget, local=plan.allocation == "local")
            kept = {each.name: n for each, n in zip(self.units, counts, strict=True)}
        elif plan.allocation == "local":
            kept = {each.name: self._on_the_way(each, done) for each in self.units}
        else:
            kept = {}
            for kind in plan.kinds:
                kept |= self._globally(kind, scores, done)
        return {each.name: best(scores[each.name], kept[each.name]) for each in self.units}

    def _final(self, units: Units) -> int:
        """Return how many units a layer keeps on average in the end.

        Raises:
            ValueError: there are fewer, or heads come in groups that this cuts.
        """
        value = getattr(self.plan, units.kind)
        if isinstance(value, float):
            whole = value * units.count
            return nearest_multiple(whole, self._multiple(units), self._floor(units))
        kept = self._in_units(units)
        if kept > units.count and self.plan.allocation == "local":
            raise ValueError(
                f"{units.kind}={value} is more than the "
                f"{units.count * self.queries.get(units.name, 1)} that {units.name} reads: ask "
                "for less"
            )
        return min(kept, units.count)

    def _in_units(self, units: Units) -> int:
        """Return a number that was asked for in units, each of which may be several heads."""
        value, queries = getattr(self.plan, units.kind), self.queries.get(units.name, 1)
        if value % queries:
            raise ValueError(
                f"heads={value} does not divide into groups: in {units.name} {queries} heads share "
                f"keys and values, and go or stay together; give a multiple of {queries}"
            )
        asked: int = value // queries
        return asked

    def _on_the_way(self, units: Units, done: float) -> int:
        final = self._final(units)
        return _up(units.count - done * (units.count - final), self._multiple(units), units.count)

    def _globally(self, kind: str, scores: Mapping[str, Tensor], done: float) -> dict[str, int]:
        here = [each for each in self.units if each.kind == kind]
        whole = sum(each.count for each in here)
        multiple = self._multiple(here[0])
        value = getattr(self.plan, kind)
        if isinstance(value, float):
            least = sum(self._floor(each) for each in here)
            final = nearest_multiple(value * whole, multiple, least)
        else:
            final = sum(self._in_units(each) for each in here)
        total = _up(whole - done * (whole - final), multiple, whole)
        # Heads of different layers are compared by their share of the layer's, as in the paper;
        # probabilities are alike already.
        in_layer = kind == "heads" and not self.plan.is_learned
        alike = unit_length if in_layer else torch.Tensor.double
        groups = [
            UnitGroup(
                kind,
                alike(scores[each.name]),
                torch.arange(each.count + 1).double(),
                multiple,
                self._floor(each),
            )
            for each in here
        ]
        counts = allocate(groups, total)
        return {each.name: count for each, count in zip(here, counts, strict=True)}

    def _group(self, units: Units, scores: Tensor) -> UnitGroup:
        if self.times is not None:
            costs = self.times.costs(units)
        else:
            costs = torch.arange(units.count + 1) * self.parameters.per_unit[units.name]
        # Stacks may have layers of other sizes than each other.
        kind = f"{units.kind} of the {units.stack}" if units.stack else units.kind
        return UnitGroup(kind, scores, costs.double(), self._multiple(units), self._floor(units))

    def _check_budget(self) -> float:
        """Return what may be left of the costs of all units.

        Raises:
            ValueError: not even the floors are so little; says what is possible.
        """
        groups = [self._group(each, torch.ones(each.count)) for each in self.units]
        whole = sum(float(group.costs[-1]) for group in groups)
        least = sum(float(group.costs[min(group.floor, len(group.scores))]) for group in groups)
        if self.times is not None and self.plan.speedup is not None:
            total = self.times.total
            wanted = total / self.plan.speedup
            best_there_is = total / (total - whole + least)
            if total - whole + least > wanted:
                raise ValueError(
                    f"speedup={self.plan.speedup} cannot be reached by heads and neurons: with the "
                    f"least that can be left of each layer it is {best_there_is:.2f} at batches of "
                    f"{self.plan.speed_batch} x {self.plan.speed_length} tokens; ask for less, or "
                    "remove layers"
                )
        else:
            total, share = float(self.parameters.total), self.plan.parameters or 0.0
            wanted = share * total
            if total - whole + least > wanted:
                raise ValueError(
                    f"parameters={share} cannot be reached by heads and neurons: with the least "
                    f"that can be left, {(total - whole + least) / total:.3f} of the parameters of "
                    "the layers remain; ask for more, or remove layers"
                )
        return wanted - (total - whole)

    def _multiple(self, units: Units) -> int:
        return self.plan.multiple_of if units.kind == "ffn" else 1

    def _floor(self, units: Units) -> int:
        multiple = self._multiple(units)
        least = _up(_LEAST_NEURONS, multiple, units.count) if units.kind == "ffn" else 1
        return min(units.count, least)


def _up(value: float, multiple_of: int, most: int) -> int:
    """Round up to a multiple, or to all that there are."""
    return min(most, math.ceil(value / multiple_of - 1e-9) * multiple_of)
