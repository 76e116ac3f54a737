"""The stages of a structured pruning: what goes before the first step, then, and at last."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from ..functional.unit_allocation import best
from ..modules import LMModule
from ..modules.optimizer import planned_steps
from ..surgery import from_spec
from ..surgery.blocks import stack_paths
from ..surgery.hidden_width import find_hidden
from ..surgery.layers import check_layers
from ..surgery.structured_pruning import RemoveUnits, removal
from .removal import remove_in_fit
from .removal_ledger import RemovalLedger
from .structured_plan import StructuredPlan
from .structured_report import StructuredReport
from .structured_run import StructuredRun
from .unit_calibration import calibrated_dimensions, calibrated_layers, calibrated_units
from .weight_averages import averaged_modules, averages

__all__ = ["StructuredStages", "on_one_rank", "owned", "remove_dimensions", "remove_layers"]


class StructuredStages:
    """Removes what a plan says from the network of a module, when it says so.

    Args:
        plan: what, how much and when.
        word: under which figures are logged.
    """

    def __init__(self, plan: StructuredPlan, word: str) -> None:
        self.plan = plan
        self.run = StructuredRun(plan)
        self.past = RemovalLedger(plan)
        self.report = StructuredReport(word)

    def set_up(self, trainer: Trainer, module: LMModule) -> None:
        """Do what comes before the first step, or take it from the checkpoint that follows.

        Raises:
            ValueError: a target cannot be met or is met already, a layer cannot be cut, or network
                or checkpoint were pruned otherwise.
        """
        self.report.begin(module.network)
        copies = list(averaged_modules(trainer.callbacks, module))  # type: ignore[attr-defined]
        before = len(module.ledger)
        self.past.take_up(module)
        for copied in copies:  # made by callbacks that were set up before
            for spec in module.ledger[before:]:
                from_spec(spec)(copied.network)
        if self.past.follows or self.plan.start > 0:
            return
        self._remove_parts(trainer, module)
        if self.plan.is_at_once and self.plan.kinds and not self.past.has(module, "units"):
            self.look(trainer, module)
            how = self.plan.importance, self.plan.calibration_batches, self.plan.seed
            scores = calibrated_units(trainer, module, self.run.units, *how)
            self._perform(trainer, module, self._units_surgery(trainer, module, scores))

    def look(self, trainer: Trainer, module: LMModule) -> None:
        """Find the units, and check that they can be removed."""
        self.run.look(module.network, partial(on_one_rank, trainer))

    def prepare(self, trainer: Trainer, module: LMModule) -> None:
        """Check before the first step that all can be removed in time.

        Raises:
            ValueError: it cannot, or by `taylor` a layer is frozen.
        """
        if self.plan.layers is not None and not self.past.has(module, "layers"):
            _check_depth(module.network, self.plan.layers)
        self.run.is_over |= self.past.has(module, "units")
        if not self.run.is_over and self.plan.kinds:
            self.look(trainer, module)
            self.run.check_trained(set().union(*map(owned, trainer.optimizers)))

    def start(self, trainer: Trainer, module: LMModule) -> None:
        """Begin, or go on where the checkpoint stands."""
        self.run.start(planned_steps(trainer))
        self._keep_marks(module)
        self.report.log(trainer, module.network, self.run)
        self.advance(trainer, module)

    def after_step(self, trainer: Trainer, module: LMModule, *_: Any) -> None:
        """Right behind the optimizer's step, before any other callback sees the weights."""
        self.run.step_done()
        step = trainer.global_step + 1  # Lightning counts it later
        if not self._due_parts(module, step):
            self._choose(trainer, module, step)

    def advance(self, trainer: Trainer, module: LMModule) -> None:
        """Remove what is due between two steps."""
        if self._due_parts(module, trainer.global_step):
            self._remove_parts(trainer, module)
            if self.run.units:  # layers have other names now, and other gradients
                self.look(trainer, module)
                self.run.measure.reset()
                self.run.start(planned_steps(trainer))
        self._choose(trainer, module, trainer.global_step)
        if self.run.is_due:
            self.remove_units(trainer, module)

    def remove_units(self, trainer: Trainer, module: LMModule) -> None:
        """Remove all units that are shut."""
        kept = self.run.kept()
        if kept:
            surgery = removal(module.network, kept, chosen=self.past.chosen("units"))
            self._perform(trainer, module, surgery)
        self.run.finish()
        self.report.log(trainer, module.network, self.run)

    def end(self, trainer: Trainer, module: LMModule) -> None:
        """Remove what is shut if the run ended before its time, and say so."""
        if self.run.is_over or not self.run.units:
            return
        self.run.stop()
        rank_zero_warn(
            f"StructuredPruningCallback: the run ended at step {trainer.global_step}, and all was "
            f"to be removed by step {self.run.table.end}: what is shut by now is removed"
        )
        self.remove_units(trainer, module)

    def end_without_steps(self, trainer: Trainer) -> None:
        """Say so if there was no step in which anything could be removed."""
        if not self.run.is_over and self.run.units and trainer.global_step == 0:
            rank_zero_warn(
                "StructuredPruningCallback: nothing was removed, for the run has no step: train "
                "some, or remove all before the first step (start=0, end=0)"
            )

    def _remove_parts(self, trainer: Trainer, module: LMModule) -> None:
        """Remove layers and hidden dimensions, which are never masked."""
        for part, make in (("layers", remove_layers), ("hidden", remove_dimensions)):
            if getattr(self.plan, part) is not None and not self.past.has(module, part):
                surgery = make(trainer, module, self.plan, self.past.chosen(part))
                self._perform(trainer, module, surgery)

    def _due_parts(self, module: LMModule, step: int) -> bool:
        parts = [part for part in ("layers", "hidden") if getattr(self.plan, part) is not None]
        missing = any(not self.past.has(module, part) for part in parts)
        return missing and step >= self.run.table.start

    def _choose(self, trainer: Trainer, module: LMModule, step: int) -> None:
        if self.run.is_over or not self.run.units:
            return
        how = self.plan.importance, self.plan.calibration_batches, self.plan.seed
        calibrate = partial(calibrated_units, trainer, module, self.run.units, *how)
        add_up = partial(trainer.strategy.reduce, reduce_op="sum")
        if self.run.choose(step, add_up, calibrate):
            for copies in averages(trainer.callbacks, module):  # type: ignore[attr-defined]
                self.run.masks.apply_to(copies)
            self.report.log(trainer, module.network, self.run, step)

    def _units_surgery(self, trainer: Trainer, module: LMModule, scores: Any) -> RemoveUnits:
        assert self.run.targets is not None
        masks = self.run.targets.choose(scores, 1.0)
        kept = {name: mask.nonzero().flatten().tolist() for name, mask in masks.items()}
        kept = {name: kept[name] for name, mask in masks.items() if not bool(mask.all())}
        kept = trainer.strategy.broadcast(kept)
        return removal(module.network, kept, chosen=self.past.chosen("units"))

    def _perform(self, trainer: Trainer, module: LMModule, surgery: RemoveUnits) -> None:
        before = self.report.look(module.network)
        remove_in_fit(trainer, module, surgery)
        self.report.say(trainer, before, module.network, surgery)

    def _keep_marks(self, module: LMModule) -> None:
        """Let checkpoints hold what units are shut in, though a few zeros fall in no sample."""
        if marks := module.base.get("weights"):
            readers = {f"{reader}.weight" for reader in self.run.masks.layers}
            kept = {name: mark for name, mark in marks.items() if name not in readers}
            module.base = {**module.base, "weights": kept}


