"""Weighed losses in a fit, against the methods written out, over ranks, windows and resumptions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from lmkit.functional import mix
from lmkit.functional.loss_weighting import dwa_weights, random_weights
from lmkit.modules.learned_weights import Famo, GradNorm
from lmkit.modules.loss_weighting import WEIGHTINGS, DynamicAverage, Uncertainty, weighting_from
from lmkit.modules.optimizer import parameter_groups
from tests.weighed_tasks import TASKS, RanksAgree, batches, fit, halves, make, state

# The encoder has a part that no task uses.
FORK = "ddp_fork_find_unused_parameters_true"
SLOW: dict[str, Any] = {
    "class_path": "uncertainty",
    "init_args": {"speed": 1.0, "regression": ["sts"]},
}
SPECS: dict[str, Any] = {name: name for name in WEIGHTINGS} | {
    "uncertainty": SLOW,
    "none": None,
}
EACH = pytest.mark.parametrize("name", SPECS)


class Watch(Callback):
    """Keeps the losses, the weights and the lengths of gradients of each step."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.weights: list[Tensor] = []
        self.norms: list[Tensor] = []
        self.epochs: list[int] = []

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        losses = pl_module.task_losses
        last = pl_module.encoder[2].weight
        self.norms.append(
            torch.stack(
                [torch.autograd.grad(x, last, retain_graph=True)[0].norm() for x in losses.values()]
            )
        )
        means = torch.stack([loss.detach() for loss in losses.values()])
        self.losses.append(means)
        self.weights.append(pl_module.weighting.weights(means, torch.arange(3)).clone())
        self.epochs.append(trainer.current_epoch)


def assert_same(one: dict[str, Tensor], two: dict[str, Tensor], atol: float) -> None:
    # The window holds sums over batches and ranks, and how many they are of.
    for name, value in one.items():
        assert name == "weighting.window" or torch.allclose(
            value, two[name], atol=atol, rtol=1e-4
        ), name


@EACH
def test_two_ranks_are_one_process_on_the_joined_batch(name: str) -> None:
    one, two = (make(weighting=SPECS[name], rate=0.02) for _ in range(2))
    fit(one, batches(3), max_epochs=3)
    fit(two, batches(3), RanksAgree(), max_epochs=3, devices=2, strategy=FORK)
    assert_same(state(one), state(two), 1e-5)


@EACH
def test_weights_go_with_aggregation(name: str) -> None:
    plain, summed = make(weighting=SPECS[name]), make(weighting=SPECS[name], aggregation="sum")
    fit(plain, batches(5))
    fit(summed, batches(5))
    assert_same(state(plain), state(summed), 1e-5)
    other = make(weighting=SPECS[name], aggregation="pcgrad")
    fit(other, batches(5))
    assert all(value.isfinite().all() for value in state(other).values())


@pytest.mark.parametrize("name", ["none", "uncertainty", "random", "dwa"])
def test_a_window_is_one_large_batch(name: str) -> None:
    one, two = (make(weighting=SPECS[name]) for _ in range(2))
    fit(one, batches(3), max_epochs=3)
    fit(two, halves(batches(3)), max_epochs=3, accumulate_grad_batches=2)
    assert_same(state(one), state(two), 1e-5)


