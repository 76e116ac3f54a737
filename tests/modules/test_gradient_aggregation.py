"""Aggregation inside Lightning's own optimization: exact over batches, ranks and precisions."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor

from lmkit.functional import gradient_aggregation as functional
from lmkit.modules.gradient_aggregation import (
    AGGREGATIONS,
    GradientAggregation,
    aggregation_from,
)
from tests.weighed_tasks import TASKS, RanksAgree, SeveralTasks, batches, fit, halves, make, state

METHODS = list(AGGREGATIONS)
LEARNED = {"class_path": "uncertainty", "init_args": {"speed": 1.0}}


def assert_same(one: dict[str, Tensor], two: dict[str, Tensor], atol: float = 1e-6) -> None:
    for name, value in one.items():
        assert torch.allclose(value, two[name], atol=atol, rtol=1e-5), name


class Gradients(Callback):
    """Keeps the gradients of each step as the optimizer gets them."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor | None]] = []

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self._keep(pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._keep(pl_module)

    def _keep(self, module: Any) -> None:
        self.seen.append(
            {
                name: None if p.grad is None else p.grad.clone()
                for name, p in module.named_parameters()
            }
        )


def plugin(precision: str) -> Any:
    if precision == "16-mixed":  # as on an accelerator, with its scaler
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}
    return {"precision": precision}


def penalty(module: Any, batch: Any) -> Tensor:
    """A loss term of no task, on shared and own parameters."""
    weight = 0.3 * module.encoder[0].weight.square().sum()
    return weight + 0.2 * module.heads["ner"].weight.abs().sum()


# The sum is plain training, whatever else goes on.


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("term", [None, penalty])
def test_the_sum_is_plain_training(
    precision: str, accumulate: int, clip: float | None, term: Any
) -> None:
    joined = batches(7)
    settings = {"accumulate_grad_batches": accumulate, "gradient_clip_val": clip}
    ended = []
    for aggregation in (None, "sum"):
        module = make(aggregation=aggregation, weighting=LEARNED)
        module.term = term
        trainer = fit(module, joined, **settings, **plugin(precision))
        ended.append(state(module))
    # In half precision the gradients of tasks are rounded one by one.
    assert_same(*ended, atol=1e-6 if precision == "32-true" else 3e-3)
    assert not torch.equal(ended[0]["encoder.0.weight"], state(make())["encoder.0.weight"])
    assert trainer.global_step == (7 if accumulate == 1 else 4)


@pytest.mark.parametrize("way", ["one_graph", "recomputes"])
def test_tasks_may_share_their_graph(way: str) -> None:
    ended = []
    for aggregation in (None, "sum"):
        module = make(aggregation=aggregation)
        setattr(module, way, True)
        fit(module, batches(4))
        ended.append(state(module))
    assert_same(*ended)


def test_compiled_layers_keep_what_the_next_task_needs() -> None:
    ended = []
    for aggregation in (None, "sum"):
        module = make(aggregation=aggregation)
        module.one_graph = True
        module.encoder.compile(backend="aot_eager")
        fit(module, batches(3))
        ended.append(state(module))
    assert_same(*ended)


# Each method, against its weights on gradients that are computed one by one.


def gradients_by_hand(module: Any, batch: Any) -> tuple[Tensor, dict[str, list[Tensor]]]:
    module.zero_grad()
    rows, heads = [], {}
    for task in TASKS:
        x, y = batch[task]
        loss = (module.heads[task](module.encoder(x)) - y).square().mean()
        shared, own = list(module.encoder.parameters()), module.task_parameters(task)
        found = torch.autograd.grad(loss, [*shared, *own])
        rows.append(torch.cat([g.flatten() for g in found[: len(shared)]]))
        heads[task] = list(found[len(shared) :])
    return torch.stack(rows), heads


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("way", ["whole", "halves", "16-mixed"])
def test_an_update_is_that_of_the_whole_step(method: str, way: str) -> None:
    joined, module, gradients = batches(1), make(aggregation=method), Gradients()
    jacobian, heads = gradients_by_hand(module, joined[0])
    settings: dict[str, Any] = {"accumulate_grad_batches": 2} if way == "halves" else {}
    if way == "16-mixed":
        settings |= plugin(way)
    fit(module, halves(joined) if way == "halves" else joined, gradients, **settings)
    found = gradients.seen[-1]
    assert module.aggregation is not None and module.aggregation.last is not None
    weights = module.aggregation.last.weights
    expected = (weights @ jacobian.double()).float()
    encoder = [g for n, g in found.items() if n.startswith("encoder.") and g is not None]
    atol = 5e-3 if way == "16-mixed" else 1e-6
    assert torch.allclose(torch.cat([g.flatten() for g in encoder]), expected, atol=atol)
    if method != "pcgrad" and way != "16-mixed":
        known = AGGREGATIONS[method](jacobian @ jacobian.T)
        assert torch.allclose(weights, known, rtol=1e-3)
    # What belongs to one task is left as it is, and what is not reached has no gradient.
    for task in TASKS:
        own = found[f"heads.{task}.weight"], found[f"heads.{task}.bias"]
        for one, known in zip(own, heads[task], strict=True):
            assert one is not None and torch.allclose(one, known, atol=atol)
    assert found["unused.weight"] is None


