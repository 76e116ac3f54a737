"""What a replaced layer does is the divergence of what the network says, item by item."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from lmkit.callbacks.calibration import in_evaluation, prepared_batches
from lmkit.callbacks.sensitivity import ALL, scan, swapped
from tests.callbacks.fitted import fit_task
from tests.cases import weights


class Scan(Callback):
    """Replaces two layers by others in the set-up, and computes by hand what `scan` does."""

    def __init__(self, count: int = 3) -> None:
        self.count = count

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        pl_module.configure_model()
        network = pl_module.network
        names = [
            name
            for name, layer in network.named_modules()
            if isinstance(layer, nn.Linear) and name.endswith(("intermediate.dense", "wi"))
        ][:2]
        self.others = {}
        for name in names:
            layer = network.get_submodule(name)
            self.others[name] = nn.Linear(layer.in_features, layer.out_features)
        before = weights(pl_module)
        groups = {name: [name] for name in names}
        self.found = scan(trainer, pl_module, groups, self.others, self.count)
        assert all(torch.equal(before[name], t) for name, t in weights(pl_module).items())
        assert network.training
        self.expected = {
            group: self.by_hand(trainer, pl_module, chosen)
            for group, chosen in {**groups, ALL: names}.items()
        }

    @torch.no_grad()
    def by_hand(self, trainer: Trainer, module: Any, names: list[str]) -> float:
        total, count = 0.0, 0
        with in_evaluation(module, trainer):
            for batch in prepared_batches(trainer, module, self.count):
                scores = module.scores(module.step(batch), batch)
                with swapped(module.network, {name: self.others[name] for name in names}):
                    other = module.scores(module.step(batch), batch)
                for row in torch.nonzero(scores.valid).flatten().tolist():
                    a, b = scores.logits[row].double(), other.logits[row].double()
                    if scores.kind == "value":
                        total += float((a - b).square().mean())
                    elif scores.kind == "labels":
                        q, p = a.sigmoid(), b.sigmoid()
                        each = q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()
                        total += float(each.mean())
                    else:
                        q, p = a.softmax(-1), b.softmax(-1)
                        each = torch.where(q > 0, q * (q / p).log(), 0.0).sum(-1)
                        total += float(each.mean())
                    count += 1
        return total / count


@pytest.mark.parametrize(
    "task",
    [
        "masked_lm",
        "sequence_classification",
        "regression",
        "token_classification",
        "question_answering",
    ],
)
def test_it_is_the_mean_divergence_of_the_items(task: str, tmp_path: Path) -> None:
    callback = Scan()
    fit_task(task, tmp_path, callback, max_steps=1)
    assert len(callback.found) == 3 and callback.found.keys() == callback.expected.keys()
    for name, value in callback.expected.items():
        assert callback.found[name] == pytest.approx(value, rel=1e-6) and value > 0


def test_a_module_without_scores_is_compared_by_its_logits(tmp_path: Path) -> None:
    found: list[dict[str, float]] = []

    class Look(Callback):
        def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
            pl_module.configure_model()
            name = next(
                n for n, _ in pl_module.network.named_modules() if n.endswith("intermediate.dense")
            )
            own = pl_module.network.get_submodule(name)
            new = nn.Linear(own.in_features, own.out_features)
            for other in (own, new, new):
                torch.rand(3)  # what was drawn before does not count
                found.append(scan(trainer, pl_module, {name: [name]}, {name: other}, 2))

    fit_task("replaced_token", tmp_path, Look(), max_steps=1)
    # The generator draws the same words both times, so the same layer changes nothing.
    assert set(found[0].values()) == {0.0} and all(value > 0 for value in found[1].values())
    assert found[1] == found[2]


def test_layers_are_back_when_something_fails() -> None:
    network = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Tanh()))
    own = list(network.modules())
    with pytest.raises(KeyError), swapped(network, {"0": nn.GELU(), "1.0": nn.GELU()}):
        assert isinstance(network[0], nn.GELU) and isinstance(network[1][0], nn.GELU)
        raise KeyError
    assert list(network.modules()) == own


def test_nothing_to_compare_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no training batches with anything to predict"):
        fit_task("sequence_classification", tmp_path, Scan(), max_steps=1, limit_train_batches=0)
