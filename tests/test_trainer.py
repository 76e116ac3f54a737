"""The Trainer takes the processor's precision, and nobody's choice away."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import SingleDeviceStrategy

import lmkit
from lmkit.trainer import best_precision

QUIET: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}


@pytest.fixture(params=[True, False], ids=["bfloat16", "none"])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    for probe in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, probe, lambda: request.param, raising=False)
    return "bf16-mixed" if request.param else "32-true"


def test_the_processor_chooses_where_the_user_does_not(processor: str) -> None:
    assert best_precision("cpu") == processor
    assert lmkit.Trainer(**QUIET).precision == processor


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
def test_the_user_chooses(precision: Any, processor: str) -> None:
    assert lmkit.Trainer(**QUIET, precision=precision).precision == precision


def test_a_precision_plugin_is_a_choice(processor: str) -> None:
    plugin = MixedPrecision("bf16-mixed", "cpu")
    assert lmkit.Trainer(**QUIET, plugins=[plugin]).precision_plugin is plugin
    strategy = SingleDeviceStrategy(device="cpu", precision_plugin=plugin)
    assert lmkit.Trainer(**QUIET, strategy=strategy).precision_plugin is plugin


def test_a_gpu_needs_compute_capability_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, expected in (((9, 0), "bf16-mixed"), ((7, 5), "32-true")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda c=capability: c)
        assert best_precision() == best_precision("gpu") == expected
