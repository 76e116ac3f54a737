"""Weighting and aggregation of tasks on one encoder, through the module of several tasks."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger

from lmkit.callbacks import FGMCallback, RDropCallback
from lmkit.callbacks.gradient_conflict import GradientConflictCallback
from lmkit.modules.loss_weighting import Uncertainty
from lmkit.modules.multi_task import MultiTaskModule
from lmkit.modules.task_balance import TaskBalance
from lmkit.surgery.depth import parameter_depths
from tests.cases import make_trainer, weights
from tests.several_tasks import make_data, make_module
from tests.test_ddp import RanksAgree

NAMES = ("ner", "topic", "score")
SGD = {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9}}


class Seed(Callback):
    """Makes the network of each fit the same, whatever was drawn for its data."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        torch.manual_seed(5)


class Keep(Callback):
    """Writes the weights at the end, which come back from no other process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero:
            torch.save(weights(pl_module), self.path)


def fit(
    folder: Path,
    *callbacks: Callback,
    rows: int = 4,
    module: Any = None,
    batches: str = "all",
    **settings: Any,
) -> MultiTaskModule:
    seed_everything(5, verbose=False)
    resumed = settings.pop("ckpt_path", None)
    made = make_module(*NAMES, **(module or {}))
    data = make_data(folder, *NAMES, batches=batches, batch_size=rows, epoch_batches=8)
    trainer = make_trainer(
        Seed(), *callbacks, **{"max_steps": 6, "limit_val_batches": 0, **settings}
    )
    trainer.fit(made, data, ckpt_path=resumed)
    return made


def assert_same(one: MultiTaskModule, two: MultiTaskModule, atol: float = 0.0) -> None:
    first, second = weights(one), weights(two)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.allclose(value, second[name], atol=atol, rtol=0.0), name


def test_a_trainer_is_left_without_its_callback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module, data = make_module(*NAMES), make_data(tmp_path, *NAMES)
    trainer = make_trainer(max_steps=1, limit_val_batches=0)
    trainer.fit(module, data)
    with caplog.at_level("INFO"):
        trainer.validate(module, data, verbose=False)
    assert not any(isinstance(each, TaskBalance) for each in trainer.callbacks)
    assert "will override existing callbacks" not in caplog.text


def test_after_an_exception_a_trainer_has_its_callback_once(tmp_path: Path) -> None:
    module, data = make_module(*NAMES), make_data(tmp_path, *NAMES)

    class Stops(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            found.append(sum(isinstance(each, TaskBalance) for each in trainer.callbacks))
            if len(found) == 1:
                raise RuntimeError("stopped")

    found: list[int] = []
    trainer = make_trainer(Stops(), max_steps=1, limit_val_batches=0)
    with pytest.raises(RuntimeError, match="stopped"):
        trainer.fit(module, data)
    trainer.fit(module, data)
    assert found == [1, 1]


def test_a_trainer_fits_a_module_of_one_task_next(tmp_path: Path) -> None:
    module, data = make_module(*NAMES), make_data(tmp_path, *NAMES)
    trainer = make_trainer(max_steps=1, limit_val_batches=0)
    trainer.fit(module, data)
    trainer.fit_loop.epoch_loop.max_steps = 2
    trainer.fit(module.task_module_of("topic"), data.tasks["topic"])
    assert trainer.global_step == 2


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"aggregation": "pcgrad"}, "aggregation='pcgrad' does nothing to batches of one task"),
        ({"weighting": "geometric"}, "weighting='geometric' does nothing"),
        ({"weighting": "uncertainty"}, ""),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value.values())),
)
def test_what_needs_all_tasks_says_so_of_batches_of_one(
    how: dict[str, Any], said: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    for batches in ("one", "all"):
        recwarn.clear()
        fit(tmp_path, module=how, batches=batches, max_steps=1)
        found = [
            str(each.message) for each in recwarn if "batches of one task" in str(each.message)
        ]
        assert bool(found) == (bool(said) and batches == "one")
        assert all(said in each for each in found)


@pytest.mark.parametrize(
    ("how", "warned"),
    [({}, True), ({"weights": {"score": 1e-4}}, False), ({"weighting": "uncertainty"}, False)],
    ids=["sum", "weights", "weighting"],
)
@pytest.mark.parametrize("batches", ["one", "all"])
def test_values_that_drown_the_other_tasks_are_warned_of(
    batches: str,
    how: dict[str, Any],
    warned: bool,
    tmp_path: Path,
    recwarn: pytest.WarningsRecorder,
) -> None:
    for scale, said in ((1.0, False), (100.0, warned)):
        recwarn.clear()
        module, data = make_module(*NAMES, **how), make_data(tmp_path, *NAMES, batches=batches)
        (path,) = (tmp_path / "score").glob("*train*.jsonl")
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        scaled = [{**row, "score": row["score"] * scale} for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in scaled))
        make_trainer(max_steps=12, limit_val_batches=0).fit(module, data)
        found = [str(each.message) for each in recwarn if "little else" in str(each.message)]
        assert len(found) == int(said)
        assert all("the first loss of 'score' is" in each for each in found)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_sum_is_the_module_without_aggregation(accumulate: int, tmp_path: Path) -> None:
    how = {"accumulate_grad_batches": accumulate, "gradient_clip_val": 1.0}
    plain = fit(tmp_path, module={"optimizer": SGD}, **how)
    summed = fit(tmp_path, module={"optimizer": SGD, "aggregation": "sum"}, **how)
    assert_same(plain, summed, 1e-5)
    other = fit(tmp_path, module={"optimizer": SGD, "aggregation": "mgda"}, **how)
    moved = weights(other)["network.bert.embeddings.word_embeddings.weight"]
    same = weights(plain)["network.bert.embeddings.word_embeddings.weight"]
    assert not torch.allclose(moved, same, atol=1e-5)


@pytest.mark.filterwarnings("ignore:aggregation='sum' does nothing")
def test_a_second_pass_of_another_technique_counts(tmp_path: Path) -> None:
    settings, how = {"optimizer": SGD, "dropout": 0.1}, {"batches": "one", "max_steps": 3}
    plain = fit(tmp_path, module=settings, **how)
    twice = fit(tmp_path, RDropCallback(), module=settings, **how)
    summed = fit(tmp_path, RDropCallback(), module={**settings, "aggregation": "sum"}, **how)
    assert_same(twice, summed, 1e-5)
    with pytest.raises(AssertionError):
        assert_same(plain, summed, 1e-5)


@pytest.mark.parametrize(
    "balance",
    [{"aggregation": "pcgrad"}, {"aggregation": "cagrad", "weighting": "famo"}, {}],
    ids=["pcgrad", "cagrad-famo", "plain"],
)
def test_two_ranks_are_one_process_on_the_joined_batch(balance: Any, tmp_path: Path) -> None:
    settings = {"optimizer": SGD, "dropout": 0.0, **balance}
    first = weights(fit(tmp_path, module=settings, rows=8))
    how = {"devices": 2, "strategy": "ddp_fork"}
    with pytest.warns(UserWarning, match="the fit ran in processes of its own"):
        fit(tmp_path, RanksAgree(), Keep(tmp_path / "two.pt"), module=settings, rows=4, **how)
    second = torch.load(tmp_path / "two.pt", weights_only=True)
    for name, value in first.items():
        if name != "weighting.window":  # sums, and how many they are of
            assert torch.allclose(value, second[name], atol=2e-5), name


@pytest.mark.parametrize(
    "balance",
    [
        {"aggregation": "pcgrad", "weighting": "uncertainty"},
        {"aggregation": "nash_mtl"},
        {"weighting": "gradnorm"},
        {"weighting": "dwa"},
    ],
    ids=["pcgrad-uncertainty", "nash", "gradnorm", "dwa"],
)
def test_interrupted_and_resumed_is_uninterrupted(balance: Any, tmp_path: Path) -> None:
    class Save(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if (place := trainer.fit_loop.epoch_loop.total_batch_idx + 1) in (3, 4, 13):
                trainer.save_checkpoint(tmp_path / f"{place}.ckpt")

    how = {"accumulate_grad_batches": 2, "max_steps": 8}
    whole = fit(tmp_path, Save(), module=balance, **how)
    for place in (3, 4, 13):
        path = tmp_path / f"{place}.ckpt"
        saved = torch.load(path, weights_only=True)["lmkit"].get("task_gradients", {})
        expected = {*NAMES} if place % 2 and "aggregation" in balance else set()
        assert set(saved.get("rows", {})) - {""} == expected
        assert_same(whole, fit(tmp_path, module=balance, ckpt_path=path, **how))
    loaded = MultiTaskModule.load_from_checkpoint(tmp_path / "4.ckpt")
    assert (loaded.aggregation is None) == ("aggregation" not in balance)
    assert (loaded.weighting is None) == ("weighting" not in balance)


@pytest.mark.parametrize(
    ("weighting", "batches"),
    [(name, "all") for name in ("random", "dwa", "famo", "gradnorm")]
    + [(name, "one") for name in ("random", "dwa")],
)
def test_the_logged_weights_are_those_of_the_loss(
    weighting: str, batches: str, tmp_path: Path
) -> None:
    logger = CSVLogger(tmp_path, name="", version="log")
    how = {"logger": logger, "log_every_n_steps": 1}
    fit(tmp_path, module={"weighting": weighting}, batches=batches, **how)
    logger.save()
    text = (tmp_path / "log" / "metrics.csv").read_text()
    rows = [row for row in csv.DictReader(text.splitlines()) if row["train/loss"]]
    assert len(rows) == 6
    for row in rows if batches == "all" else ():
        parts = [float(row[f"train/{n}/weight"]) * float(row[f"train/{n}/loss"]) for n in NAMES]
        assert sum(parts) == pytest.approx(float(row["train/loss"]), rel=1e-4)
    assert all(rows[-1][f"train/{name}/weight"] for name in NAMES)


def test_uncertainty_is_told_of_regressions_and_learns(tmp_path: Path) -> None:
    module = fit(tmp_path, module={"weighting": "uncertainty", "weight_decay": 0.5})
    assert isinstance(module.weighting, Uncertainty)
    assert module.weighting.factors == [1.0, 1.0, 0.5]
    assert (module.weighting.theta.abs() > 1e-4).all()


def test_the_noise_learns_at_the_rate_of_a_head() -> None:
    module = make_module(*NAMES, weighting="uncertainty")
    module.configure_model()
    depths = parameter_depths(module)
    assert depths["weighting.theta"] == max(depths.values())


@pytest.mark.parametrize("precision", ["bf16-mixed"])
def test_it_trains_in_mixed_precision_and_logs_conflicts(precision: Any, tmp_path: Path) -> None:
    looks = []
    for balance in ({}, {"aggregation": "aligned_mtl"}):
        callback = GradientConflictCallback(every_n_steps=1)
        module = fit(tmp_path, callback, module=balance, precision=precision, max_steps=2)
        assert all(value.isfinite().all() for value in weights(module).values())
        looks.append(callback.figures)
    for figures in looks:
        assert {"gradients/cosine/ner/topic", "gradients/share/score"} <= set(figures)
    assert looks[0]["gradients/weight/ner"] == 1.0 != looks[1]["gradients/weight/ner"]


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="weighting finds weights of its own"):
        make_module(*NAMES, weights={"ner": 2.0}, weighting="famo")
    with pytest.raises(ValueError, match="aggregation must be one of"):
        make_module(*NAMES, aggregation="pc_grad")
    with pytest.raises(ValueError, match="FGMCallback makes passes of its own"):
        fit(tmp_path, FGMCallback(), module={"aggregation": "sum"})
