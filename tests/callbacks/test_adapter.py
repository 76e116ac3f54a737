"""A fit trains the adapters and the head, and its checkpoints stand alone."""

from __future__ import annotations

import csv
import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification, BertModel

import lmkit
from lmkit.callbacks import TrainableOnlyCheckpoint
from lmkit.callbacks.adapter import AdapterCallback
from lmkit.datamodules import SequenceClassificationDataModule
from lmkit.modules import SequenceClassificationModule
from lmkit.surgery.adapter import KINDS, Adapter
from lmkit.surgery.bottleneck import AdaptedLayer
from lmkit.surgery.sites import base_name
from tests import task_files, tiny
from tests.cases import make_trainer


def base(folder: Path) -> Path:
    """Save a tiny encoder and its tokenizer."""
    config = {k: v for k, v in tiny.MASKED["bert"].items() if k != "model_type"}
    torch.manual_seed(0)
    BertModel(BertConfig(**config, vocab_size=len(tiny.tokenizer()))).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def fit(
    folder: Path, *callbacks: Callback, ckpt_path: Path | None = None, **settings: Any
) -> tuple[SequenceClassificationModule, Trainer]:
    if not (folder / "base").exists():
        base(folder / "base")
    seed_everything(7)
    module = SequenceClassificationModule(str(folder / "base"), learning_rate=1e-2, warmup=0)
    data = SequenceClassificationDataModule(
        **task_files.labelled_texts(folder),
        tokenizer=str(folder / "base"),
        batch_size=8,
        max_length=16,
    )
    trainer = make_trainer(*callbacks, **settings)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return module, trainer


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_frozen_stays_to_the_bit_and_every_part_of_an_adapter_moves(
    tmp_path: Path, kind: Any
) -> None:
    started: dict[str, Tensor] = {}

    class Start(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            state = pl_module.network.state_dict()
            started.update({name: tensor.clone() for name, tensor in state.items()})

    adapter = AdapterCallback(kind=kind, size=4, norms=True)
    module, _ = fit(tmp_path, adapter, Start(), max_steps=4)
    plain = BertModel.from_pretrained(tmp_path / "base").state_dict()
    learned = {name for name, p in module.network.named_parameters() if p.requires_grad}
    for name, tensor in module.network.state_dict().items():
        assert torch.equal(tensor, started[name]) != (name in learned or ".adapters." in name), name
        original = base_name(name).removeprefix("bert.")
        if original in plain and not original.startswith("pooler"):
            assert torch.equal(tensor, plain[original])
    assert {n for n in learned if ".adapters." not in n} == {"classifier.weight", "classifier.bias"}


def test_a_checkpoint_of_what_was_trained_is_small_and_loads_alone(tmp_path: Path) -> None:
    sizes = {}
    for name, extra in (("whole", []), ("small", [TrainableOnlyCheckpoint()])):
        module, trainer = fit(tmp_path, AdapterCallback(kind="compacter", size=4), *extra)
        trainer.save_checkpoint(tmp_path / f"{name}.ckpt")
        sizes[name] = sum(
            tensor.nbytes for tensor in torch.load(tmp_path / f"{name}.ckpt")["state_dict"].values()
        )
        loaded = lmkit.load(tmp_path / f"{name}.ckpt")
        ids = torch.randint(5, 99, (2, 9))
        assert torch.equal(
            loaded.network(input_ids=ids).logits, module.eval().network(input_ids=ids).logits
        )
        rules = [
            layer.adapters["default"].rule
            for layer in loaded.network.modules()
            if isinstance(layer, AdaptedLayer)
        ]
        assert len(rules) == 4 and len({id(rule) for rule in rules}) == 1
    assert sizes["small"] < 0.2 * sizes["whole"]


def test_two_adapters_are_trained_one_after_the_other_on_one_base(tmp_path: Path) -> None:
    module, trainer = fit(tmp_path, AdapterCallback("a", size=4))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = lmkit.load(tmp_path / "a.ckpt")
    again.operate(Adapter("b", "pfeiffer", 4))
    ids = torch.randint(5, 99, (2, 9))
    expected = module.eval().network(input_ids=ids).logits
    # The new one adds nothing yet.
    assert torch.equal(again.eval().network(input_ids=ids).logits, expected)
    assert [spec["init_args"]["name"] for spec in again.ledger] == ["a", "b"]


def test_how_much_is_trained_is_logged(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="log")
    module, _ = fit(tmp_path, AdapterCallback("a", "pfeiffer", 4, head=False), logger=logger)
    logger.save()
    rows = list(csv.DictReader((tmp_path / "log" / "metrics.csv").open()))
    logged = next(row for row in rows if row.get("adapter/trainable_parameters"))
    # Two adapters; the head was drawn at random, and learns all the same.
    count = 2 * (2 * 16 * 4 + 4 + 16) + (3 * 16 + 3)
    assert float(logged["adapter/trainable_parameters"]) == count
    assert count == sum(p.numel() for p in module.parameters() if p.requires_grad)


def test_the_arguments_are_those_of_the_surgery() -> None:
    arguments = inspect.signature(AdapterCallback.__init__).parameters
    assert list(arguments)[1:] == [field.name for field in fields(Adapter)]
    assert AdapterCallback().surgery == Adapter()
    settings: dict[str, Any] = {
        "name": "a",
        "kind": "compacter",
        "size": 9,
        "activation": "relu",
        "scale": 2.0,
        "dropout": 0.5,
        "norms": True,
        "divisions": 3,
        "rank": 2,
        "targets": ["fc2"],
        "head": False,
    }
    assert AdapterCallback(**settings).surgery == Adapter(**settings)


def test_a_module_that_is_not_ours_is_adapted_too(tmp_path: Path) -> None:
    class Foreign(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            config = {k: v for k, v in tiny.MASKED["bert"].items() if k != "model_type"}
            self.net = BertForSequenceClassification(BertConfig(**config, vocab_size=99))

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return self.net(input_ids=batch, labels=batch[:, 0] % 2).loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)

    module = Foreign()
    callback = AdapterCallback(size=4)
    for _ in range(2):
        make_trainer(callback, max_steps=2).fit(module, DataLoader(torch.arange(5, 45).view(8, 5)))
    moved = {n for n, p in module.named_parameters() if p.requires_grad}
    assert any(".adapters.default.up" in n for n in moved) and "net.classifier.weight" in moved
    assert not any(".adapters." in name and ".base_layer.base_layer" in name for name in moved)
