"""What Lightning averages weights in is found, and only that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging

from lmkit.callbacks.weight_averages import averages
from tests.cases import CASES, make_trainer


def test_averages_of_both_kinds_are_copies_of_the_weights(tmp_path: Path) -> None:
    found: list[dict[int, torch.Tensor]] = []

    class Look(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            found[:] = averages(trainer.callbacks, pl_module)  # type: ignore[attr-defined]
            for copies in found:
                for parameter in pl_module.parameters():
                    copy = copies[id(parameter)]
                    assert copy.shape == parameter.shape and copy is not parameter

    for averaging in (EMAWeightAveraging(), StochasticWeightAveraging(1e-3, swa_epoch_start=1)):
        module = CASES[0].make_module()
        module.configure_model()
        trainer = make_trainer(averaging, Look(), max_epochs=2, max_steps=-1)
        trainer.fit(module, CASES[0].make_data(tmp_path))
        assert len(found) == 1


def test_before_anything_is_averaged_there_is_nothing() -> None:
    assert list(averages([EMAWeightAveraging(), Callback()], torch.nn.Linear(1, 1))) == []


def test_a_copy_without_weights_averages_none() -> None:
    class Early(Callback):
        _average_model = torch.nn.Sequential()

    assert list(averages([Early()], torch.nn.Linear(1, 1))) == []
