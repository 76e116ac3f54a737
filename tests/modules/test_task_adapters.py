"""Adapters of tasks in a module of several: they wait, resume, and go with an export."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, seed_everything

import lmkit
from lmkit import datamodules, modules
from lmkit.callbacks import AdapterCallback, LoRACallback, TrainableOnlyCheckpoint
from lmkit.datamodules.multi_task_specs import data_to_spec
from lmkit.modules.multi_task import MultiTaskModule
from lmkit.surgery.adapter import Adapter
from lmkit.surgery.adapter_fusion import AdapterFusion
from lmkit.surgery.task_adapter import TaskAdapter, task_adapter_parameters
from lmkit.surgery.tuning import unfreeze_base
from tests import tiny
from tests.cases import make_trainer, weights
from tests.several_tasks import FAST, KINDS, make_data, make_module, specs

NAMES = ("ner", "topic", "score")

#: Whether each task attends to the adapters of all.
AGGREGATE = pytest.mark.parametrize("aggregate", [False, True])


def fit(folder: Path, *names: str, callbacks: Any = (), data: Any = None, **settings: Any):
    """Fit a module of some tasks that have adapters, and return it with its Trainer."""
    seed_everything(5)
    how = {key: settings.pop(key) for key in ("ckpt_path",) if key in settings}
    module = make_module(*names, **{"task_adapters": 3, **settings.pop("module", {})})
    trainer = make_trainer(*callbacks, **settings)
    trainer.fit(module, make_data(folder, *names, **(data or {})), **how)
    return module, trainer


def equal(first: Any, second: Any) -> bool:
    ours, theirs = weights(first), weights(second)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def batch_of(data: Any, name: str) -> dict[str, torch.Tensor]:
    return next(iter(data.val_dataloader()[data.names.index(name)]))


def joined(data: Any, *names: str) -> dict[str, torch.Tensor]:
    return {f"{n}/{k}": v for n in names for k, v in batch_of(data, n).items()}


@torch.no_grad()
def said(module: Any, data: Any) -> dict[str, torch.Tensor]:
    module.eval()
    return {n: module.step(batch_of(data, n)).logits for n in module.tasks}


def adapters(module: Any, name: str) -> list[torch.Tensor]:
    return [p.detach().clone() for p in task_adapter_parameters(module.network, name)]


class Unfrozen(Callback):
    """A plain adapter of one network that goes on learning."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        pl_module.operate(Adapter("ner", "pfeiffer", size=3, head=False))
        unfreeze_base(pl_module.network)


@pytest.mark.parametrize("freeze", [False, True])
def test_one_task_is_a_plain_adapter_bit_for_bit(freeze, tmp_path):
    how = {"max_steps": 6, "gradient_clip_val": 1.0}
    settings = {"size": 3, "freeze": freeze}
    ours, _ = fit(tmp_path, "ner", module={"task_adapters": settings, "dropout": 0.1}, **how)
    seed_everything(5)
    word, _, _ = KINDS["ner"]
    alone = getattr(modules, f"{word}Module")(dict(tiny.MASKED["bert"]), dropout=0.1, **FAST)
    spec = data_to_spec(make_data(tmp_path, "ner").tasks["ner"])
    data = getattr(datamodules, f"{word}DataModule")(**spec["init_args"])
    plain = AdapterCallback("ner", "pfeiffer", size=3) if freeze else Unfrozen()
    make_trainer(plain, **how).fit(alone, data)
    assert any(tensor.any() for tensor in adapters(ours, "ner")[1::4])
    assert equal(ours, alone)


@AGGREGATE
def test_weights_are_shared_or_of_one_task(aggregate):
    settings = {"size": 3, "kind": "houlsby", "aggregate": aggregate}
    module = make_module(*NAMES, task_adapters=settings)
    module.configure_model()
    shared = {id(p) for p in module.shared_parameters()}
    own = [{id(p) for p in module.task_parameters(name)} for name in NAMES]
    assert not shared & set().union(*own) and sum(map(len, own)) == len(set().union(*own))
    assert shared | set().union(*own) == {id(p) for p in module.parameters()}
    for name, each in zip(NAMES, own, strict=True):
        assert {id(p) for p in task_adapter_parameters(module.network, name)} <= each
    assert [spec["init_args"]["names"] for spec in module.ledger] == [list(NAMES)] * (1 + aggregate)


@AGGREGATE
def test_a_step_of_all_tasks_is_the_sum_of_each_with_its_own_adapters(aggregate, tmp_path):
    settings = {"dropout": 0.0, "task_adapters": {"size": 3, "aggregate": aggregate}}
    module, _ = fit(tmp_path, *NAMES, module=settings, max_steps=6)
    data = make_data(tmp_path, *NAMES)
    data.setup("fit")
    alone = {n: module.task_module_of(n).eval().step(batch_of(data, n)).loss for n in NAMES}
    module.train()
    output = module.step(joined(data, *NAMES))
    torch.testing.assert_close(output.loss, sum(alone.values()), rtol=1e-6, atol=0)
    module.zero_grad()
    output.loss.backward()
    for name in NAMES:
        wanted = torch.autograd.grad(
            module.step(batch_of(data, name)).loss,
            task_adapter_parameters(module.network, name),
        )
        found = [p.grad for p in task_adapter_parameters(module.network, name)]
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)


