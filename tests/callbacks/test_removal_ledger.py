"""A ledger tells what was done by this plan, by another, and by nobody here."""

from __future__ import annotations

from typing import Any

import pytest
from lightning.pytorch.trainer.states import TrainerFn

from lmkit.callbacks import removal_ledger
from lmkit.callbacks.removal_ledger import RemovalLedger
from lmkit.callbacks.structured_plan import StructuredPlan
from lmkit.modules import SequenceClassificationModule
from lmkit.surgery.selection import Selection
from lmkit.surgery.structured_pruning import RemoveUnits, removal
from lmkit.surgery.units import find_units
from tests import tiny

HALF = StructuredPlan(ffn=16)
AT_ONCE = StructuredPlan(ffn=16, start=0, end=0)


def made() -> Any:
    settings = {**tiny.MASKED["bert"], "vocab_size": 99, "id2label": {0: "no", 1: "yes"}}
    module = SequenceClassificationModule(settings)
    module.configure_model()
    return module


def pruned(module: Any, plan: StructuredPlan, count: int = 16) -> RemoveUnits:
    kept = {u.name: list(range(count)) for u in find_units(module.network, ["ffn"])}
    return removal(module.network, kept, chosen=RemovalLedger(plan).chosen("units"))


@pytest.fixture
def coming(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let a ledger come with a checkpoint."""

    def set_coming(ledger: Any) -> None:
        monkeypatch.setattr(removal_ledger, "coming_ledger", lambda module: ledger)

    set_coming(None)
    return set_coming


def test_what_the_plan_did_is_known_and_done_once(coming: Any) -> None:
    module, past = made(), RemovalLedger(HALF)
    past.take_up(module)
    assert not past.has(module, "units") and not past.follows
    module.operate(Selection(biases=True))
    module.operate(pruned(module, HALF))
    assert past.has(module, "units") and not past.has(module, "layers")
    RemovalLedger(HALF).take_up(module)
    assert len(module.ledger) == 2


def test_what_other_arguments_did_is_refused_and_named(coming: Any) -> None:
    module = made()
    module.operate(pruned(module, HALF))
    with pytest.raises(ValueError, match=r"the network was pruned with ffn=16, .* has ffn=8: give"):
        RemovalLedger(StructuredPlan(ffn=8)).take_up(module)
    fresh = made()
    coming(module.ledger)
    with pytest.raises(ValueError, match="the checkpoint was pruned with ffn=16"):
        RemovalLedger(StructuredPlan(ffn=8)).take_up(fresh)


def test_surgeries_by_hand_are_nobodys(coming: Any) -> None:
    module = made()
    kept = {u.name: [0, 1] for u in find_units(module.network, ["ffn"])}
    module.operate(RemoveUnits(kept, chosen={"by": "hand"}))
    past = RemovalLedger(HALF)
    past.take_up(module)
    assert not past.has(module, "units")


def test_the_past_of_a_base_is_not_that_of_the_run(
    coming: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = made()
    module.operate(pruned(module, HALF))
    monkeypatch.setattr(removal_ledger, "saved_surgeries", lambda *_: module.ledger)
    again = RemovalLedger(StructuredPlan(ffn=8))
    again.take_up(module)
    assert not again.has(module, "units")
    same = RemovalLedger(HALF)
    same.take_up(module)
    assert same.has(module, "units")


def test_what_comes_next_in_a_checkpoint_is_taken_from_there(coming: Any) -> None:
    module = made()
    module.operate(Selection(biases=True))
    module.operate(pruned(module, HALF))
    ledger = module.ledger
    coming(ledger)
    for first, expected in ((Selection(biases=True), 2), (None, 0)):
        fresh, past = made(), RemovalLedger(HALF)
        if first is not None:
            fresh.operate(first)
        past.take_up(fresh)
        # Where something else comes first it is all left to the module.
        assert past.follows and len(fresh.ledger) == expected


def test_a_checkpoint_that_was_not_pruned_before_its_first_step_is_refused(coming: Any) -> None:
    coming([])
    with pytest.raises(ValueError, match="the checkpoint was not pruned"):
        RemovalLedger(AT_ONCE).take_up(made())
    RemovalLedger(HALF).take_up(made())


def test_states_of_other_arguments_are_refused_in_a_fit() -> None:
    class Fake:
        class state:
            fn = TrainerFn.FITTING

    past, trainer = RemovalLedger(HALF), Fake()
    other = StructuredPlan(ffn=8)
    states = {"StructuredPruningCallback{ffn: 8}": {"arguments": other.arguments}, "Other{}": {}}
    with pytest.raises(ValueError, match="the checkpoint was pruned with ffn=8"):
        past.check_state(trainer, "StructuredPruningCallback{}", states)  # type: ignore[arg-type]
    past.check_state(trainer, "StructuredPruningCallback{ffn: 8}", states)  # type: ignore[arg-type]
    trainer.state.fn = TrainerFn.VALIDATING
    past.check_state(trainer, "StructuredPruningCallback{}", states)  # type: ignore[arg-type]
