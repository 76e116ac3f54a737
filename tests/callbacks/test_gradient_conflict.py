"""What is logged of conflicts is what the gradients say, with and without an aggregation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import Logger
from torch import Tensor

from lmkit.callbacks import GradientConflictCallback, StructuredPruningCallback
from tests import tiny
from tests.cases import make_trainer
from tests.several_tasks import make_data, make_module
from tests.weighed_tasks import TASKS, batches, fit, halves, make, state


class Kept(Logger):
    """Keeps figures by step."""

    name, version = "kept", "0"

    def __init__(self) -> None:
        super().__init__()
        self.figures: dict[int, dict[str, float]] = {}

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if any(name.startswith("gradients/") for name in metrics):
            self.figures[step or 0] = dict(metrics)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass


def rows_of(module: Any, batch: Any, weights: Tensor) -> Tensor:
    rows = []
    for task, weight in zip(TASKS, weights.tolist(), strict=True):
        x, y = batch[task]
        loss = weight * (module.heads[task](module.encoder(x)) - y).square().mean()
        found = torch.autograd.grad(loss, list(module.encoder.parameters()))
        rows.append(torch.cat([g.flatten() for g in found]))
    return torch.stack(rows).double()


def check(figures: dict[str, float], rows: Tensor, weights: Tensor) -> None:
    update = weights @ rows
    for i, one in enumerate(TASKS):
        for j in range(i + 1, 3):
            known = torch.cosine_similarity(rows[i], rows[j], dim=0).item()
            assert figures[f"gradients/cosine/{one}/{TASKS[j]}"] == pytest.approx(known, abs=1e-5)
        share = weights[i] * (rows[i] @ update) / (update @ update)
        assert figures[f"gradients/share/{one}"] == pytest.approx(share.item(), abs=1e-5)
        assert figures[f"gradients/weight/{one}"] == pytest.approx(weights[i].item(), abs=1e-5)
    angles = [value for name, value in figures.items() if "cosine" in name]
    assert figures["gradients/conflicts"] == pytest.approx(sum(a < 0 for a in angles) / 3)


@pytest.mark.parametrize("aggregation", [None, "pcgrad", "mgda"])
def test_figures_are_those_of_the_gradients(aggregation: str | None) -> None:
    weighting = {"class_path": "uncertainty", "init_args": {"regression": ["ner"]}}
    joined, module = batches(1), make(aggregation=aggregation, weighting=weighting)
    rows = rows_of(module, joined[0], torch.tensor([1.0, 0.5, 1.0]))
    callback = GradientConflictCallback(every_n_steps=1)
    fit(module, joined, callback)
    weights = torch.ones(3).double()
    if aggregation == "mgda":
        weights = module.aggregation.weights(rows @ rows.T)
    elif aggregation == "pcgrad":  # its orders are drawn
        weights = module.aggregation.last.weights
        assert weights.max() > 1.0
    check(callback.figures, rows, weights)
    assert sum(callback.figures[f"gradients/share/{task}"] for task in TASKS) == pytest.approx(1.0)


@pytest.mark.parametrize("aggregation", [None, "sum"])
def test_it_changes_nothing_and_looks_at_every_nth_step(aggregation: str | None) -> None:
    kept, ended = Kept(), []
    for callbacks in ([], [GradientConflictCallback(every_n_steps=3)]):
        module = make(aggregation=aggregation)
        fit(module, halves(batches(7)), *callbacks, logger=kept, accumulate_grad_batches=2)
        ended.append(state(module))
    assert sorted(kept.figures) == [0, 3, 6]
    assert all(torch.equal(value, ended[1][name]) for name, value in ended[0].items())


def test_figures_are_those_of_all_ranks() -> None:
    one = GradientConflictCallback(every_n_steps=1)
    fit(make(), batches(1), one)

    class Equal(GradientConflictCallback):
        """Compares in the processes, whose callbacks do not come back."""

        def on_train_end(self, trainer: Any, pl_module: LightningModule) -> None:
            assert self.figures == pytest.approx(one.figures, abs=1e-5)

    strategy = "ddp_fork_find_unused_parameters_true"
    fit(make(), batches(1), Equal(every_n_steps=1), devices=2, strategy=strategy)
    assert one.figures


def test_a_step_of_one_task_has_no_angles() -> None:
    callback = GradientConflictCallback(every_n_steps=1)
    fit(make(), batches(1, tasks=["ner"]), callback)
    assert callback.figures == {"gradients/weight/ner": 1.0, "gradients/share/ner": 1.0}


def test_what_is_no_number_is_not_logged() -> None:
    joined = batches(1)
    joined[0]["ner"][0][0] = float("nan")
    callback = GradientConflictCallback(every_n_steps=1)
    fit(make(), joined, callback)
    assert callback.figures == {}


def test_a_module_without_tasks_and_a_stride_of_nothing_are_refused() -> None:
    callback = GradientConflictCallback()
    with pytest.raises(TypeError, match="LightningModule has one loss: use it with a MultiTask"):
        callback.setup(None, LightningModule(), "fit")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="every_n_steps must be at least 1, got 0"):
        GradientConflictCallback(every_n_steps=0)


def test_steps_of_one_task_have_nothing_to_compare_and_say_so(tmp_path: Path) -> None:
    data = make_data(tmp_path, "ner", "topic", batches="one")
    trainer = make_trainer(GradientConflictCallback(1), max_steps=1)
    with pytest.warns(UserWarning, match="give the MultiTaskDataModule batches='all'"):
        trainer.fit(make_module("ner", "topic"), data)


def test_parameters_are_cut_between_the_steps_of_several_tasks(tmp_path: Path) -> None:
    data = make_data(tmp_path, "ner", "topic", batches="all")
    module = make_module("ner", "topic", aggregation="pcgrad")
    pruning = StructuredPruningCallback(ffn=0.5, importance="activation", start=0.0, end=0.5)
    trainer = make_trainer(pruning, GradientConflictCallback(1), max_steps=4, limit_val_batches=0)
    trainer.fit(module, data)
    assert module.network.config.intermediate_size < tiny.MASKED["bert"]["intermediate_size"]
    assert module.task_losses and not any(x.requires_grad for x in module.task_losses.values())
