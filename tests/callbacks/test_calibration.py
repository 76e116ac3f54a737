"""The batches to calibrate on are the fit's own first ones, and looking at them changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch.utils.data import DataLoader

from lmkit.callbacks.calibration import gather, training_batches
from lmkit.datamodules import CausalLMDataModule
from lmkit.modules import CausalLMModule, LMModule, SequenceClassificationModule
from lmkit.surgery.calibration import SecondMoments
from tests import tiny
from tests.callbacks.tuned import fit, make_module
from tests.cases import make_trainer


class Look(Callback):
    """Looks at some batches in the set-up, and notes those of the fit."""

    def __init__(self, count: int = 0) -> None:
        self.count, self.ahead, self.trained = count, [], []  # type: ignore[var-annotated]

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if self.count:
            self.ahead = [batch["input_ids"] for batch in training_batches(trainer, self.count)]

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, i: int) -> None:
        self.trained.append(batch["input_ids"].clone())


def same(first: list[Any], second: list[Any]) -> bool:
    return len(first) == len(second) > 0 and all(map(torch.equal, first, second))


def test_they_are_the_first_of_the_fit_which_has_them_as_ever(tmp_path: Path) -> None:
    looks = [Look(count) for count in (0, 3)]
    modules = [fit(tmp_path, look, max_steps=3)[0] for look in looks]
    assert same(looks[1].ahead, looks[1].trained) and same(looks[0].trained, looks[1].trained)
    states = [module.state_dict() for module in modules]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_there_are_no_more_than_the_epoch_has(tmp_path: Path) -> None:
    look = Look(100)
    fit(tmp_path, look, max_steps=1, limit_train_batches=2)
    assert len(look.ahead) == 2


def test_a_loader_of_torch_draws_the_same_order_afterwards() -> None:
    looks = [Look(count) for count in (0, 2)]
    for look in looks:
        seed_everything(3)
        rows: Any = [
            {
                "input_ids": torch.arange(5, 14) + n,
                "attention_mask": torch.ones(9, dtype=torch.int64),
                "labels": torch.tensor(n % 2),
            }
            for n in range(8)
        ]
        module = make_classifier()
        loader = DataLoader(rows, batch_size=2, shuffle=True)
        make_trainer(look, max_steps=2).fit(module, loader)
    assert len(looks[1].ahead) == 2 and same(looks[0].trained, looks[1].trained)


def test_a_stream_begins_at_its_beginning_afterwards(tmp_path: Path) -> None:
    tiny.write_text(tmp_path / "train.txt", 60)
    looks = [Look(count) for count in (0, 2)]
    for look in looks:
        data = CausalLMDataModule(
            train_file=str(tmp_path / "train.txt"),
            tokenizer=tiny.tokenizer_folder(tmp_path / "tokenizer", "bpe"),
            max_length=16,
            batch_size=4,
            batching="chunk",
            streaming=True,
            seed=3,
        )
        module = CausalLMModule(tiny.CAUSAL["gpt2"], learning_rate=1e-3)
        make_trainer(look, max_steps=2).fit(module, data)
    assert same(looks[1].ahead, looks[1].trained) and same(looks[0].trained, looks[1].trained)


def test_gathering_leaves_module_and_modes_as_they_were(tmp_path: Path) -> None:
    module = make_module(tmp_path)
    place = "bert.encoder.layer.0.intermediate.dense"
    found = {}

    class Gather(Callback):
        def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
            pl_module.configure_model()
            network = pl_module.network
            network.bert.pooler.eval()
            modes = [part.training for part in pl_module.modules()]
            state = {name: t.clone() for name, t in pl_module.state_dict().items()}
            drawn = torch.get_rng_state()
            for turn in range(2):
                moments = SecondMoments(network, [place])
                found[turn] = gather(moments, trainer, pl_module, 3)[place]
            assert torch.equal(drawn, torch.get_rng_state())
            assert modes == [part.training for part in pl_module.modules()]
            assert all(torch.equal(t, state[n]) for n, t in pl_module.state_dict().items())
            assert all(p.grad is None for p in network.parameters())
            network.train()

    fit(tmp_path, Gather(), module=module, max_steps=1)
    assert torch.equal(found[0], found[1]) and found[0].diagonal().mean() > 0


def test_batches_of_padding_alone_are_told() -> None:
    module = make_classifier()
    ids = torch.zeros(2, 4, dtype=torch.int64)
    batch = {"input_ids": ids, "attention_mask": ids, "labels": torch.tensor([0, 1])}

    class Gather(Callback):
        def setup(self, trainer: Trainer, pl_module: LMModule, stage: str) -> None:  # type: ignore[override]
            pl_module.configure_model()
            layer = "bert.encoder.layer.0.intermediate.dense"
            gather(SecondMoments(pl_module.network, [layer]), trainer, pl_module, 3)

    with pytest.raises(ValueError, match=r"the 1 training batches .* have no real token"):
        make_trainer(Gather()).fit(module, [batch])


def make_classifier() -> LMModule:
    config = {**tiny.MASKED["bert"], "vocab_size": 99}
    return SequenceClassificationModule(config, learning_rate=1e-3, warmup=0)