@AGGREGATE
@pytest.mark.parametrize("accumulate", [1, 2])
def test_adapters_whose_task_has_no_turn_do_not_move(accumulate, aggregate, tmp_path):
    class Look(Callback):
        def __init__(self) -> None:
            self.seen: list[Any] = []

        def on_train_batch_end(self, trainer: Any, pl_module: Any, out: Any, batch: Any, *_: Any):
            found = {name: adapters(pl_module, name) for name in NAMES}
            self.seen.append((int(batch["task"][0]), found))

    look = Look()
    fit(
        tmp_path,
        *NAMES,
        callbacks=[look],
        max_steps=7,
        module={"task_adapters": {"size": 3, "aggregate": aggregate}},
        accumulate_grad_batches=accumulate,
        data={"sampling": "round_robin"},
    )
    ends = look.seen[accumulate - 1 :: accumulate]
    assert [task for task, _ in ends] == [0, 1, 2, 0, 1, 2, 0]
    for (_, before), (task, after) in pairwise(ends):
        for number, name in enumerate(NAMES):
            pairs = zip(before[name], after[name], strict=True)
            moved = [not torch.equal(a, b) for a, b in pairs]
            assert any(moved) if number == task else not any(moved), (task, name)


@AGGREGATE
def test_frozen_nothing_that_is_shared_moves(aggregate, tmp_path):
    class Keep(Callback):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            self.state = {key: tensor.clone() for key, tensor in pl_module.state_dict().items()}

    keep = Keep()
    settings = {"task_adapters": {"size": 3, "freeze": True, "aggregate": aggregate}}
    module, _ = fit(tmp_path, *NAMES, module=settings, callbacks=[keep], max_steps=4)
    assert module.shared_parameters() == []
    trained = {id(p) for name in NAMES for p in module.task_parameters(name)}
    assert trained == {id(p) for p in module.parameters() if p.requires_grad}
    after = module.state_dict().items()
    moved = {key for key, tensor in after if not torch.equal(tensor, keep.state[key])}
    own = (".adapters.", ".fusions.")
    inside = [key for key in moved if key.startswith("network.bert.")]
    assert inside and all(any(word in key for word in own) for key in inside)
    assert any(".fusions." in key for key in inside) == aggregate


