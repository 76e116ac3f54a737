"""Any two techniques in one Trainer, in both orders."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest
import torch
from lightning.pytorch import seed_everything

import lmkit
from tests.cases import CASES, Case, make_trainer, weights

CALLBACKS = [case for case in CASES if case.callbacks()]
PAIRS = list(permutations(CALLBACKS, 2))


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=[f"{a.name}-{b.name}" for a, b in PAIRS])
def test_two_techniques_train_together_and_load_alone(
    first: Case, second: Case, tmp_path: Path
) -> None:
    seed_everything(1)
    module = first.make_module()
    trainer = make_trainer(*first.callbacks(), *second.callbacks(), max_steps=2)
    structure = {"surgery"} & {first.name, second.name}
    if structure and {"export"} & {first.name, second.name}:
        # An added layer cannot be said in plain transformers, and the fit says so.
        with pytest.raises(ValueError, match="cannot express"):
            trainer.fit(module, first.make_data(tmp_path))
        return
    trainer.fit(module, first.make_data(tmp_path))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = weights(lmkit.load(tmp_path / "last.ckpt"))
    assert all(torch.equal(loaded[k], v) for k, v in weights(module).items())
    frozen = {n for n, p in module.named_parameters() if not p.requires_grad}
    assert bool(frozen) == bool(structure)


def test_all_techniques_at_once(tmp_path: Path) -> None:
    together = [c for case in CALLBACKS if case.name != "export" for c in case.callbacks()]
    case = CASES[0]
    trainer = make_trainer(*together, max_steps=3, accumulate_grad_batches=2)
    module = case.make_module()
    trainer.fit(module, case.make_data(tmp_path))
    assert trainer.global_step == 3 and len(module.ledger) == 1
