"""Tasks that attend to the adapters of all: checkpoints, exports, folders to start from."""

from __future__ import annotations

import csv
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.loggers import CSVLogger

import lmkit
from lmkit.callbacks import LoRACallback, TrainableOnlyCheckpoint
from lmkit.modules.multi_task import MultiTaskModule
from lmkit.modules.task_attention import TaskAttention
from lmkit.surgery.task_adapter import TaskAdapter, task_adapter_parameters
from lmkit.surgery.task_aggregation import TaskAggregation, aggregated_tasks
from tests.cases import make_trainer
from tests.modules.test_task_adapters import NAMES, batch_of, equal, fit, joined, said
from tests.several_tasks import FAST, make_case_data, make_case_module, make_data, specs

AGGREGATE: dict[str, Any] = {"task_adapters": {"size": 3, "aggregate": True}}
HOULSBY: dict[str, Any] = {"task_adapters": {"size": 3, "kind": "houlsby", "aggregate": True}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a folder, and a module that was fit there, with its Trainer and data."""
    folder = tmp_path_factory.mktemp("trained")
    module, trainer = fit(folder, *NAMES, module=HOULSBY, max_steps=7)
    data = make_data(folder, *NAMES)
    data.setup("fit")
    return folder, module, trainer, data


@torch.no_grad()
def test_at_first_no_logit_changes(tmp_path):
    data = make_data(tmp_path, *NAMES)
    data.setup("fit")
    logits = []
    for settings in ({"task_adapters": None}, HOULSBY):
        module, _ = fit(tmp_path, *NAMES, module=settings, max_steps=0)
        logits.append(said(module, data))
    assert all(torch.equal(logits[0][name], logits[1][name]) for name in NAMES)


@torch.no_grad()
def test_a_checkpoint_loads_alone(trained):
    folder, module, trainer, data = trained
    before = said(module, data)
    trainer.save_checkpoint(folder / "last.ckpt")
    loaded = lmkit.load(folder / "last.ckpt")
    assert type(loaded) is MultiTaskModule and equal(module, loaded)
    assert loaded.ledger == module.ledger and len(module.ledger) == 2
    assert loaded.hparams["task_adapters"]["aggregate"] is True
    after = said(loaded, data)
    assert all(torch.equal(before[name], after[name]) for name in NAMES)


@torch.no_grad()
def test_each_task_is_exported_with_all_adapters_and_its_own_attention(trained):
    folder, module, _, data = trained
    before = said(module, data)
    output = lmkit.export(module, folder / "out")
    for name in NAMES:
        alone = lmkit.load(output / name).eval()
        held = lmkit.adapters.list_adapters(alone)
        assert held == dict.fromkeys(NAMES, 0.0) | {f"{name}/all": 1.0}
        assert aggregated_tasks(alone.ledger) == [name]
        found = alone.step(batch_of(data, name)).logits
        torch.testing.assert_close(found, before[name], rtol=1e-6, atol=1e-6)
        learning = [
            any(p.requires_grad for p in task_adapter_parameters(alone.network, each))
            for each in NAMES
        ]
        assert learning == [each == name for each in NAMES]
    for how, words in {"merge": "is a fusion, which", "plain": "TaskAggregation: a config"}.items():
        with pytest.raises(ValueError, match=words):
            lmkit.export(module, folder / "none", task="ner", **{how: True})


@torch.no_grad()
def test_an_onnx_file_of_a_task_attends_too(trained):
    onnxruntime = pytest.importorskip("onnxruntime")
    folder, module, _, data = trained
    batch = batch_of(data, "topic")
    wanted = said(module, data)["topic"]
    output = lmkit.export(module, folder / "onnx", format="onnx", task="topic")
    session = onnxruntime.InferenceSession(str(output / "model.onnx"))
    batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
    given = {each.name: batch[each.name].numpy() for each in session.get_inputs()}
    (found, *_) = session.run(None, given)
    torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-5, atol=1e-5)


def test_an_exported_task_goes_on_alone(trained, tmp_path):
    _, module, _, data = trained
    output = lmkit.export(module, tmp_path / "score", task="score")
    alone = lmkit.load(output)
    before = {name: tensor.clone() for name, tensor in alone.state_dict().items()}
    trainer = make_trainer(max_steps=3)
    trainer.fit(alone, data.tasks["score"])
    changed = [n for n, t in alone.state_dict().items() if not torch.equal(t, before[n])]
    assert any("fusions.score/all" in name for name in changed)
    assert any("adapters.score" in name for name in changed)
    assert not [name for name in changed if "adapters.ner" in name or "adapters.topic" in name]
    trainer.save_checkpoint(tmp_path / "score.ckpt")
    again = lmkit.load(tmp_path / "score.ckpt")
    batch = batch_of(data, "score")
    with torch.no_grad():
        ours, theirs = (each.eval().step(batch).logits for each in (alone, again))
    assert torch.equal(ours, theirs)


def test_an_export_is_a_model_for_the_same_tasks(trained, tmp_path):
    folder, module, _, data = trained
    output = str(lmkit.export(module, tmp_path / "ner", task="ner"))
    again = MultiTaskModule(output, specs(*NAMES), **HOULSBY, **FAST)
    trainer = make_trainer(max_steps=0)
    trainer.fit(again, make_data(folder, *NAMES))
    assert torch.equal(said(again, data)["ner"], said(module, data)["ner"])
    assert all(p.requires_grad for p in again.parameters())
    trainer.save_checkpoint(tmp_path / "again.ckpt")
    assert equal(again, lmkit.load(tmp_path / "again.ckpt"))
    topic = lmkit.load(lmkit.export(again, tmp_path / "topic", task="topic"))
    assert lmkit.adapters.list_adapters(topic)["topic/all"] == 1.0
    for names, settings in (
        (NAMES, {}),
        (NAMES, {"task_adapters": {"size": 3, "kind": "houlsby"}}),
        (("topic", "score"), HOULSBY),
    ):
        other = MultiTaskModule(output, specs(*names), **settings, **FAST)
        with pytest.raises(ValueError, match=r"export of ner, which attends .* aggregate: true"):
            make_trainer(max_steps=0).fit(other, make_data(folder, *names))
    fewer = MultiTaskModule(output, specs("ner", "topic"), **HOULSBY, **FAST)
    with pytest.raises(ValueError, match="'ner' attends to the adapters of ner, topic, score"):
        fewer.configure_model()


def test_they_learn_beside_lora(trained, tmp_path):
    folder, _, _, data = trained
    base = lmkit.export(fit(folder, "ner", module={"task_adapters": None})[0], tmp_path / "base")
    seed_everything(5)
    module = MultiTaskModule(str(base / "ner"), specs(*NAMES), **AGGREGATE, **FAST)
    trainer = make_trainer(LoRACallback(rank=2), TrainableOnlyCheckpoint(), max_steps=4)
    trainer.fit(module, make_data(folder, *NAMES, sampling="round_robin"))
    trained_names = {n for n, p in module.named_parameters() if p.requires_grad}
    words = [f"{kind}.{name}" for name in NAMES for kind in ("adapters", "fusions")]
    for word in ("lora_A", *words):
        assert any(word in name for name in trained_names), word
    assert "network.bert.embeddings.word_embeddings.weight" not in trained_names
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = lmkit.load(tmp_path / "last.ckpt")
    before, after = said(module, data), said(loaded, data)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_they_may_be_put_in_by_hand(tmp_path):
    module = make_case_module({}, **FAST)
    module.operate(TaskAdapter(("ner", "topic"), size=3))
    module.operate(TaskAggregation(("ner", "topic")))
    trainer = make_trainer(max_steps=3)
    trainer.fit(module, make_case_data(tmp_path))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert equal(module, lmkit.load(tmp_path / "last.ckpt"))
    assert all(
        module.task_module_of(name).ledger[1]["init_args"]["tasks"] == [name]
        for name in module.tasks
    )


def test_bfloat16_trains_them(tmp_path):
    turns = {"data": {"sampling": "round_robin"}}
    module, _ = fit(tmp_path, *NAMES, module=HOULSBY, max_steps=4, precision="bf16-mixed", **turns)
    assert all(p.isfinite().all() for p in module.parameters())
    for name in NAMES:
        ups = [p for n, p in module.named_parameters() if n.endswith(f".adapters.{name}.up")]
        assert all(parameter.any() for parameter in ups) and len(ups) == 4, name


def test_with_gradient_checkpointing_one_task_learns_as_without(tmp_path):
    module, _ = fit(tmp_path, *NAMES, module={**HOULSBY, "dropout": 0.0}, max_steps=4)
    data = make_data(tmp_path, *NAMES)
    data.setup("fit")
    gradients = []
    for recomputed in (False, True):
        if recomputed:
            module.network.gradient_checkpointing_enable()
        module.train().zero_grad()
        module.step(batch_of(data, "topic")).loss.backward()
        gradients.append({n: p.grad for n, p in module.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="with gradient checkpointing layers are computed again"):
        module.step(joined(data, "ner", "topic"))


@pytest.mark.parametrize("batches", ["one", "all"])
def test_the_attention_of_each_task_is_logged(tmp_path, batches):
    # The turns of two tasks and a stride of two: the logger would see one of them alone.
    logger = CSVLogger(tmp_path, name="", version="log")
    settings = {"logger": logger, "log_every_n_steps": 2, "max_steps": 6}
    module, trainer = fit(tmp_path, *NAMES, module=AGGREGATE, data={"batches": batches}, **settings)
    logger.save()
    rows = list(csv.DictReader((tmp_path / "log" / "metrics.csv").open()))
    names = {f"train/{task}/attention/{other}" for task in NAMES for other in NAMES}
    assert {name for name in rows[-1] if "attention" in name} == names
    seen = [row for row in rows if row[sorted(names)[0]]]
    last = seen[-1]
    if batches == "all":  # with a turn of each task in each step all are watched anew once logged
        assert all(seen[0][name] != last[name] for name in names)
    for task in NAMES:
        sums = sum(float(last[f"train/{task}/attention/{other}"]) for other in NAMES)
        assert sums == pytest.approx(1.0, abs=1e-4)
    assert not any(m._forward_hooks for m in module.network.modules())
    assert not any(isinstance(each, TaskAttention) for each in trainer.callbacks)


def test_without_attention_over_adapters_nothing_of_it_is_logged(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="log")
    fit(tmp_path, *NAMES, module={"task_adapters": 3}, logger=logger, log_every_n_steps=1)
    logger.save()
    assert "attention" not in (tmp_path / "log" / "metrics.csv").read_text()
