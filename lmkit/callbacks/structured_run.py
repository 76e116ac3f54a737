"""The course of a structured pruning: which units are shut when, until they are removed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..surgery.unit_costs import LayerParameters, count_layer_parameters, queries_per_unit
from ..surgery.units import Units, find_units
from .layer_times import LayerTimes, measure_layer_times
from .learned_gates import LearnedGates
from .pruning_plan import Timetable
from .structured_plan import StructuredPlan
from .unit_masks import UnitMasks, check_apart
from .unit_measure import UnitMeasure, unseen
from .unit_targets import UnitTargets

__all__ = ["StructuredRun"]

#: Joins a tensor over all ranks.
Reduce = Callable[[Tensor], Tensor]


class StructuredRun:
    """Shuts units of a network step by step, as a plan says.

    Args:
        plan: what, how much and when.
    """

    def __init__(self, plan: StructuredPlan) -> None:
        self.plan = plan
        self.masks = UnitMasks()
        self.measure = UnitMeasure(plan.importance, plan.seed)
        self.gates: LearnedGates | None = None
        self.targets: UnitTargets | None = None
        self.times: LayerTimes | None = None
        self.table = Timetable(0, 0, plan.interval)
        #: The step after which units were chosen last.
        self.updated: int | None = None
        #: Whether nothing is left to be done.
        self.is_over = False
        self._network: nn.Module | None = None
        self._loaded: dict[str, Any] = {}

    @property
    def units(self) -> list[Units]:
        """All units that may go."""
        return [] if self.targets is None else self.targets.units

    @property
    def parameters(self) -> LayerParameters:
        """Of the layers."""
        return LayerParameters(0) if self.targets is None else self.targets.parameters

    @property
    def is_due(self) -> bool:
        """Whether what is shut is to be removed now."""
        is_last = self.updated is not None and self.updated >= self.table.end
        return is_last and not self.is_over and bool(self.units)

    def look(
        self,
        network: nn.Module,
        once: Callable[[Callable[[], LayerTimes]], LayerTimes] | None = None,
    ) -> None:
        """Find the units of a network, and check that the target can be met.

        Args:
            network: to be pruned.
            once: lets one rank measure, and hands it to all.

        Raises:
            NothingMatchedError: the architecture is not known.
            ValueError: a layer is wrapped or otherwise not to be cut; the target cannot be met, or
                is met already.
        """
        self.targets, self._network = None, network
        if not self.plan.kinds:
            return
        units = find_units(network, self.plan.kinds)
        check_apart(network, units)
        parameters = count_layer_parameters(network, units)
        if self.plan.speedup is not None and self.times is None:
            shape = self.plan.speed_batch, self.plan.speed_length
            measure = partial(measure_layer_times, network, units, *shape)
            self.times = measure() if once is None else once(measure)
        queries = queries_per_unit(network) if "heads" in self.plan.kinds else {}
        self.targets = UnitTargets(self.plan, units, parameters, self.times, queries)

    def check_trained(self, owned: Collection[int]) -> None:
        """Check that the steps will have the gradients that are needed.

        Args:
            owned: identities of what optimizers hold.

        Raises:
            ValueError: they will not; names a layer.
        """
        if self.plan.importance != "taylor" or self._network is None:
            return
        for reader in (reader for each in self.units for reader in each.readers):
            weight: Any = self._network.get_submodule(reader).weight
            if id(weight) not in owned or not weight.requires_grad:
                raise ValueError(unseen(reader, "it is frozen, and no gradient will reach it"))

    def start(self, total: int | None) -> None:
        """Begin, or go on with what `load_state_dict` brought.

        Args:
            total: optimizer steps of the whole run, `None` if it has no end.

        Raises:
            ValueError: the state that was loaded is of other units, or the run has no end.
        """
        self.table = self.plan.steps(total)
        loaded, self._loaded = self._loaded, {}
        self.updated = loaded.get("updated")
        if self._network is None or not self.units or self.is_over:
            return
        self.masks.start(self._network, self.units)
        self.measure.start(self.masks, self._network)
        if self.plan.is_learned and self.targets is not None:
            rates = self.plan.gate_rate, self.plan.seed, self.plan.multiplier_rate
            self.gates = LearnedGates(self.targets, *rates)
            learned = loaded.get("learned")
            if learned:
                self.gates.load_state_dict(learned)
                self.masks.restore(learned["whole"])
            self.gates.attach(self._network, learned and learned.get("gradients"))

    def begin_batch(self, batch: Any, step: int) -> None:
        """Measure what is read, and draw gates.

        Args:
            batch: its masks tell what is real.
            step: optimizer steps done.
        """
        self.measure.begin(batch)
        if self.gates is not None and step >= self.table.start:
            self.gates.draw(step)

    def end_batch(self) -> None:
        """Measure no more."""
        self.measure.end()

    def evaluate(self, step: int) -> None:
        """Let what follows be evaluated, with the gates of a step."""
        if self.gates is not None:
            self.gates.settle(self.done(step))

    def observe(
        self,
        factor: Tensor | float,
        unscaled: Tensor | float,
        owned: Collection[int],
        step: int,
        reduce: Reduce,
    ) -> None:
        """Look at the gradients before a step, and drop those of what is shut.

        Args:
            factor: what the gradients of weights are still to be multiplied by.
            unscaled: likewise, of what no optimizer of the module holds.
            owned: identities of the weights that the step is of.
            step: optimizer steps done.
            reduce: takes the mean over ranks.
        """
        self.measure.observe(factor, owned)
        self.masks.drop_gradients(owned)
        if self.gates is not None and step < self.table.start:
            self.gates.forget()
        elif self.gates is not None:
            self.gates.step(step, unscaled, self.done(step), reduce)

    def step_done(self) -> None:
        """Set what is shut to zero after a step, and count what it said."""
        self.measure.commit()
        self.masks.apply()

    def choose(
        self,
        step: int,
        reduce: Reduce | None = None,
        calibrate: Callable[[], Mapping[str, Tensor]] | None = None,
    ) -> bool:
        """Choose anew which units are shut, if it is time.

        Args:
            step: optimizer steps done.
            reduce: adds up over ranks.
            calibrate: scores units where no step has said anything yet.

        Returns:
            Whether others are shut now.

        Raises:
            ValueError: it is time, and there is nothing to choose by.
        """
        due = self.table.last(step)
        is_late = due is None or (self.updated is not None and due <= self.updated)
        if is_late or self.is_over or self.targets is None or due is None:
            return False
        self.updated = due
        if self.gates is not None:
            if due >= self.table.end:
                self.masks.shut(self.gates.fold())
                self.gates = None
            return due >= self.table.end
        done = self.plan.done(due, self.table)
        if done > 0:
            seen = self.measure.has_seen or calibrate is None
            scores = self.measure.scores(reduce) if seen else dict(calibrate())  # type: ignore[misc]
            kept = self.targets.choose(scores, done)
            self.masks.shut({name: ~mask for name, mask in kept.items()})
        self.measure.fade()
        return done > 0

    def done(self, step: int) -> float:
        """Return which share of what is to go is gone after a step."""
        due = self.table.last(step)
        if self.gates is None:
            return 0.0 if due is None else self.plan.done(due, self.table)
        # The gates have the second half of the time to meet the target exactly.
        middle = (self.table.start + self.table.end + 1) // 2
        return self.plan.done(step, self.table._replace(end=middle))

    def stop(self) -> None:
        """Let what is shut by now be all, as the run ends here."""
        if self.gates is not None:
            self.masks.shut(self.gates.fold(self.done(self.updated or 0)))
            self.gates = None

    def kept(self) -> dict[str, list[int]]:
        """Return the indices of the open units, by name, of all of which some are shut."""
        return {
            name: (~mask).nonzero().flatten().tolist()
            for name, mask in self.masks.masked.items()
            if bool(mask.any())
        }

    def finish(self) -> None:
        """Forget all units, which are removed."""
        self.close()
        self.is_over = True
        self.masks, self.gates, self.targets = UnitMasks(), None, None
        self.measure.reset()

    def close(self) -> None:
        """Let go of the layers."""
        self.measure.close()
        if self.gates is not None:
            self.gates.close()

    def state_dict(self) -> dict[str, Any]:
        """Return masks, held weights and sums, but for what ranks know apart."""
        times = None if self.times is None else self.times.state_dict()
        state = {"updated": self.updated, "is_over": self.is_over, "times": times}
        return {**state, **self.masks.state_dict()}

    def measured_state(
        self, checkpoint: dict[str, Any], step: int, reduce: Reduce
    ) -> dict[str, Any]:
        """Return what was measured or learned, joined over ranks.

        Args:
            checkpoint: whose weights get the gates of an evaluation.
            step: optimizer steps done.
            reduce: takes the mean over ranks, each of which then goes on from it.
        """
        state = self.measure.state_dict(reduce)
        if self.gates is not None and step >= self.table.start:
            learned = self.gates.state_dict(reduce)
            learned["whole"] = self.gates.bake(
                checkpoint["state_dict"], self.done(step), "network."
            )
            state["learned"] = learned
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Keep a state for the next `start`."""
        self._loaded = dict(state)
        self.is_over = bool(state.get("is_over", False))
        times = state.get("times")
        self.times = None if times is None else LayerTimes.from_state(times)
        self.updated = state.get("updated")
        self.masks.load_state_dict(state)
        self.measure.load_state_dict(state)