def remove_layers(
    trainer: Trainer, module: LMModule, plan: StructuredPlan, chosen: Mapping[str, Any]
) -> RemoveUnits:
    """Choose the layers that are kept: those that are named, or those that are worth the most.

    Args:
        trainer: of a fit.
        module: has the layers.
        plan: with `layers`.
        chosen: for the ledger.

    Raises:
        ValueError: there are no more layers than that.
    """
    network, wanted = module.network, plan.layers
    _check_depth(network, wanted)
    kept: Any = wanted
    if isinstance(wanted, int):
        how = plan.importance, plan.calibration_batches, plan.seed
        scores = calibrated_layers(trainer, module, *how)
        numbers = {s: best(each, wanted).nonzero().flatten().tolist() for s, each in scores.items()}
        numbers = trainer.strategy.broadcast(numbers)
        kept = numbers.get("", numbers)
    return removal(network, {}, layers=kept, chosen=chosen)


def remove_dimensions(
    trainer: Trainer, module: LMModule, plan: StructuredPlan, chosen: Mapping[str, Any]
) -> RemoveUnits:
    """Choose the hidden dimensions that are kept.

    Args:
        trainer: of a fit.
        module: has them.
        plan: with `hidden`.
        chosen: for the ledger.

    Raises:
        ValueError: there are no more dimensions than that, or it is not known how to remove them.
    """
    width = find_hidden(module.network).width
    if plan.hidden is None or plan.hidden >= width:
        raise ValueError(
            f"hidden={plan.hidden} removes nothing from {width} dimensions: ask for less"
        )
    how = plan.importance, plan.calibration_batches, plan.seed
    scores = calibrated_dimensions(trainer, module, *how)
    kept = trainer.strategy.broadcast(best(scores, plan.hidden).nonzero().flatten().tolist())
    return removal(module.network, {}, hidden=kept, chosen=chosen)


def on_one_rank(trainer: Trainer, make: Callable[[], Any]) -> Any:
    """Make something on rank 0 and hand it to all; what goes wrong is raised on all.

    Args:
        trainer: knows the ranks.
        make: to be called.

    Raises:
        ValueError: `make` did.
    """
    made: Any = None
    if trainer.is_global_zero:
        try:
            made = make()
        except ValueError as error:
            made = error  # none may wait for another
    made = trainer.strategy.broadcast(made)
    if isinstance(made, ValueError):
        raise made
    return made


def owned(optimizer: Optimizer) -> set[int]:
    """Return the identities of what an optimizer holds."""
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def _check_depth(network: Any, wanted: Any) -> None:
    """Check that there are such layers, or as many, and others beside them.

    Raises:
        ValueError: there are not.
    """
    depths = [len(network.get_submodule(path)) for path in stack_paths(network).values()]
    least = len(wanted) if isinstance(wanted, list) else wanted
    if not isinstance(least, int) or any(least >= depth for depth in depths):
        raise ValueError(
            f"layers={wanted} removes nothing from a network of {' and '.join(map(str, depths))} "
            "layers: keep fewer"
        )
    if isinstance(wanted, list):
        check_layers(network, wanted)
