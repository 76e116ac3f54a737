"""The course of a pruning: when masks are chosen, by what, and with how many zeros."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor
from transformers.pytorch_utils import Conv1D

from .input_norms import InputNorms
from .pruning_plan import PruningPlan, Timetable
from .weight_masks import PrunedWeight, WeightMasks

__all__ = ["PruningRun"]


class PruningRun:
    """Chooses the masks of a network step by step, as a plan says.

    Args:
        plan: what, how much and when.

    Example:
        >>> from torch import nn
        >>> run, layer = PruningRun(PruningPlan(0.5, schedule="linear", start=0.0)), nn.Linear(2, 4)
        >>> run.start({"w": layer}, total=20)
        >>> [(run.step_done(step), run.masks.sparsity) for step in (9, 10, 14)]
        [(False, 0.0), (True, 0.375), (True, 0.5)]
    """

    def __init__(self, plan: PruningPlan) -> None:
        self.plan = plan
        scores = plan.seed, plan.score_rate, plan.penalty
        self.masks = WeightMasks(plan.criterion, plan.compared, plan.groups, *scores)
        self.inputs = InputNorms()
        self.table = Timetable(0, 0, plan.interval)
        #: The step after which masks were chosen last.
        self.updated: int | None = None
        self._loaded: dict[str, Any] = {}

    @property
    def is_finished(self) -> bool:
        """Whether the last choice was made."""
        return self.updated is not None and self.updated >= self.table.end

    @property
    def summary(self) -> str:
        """What becomes of the weights, in a clause."""
        weights = [each.weight for each in self.masks.weights.values()]
        return (
            f"{self.plan.target:.1%} of {sum(w.numel() for w in weights):,} weights in "
            f"{len(weights)} matrices become zero by step {self.table.end}"
        )

    def check_trained(self, layers: Mapping[str, Any], owned: Collection[int]) -> None:
        """Check that the criterion will see the gradients that it needs.

        Args:
            layers: of `surgery.prunable`.
            owned: identities of what optimizers hold.

        Raises:
            ValueError: it will not.
        """
        for name, layer in layers.items():
            if self.masks.by_movement and id(layer.weight) not in owned:
                raise ValueError(
                    f"the criterion {self.plan.criterion!r} needs gradients, and {name} is frozen, "
                    "as LoRA and its like leave it: choose 'magnitude' or 'wanda', or train it"
                )

    def start(
        self, layers: Mapping[str, Any], total: int | None, has_encoder: bool = False
    ) -> None:
        """Begin, or go on with what `load_state_dict` brought.

        Args:
            layers: of `surgery.prunable`.
            total: optimizer steps of the whole run, `None` if it has no end.
            has_encoder: whether the network has a decoder beside its encoder.

        Raises:
            ValueError: the state that was loaded is of other weights, there are more zeros than the
                target, or the run has no end and the plan needs one.
        """
        self.table = self.plan.steps(total)
        loaded, self._loaded = self._loaded, {}
        self.updated = loaded.get("updated")
        weights = {n: PrunedWeight(m.weight, isinstance(m, Conv1D)) for n, m in layers.items()}
        self.masks.start(weights, self.plan.target)
        if self.plan.criterion == "wanda":
            self.inputs.watch(layers, has_encoder)

    def read(self, batch: Any, step: int) -> None:
        """Measure what the layers read of a batch, if masks are chosen by it soon.

        Args:
            batch: its masks tell what is real.
            step: optimizer steps done.
        """
        due = self.table.next(step) if self.plan.criterion == "wanda" else None
        if due is not None and due - step <= self.plan.calibration_steps:
            self.inputs.begin(batch)

    def observe(self, factor: Tensor | float, owned: Collection[int]) -> None:
        """Look at the gradients before a step; see `WeightMasks.observe`."""
        self.masks.observe(factor, owned)

    def step_done(self, step: int, reduce: Callable[[Tensor], Tensor] | None = None) -> bool:
        """Set what is pruned to zero after a step, and choose anew if it is time.

        Args:
            step: optimizer steps done, this one included.
            reduce: adds up over ranks.

        Returns:
            Whether the masks are others now.

        Raises:
            ValueError: it is time, and nothing was seen to choose by.
        """
        self.masks.commit()
        self.inputs.commit()
        self.masks.apply()
        return self.choose(step, reduce)

    def choose(self, step: int, reduce: Callable[[Tensor], Tensor] | None = None) -> bool:
        """Choose anew if it is time, as `step_done` does, without a step."""
        due = self.table.last(step)
        if due is None or (self.updated is not None and due <= self.updated):
            return False
        # In a run that was made longer less may be planned by now than there is.
        level = max(self.plan.level(due, self.table, self.masks.initial), self.masks.level)
        changes = level > self.masks.level or (bool(self.masks.scores) and level > 0)
        if changes:
            is_wanda = self.plan.criterion == "wanda"
            self.masks.choose(level, self.inputs.read(reduce) if is_wanda else None)
        self.updated = due
        self.inputs.reset()
        if self.is_finished:
            self.masks.settle()
        return changes

    def close(self) -> None:
        """Let go of the layers."""
        self.inputs.close()

    def state_dict(self) -> dict[str, Any]:
        """Return masks, scores and held values, and when they were chosen; empty before a run."""
        state = self.masks.state_dict()
        return {**state, "updated": self.updated} if state else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Keep a state for the next `start`."""
        self._loaded = dict(state)
        self.masks.load_state_dict(state)
        self.inputs.load_state_dict(state)
