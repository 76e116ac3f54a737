"""Faster, and the same: dropout off, layers compiled where it pays, and all undone afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from lmkit.modules import CausalLMModule, MaskedLMModule
from lmkit.modules.speed import set_dropout, should_compile
from lmkit.surgery.depth import layer_stacks
from tests import tiny
from tests.cases import CASES, make_trainer, weights
from tests.modules.language_model import make


def layers_of(network: nn.Module) -> list[nn.Module]:
    return [layer for stack in layer_stacks(network).values() for layer in stack]


@pytest.mark.parametrize("name", [*tiny.MASKED, *tiny.CAUSAL])
def test_without_dropout_two_passes_agree_and_the_config_stays(name: str) -> None:
    cls = MaskedLMModule if name in tiny.MASKED else CausalLMModule
    config = (tiny.MASKED | tiny.CAUSAL)[name]
    batch = tiny.causal_batch()
    module = make(cls, config)
    module.train()
    assert torch.equal(module.step(batch).loss, module.step(batch).loss)
    untouched = make(cls, config, dropout=None)
    assert module.network.config.to_dict() == untouched.network.config.to_dict()


def test_dropout_of_the_config_or_of_the_argument() -> None:
    own = make(MaskedLMModule, tiny.MASKED["bert"], dropout=None)
    rates = {m.p for m in own.network.modules() if isinstance(m, nn.Dropout)}
    assert rates == {0.1}
    given = make(MaskedLMModule, tiny.MASKED["bert"], dropout=0.3)
    assert {m.p for m in given.network.modules() if isinstance(m, nn.Dropout)} == {0.3}
    with pytest.raises(ValueError, match=r"dropout must lie in \[0, 1\), got 1.0"):
        set_dropout(own.network, 1.0)


@pytest.mark.parametrize("name", [*tiny.MASKED, *tiny.CAUSAL])
def test_the_layers_are_found(name: str) -> None:
    cls = MaskedLMModule if name in tiny.MASKED else CausalLMModule
    layers = layers_of(make(cls, (tiny.MASKED | tiny.CAUSAL)[name]).network)
    assert len(layers) == 2 and type(layers[0]) is type(layers[1])


@pytest.mark.parametrize(
    ("steps", "dropout", "expected"),
    [(100, 0.0, False), (2000, 0.0, True), (2000, 0.1, False), (-1, 0.0, True)],
)
@pytest.mark.parametrize("amx", [True, False])
def test_a_cpu_with_amx_compiles_in_long_runs_without_dropout(
    steps: int, dropout: float, expected: bool, amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr("lmkit.modules.speed.shutil.which", lambda name: "/usr/bin/g++")
    network = make(MaskedLMModule, tiny.MASKED["bert"], dropout=dropout).network
    trainer = make_trainer(max_steps=steps, max_epochs=-1)
    assert should_compile(network, trainer) is (expected and amx)


def test_compiled_layers_run_in_training_alone_and_are_gone_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = {True: 0, False: 0}

    def compiled(self: nn.Module) -> None:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[self.training] += 1
            return self._call_impl(*args, **kwargs)

        self._compiled_call_impl = call

    monkeypatch.setattr(nn.Module, "compile", compiled)
    case = CASES[0]
    module = case.make_module(compile=True)
    make_trainer(max_steps=2, val_check_interval=1).fit(module, case.make_data(tmp_path))
    assert calls == {True: 4, False: 0}
    assert all(layer._compiled_call_impl is None for layer in layers_of(module.network))
    plain = case.make_module(compile=False)
    make_trainer(max_steps=1).fit(plain, case.make_data(tmp_path))
    assert calls[True] == 4


@pytest.mark.slow
def test_a_compiled_fit_ends_where_the_plain_one_does(tmp_path: Path) -> None:
    case = CASES[0]

    def fit(compile: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        module = case.make_module(compile=compile, optimizer={"class_path": "torch.optim.SGD"})
        seen: list[Any] = []

        class Note(Callback):
            def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
                seen.extend(layer._compiled_call_impl for layer in layers_of(pl_module))

        make_trainer(Note(), max_steps=4).fit(module, case.make_data(tmp_path))
        assert all((call is not None) == compile for call in seen)
        return weights(module)

    plain, compiled = fit(False), fit(True)
    assert all(torch.allclose(plain[k], compiled[k], atol=1e-5) for k in plain)
