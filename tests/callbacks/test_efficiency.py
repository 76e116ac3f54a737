"""Costs are counted in real tokens and read without holding a step up."""

import csv

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from lmkit.callbacks import (
    BitFitCallback,
    CheckpointCallback,
    EfficiencyCallback,
    GradualUnfreezingCallback,
    PruningCallback,
    SelectiveTuningCallback,
    TrainableOnlyCheckpoint,
)
from lmkit.callbacks.adapter import AdapterCallback
from lmkit.callbacks.efficiency import count_parameters, count_tokens, optimizer_bytes
from tests.callbacks.tuned import fit as tune


def test_figures_are_logged_on_the_stride(fit, monkeypatch):
    logged = {}
    monkeypatch.setattr(
        EfficiencyCallback, "_elapsed", lambda self: 0.5 * (self._tokens is not None) + 0.5
    )
    trainer, _ = fit(EfficiencyCallback(), log_every_n_steps=2)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    # Two batches of four rows with four real tokens each, in one second.
    assert logged["efficiency/tokens_per_second"] == 32
    assert logged["efficiency/step_seconds"] == 0.5
    assert logged["efficiency/parameters"] == 4
    assert logged["efficiency/trainable_parameters"] == 2
    assert logged["efficiency/nonzero_parameters"] == 4
    assert logged["efficiency/embedding_parameters"] == 0
    assert logged["efficiency/peak_memory_mib"] > 50


def test_what_is_left_of_the_weights_is_counted_at_the_end_where_it_has_changed(tmp_path):
    # Half of the linear weights are zeros in the end, and no count of tables or of all is new.
    logger = CSVLogger(tmp_path, name="log", flush_logs_every_n_steps=1)
    pruning = PruningCallback(sparsity=0.5, start=0, end=0.5)
    module, _ = tune(
        tmp_path,
        pruning,
        EfficiencyCallback(),
        logger=logger,
        log_every_n_steps=1,
        max_steps=6,
    )
    with (tmp_path / "log" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))

    def values(name):
        return [float(row[name]) for row in rows if row.get(name)]

    total = sum(p.numel() for p in module.parameters())
    nonzero = sum(int(p.count_nonzero()) for p in module.parameters())
    # Lightning repeats what was logged before, until the end of the epoch.
    *before, last = values("efficiency/nonzero_parameters")
    (first,) = set(before)
    assert last == nonzero < first <= total
    assert set(values("efficiency/parameters")) == {total}
    table = module.network.get_input_embeddings().weight.numel()
    assert set(values("efficiency/embedding_parameters")) == {table}
    assert rows[-1]["efficiency/trainable_share"] == "" == rows[-1]["efficiency/parameters"]


def test_a_validation_does_not_count_as_training_time(fit, monkeypatch):
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr("lmkit.callbacks.efficiency.time.perf_counter", lambda: next(clock))
    callback = EfficiencyCallback()
    callback._begin(type("T", (), {"global_step": 0}))
    callback.on_validation_start(None, None)
    callback.on_validation_end(None, None)
    assert callback._elapsed() == 20


def test_an_accumulation_window_is_one_step(fit):
    trainer, _ = fit(EfficiencyCallback(), accumulate_grad_batches=2, log_every_n_steps=1)
    assert trainer.global_step == 3
    assert trainer.callback_metrics["efficiency/step_seconds"] > 0


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ({"attention_mask": torch.tensor([[1, 0], [1, 1]])}, 3),
        ({"attention_mask": torch.ones(2, 2), "index": torch.tensor([0, -1])}, 2),
        ({"input_ids": torch.ones(2, 5)}, 10),
    ],
)
def test_padding_and_filler_rows_are_no_tokens(batch, expected):
    assert count_tokens(batch) == expected


@pytest.mark.parametrize("batch", [{"pixel_values": torch.ones(1)}, [torch.ones(1)]])
def test_a_batch_without_tokens_has_no_count(batch):
    assert count_tokens(batch) is None


def test_shared_parameters_count_once():
    layer = nn.Linear(2, 2, bias=False)
    assert count_parameters(nn.Sequential(layer, layer)) == (4, 4)