@EACH
def test_interrupted_and_resumed_is_uninterrupted(name: str, tmp_path: Path) -> None:
    class Save(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            if trainer.fit_loop.epoch_loop.total_batch_idx == 20:  # in a window of the third epoch
                trainer.save_checkpoint(tmp_path / "mid.ckpt")

    joined, settings = batches(8), {"max_epochs": 4, "accumulate_grad_batches": 2}
    whole = make(weighting=SPECS[name], rate=0.02)
    fit(whole, joined, Save(), **settings)
    torch.load(tmp_path / "mid.ckpt", weights_only=True)
    second = make(seed=9, weighting=SPECS[name], rate=0.02)
    fit(second, joined, ckpt_path=tmp_path / "mid.ckpt", **settings)
    for key, value in state(whole).items():
        assert torch.equal(value, state(second)[key]), key


def test_uncertainty_is_learned_without_decay() -> None:
    module = make(weighting=SLOW, adam=True, rate=0.05)
    groups = parameter_groups(module, 0.1)
    (own,) = (g for g in groups if any(p is module.weighting.theta for p in g["params"]))
    assert own["weight_decay"] == 0.0
    for part in (module.encoder, module.heads, module.unused):
        part.requires_grad_(False)
    fit(module, batches(1) * 700)
    assert isinstance(module.weighting, Uncertainty)
    logs = module.weighting.speed * module.weighting.theta.detach()
    losses = torch.stack([loss.detach() for loss in module.task_losses.values()])
    weighed = 2 * torch.tensor([1.0, 1.0, 0.5]) * (-logs).exp() * losses
    assert torch.allclose(weighed, torch.ones(3), atol=1e-3)


def test_speed_is_how_much_faster_the_noise_is_learned() -> None:
    found = []
    for speed in (1.0, 10.0):
        spec = {"class_path": "uncertainty", "init_args": {"speed": speed}}
        module = make(weighting=spec, adam=True, rate=1e-3)
        fit(module, batches(1))
        found.append(speed * module.weighting.theta.detach())
    assert torch.allclose(found[1], 10 * found[0], rtol=1e-3)


def test_dwa_waits_for_two_epochs_and_then_follows_its_formula() -> None:
    watch, module = Watch(), make(weighting="dwa", rate=0.02)
    fit(module, batches(4), watch, max_epochs=4)
    losses, epochs = torch.stack(watch.losses), torch.tensor(watch.epochs)
    means = [losses[epochs == epoch].mean(0) for epoch in range(4)]
    for epoch, weights in zip(watch.epochs, watch.weights, strict=True):
        expected = torch.ones(3) if epoch < 2 else dwa_weights(means[epoch - 1], means[epoch - 2])
        assert torch.allclose(weights, expected, rtol=1e-5)
    assert not torch.allclose(watch.weights[-1], torch.ones(3), atol=1e-4)


def test_dwa_leaves_tasks_without_a_past_alone() -> None:
    module = make(weighting="dwa")
    fit(module, batches(2, tasks=["nli"]), max_epochs=2)
    assert isinstance(module.weighting, DynamicAverage)
    weights = module.weighting.weights(torch.ones(3), torch.arange(3))
    assert weights.isfinite().all() and weights[1] == weights[2]


def test_random_weights_are_those_of_the_step() -> None:
    watch = Watch()
    fit(make(weighting="random"), halves(batches(3)), watch, accumulate_grad_batches=2)
    expected = [random_weights(mix(11, step, 0xBB67AE85), 3) for step in (0, 0, 1, 1, 2, 2)]
    assert torch.equal(torch.stack(watch.weights), torch.stack(expected))


def test_famo_follows_its_algorithm() -> None:
    watch, module = Watch(), make(weighting="famo", rate=0.02)
    fit(module, batches(6), watch)
    logits = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.025, weight_decay=0.001)
    for step, losses in enumerate(watch.losses):
        if step:
            decrease = watch.losses[step - 1].log() - losses.log()
            optimizer.zero_grad()
            logits.softmax(0).backward(decrease)
            optimizer.step()
        if step + 1 < len(watch.losses):
            following = watch.losses[step + 1]
            shares = logits.detach().softmax(0)
            expected = shares / following / (shares / following).sum()
            assert torch.allclose(watch.weights[step + 1], expected, rtol=1e-4)
    assert isinstance(module.weighting, Famo)
    assert torch.allclose(module.weighting.learned, logits.detach(), atol=1e-6)


def test_famo_compares_a_task_with_its_own_last_batch() -> None:
    turns = [["nli"], ["ner"], ["nli", "ner"]]
    module = make(weighting="famo", rate=0.0)
    joined = [batches(1, tasks=tasks, seed=n)[0] for n, tasks in enumerate(turns)]
    fit(module, joined)
    assert isinstance(module.weighting, Famo)
    assert module.weighting.learned[2] == 0 and module.weighting.before[2] == 0
    assert module.weighting.learned[0] * module.weighting.learned[1] < 0


