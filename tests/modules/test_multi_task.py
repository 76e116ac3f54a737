"""Several tasks on one encoder: exact sums, heads that wait, checkpoints, exports, refusals."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

import lmkit
from lmkit import datamodules, modules
from lmkit.callbacks import (
    ExportCallback,
    FGMCallback,
    LoRACallback,
    RDropCallback,
    TrainableOnlyCheckpoint,
)
from lmkit.datamodules.multi_task_specs import data_to_spec
from lmkit.modules.multi_task import MultiTaskModule
from lmkit.modules.task_batches import parts_of
from tests import tiny
from tests.cases import make_trainer, weights
from tests.several_tasks import FAST, KINDS, data_specs, make_data, make_module, specs

ALL = ("ner", "topic", "score", "qa", "choice", "mlm")


class Steps(Callback):
    """Keeps what a test asks for of each training step."""

    def __init__(self, look: Any) -> None:
        self.look, self.seen = look, []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, out: Any, batch: Any, *_: Any):
        self.seen.append(self.look(pl_module, batch))


def fit(folder: Path, *names: str, callbacks: Any = (), data: Any = None, **settings: Any):
    """Fit a module of some tasks, and return it with its Trainer."""
    seed_everything(5)
    how = {key: settings.pop(key) for key in ("ckpt_path",) if key in settings}
    module = make_module(*names, **settings.pop("module", {}))
    trainer = make_trainer(*callbacks, **settings)
    trainer.fit(module, make_data(folder, *names, **(data or {})), **how)
    return module, trainer


def equal(first: Any, second: Any) -> bool:
    ours, theirs = weights(first), weights(second)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def batch_of(data: Any, name: str) -> dict[str, torch.Tensor]:
    return next(iter(data.val_dataloader()[data.names.index(name)]))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", ["ner", "mlm"])
@pytest.mark.parametrize("batches", ["one", "all"])
def test_one_task_is_its_own_module_bit_for_bit(name, batches, accumulate, tmp_path):
    how = {"max_steps": 9, "accumulate_grad_batches": accumulate, "gradient_clip_val": 1.0}
    # MaskedLMModule has another dropout by default.
    ours, trainer = fit(tmp_path, name, module={"dropout": 0.1}, data={"batches": batches}, **how)
    seed_everything(5)
    word, _, _ = KINDS[name]
    alone = getattr(modules, f"{word}Module")(dict(tiny.MASKED["bert"]), dropout=0.1, **FAST)
    settings = make_data(tmp_path, name).tasks[name]
    data = getattr(datamodules, f"{word}DataModule")(**data_to_spec(settings)["init_args"])
    single = make_trainer(**how)
    single.fit(alone, data)
    assert trainer.current_epoch == single.current_epoch
    assert equal(ours, alone)
    for metric, value in single.callback_metrics.items():
        if metric.startswith("val/"):
            assert trainer.callback_metrics[metric.replace("val/", f"val/{name}/")] == value


def test_all_tasks_have_one_encoder_and_heads_of_their_own():
    module = make_module(*ALL)
    module.configure_model()
    encoders = {id(task.network.base_model) for task in module.tasks.values()}
    assert encoders == {id(module.network.base_model)}
    shared = {id(p) for p in module.shared_parameters()}
    heads = [{id(p) for p in module.task_parameters(name)} for name in ALL]
    assert sum(map(len, heads)) == len(set().union(*heads)) and not shared & set().union(*heads)
    everything = {id(p) for p in module.parameters()}
    assert shared | set().union(*heads) == everything
    # The decoder of the language model is tied to the shared embeddings; nothing else is twice.
    tensors = {key: tensor.data_ptr() for key, tensor in module.state_dict().items()}
    twice = [key for key, at in tensors.items() if list(tensors.values()).count(at) > 1]
    assert {key.removeprefix("heads.mlm.cls.predictions.") for key in twice} == {
        "network.bert.embeddings.word_embeddings.weight",
        "decoder.weight",
        "bias",
        "decoder.bias",
    }


def joined(data: Any, *names: str) -> dict[str, torch.Tensor]:
    return {f"{n}/{k}": v for n in names for k, v in batch_of(data, n).items()}


def prepared(folder: Path, *names: str, **settings: Any):
    """Return a module and its data, set up, without dropout."""
    module = make_module(*names, dropout=0.0, **settings)
    data = make_data(folder, *names)
    trainer = make_trainer(max_steps=0)
    trainer.fit(module, data)
    return module, data


def gradients(module: MultiTaskModule) -> Any:
    """Return what computes the gradients of a loss for the shared weights."""
    shared = module.shared_parameters()
    return lambda loss: torch.autograd.grad(loss, shared, retain_graph=True)


def test_the_loss_of_a_batch_of_all_is_the_weighted_sum_of_the_tasks_own(tmp_path):
    module, data = prepared(tmp_path, "ner", "topic", "qa", weights={"ner": 2.0, "qa": 0.5})
    module.train()
    output = module.step(joined(data, "ner", "topic", "qa"))
    own = {n: module.task_module_of(n).step(batch_of(data, n)).loss for n in module.tasks}
    expected = 2.0 * own["ner"] + own["topic"] + 0.5 * own["qa"]
    torch.testing.assert_close(output.loss, expected, rtol=1e-6, atol=0)
    assert output.items == 1 and output.logits is None
    for name, loss in own.items():
        torch.testing.assert_close(module.task_losses[name], loss, rtol=1e-6, atol=0)
        torch.testing.assert_close(output.logs[f"train/{name}/loss"], loss, rtol=1e-6, atol=0)
    total = sum(w * module.task_losses[n] for n, w in module.loss_weights.items())
    for ours, theirs in zip(*map(gradients(module), (output.loss, total)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)


def test_a_batch_of_one_task_has_its_weighted_loss_its_items_and_its_logits(tmp_path):
    module, data = prepared(tmp_path, "topic", "ner", weights={"ner": 3.0})
    module.train()
    batch = batch_of(data, "ner")
    output, own = module.step(batch), module.task_module_of("ner").step(batch)
    torch.testing.assert_close(output.loss, 3.0 * own.loss)
    torch.testing.assert_close(output.logits, own.logits)
    assert output.items == own.items and list(module.task_losses) == ["ner"]
    loss = module.join_losses(module.task_losses)
    used = torch.autograd.grad(loss, module.task_parameters("topic"), allow_unused=True)
    assert all(gradient is None for gradient in used)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_heads_whose_task_has_no_turn_do_not_move(accumulate, tmp_path):
    def look(module: MultiTaskModule, batch: Any) -> Any:
        heads = {n: [p.detach().clone() for p in module.task_parameters(n)] for n in module.tasks}
        return int(batch["task"][0]), heads

    steps = Steps(look)
    fit(
        tmp_path,
        "ner",
        "topic",
        "qa",
        callbacks=[steps],
        max_steps=9,
        accumulate_grad_batches=accumulate,
        data={"sampling": "round_robin"},
    )
    names = ["ner", "topic", "qa"]
    ends = steps.seen[accumulate - 1 :: accumulate]
    assert [task for task, _ in ends] == [0, 1, 2] * 3
    for (_, before), (task, after) in pairwise(ends):
        for number, name in enumerate(names):
            pairs = list(zip(before[name], after[name], strict=True))
            moved = [not torch.equal(a, b) for a, b in pairs]
            assert any(moved) if number == task else not any(moved), (task, name)


@pytest.mark.parametrize("batches", ["one", "all"])
def test_interrupted_and_resumed_is_uninterrupted(batches, tmp_path):
    class Save(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            place = trainer.fit_loop.epoch_loop.total_batch_idx + 1
            if place in (3, 4, 14):
                trainer.save_checkpoint(tmp_path / f"{place}.ckpt")

    how = {
        "max_steps": 10,
        "accumulate_grad_batches": 2,
        "val_check_interval": 3,
        "data": {"batches": batches, "epoch_batches": 8},
    }
    names = ("ner", "topic", "mlm")
    whole, trainer = fit(tmp_path, *names, callbacks=[Save()], **how)
    assert trainer.current_epoch >= 2
    for place in (3, 4, 14):
        resumed, _ = fit(tmp_path, *names, ckpt_path=tmp_path / f"{place}.ckpt", **how)
        assert equal(whole, resumed), place


def test_two_halves_accumulated_are_the_whole(tmp_path):
    how = {"module": {"dropout": 0.0}, "max_steps": 4}
    names = ("ner", "topic")
    data = {"sampling": "round_robin"}
    whole, _ = fit(tmp_path, *names, data={**data, "batch_size": 8}, **how)
    halves, _ = fit(
        tmp_path, *names, data={**data, "batch_size": 4}, accumulate_grad_batches=2, **how
    )
    for (name, ours), theirs in zip(weights(whole).items(), weights(halves).values(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4, msg=name)


def said(module: Any, data: Any) -> dict[str, torch.Tensor]:
    module.eval()
    with torch.no_grad():
        return {n: module.step(batch_of(data, n)).logits for n in module.tasks}


def test_a_checkpoint_is_plain_data_and_loads_alone(tmp_path):
    module, trainer = fit(tmp_path, *ALL)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    torch.load(tmp_path / "last.ckpt", weights_only=True)
    loaded = lmkit.load(tmp_path / "last.ckpt")
    assert type(loaded) is MultiTaskModule and equal(module, loaded)
    assert loaded.hparams == module.hparams
    data = make_data(tmp_path, *ALL)
    data.setup("fit")
    before, after = said(module, data), said(loaded, data)
    assert all(torch.equal(before[name], after[name]) for name in ALL)
    assert loaded.tasks["ner"].network.config.id2label == {0: "O", 1: "B-X", 2: "I-X"}
    assert loaded.tasks["score"].task == "regression"
    first = make_trainer().validate(loaded, data, verbose=False)
    assert first == make_trainer().validate(module, data, verbose=False)
    logged = {name for found in first for name in found}
    assert logged == {"val/mean"} | {
        f"val/{name}/{metric}" for name in ALL for metric in module.tasks[name].build_metrics()
    }
    assert "label" in loaded("topic", "the quick fox")
    fresh = make_module(*ALL)
    kept = {"ckpt_path": tmp_path / "last.ckpt", "verbose": False}
    assert make_trainer().validate(fresh, data, **kept) == first


def test_the_mean_is_that_of_the_main_metrics(tmp_path):
    _, trainer = fit(tmp_path, "ner", "topic", "score", val_check_interval=3)
    found = trainer.callback_metrics
    main = [found[f"val/{n}"] for n in ("ner/f1", "topic/accuracy", "score/spearman")]
    torch.testing.assert_close(found["val/mean"], torch.stack(main).mean())


PLAIN = {
    "ner": AutoModelForTokenClassification,
    "topic": AutoModelForSequenceClassification,
    "mlm": AutoModelForMaskedLM,
}


def test_each_task_is_exported_as_a_plain_folder(tmp_path):
    names = ("ner", "topic", "mlm")
    module, trainer = fit(tmp_path, *names)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    data = make_data(tmp_path, *names)
    data.setup("fit")
    output = lmkit.export(tmp_path / "last.ckpt", tmp_path / "out")
    module.eval()
    for name, auto in PLAIN.items():
        network, report = auto.from_pretrained(output / name, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"]
        batch = batch_of(data, name)
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
        task = module.tasks[name].network
        with torch.no_grad():
            theirs = network.eval()(**inputs).logits
            torch.testing.assert_close(theirs, task(**inputs).logits, atol=1e-5, rtol=1e-5)
        loaded = lmkit.load(output / name)
        assert type(loaded) is type(module.tasks[name]) and loaded.tokenizer is not None
    one = lmkit.export(module, tmp_path / "one", task="topic")
    assert (one / "config.json").is_file()
    lmkit.export(module, output, overwrite=True, task="topic")  # the whole folder is replaced
    assert (output / "config.json").is_file() and not (output / "ner").exists()
    with pytest.raises(ValueError, match="there is no task 'top'; there are ner, topic, mlm"):
        lmkit.export(module, tmp_path / "none", task="top")
    with pytest.raises(ValueError, match="task='topic' is for a module of several tasks"):
        lmkit.export(loaded, tmp_path / "none", task="topic")


def test_an_export_that_fails_at_one_task_leaves_nothing(tmp_path, monkeypatch):
    module, _ = prepared(tmp_path, "ner", "topic")
    there, save = sorted(tmp_path.iterdir()), type(module.tokenizer).save_pretrained
    written = []

    def fail(self, folder):
        written.append(Path(folder).name)
        if written[-1] == "topic":
            raise OSError("no space left on device")
        return save(self, folder)

    monkeypatch.setattr(type(module.tokenizer), "save_pretrained", fail)
    with pytest.raises(OSError, match="no space"):
        lmkit.export(module, tmp_path / "made" / "out")
    assert written == ["ner", "topic"] and sorted(tmp_path.iterdir()) == there


@pytest.mark.parametrize("mine", ["topic.txt", "other/notes.txt"])
def test_a_folder_with_more_than_exports_of_tasks_is_not_replaced(mine, tmp_path):
    output = lmkit.export(prepared(tmp_path, "ner", "topic")[0], tmp_path / "out")
    names, run = ("ner", "topic", "mlm"), {"max_steps": 1, "limit_val_batches": 0}
    data = make_data(tmp_path, *names)
    make_trainer(ExportCallback(output), **run).fit(make_module(*names), data)
    assert sorted(each.name for each in output.iterdir()) == ["mlm", "ner", "topic"]
    (output / mine).parent.mkdir(exist_ok=True)
    (output / mine).write_text("keep")
    with pytest.raises(FileExistsError, match="which is no export; give another output"):
        make_trainer(ExportCallback(output), **run).fit(make_module(*names), data)
    assert (output / mine).read_text() == "keep"


def test_the_module_of_a_task_is_alone_and_stays_as_it_is(tmp_path):
    module, data = prepared(tmp_path, "ner", "topic")
    batch = batch_of(data, "ner")
    alone = module.task_module_of("ner").eval()
    assert alone.network.bert.pooler is None and module.network.bert.pooler is not None
    module.eval()
    expected = module.step(batch).logits
    assert torch.equal(alone.step(batch).logits, expected)
    for parameter in module.parameters():
        parameter.data.add_(1.0)
    assert torch.equal(alone.step(batch).logits, expected)


def test_a_surgery_of_the_encoder_is_one_of_all_tasks(tmp_path):
    names = ("ner", "topic", "mlm")
    callbacks = [LoRACallback(rank=2), TrainableOnlyCheckpoint()]
    base = lmkit.export(prepared(tmp_path, *names)[0], tmp_path / "base", task="mlm")
    seed_everything(5)
    module = MultiTaskModule(str(base), specs(*names), **FAST)
    data = make_data(tmp_path, *names)
    trainer = make_trainer(*callbacks, enable_checkpointing=True, val_check_interval=3)
    trainer.fit(module, data)
    lora = [n for n, p in module.named_parameters() if "lora" in n.lower() and p.requires_grad]
    assert lora and all(name.startswith("network.bert.") for name in lora)
    frozen = [n for n, p in module.named_parameters() if not p.requires_grad]
    assert not [name for name in frozen if name.startswith("heads.topic")]
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert "network.bert.embeddings.word_embeddings.weight" not in kept
    loaded = lmkit.load(tmp_path / "last.ckpt")
    before, after = said(module, data), said(loaded, data)
    assert all(torch.equal(before[name], after[name]) for name in names)
    merged = lmkit.export(loaded, tmp_path / "merged", merge=True)
    network = AutoModelForSequenceClassification.from_pretrained(merged / "topic").eval()
    batch = batch_of(data, "topic")
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
    torch.testing.assert_close(network(**inputs).logits, after["topic"], atol=1e-5, rtol=1e-5)


def test_layers_that_are_removed_are_gone_from_the_configs_of_all_tasks(tmp_path):
    from lmkit.surgery.structured_pruning import removal

    module, data = prepared(tmp_path, "ner", "topic")
    module.operate(removal(module.network, {}, [1]))
    assert {t.network.config.num_hidden_layers for t in module.tasks.values()} == {1}
    output = lmkit.export(module, tmp_path / "out")
    for name in ("ner", "topic"):
        network = PLAIN[name].from_pretrained(output / name).eval()
        batch = batch_of(data, name)
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
        theirs, ours = network(**inputs).logits, said(module, data)[name]
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("technique", [FGMCallback, RDropCallback])
def test_techniques_of_any_loss_work_on_batches_of_one_task(technique, tmp_path):
    plain, _ = fit(tmp_path, "ner", "topic", max_steps=4)
    changed, _ = fit(tmp_path, "ner", "topic", callbacks=[technique()], max_steps=4)
    assert not equal(plain, changed)
    assert all(torch.isfinite(tensor).all() for tensor in weights(changed).values())


def test_a_technique_that_needs_one_task_says_so_of_a_batch_of_all(tmp_path):
    with pytest.raises(ValueError, match="batches='one'"):
        fit(tmp_path, "ner", "topic", callbacks=[RDropCallback()], data={"batches": "all"})


@pytest.mark.parametrize("batches", ["one", "all"])
def test_embeddings_are_moved_for_the_tasks_of_a_batch_together(batches, tmp_path):
    how = {"data": {"batches": batches}, "max_steps": 2}
    plain, _ = fit(tmp_path, "ner", "topic", **how)
    still, _ = fit(tmp_path, "ner", "topic", callbacks=[FGMCallback(epsilon=0)], **how)
    moved, _ = fit(tmp_path, "ner", "topic", callbacks=[FGMCallback(epsilon=0.5)], **how)
    assert equal(plain, still) and not equal(plain, moved)


@pytest.mark.parametrize("batches", ["one", "all"])
def test_a_loss_that_is_no_number_names_its_task(batches, tmp_path):
    class Break(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            pl_module.tasks["topic"].network.classifier.weight.data.fill_(torch.nan)

    with pytest.raises(FloatingPointError, match="the loss of the task topic is nan at step"):
        fit(tmp_path, "ner", "topic", callbacks=[Break()], data={"batches": batches})


def test_class_weights_and_arguments_of_a_task_are_its_own(tmp_path):
    tasks = specs("ner", "topic")
    tasks["topic"]["init_args"] = {"class_weights": {"fox": 3.0}, "label_smoothing": 0.1}
    module = MultiTaskModule(dict(tiny.MASKED["bert"]), tasks, **FAST)
    data = make_data(tmp_path, "ner", "topic")
    make_trainer(max_steps=3).fit(module, data)
    assert module.tasks["topic"].weights.tolist() == [3.0, 1.0, 1.0]
    assert module.tasks["topic"].hparams["label_smoothing"] == 0.1


def test_a_test_has_the_tables_of_all_tasks_and_prediction_is_of_one(tmp_path):
    module, _ = fit(tmp_path, "ner", "topic", max_steps=2)
    (tmp_path / "ask.txt").write_text("the quick fox\nold trees\n")
    asked = {"predict_file": str(tmp_path / "ask.txt"), "predict_task": "topic"}
    data = make_data(tmp_path, "ner", "topic", **asked)
    ner, topic = make_trainer().test(module, data, verbose=False)
    assert (
        "test/ner/f1" in ner and "test/topic/accuracy" in topic and "test/mean" in {**ner, **topic}
    )
    assert set(module.tables()) == {"ner/entities", "topic/classes"}
    (rows,) = make_trainer().predict(module, data)
    assert [row["label"] in ("fox", "moons", "trees") for row in rows[:2]] == [True, True]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"tasks": {}}, ValueError, "at least one task"),
        ({"tasks": {"a.b": {}}}, ValueError, "letters, digits"),
        ({"tasks": {**specs("ner"), "NER": specs("ner")["ner"]}}, ValueError, "only by case"),
        ({"tasks": {"ner": {"class": "x"}}}, TypeError, "task 'ner' must be a dictionary"),
        ({"tasks": {"ner": {"class_path": "NERModule"}}}, ValueError, "names no task module"),
        (
            {"tasks": {"ner": {"class_path": "TokenClasificationModule"}}},
            ValueError,
            "'ner': its class_path .* did you mean 'TokenClassificationModule'",
        ),
        (
            {"tasks": {"a": {"class_path": "lmkit.modules.DistillationModule"}}},
            ValueError,
            "a DistillationModule cannot be one task of several",
        ),
        (
            {"tasks": {"ner": {**specs("ner")["ner"], "init_args": {"learning_rate": 1.0}}}},
            ValueError,
            "task 'ner': learning_rate is of the whole training",
        ),
        (
            {"tasks": {"topic": {**specs("topic")["topic"], "init_args": {"label_smooth": 1}}}},
            ValueError,
            "has no argument 'label_smooth'; did you mean 'label_smoothing'",
        ),
        (
            {"tasks": {"ner": {**specs("ner")["ner"], "init_args": {"model": "roberta"}}}},
            ValueError,
            "all tasks share one encoder",
        ),
        ({"tasks": ["ner"]}, TypeError, "tasks must be a dictionary"),
        ({"weights": [1.0]}, TypeError, "weights must be a dictionary"),
        ({"task_learning_rate": "1e-3"}, TypeError, "task_learning_rate must be a number"),
        ({"learning_rate": -1.0}, ValueError, "learning_rate must be at least 0, got -1.0"),
        ({"weights": {"nerr": 1.0}}, ValueError, "did you mean 'ner'"),
        ({"weights": {"ner": 0.0}}, ValueError, "must be above 0"),
        ({"task_learning_rate": 0.0}, ValueError, "task_learning_rate must be above 0, got 0.0"),
        ({"learning_rate": torch.ones(1)}, TypeError, "plain data"),
    ],
)
def test_wrong_arguments_are_refused(change, error, words):
    with pytest.raises(error, match=words):
        MultiTaskModule(**{"model": dict(tiny.MASKED["bert"]), "tasks": specs("ner"), **change})


def test_data_of_other_tasks_or_kinds_are_refused(tmp_path):
    with pytest.raises(ValueError, match="tasks ner, topic, and the data ner, qa"):
        make_trainer().fit(make_module("ner", "topic"), make_data(tmp_path, "ner", "qa"))
    module = MultiTaskModule(
        dict(tiny.MASKED["bert"]), {"ner": specs("topic")["topic"], "topic": specs("ner")["ner"]}
    )
    with pytest.raises(ValueError, match="task 'ner': a SequenceClassificationModule cannot learn"):
        make_trainer().fit(module, make_data(tmp_path, "ner", "topic"))
    with pytest.raises(ValueError, match="task 'ner': max_length is 128"):
        make_trainer().fit(make_module("ner"), make_data(tmp_path, "ner", max_length=128))


def test_an_architecture_without_an_encoder_to_share_is_refused():
    t5 = {**tiny.SEQ2SEQ["t5"], "vocab_size": 99, "decoder_start_token_id": 0}
    tasks = {"sum": {"class_path": "lmkit.modules.Seq2SeqModule"}}
    with pytest.raises(ValueError, match="task 'sum': a Seq2SeqModule of 't5' has no one encoder"):
        MultiTaskModule(t5, tasks).configure_model()


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "electra", "modernbert"])
def test_other_encoders_are_shared_too(kind, tmp_path):
    model = dict(tiny.MASKED[kind])
    module = MultiTaskModule(model, specs("ner", "topic", "mlm"), **FAST)
    make_trainer(max_steps=3).fit(module, make_data(tmp_path, "ner", "topic", "mlm"))
    assert len({id(t.network.base_model) for t in module.tasks.values()}) == 1


def test_a_batch_that_does_not_say_its_task_is_refused():
    with pytest.raises(ValueError, match="does not say which task it is of"):
        parts_of({"input_ids": torch.ones(2, 3)}, ["ner", "topic"])


def test_settings_of_the_data_are_the_plain_ones_that_were_given(tmp_path):
    data = make_data(tmp_path, "ner")
    assert data.hparams["tasks"] == data_specs(tmp_path, "ner")


@pytest.mark.parametrize("name", ["ner", "mlm"])
def test_showing_samples_leaves_the_encoder_in_its_mode(name, tmp_path):
    module, data = prepared(tmp_path, "topic", "ner", "mlm")
    module.eval()
    assert module.sample(batch_of(data, name), 2)
    assert not any(part.training for part in [*module.network.modules(), *module.heads.modules()])
    assert module.sample(batch_of(data, "topic"), 2) == []


def test_fresh_heads_are_said_by_task(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = AutoConfig.for_model(**{**tiny.MASKED["bert"], "vocab_size": 99})
    AutoModel.from_config(config).save_pretrained(tmp_path)
    tiny.tokenizer_folder(tmp_path)
    caplog.set_level("INFO")
    MultiTaskModule(str(tmp_path), specs("topic", "ner")).configure_model()
    for name in ("topic", "ner"):
        assert f"task '{name}': {tmp_path} has no weights for classifier.bias" in caplog.text


@pytest.mark.parametrize("callback", [FGMCallback, RDropCallback])
def test_further_passes_over_a_batch_are_not_counted(callback: Any, tmp_path: Path) -> None:
    """What tasks have lost, and how often they were seen, is that of plain training."""
    seen: dict[str, Any] = {}

    class Keep(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            losses = {name: float(loss) for name, loss in module.last_losses.items()}
            found.append((losses, module.weighting.window.clone()))

    for name, callbacks in (("plain", []), ("more", [callback()])):
        found = seen.setdefault(name, [])
        settings = {"weighting": "dwa", "dropout": 0.0, "learning_rate": 0.0}
        fit(tmp_path / name, "topic", "ner", callbacks=[*callbacks, Keep()], module=settings)
    for (plain, window), (more, other) in zip(seen["plain"], seen["more"], strict=True):
        assert more == pytest.approx(plain, rel=1e-5)
        assert torch.allclose(window, other, rtol=1e-5) and window[1].sum() > 0