def logged(folder, *callbacks, **settings):
    logger = CSVLogger(folder, name="", version="log")
    saver = CheckpointCallback(1, monitor=None, dirpath=str(folder / "kept"))
    module, trainer = tune(
        folder,
        *callbacks,
        EfficiencyCallback(),
        saver,
        logger=logger,
        log_every_n_steps=1,
        max_steps=4,
        **settings,
    )
    logger.save()
    rows = list(csv.DictReader((folder / "log" / "metrics.csv").open()))
    figures = {}
    for row in rows:
        for name, value in row.items():
            if name.startswith("efficiency/") and value:
                figures.setdefault(name.removeprefix("efficiency/"), []).append(float(value))
    return module, trainer, figures


def only(values):
    """What was logged, if it never changed."""
    assert len(set(values)) == 1
    return values[0]


def test_what_tuning_in_part_costs_and_saves_is_logged(tmp_path):
    module, _, figures = logged(tmp_path, BitFitCallback(), TrainableOnlyCheckpoint())
    weights = {n: p.numel() for n, p in module.named_parameters()}
    trained = {n: p.numel() for n, p in module.named_parameters() if p.requires_grad}
    share = sum(trained.values()) / sum(weights.values())
    assert only(figures["trainable_share"]) == pytest.approx(share)
    # Two moments in float32, and a count of steps for each tensor.
    own = 8 * sum(trained.values()) + 4 * len(trained)
    assert only(figures["optimizer_mib"]) == pytest.approx(own / 2**20)
    full = 8 * sum(weights.values())
    assert only(figures["optimizer_share"]) == pytest.approx(own / full)
    size = (tmp_path / "kept" / "last.ckpt").stat().st_size
    assert figures["checkpoint_mib"][-1] == pytest.approx(size / 2**20)
    assert figures["checkpoint_share"][-1] == pytest.approx(size / (12 * sum(weights.values())))
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["last.ckpt"]
    assert all(value > 0 for value in figures["step_seconds"] + figures["peak_memory_mib"])


def test_the_shares_are_what_full_tuning_has_when_it_is_run(tmp_path):
    whole, _, full = logged(tmp_path / "full")
    _, _, figures = logged(tmp_path / "part", SelectiveTuningCallback(layers=1))
    assert "optimizer_share" not in full and "checkpoint_share" not in full
    claimed = figures["optimizer_mib"][-1] / figures["optimizer_share"][-1]
    # But for the counts of steps, of which there is one for each tensor.
    counts = 4 * len(list(whole.parameters())) / 2**20
    assert full["optimizer_mib"][-1] - counts == pytest.approx(claimed)
    claimed = figures["checkpoint_mib"][-1] / figures["checkpoint_share"][-1]
    tensors = sum(12 * p.numel() for p in whole.parameters()) / 2**20
    assert claimed == pytest.approx(tensors)
    assert full["checkpoint_mib"][-1] > tensors


def test_adapters_are_no_part_of_what_full_tuning_would_train(tmp_path):
    module, trainer, figures = logged(tmp_path, AdapterCallback(size=4))
    own, full = optimizer_bytes(module, trainer.optimizers)
    base = sum(p.numel() for n, p in module.named_parameters() if ".adapters." not in n)
    assert full == 8 * base and only(figures["optimizer_share"]) == pytest.approx(own / full)


def test_an_optimizer_without_a_state_has_no_share(tmp_path):
    sgd = {"optimizer": {"class_path": "torch.optim.SGD"}}
    _, _, figures = logged(tmp_path, BitFitCallback(), module=sgd)
    assert not {"optimizer_mib", "optimizer_share", "checkpoint_share"} & set(figures)
    assert figures["checkpoint_mib"][-1] > 0


def test_a_state_that_grows_is_logged_again(tmp_path):
    _, _, figures = logged(tmp_path, BitFitCallback(), GradualUnfreezingCallback(0, 1))
    assert figures["optimizer_mib"] == sorted(figures["optimizer_mib"])
    assert len(set(figures["optimizer_mib"])) == 4


def test_nothing_is_counted_between_two_logs(fit, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "lmkit.callbacks.efficiency.optimizer_bytes",
        lambda module, optimizers: asked.append(1) or (0, 0.0),
    )
    fit(EfficiencyCallback(), log_every_n_steps=4)
    assert len(asked) <= 1