@AGGREGATE
@pytest.mark.parametrize("batches", ["one", "all"])
def test_interrupted_and_resumed_is_uninterrupted(batches, aggregate, tmp_path):
    class Save(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            place = trainer.fit_loop.epoch_loop.total_batch_idx + 1
            if place in (3, 4):
                trainer.save_checkpoint(tmp_path / f"{place}.ckpt")

    how = {
        "max_steps": 5,
        "accumulate_grad_batches": 2,
        "val_check_interval": 3,
        "module": {
            "aggregation": "pcgrad" if batches == "all" else None,
            "task_adapters": {"size": 3, "kind": "houlsby", "dropout": 0.1, "aggregate": aggregate},
            "task_learning_rate": 3e-2,
        },
        "data": {"batches": batches, "epoch_batches": 8},
    }
    whole, _ = fit(tmp_path, *NAMES, callbacks=[Save()], **how)
    for place in (3, 4):
        resumed, _ = fit(tmp_path, *NAMES, ckpt_path=tmp_path / f"{place}.ckpt", **how)
        assert equal(whole, resumed), place


@AGGREGATE
@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_what_is_a_tasks_own_has_its_own_rate(decay, aggregate, tmp_path):
    optimizer = {"class_path": "torch.optim.SGD"}

    def moved(rate: float, own: float | None) -> tuple[Any, Any]:
        settings = {
            "learning_rate": rate,
            "task_learning_rate": own,
            "task_adapters": {"size": 3, "aggregate": aggregate},
            "optimizer": optimizer,
            "layer_decay": decay,
        }
        how = {"max_steps": 1, "data": {"batches": "all"}}
        module, _ = fit(tmp_path, *NAMES, module=settings, **how)
        own_weights = [p for name in NAMES for p in module.task_parameters(name)]
        return module.shared_parameters(), own_weights

    both = moved(1e-2, 5e-2)
    slow, fast = moved(1e-2, None), moved(5e-2, None)
    pairs = [(both[0], slow[0])] if decay < 1 else [(both[0], slow[0]), (both[1], fast[1])]
    for ours, expected in pairs:
        assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
    # Whatever the depth, an adapter has the whole of it.
    assert any(not torch.equal(a, b) for a, b in zip(both[1], slow[1], strict=True))


def test_a_checkpoint_loads_alone_and_each_task_is_exported_with_its_adapters(tmp_path):
    module, trainer = fit(tmp_path, *NAMES, max_steps=6)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    data = make_data(tmp_path, *NAMES)
    data.setup("fit")
    before = said(module, data)
    loaded = lmkit.load(tmp_path / "last.ckpt")
    assert type(loaded) is MultiTaskModule and equal(module, loaded)
    assert loaded.ledger == module.ledger
    after = said(loaded, data)
    assert all(torch.equal(before[name], after[name]) for name in NAMES)
    output = lmkit.export(loaded, tmp_path / "out")
    for name in NAMES:
        assert (output / name / "structure.json").is_file()
        alone = lmkit.load(output / name).eval()
        assert lmkit.adapters.list_adapters(alone) == {name: 1.0}
        with torch.no_grad():
            found = alone.step(batch_of(data, name)).logits
        torch.testing.assert_close(found, before[name], rtol=1e-5, atol=1e-6)
    refusals = {"merge": "'ner' is a bottleneck adapter", "plain": "TaskAdapter: a config has no"}
    for how, words in refusals.items():
        with pytest.raises(ValueError, match=words):
            lmkit.export(loaded, tmp_path / "none", task="ner", **{how: True})
    # One more fit starts from that folder: its adapter is a part of the network.
    again = MultiTaskModule(str(output / "ner"), specs(*NAMES), task_adapters=3, **FAST)
    trainer = make_trainer(max_steps=0)
    trainer.fit(again, make_data(tmp_path, *NAMES))
    for ours, theirs in zip(adapters(again, "ner"), adapters(loaded, "ner"), strict=True):
        assert torch.equal(ours, theirs)
    assert not any(tensor.any() for tensor in adapters(again, "topic")[1::4])
    trainer.save_checkpoint(tmp_path / "again.ckpt")
    assert [spec["init_args"]["names"] for spec in again.ledger] == [["ner"], list(NAMES)]
    assert equal(again, lmkit.load(tmp_path / "again.ckpt"))
    exported = lmkit.load(lmkit.export(again, tmp_path / "one", task="topic"))
    assert lmkit.adapters.list_adapters(exported) == {"topic": 1.0}


def test_they_learn_beside_lora(tmp_path):
    callbacks = [LoRACallback(rank=2), TrainableOnlyCheckpoint()]
    base = lmkit.export(fit(tmp_path, "ner", module={"task_adapters": None})[0], tmp_path / "base")
    seed_everything(5)
    module = MultiTaskModule(str(base / "ner"), specs("ner", "topic"), task_adapters=3, **FAST)
    data = make_data(tmp_path, "ner", "topic")
    trainer = make_trainer(*callbacks, enable_checkpointing=True, val_check_interval=3)
    trainer.fit(module, data)
    trained = {n for n, p in module.named_parameters() if p.requires_grad}
    for word in ("lora_A", "adapters.ner", "adapters.topic", "heads.topic"):
        assert any(word in name for name in trained), word
    assert "network.bert.embeddings.word_embeddings.weight" not in trained
    assert all(any(t.any() for t in adapters(module, name)[1::4]) for name in ("ner", "topic"))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = lmkit.load(tmp_path / "last.ckpt")
    before, after = said(module, data), said(loaded, data)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_does_not_go_together_is_refused(tmp_path):
    module, _ = fit(tmp_path, *NAMES, max_steps=1)
    with pytest.raises(ValueError, match=r"AdapterFusion mixes ner, which are adapters of tasks"):
        module.operate(AdapterFusion(["ner"]))
    assert len(module.ledger) == 1
    data = make_data(tmp_path, *NAMES)
    data.setup("fit")
    module.network.gradient_checkpointing_enable()
    module.train()
    module.step(batch_of(data, "ner")).loss.backward()
    with pytest.raises(ValueError, match="with gradient checkpointing layers are computed again"):
        module.step(joined(data, "ner", "topic"))


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (True, TypeError, "task_adapters must be the size"),
        ("3", TypeError, "task_adapters must be the size"),
        ({"sizes": 3}, TypeError, "task_adapters has no 'sizes'; there are activation, aggregate"),
        ({"aggregate": 1}, TypeError, "aggregate of task_adapters must be true or false, got 1"),
        (0, ValueError, "size"),
    ],
)
def test_wrong_arguments_are_refused(given, error, words):
    with pytest.raises(error, match=words):
        make_module(*NAMES, task_adapters=given)


def test_compiled_layers_follow_the_task():
    network = torch.nn.ModuleList([torch.nn.ModuleDict({"fc2": torch.nn.Linear(4, 4)})])
    TaskAdapter(("a", "b"), size=2)(network)
    layer = network[0]["fc2"]
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    compiled, x = torch.compile(layer, backend="eager"), torch.randn(3, 4)
    for task in ("a", "b", "a"):
        layer.use({task: 1.0})
        torch.testing.assert_close(compiled(x), layer(x))
