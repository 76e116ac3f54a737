"""What a ledger says of structured pruning: done by this callback, by another, or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn

from ..modules import LMModule
from ..modules.resume import coming_ledger
from ..surgery import from_spec, to_spec
from ..surgery.structure_folder import saved_surgeries
from ..surgery.structured_pruning import RemoveUnits
from .structured_plan import StructuredPlan

__all__ = ["RemovalLedger"]

_CLASS_PATH = to_spec(RemoveUnits({"any": [0]}))["class_path"]
_BY = "StructuredPruningCallback"


class RemovalLedger:
    """Looks for surgeries of a plan in ledgers, and takes them from a checkpoint.

    Args:
        plan: whose surgeries they are.
    """

    def __init__(self, plan: StructuredPlan) -> None:
        self.plan = plan
        #: Whether a checkpoint follows the set-up.
        self.follows = False
        self._done: set[str] = set()

    def chosen(self, part: str) -> dict[str, Any]:
        """Return how a surgery came about, for the ledger.

        Args:
            part: `"layers"`, `"hidden"` or `"units"`.
        """
        return {"by": _BY, "part": part, "arguments": self.plan.arguments}

    def has(self, module: LMModule, part: str) -> bool:
        """Whether a part of the plan was done already."""
        if part not in self._done:
            self._done = {spec["init_args"]["chosen"]["part"] for spec in self._own(module.ledger)}
        return part in self._done

    def take_up(self, module: LMModule) -> None:
        """Take surgeries of this plan from the checkpoint that follows; refuse those of others.

        Args:
            module: built, in `Callback.setup`.

        Raises:
            ValueError: the network, or the checkpoint, was pruned by the callback with other
                arguments; or all is to be removed before the first step, and the checkpoint was not
                pruned.
        """
        self._done = set()
        task = module.task_module
        base = saved_surgeries(task.hparams.get("model"), bool(task.hparams.get("pretrained")))
        done = module.ledger
        # What the base had gone through before is nobody's business here.
        start = len(base) if done[: len(base)] == base else 0
        self._check(done[start:], "the network")
        coming = coming_ledger(module)
        self.follows = coming is not None
        if coming is None:
            return
        self._check(coming[start:], "the checkpoint")
        if coming[: len(done)] != done:
            return  # told when it is loaded
        for spec in coming[len(done) :]:
            if spec not in self._own([spec]):
                break
            module.operate(from_spec(spec))
        if self.plan.is_at_once and not list(self._own(coming)):
            raise ValueError(
                f"the checkpoint was not pruned, and {_BY} of this run would have done so before "
                "the first step: leave it out, or start anew from an export of the checkpoint"
            )

    def check_state(self, trainer: Trainer, key: str, states: Mapping[str, Any]) -> None:
        """Refuse to go on from a checkpoint that is being pruned with other arguments.

        Args:
            trainer: that loads it.
            key: of the callback's state.
            states: of all callbacks of the checkpoint.

        Raises:
            ValueError: it is.
        """
        for other, state in states.items():
            is_ours = other.startswith(f"{_BY}{{")
            if is_ours and other != key and trainer.state.fn == TrainerFn.FITTING:
                raise ValueError(self._fault("the checkpoint", state["arguments"]))

    def _own(self, ledger: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        known = (spec for spec in ledger if spec["class_path"] == _CLASS_PATH)
        for spec in known:
            chosen = spec["init_args"].get("chosen", {})
            if chosen.get("by") == _BY and chosen.get("arguments") == self.plan.arguments:
                yield spec

    def _check(self, ledger: Sequence[Mapping[str, Any]], what: str) -> None:
        for spec in ledger:
            chosen = spec["init_args"].get("chosen", {}) if "init_args" in spec else {}
            if spec["class_path"] != _CLASS_PATH or chosen.get("by") != _BY:
                continue
            if chosen.get("arguments") != self.plan.arguments:
                raise ValueError(self._fault(what, chosen.get("arguments", {})))

    def _fault(self, what: str, had: Mapping[str, Any]) -> str:
        now = self.plan.arguments
        differ = [word for word in now if had.get(word) != now[word]]
        before, after = (
            ", ".join(f"{word}={known.get(word)!r}" for word in differ) for known in (had, now)
        )
        return (
            f"{what} was pruned with {before}, and {_BY} of this run has {after}: give the "
            "callback the arguments it had or leave it out, or start anew from an export"
        )