def test_gradnorm_follows_its_algorithm() -> None:
    watch, module = Watch(), make(weighting="gradnorm", rate=0.02)
    fit(module, batches(8), watch)
    weights = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=0.025)
    for step, (losses, norms) in enumerate(zip(watch.losses, watch.norms, strict=True)):
        assert torch.allclose(watch.weights[step], weights.detach(), rtol=1e-4)
        pace = losses / watch.losses[0]
        target = ((weights * norms).mean() * (pace / pace.mean()) ** 1.5).detach()
        optimizer.zero_grad()
        (weights * norms - target).abs().sum().backward()
        optimizer.step()
        with torch.no_grad():
            weights.mul_(3 / weights.sum())
    assert isinstance(module.weighting, GradNorm)
    assert torch.allclose(module.weighting.learned, weights.detach(), rtol=1e-4)
    assert not torch.allclose(weights.detach(), torch.ones(3), atol=0.05)


def test_gradnorm_makes_gradients_of_one_length() -> None:
    def spread(watch: Watch) -> Tensor:
        sizes = torch.stack(watch.norms)[-20:].mean(0) * watch.weights[-1]
        return (sizes.max() / sizes.min()).log()

    spec = {"class_path": "gradnorm", "init_args": {"alpha": 0.0}}
    plain, learned = Watch(), Watch()
    fit(make(rate=1e-4), batches(150), plain)
    fit(make(weighting=spec, rate=1e-4), batches(150), learned)
    assert spread(learned) < 0.3 * spread(plain)


def test_gradnorm_differentiates_each_loss_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found, grad = [], torch.autograd.grad

    def counted(*args: Any, **kwargs: Any) -> Any:
        found.append(grad(*args, **kwargs))
        return found[-1]

    monkeypatch.setattr(torch.autograd, "grad", counted)
    module = make(weighting="gradnorm")
    fit(module, batches(1))
    # The last matrix is one that no task uses, which the first loss shows.
    assert [each[0] is None for each in found] == [True, False, False, False]
    assert {tuple(each[0].shape) for each in found[1:]} == {(4, 5)}


def test_an_evaluation_leaves_no_trace() -> None:
    module = make(weighting="famo")
    fit(module, batches(2))
    before = state(module)
    module.eval()
    with torch.no_grad():
        module.weighting({"nli": torch.tensor(2.0), "sts": torch.tensor(1.0)})
    assert all(torch.equal(value, before[name]) for name, value in state(module).items())


def test_wrong_use_is_an_error() -> None:
    weighting = weighting_from(None, TASKS)
    with pytest.raises(ValueError, match="losses has 'qa'; the tasks are nli, ner, sts"):
        weighting({"qa": torch.ones(())})
    with pytest.raises(ValueError, match="losses has no task"):
        weighting({})
    wrong: list[tuple[Any, str]] = [
        ("uncertain", "did you mean 'uncertainty'"),
        ({"class_path": "uncertainty", "init_args": {"regression": ["qa"]}}, "regression has"),
        ({"class_path": "uncertainty", "init_args": {"speed": 0}}, "speed must be above 0"),
        ({"class_path": "dwa", "init_args": {"temperature": 0}}, "temperature"),
        ({"class_path": "famo", "init_args": {"learning_rate": 0}}, "learning_rate"),
        ({"class_path": "gradnorm", "init_args": {"alpha": -1}}, "alpha"),
    ]
    for spec, message in wrong:
        with pytest.raises(ValueError, match=message):
            weighting_from(spec, TASKS)
    with pytest.raises(TypeError, match="weighting 'dwa' does not take beta"):
        weighting_from({"class_path": "dwa", "init_args": {"beta": 1}}, TASKS)


def test_regressions_are_told_once() -> None:
    made = weighting_from("uncertainty", TASKS)
    assert isinstance(made, Uncertainty) and made.factors == [1.0, 1.0, 1.0]
    made.find_regressions(["sts"])
    assert made.factors == [1.0, 1.0, 0.5]
    said = Uncertainty(TASKS, regression=["nli"])
    said.find_regressions(["sts"])
    assert said.factors == [0.5, 1.0, 1.0]
