"""A checkpoint holds the config that its ledger starts from: replaying gives the network."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor

import lmkit
from lmkit.callbacks import TrainableOnlyCheckpoint
from lmkit.modules import DistillationModule, LMModule, SequenceClassificationModule
from lmkit.modules.teacher import teacher_shape
from lmkit.surgery.layers import keep_layers
from lmkit.surgery.lora import LoRA
from lmkit.surgery.low_rank import LowRank, low_rank_layers
from lmkit.surgery.selection import Selection
from lmkit.surgery.structure_folder import STRUCTURE
from lmkit.surgery.structured_pruning import RemoveUnits, removal
from lmkit.surgery.units import find_units
from lmkit.types import Surgery
from tests import lessons
from tests.callbacks.tuned import make_data, make_module, save_encoder
from tests.cases import make_trainer
from tests.surgery.pruned import same, some
from tests.tiny import MASKED

E = "bert.encoder.layer."
FFN, HEADS = "output.dense", "attention.output.dense"
UNEVEN = {f"{E}0.{FFN}": [0, 3, 5, 7], f"{E}1.{FFN}": [1, 2], f"{E}3.{HEADS}": [1]}
EVEN = {f"{E}{layer}.{FFN}": [0, 3, 5, 7, 8, 9, 20, 30] for layer in range(4)}
HIDDEN = [0, 1, 2, 4, 7, 8, 11, 15]

#: What is done to a network of four layers, in this order.
LEDGERS: dict[str, list[Any]] = {
    "uneven, fewer layers": [RemoveUnits(UNEVEN, layers=[0, 3])],
    "even, then low rank": [RemoveUnits(EVEN, layers=[1, 3]), LowRank({"ffn_input": 2})],
    "uneven, then low rank": [RemoveUnits(UNEVEN), LowRank({"attention_output": 2})],
    "uneven, then LoRA": [RemoveUnits(UNEVEN, layers=[0, 1, 3]), LoRA(targets=["query"], rank=2)],
    "twice": [
        RemoveUnits(EVEN, layers=[0, 2, 3], counts=dict.fromkeys(EVEN, 32)),
        RemoveUnits({f"{E}2.{FFN}": [0, 5], f"{E}1.{HEADS}": [0]}, layers=[1, 2]),
    ],
    "low rank, then other units": [LowRank({"ffn_input": 2}), RemoveUnits({f"{E}1.{HEADS}": [1]})],
    "hidden": [
        RemoveUnits({f"{E}{n}.{HEADS}": [0] for n in range(4)}, layers=[0, 1], hidden=HIDDEN),
        Selection(norms=True),
    ],
}


class Operate(Callback):
    """Asks a module for surgeries; saves it after two steps, and remembers its weights."""

    def __init__(self, surgeries: list[Surgery], path: Path | None = None) -> None:
        self.surgeries, self.path = surgeries, path
        self.saved: dict[str, Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for surgery in self.surgeries:
            pl_module.operate(surgery)  # type: ignore[operator]

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if self.path is not None and trainer.global_step == 2:
            trainer.save_checkpoint(self.path)
            self.saved = {n: t.clone() for n, t in pl_module.network.state_dict().items()}


def deep(folder: Path, **settings: Any) -> SequenceClassificationModule:
    """Make a classifier on an encoder of four layers."""
    base = folder / "base"
    if not base.exists():
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(MASKED["bert"], "num_hidden_layers", 4)
            save_encoder(base)
    return make_module(folder, **settings)


def fit(
    folder: Path, module: LMModule, *callbacks: Callback, ckpt_path: Path | None = None, **how: Any
) -> Trainer:
    seed_everything(7)
    trainer = make_trainer(*callbacks, **{"max_steps": 4, **how})
    trainer.fit(module, make_data(folder), ckpt_path=ckpt_path, weights_only=True)
    return trainer


def equal(one: LMModule, other: LMModule | dict[str, Tensor]) -> bool:
    ours = one.network.state_dict()
    theirs = other if isinstance(other, dict) else other.network.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.mark.parametrize("name", LEDGERS)
def test_a_ledger_that_changes_the_config_replays(name: str, tmp_path: Path) -> None:
    """Saved, loaded alone, resumed; exported, fit again from the folder, saved and loaded."""
    pytest.importorskip("peft")
    surgeries, first = LEDGERS[name], tmp_path / "first.ckpt"
    whole, watch = deep(tmp_path), Operate(surgeries, first)
    fit(tmp_path, whole, watch)
    entry = torch.load(first, weights_only=True)["lmkit"]
    assert entry["config"]["num_hidden_layers"] == 4 and len(entry["ledger"]) == len(surgeries)
    assert entry["config"]["intermediate_size"] == 32 and entry["config"]["hidden_size"] == 16
    now = json.loads(whole.network.config.to_json_string(use_diff=False))
    assert entry["config"] | entry.get("changed", {}) == now

    loaded = lmkit.load(first)
    assert equal(loaded, watch.saved) and loaded.ledger == whole.ledger
    assert loaded.network.config.to_dict() == whole.network.config.to_dict()

    resumed = deep(tmp_path)
    fit(tmp_path, resumed, Operate(surgeries), ckpt_path=first)
    assert equal(resumed, whole) and not equal(resumed, watch.saved)

    adapters = "LoRA" in name
    folder = lmkit.export(whole, tmp_path / "folder", merge=adapters)
    again = lmkit.load(folder)
    ids = torch.randint(5, 99, (2, 9))
    with torch.no_grad():
        theirs = again.network(ids).logits
        assert torch.allclose(theirs, whole.network.eval()(ids).logits, atol=1e-5)
    assert adapters or equal(again, whole)

    fresh = make_module(tmp_path, model=str(folder))
    second = tmp_path / "second.ckpt"
    later = [LowRank({f"{E}0.attention.self.value": 1})]
    fit(tmp_path, fresh, Operate(later), max_steps=2).save_checkpoint(second)
    assert equal(lmkit.load(second), fresh)
    third = make_module(tmp_path, model=str(folder))
    fit(tmp_path, third, Operate(later), ckpt_path=second)
    assert equal(lmkit.load(lmkit.export(third, tmp_path / "last")), third)


@dataclass(frozen=True)
class Shorten:
    """A surgery from elsewhere, that changes the config and remembers nothing of it."""

    layers: int

    def __call__(self, network: Any) -> None:
        if network.config.num_hidden_layers > self.layers:
            keep_layers(network, list(range(self.layers)))


def test_a_surgery_from_elsewhere_may_change_the_config(tmp_path: Path) -> None:
    module = deep(tmp_path)
    path = tmp_path / "a.ckpt"
    last = RemoveUnits({f"{E}1.{FFN}": [0, 3]})
    fit(tmp_path, module, Operate([Shorten(3), last]), max_steps=1).save_checkpoint(path)
    entry = torch.load(path, weights_only=True)["lmkit"]
    assert entry["config"]["num_hidden_layers"] == 4
    assert entry["changed"] == {"num_hidden_layers": 3}
    assert equal(lmkit.load(path), module)


@pytest.mark.parametrize("name", ["uneven, fewer layers", "uneven, then LoRA", "hidden"])
def test_a_small_checkpoint_takes_what_is_left_of_its_base(name: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    surgeries = [*LEDGERS[name], *([] if "LoRA" in name else [Selection(biases=True)])]
    module = deep(tmp_path)
    path = tmp_path / "small.ckpt"
    fit(tmp_path, module, Operate(surgeries), TrainableOnlyCheckpoint()).save_checkpoint(path)
    assert len(torch.load(path, weights_only=True)["state_dict"]) < len(module.state_dict())
    assert equal(lmkit.load(path), module)
    resumed = deep(tmp_path)
    again = Operate(surgeries), TrainableOnlyCheckpoint()
    fit(tmp_path, resumed, *again, ckpt_path=path, max_steps=5)
    assert resumed.network.config.to_dict() == module.network.config.to_dict()


def test_a_checkpoint_of_before_whose_ledger_left_the_config_alone_is_the_same(
    tmp_path: Path,
) -> None:
    """What used to be written: the config as it was then, and nothing of what was changed."""
    module = deep(tmp_path)
    path = tmp_path / "a.ckpt"
    fit(tmp_path, module, Operate([LowRank({"ffn_input": 2})])).save_checkpoint(path)
    entry = torch.load(path, weights_only=True)["lmkit"]
    assert entry["config"] == json.loads(module.network.config.to_json_string(use_diff=False))
    assert "changed" not in entry
    assert equal(lmkit.load(path), module)


def test_names_of_classes_are_those_of_now(tmp_path: Path) -> None:
    module = deep(tmp_path)
    module.configure_model()
    module.operate(RemoveUnits(EVEN, layers=[0, 3]))
    module.network.config.id2label = {0: "no", 1: "yes"}
    module.network.config.intermediate_size = 8
    trainer = make_trainer()
    trainer.strategy.connect(module)
    trainer.strategy._lightning_module = module
    module._trainer = trainer
    checkpoint: dict[str, Any] = {}
    from lmkit.modules.checkpoint import write_entry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lmkit.modules.checkpoint.rewind_unfinished", lambda *_: True)
        write_entry(module, checkpoint)
    config = checkpoint["lmkit"]["config"]
    assert config["id2label"] == {"0": "no", "1": "yes"}
    assert config["intermediate_size"] == 32 and config["num_hidden_layers"] == 4
    assert checkpoint["lmkit"]["changed"]["intermediate_size"] == 8


def test_units_are_removed_in_the_middle_of_a_fit(tmp_path: Path) -> None:
    """The checkpoint that is written then loads, and a fit goes on from it."""

    class Prune(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            if trainer.global_step == 2 and not pl_module.ledger:
                kept = some(find_units(pl_module.network))
                pl_module.operate(removal(pl_module.network, kept, layers=[0, 1, 3]))
                trainer.strategy.setup_optimizers(trainer)

    module = deep(tmp_path)
    path = tmp_path / "a.ckpt"
    fit(tmp_path, module, Prune(), max_steps=3).save_checkpoint(path)
    assert equal(lmkit.load(path), module)
    resumed = deep(tmp_path)
    fit(tmp_path, resumed, ckpt_path=path, max_steps=5)
    assert resumed.ledger == module.ledger and not equal(resumed, module)


def test_a_student_of_a_pruned_folder_is_cut_by_its_ledger(tmp_path: Path) -> None:
    name = "sequence_classification"
    teacher = lessons.teacher(name)
    module = SequenceClassificationModule(teacher)
    module.tokenizer = lmkit.load(teacher).tokenizer
    module.configure_model()
    units = find_units(module.network)
    module.operate(removal(module.network, some(units)))
    folder = str(lmkit.export(module, tmp_path / "pruned"))
    assert (Path(folder) / STRUCTURE).is_file()

    def make() -> DistillationModule:
        student = SequenceClassificationModule(folder, learning_rate=1e-3)
        return DistillationModule(student, teacher, student_layers=[0, 2])

    first = make()
    trainer = make_trainer(max_steps=2)
    trainer.fit(first, lessons.data(name, tmp_path))
    assert first.network.config.num_hidden_layers == 2 and len(first.ledger) == 2
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = lmkit.load(tmp_path / "a.ckpt")
    assert equal(loaded, first) and loaded.ledger == first.ledger
    resumed = make()
    make_trainer(max_steps=3).fit(
        resumed, lessons.data(name, tmp_path), ckpt_path=tmp_path / "a.ckpt", weights_only=True
    )
    assert resumed.ledger == first.ledger
    assert equal(lmkit.load(lmkit.export(resumed, tmp_path / "student")), resumed)


def test_a_teacher_is_as_large_as_it_is_now(tmp_path: Path) -> None:
    """In a checkpoint, and in a folder: the losses ask before its weights are read."""
    module = deep(tmp_path)
    path = tmp_path / "a.ckpt"
    surgery = LEDGERS["hidden"][0]
    fit(tmp_path, module, Operate([surgery]), max_steps=1).save_checkpoint(path)
    module.operate(RemoveUnits({f"{E}0.{FFN}": [1]}))
    folder = lmkit.export(module, tmp_path / "folder")
    assert (folder / STRUCTURE).is_file()
    for named in (str(path), str(folder)):
        shape = teacher_shape(named, deep(tmp_path))
        assert shape.depths == {"": 2} and shape.widths == {"": 8}
    assert same(find_units(module.network), 1, 1) and low_rank_layers(module.network) == {}
