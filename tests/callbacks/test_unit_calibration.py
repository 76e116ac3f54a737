"""What is measured before a fit is of its first batches, without dropout, and leaves no trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lmkit.callbacks.unit_calibration import (
    calibrated_dimensions,
    calibrated_layers,
    calibrated_units,
)
from lmkit.functional.unit_importance import magnitude_importance, random_importance
from lmkit.surgery.units import find_units, gate_units
from tests.callbacks.fitted import BY_NAME, fit_task
from tests.cases import make_trainer, weights

TASK = "sequence_classification"


class Measure(Callback):
    """Calls a function in the set-up, and looks whether it left a trace."""

    def __init__(self, function: Any) -> None:
        self.function, self.found = function, None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        module: Any = pl_module
        module.configure_model()
        before, draws = weights(module), torch.get_rng_state()
        self.found = self.function(trainer, module)
        assert all(torch.equal(t, before[n]) for n, t in weights(module).items())
        assert torch.equal(draws, torch.get_rng_state()) and module.network.training
        assert all(p.grad is None and p.requires_grad for p in module.parameters())
        hooks = [m._forward_hooks or m._forward_pre_hooks for m in module.network.modules()]
        assert not any(hooks)


def measure(folder: Path, function: Any) -> Any:
    callback = Measure(function)
    fit_task(TASK, folder, callback, max_steps=1)
    return callback.found


def test_taylor_is_that_of_gates_on_the_first_batches(tmp_path: Path) -> None:
    def by_hand(trainer: Trainer, module: Any) -> dict[str, Tensor]:
        units = find_units(module.network)
        gates = {u.name: torch.ones(u.count).requires_grad_() for u in units}
        handles = gate_units(module.network, units, gates)
        module.setup("fit")
        module.eval()
        sums = {u.name: torch.zeros(u.count) for u in units}
        loader: Any = trainer.fit_loop._data_source.dataloader()
        for place in range(3):
            batch = module.prepare(loader.batch(place))
            output = module.step(batch)
            grads = torch.autograd.grad(output.loss * output.items, list(gates.values()))
            for name, grad in zip(sums, grads, strict=True):
                sums[name] += grad.abs() / 3
        for handle in handles:
            handle.remove()
        module.train()
        return sums

    expected = measure(tmp_path, by_hand)
    found = measure(
        tmp_path, lambda t, m: calibrated_units(t, m, find_units(m.network), "taylor", 3)
    )
    assert found.keys() == expected.keys()
    for name, each in expected.items():
        assert torch.allclose(found[name].float(), each, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("importance", ["taylor", "activation", "magnitude", "random"])
def test_each_way_gives_a_score_for_all(importance: str, tmp_path: Path) -> None:
    def all_of(trainer: Trainer, module: Any) -> tuple[Any, Any, Any]:
        units = find_units(module.network)
        return (
            calibrated_units(trainer, module, units, importance, 2, seed=4),
            calibrated_layers(trainer, module, importance, 2, seed=4),
            calibrated_dimensions(trainer, module, importance, 2, seed=4),
        )

    units, layers, dimensions = measure(tmp_path, all_of)
    assert {len(each) for each in units.values()} == {2, 32}
    assert list(layers) == [""] and layers[""].shape == (2,) and dimensions.shape == (16,)
    for each in (*units.values(), layers[""], dimensions):
        assert bool((each >= 0).all()) and len(set(each.tolist())) > 1
    again, *_ = measure(tmp_path, all_of)
    assert all(torch.equal(each, again[name]) for name, each in units.items())


def test_magnitude_and_random_ask_for_no_batch(tmp_path: Path) -> None:
    def without_data(trainer: Trainer, module: Any) -> Any:
        units = find_units(module.network)
        trainer.fit_loop._data_source.dataloader = None  # type: ignore[method-assign,assignment]
        found = [calibrated_units(trainer, module, units, i, 2) for i in ("magnitude", "random")]
        weight = module.network.get_submodule(units[1].name).weight.detach()
        assert torch.equal(found[0][units[1].name], magnitude_importance([weight], 32))
        assert torch.equal(found[1][units[1].name], random_importance(32, 1, 0, units[1].name))
        raise StopIteration

    with pytest.raises((StopIteration, RuntimeError)):
        measure(tmp_path, without_data)


def test_an_encoder_decoder_has_scores_by_stack(tmp_path: Path) -> None:
    callback = Measure(lambda t, m: calibrated_layers(t, m, "taylor", 2))
    module = BY_NAME["seq2seq"].make_module()
    trainer = make_trainer(callback, max_steps=1)
    trainer.fit(module, BY_NAME["seq2seq"].make_data(tmp_path))
    found: Any = callback.found
    assert {stack: len(each) for stack, each in found.items()} == {"encoder": 2, "decoder": 2}
