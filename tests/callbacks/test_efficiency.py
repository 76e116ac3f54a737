"""Costs are counted in real tokens and read without holding a step up."""

import pytest
import torch
from torch import nn

from lmkit.callbacks import EfficiencyCallback
from lmkit.callbacks.efficiency import count_parameters, count_tokens


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
    assert logged["efficiency/peak_memory_mib"] > 50


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