def test_a_task_that_is_not_there_has_no_gradient() -> None:
    joined = [*batches(2, tasks=["nli", "ner"]), *batches(1, tasks=["nli"])]
    module, gradients = make(aggregation="pcgrad", adam=True), Gradients()
    before = state(module)
    fit(module, joined, gradients)
    assert all(each["heads.sts.weight"] is None for each in gradients.seen)
    assert gradients.seen[-1]["heads.ner.weight"] is None
    after = state(module)
    assert torch.equal(before["heads.sts.weight"], after["heads.sts.weight"])
    assert torch.equal(before["unused.weight"], after["unused.weight"])
    assert not torch.equal(before["encoder.0.weight"], after["encoder.0.weight"])
    assert module.aggregation is not None and module.aggregation.last is not None
    assert module.aggregation.last.tasks == ("nli",)
    assert module.aggregation.last.weights.tolist() == [1.0]


def test_tasks_of_single_batches_meet_in_their_window() -> None:
    joined = batches(1)
    apart = [{task: joined[0][task]} for task in TASKS]
    module, gradients = make(aggregation="mgda"), Gradients()
    jacobian, _ = gradients_by_hand(module, joined[0])
    fit(module, apart, gradients, accumulate_grad_batches=3)
    expected = functional.mgda_weights(jacobian @ jacobian.T)
    assert module.aggregation is not None and module.aggregation.last is not None
    assert torch.allclose(module.aggregation.last.weights, expected, rtol=1e-3)


def test_two_passes_over_a_batch_count_both() -> None:
    def again(module: Any, batch: Any) -> Tensor:
        losses = module.losses({task: (x + 0.5, y) for task, (x, y) in batch.items()})
        if module.aggregation is not None:
            module.aggregation.watch(losses)
        total: Tensor = sum(losses.values())  # type: ignore[assignment]
        return 0.7 * total

    ended = []
    for aggregation in (None, "sum", "pcgrad"):
        module = make(aggregation=aggregation)
        module.term = again
        fit(module, batches(3))
        ended.append(state(module))
    assert_same(ended[0], ended[1])
    assert not torch.allclose(ended[0]["encoder.0.weight"], ended[2]["encoder.0.weight"])


# Over ranks.


class WithoutReducer(Callback):
    """Checks that DDP does not add up what was added up already, whatever accumulation does."""

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        assert not trainer.strategy.model.require_backward_grad_sync


# Two methods show what accumulation does.
@pytest.mark.parametrize(
    ("method", "accumulate"),
    [*((method, 1) for method in METHODS), ("pcgrad", 2), ("cagrad", 2)],
)
def test_two_ranks_are_one_process_on_the_joined_batch(method: str, accumulate: int) -> None:
    joined = batches(6)
    one = make(aggregation=method)
    one.term = penalty
    fit(one, joined)
    two = make(aggregation=method)
    two.term = penalty
    parts = halves(joined) if accumulate == 2 else joined
    settings: Any = {"devices": 2, "strategy": "ddp_fork", "accumulate_grad_batches": accumulate}
    fit(two, parts, RanksAgree(), WithoutReducer(), **settings)
    assert_same(state(one), state(two), atol=1e-5)


def test_ranks_may_have_tasks_of_their_own() -> None:
    class Apart(SeveralTasks):
        def losses(self, batch: Any) -> dict[str, Tensor]:
            names = [("nli", "sts"), ("ner",)][self.trainer.global_rank]
            losses = super().losses({name: batch[name] for name in names})
            if "ner" in losses:  # and reach a shared weight that the others do not
                losses["ner"] = losses["ner"] + self.unused.weight.square().mean()
            return losses

    torch.manual_seed(3)
    module = Apart(aggregation="pcgrad")
    before = state(module)
    fit(module, batches(4), RanksAgree(), devices=2, strategy="ddp_fork")
    after = state(module)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name != "unused.bias"}


# Interrupted in the middle of a window.


