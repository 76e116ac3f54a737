"""Arguments become a surgery, and a look at the data leaves layers out or scales them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from lmkit.callbacks.quantization_plan import Decision, QuantizationPlan, gather_ranges
from lmkit.surgery.low_rank import matrix_places
from lmkit.surgery.quantization import FakeQuantize, Quantize
from lmkit.surgery.quantization_ranges import InputRanges
from tests.callbacks.tuned import fit, logits


class Decide(Callback):
    """Lets a plan decide in the set-up."""

    def __init__(self, plan: QuantizationPlan, perform: bool = False) -> None:
        self.plan, self.perform = plan, perform

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        pl_module.configure_model()
        self.before = logits(pl_module.network)
        pl_module.network.train()
        self.found = self.plan.decide(trainer, pl_module)
        if self.perform:
            self.found.perform(pl_module)
        self.after = logits(pl_module.network)


@pytest.mark.parametrize(
    ("settings", "kind", "scheme"),
    [
        ({}, FakeQuantize, (8, 0, "per_token", False)),
        ({"activations": "per_tensor", "smooth": 0.5}, FakeQuantize, (8, 0, "per_tensor", True)),
        ({"method": "dynamic"}, Quantize, (8, 0, "per_token", False)),
        ({"method": "weight_only", "bits": 4}, Quantize, (4, 32, None, False)),
        ({"method": "weight_only", "bits": 4, "group_size": 0}, Quantize, (4, 0, None, False)),
        ({"method": "static", "group_size": 8}, Quantize, (8, 8, "static", False)),
    ],
)
def test_arguments_become_a_surgery(
    settings: dict[str, Any], kind: type, scheme: tuple[Any, ...]
) -> None:
    plan = QuantizationPlan(**settings)
    surgery = plan.surgery(["query"])
    assert type(surgery) is kind and surgery.exclude == ("query",)
    found = surgery.scheme
    assert (found.bits, found.group_size, found.activations, found.smooth) == scheme
    assert surgery.chosen == plan.settings
    assert plan.needs_data == bool("smooth" in settings or settings.get("method") == "static")


def test_a_share_of_the_layers_is_rounded_up(tmp_path: Path) -> None:
    for share, expected in ((0.01, 1), (0.2, 3), (4, 4)):
        decide = Decide(QuantizationPlan(sensitivity=share, calibration_batches=1))
        fit(tmp_path, decide, max_steps=1)
        found: Decision = decide.found
        assert len(found.left_out) == expected and len(found.layers) == 13
        rest = [v for name, v in found.sensitivity.items() if name not in (*found.left_out, "")]
        assert min(found.sensitivity[name] for name in found.left_out) >= max(rest)
        # To decide changes nothing.
        assert torch.equal(decide.before, decide.after)


@pytest.mark.parametrize("method", ["qat", "static"])
def test_factors_and_ranges_are_of_the_layers_that_are_left(method: str, tmp_path: Path) -> None:
    plan = QuantizationPlan(method, smooth=0.5, sensitivity=4, exclude=["key"])
    decide = Decide(plan, perform=True)
    module, _ = fit(tmp_path, decide, max_steps=0)
    found = decide.found
    kept = set(found.layers) - set(found.left_out)
    linear = {
        name for name in kept if not isinstance(module.network.get_submodule(name), nn.Embedding)
    }
    assert set(found.factors) == linear and not any("key" in name for name in found.layers)
    assert set(found.scales) == (linear if method == "static" else set())
    for name, own in found.factors.items():
        layer = module.network.get_submodule(name)
        assert torch.equal(layer.smooth, own) and not torch.equal(own, torch.ones_like(own))
    gap = (decide.after - decide.before).abs().max()
    assert 0 < gap < 0.1 * decide.before.abs().max()
    assert all(part.training for part in module.network.modules())


def test_ranges_are_extremes_of_all_batches(tmp_path: Path) -> None:
    found: list[dict[str, Any]] = []

    class Look(Callback):
        def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
            pl_module.configure_model()
            names = matrix_places(pl_module.network, "all")
            for count in (1, 99):
                ranges = InputRanges(pl_module.network, names)
                found.append(gather_ranges(ranges, trainer, pl_module, count))

    fit(tmp_path, Look(), max_steps=1)
    few, many = found
    assert few.keys() == many.keys()
    assert all((many[name] >= few[name]).all() for name in few)
    assert any((many[name] > few[name]).any() for name in few)


def test_a_layer_that_no_batch_passes_is_named(tmp_path: Path) -> None:
    class Add(Callback):
        def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
            pl_module.configure_model()
            pl_module.network.idle = nn.Linear(16, 16)

    plan = QuantizationPlan("static", targets=["idle", "query"])
    with pytest.raises(ValueError, match=r"no batch passes idle: leave it out \(exclude\)"):
        fit(tmp_path, Add(), Decide(plan), max_steps=1)
