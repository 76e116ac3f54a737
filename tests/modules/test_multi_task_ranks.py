"""Two gloo processes that train several tasks: identical, and one process on the joined batch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.strategies import DDPStrategy

from lmkit.modules.multi_task import MultiTaskModule
from tests import tiny
from tests.cases import make_trainer, named, weights
from tests.several_tasks import FAST, make_data, specs
from tests.test_ddp import RanksAgree

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks with gloo")

NAMES = ("ner", "topic", "mlm")
AGGREGATED: dict[str, Any] = {"task_adapters": {"size": 3, "kind": "houlsby", "aggregate": True}}


class HeadsWait(RanksAgree):
    """Fails the fit, too, when a head moves whose task has no turn."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.before = {n: [*map(torch.clone, pl_module.task_parameters(n))] for n in NAMES}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, out: Any, batch: Any, *_: Any):
        super().on_train_batch_end(trainer, pl_module)
        turns = {NAMES[int(batch["task"][0])]} if "task" in batch else set(NAMES)
        for name in NAMES:
            pairs = zip(self.before[name], pl_module.task_parameters(name), strict=True)
            moved = [not torch.equal(old, new) for old, new in pairs]
            assert any(moved) if name in turns else not any(moved), name


def run(
    folder: Path,
    devices: int,
    batches: str,
    accumulate: int = 1,
    strategy: str = "ddp_fork",
    **settings: Any,
):
    seed_everything(5)
    # The fork hands weights back to the network that the parent has, so it is built before.
    tasks, model = specs(*NAMES), dict(tiny.MASKED["bert"])
    for name, labels in (("ner", ("O", "B-X", "I-X")), ("topic", ("fox", "moons", "trees"))):
        tasks[name]["init_args"] = {"model": {**model, **named(*labels)}}
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9}}
    module = MultiTaskModule(model, tasks, optimizer=sgd, dropout=0.0, **FAST, **settings)
    module.tokenizer = tiny.tokenizer()
    module.configure_model()
    sampling = {"sampling": "round_robin"} if batches == "one" else {}
    how = {"batches": batches, "batch_size": 8 // devices // accumulate, "eval_batch_size": 4}
    data = make_data(folder, *NAMES, **how, **sampling)
    trainer = make_trainer(
        *([HeadsWait()] if accumulate == 1 else [RanksAgree()]),
        devices=devices,
        strategy=strategy if devices > 1 else "auto",
        max_steps=6,
        accumulate_grad_batches=accumulate,
        val_check_interval=3,
    )
    trainer.fit(module, data)
    return module, {name: float(value) for name, value in trainer.callback_metrics.items()}


# Under accumulation a window of batches of all tasks is the mean of its batches.
@pytest.mark.parametrize(
    ("batches", "accumulate", "settings"),
    [
        ("one", 1, {}),
        ("one", 2, {}),
        ("all", 1, {}),
        ("one", 1, AGGREGATED),
        ("all", 1, {**AGGREGATED, "aggregation": "pcgrad"}),
    ],
)
def test_two_ranks_are_one_process_on_the_joined_batch(batches, accumulate, settings, tmp_path):
    one, expected = run(tmp_path, 1, batches, **settings)
    two, metrics = run(tmp_path, 2, batches, accumulate, **settings)
    first, second = weights(one), weights(two)
    for name in first:
        assert torch.allclose(first[name], second[name], atol=1e-5), name
    for name in ("val/ner/loss", "val/ner/f1", "val/topic/accuracy", "val/mlm/loss", "val/mean"):
        assert metrics[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-7)


def test_a_strategy_that_expects_all_gradients_is_refused(tmp_path):
    for strategy in (
        "ddp_fork_find_unused_parameters_false",
        DDPStrategy(start_method="fork", static_graph=True),
    ):
        with pytest.raises(Exception, match="ddp_find_unused_parameters_true"):
            run(tmp_path, 2, "one", strategy=strategy)