@pytest.mark.parametrize("method", ["pcgrad", "sum"])
def test_a_window_goes_on_where_it_was_interrupted(method: str, tmp_path: Path) -> None:
    joined = halves(batches(4))
    whole = make(aggregation=method)
    fit(whole, joined, accumulate_grad_batches=4)
    first = make(aggregation=method)
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=0, save_last=False)

    class Save(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            if trainer.fit_loop.epoch_loop.batch_progress.current.ready == 6:
                trainer.save_checkpoint(tmp_path / "mid.ckpt")

    fit(first, joined, Save(), saver, accumulate_grad_batches=4, enable_checkpointing=True)
    saved = torch.load(tmp_path / "mid.ckpt", weights_only=True)
    assert set(saved["rows"]["rows"]) == set(TASKS)
    second = make(seed=9, aggregation=method)
    fit(second, joined, accumulate_grad_batches=4, ckpt_path=tmp_path / "mid.ckpt")
    for name, value in state(whole).items():
        assert torch.equal(value, state(second)[name]), name


# What is refused, and what overflows.


def test_a_loss_that_overflows_is_left_to_the_scaler() -> None:
    module = make(aggregation="pcgrad")
    before = state(module)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    module.term = lambda module, batch: 0.0 * module.task_losses["nli"]
    fit(module, batches(1), plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    assert scaler.get_scale() == 2.0**119
    assert_same(before, state(module), atol=0.0)


def test_a_gradient_that_is_no_number_names_its_task() -> None:
    joined = batches(1)
    joined[0]["ner"][0][0] = float("nan")
    with pytest.raises(ValueError, match="task 'ner' is NaN"):
        fit(make(aggregation="cagrad"), joined)


def test_wrong_use_is_an_error() -> None:
    module = make(aggregation="sum")
    assert module.aggregation is not None
    with pytest.raises(ValueError, match="losses has a task 'qa'; the tasks are nli, ner, sts"):
        module.aggregation.watch({"qa": torch.ones(())})
    with pytest.raises(RuntimeError, match="watch"):
        module.aggregation.backward(torch.ones((), requires_grad=True), module, [])
    with pytest.raises(ValueError, match="share no trainable parameter"):
        frozen = make(aggregation="sum")
        for part in (frozen.encoder, frozen.unused):
            part.requires_grad_(False)
        fit(frozen, batches(1))


def test_a_sharded_strategy_and_an_adversary_are_refused() -> None:
    aggregation = GradientAggregation(functional.sum_weights, TASKS)
    sharded: Any = SimpleNamespace(trainer=SimpleNamespace(strategy=FSDPStrategy()))
    with pytest.raises(ValueError, match="FSDPStrategy: use one device or DDP"):
        aggregation.attach(sharded)

    class FGM(Callback):
        perturbs_embeddings = True

    with pytest.raises(ValueError, match="FGM makes passes of its own"):
        fit(make(aggregation="sum"), batches(1), FGM())


def own_weights(gramian: Tensor) -> Tensor:
    return torch.arange(1.0, 1.0 + len(gramian)).double()


def test_a_method_is_plain_data() -> None:
    assert aggregation_from(None, TASKS) is None
    made = aggregation_from({"class_path": "cagrad", "init_args": {"c": 0.0}}, TASKS)
    assert made is not None
    assert torch.allclose(made.weights(torch.eye(3)), torch.full((3,), 1 / 3).double())
    own = aggregation_from(f"{__name__}.own_weights", TASKS)
    assert own is not None and own.weights(torch.eye(2)).tolist() == [1.0, 2.0]
    with pytest.raises(
        ValueError, match=r"aggregation must be one of sum, .*did you mean 'pcgrad'"
    ):
        aggregation_from("pc_grad", TASKS)
    with pytest.raises(ValueError, match="must be one of"):
        aggregation_from("nowhere.to_be_found", TASKS)
    with pytest.raises(TypeError, match="aggregation 'mgda' does not take c"):
        aggregation_from({"class_path": "mgda", "init_args": {"c": 1}}, TASKS)
    with pytest.raises(ValueError, match="c must lie in"):
        aggregation_from({"class_path": "cagrad", "init_args": {"c": 2}}, TASKS)


def test_orders_of_pcgrad_are_those_of_the_step() -> None:
    runs = []
    for _ in range(2):
        module = make(aggregation="pcgrad")
        torch.manual_seed(len(runs))  # what else was drawn does not matter
        fit(module, batches(5))
        runs.append(state(module))
        last = module.aggregation and module.aggregation.last
        assert last is not None and last.weights.max() > 1  # there are projections to order
    assert_same(*runs, atol=0.0)
