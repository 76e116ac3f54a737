"""Classification and regression of texts: losses, learning, predictions, exports."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from lightning.pytorch import Callback
from transformers import AutoModelForSequenceClassification

from lmkit.callbacks import CheckpointCallback
from lmkit.datamodules import SequenceClassificationDataModule
from lmkit.exporting import export
from lmkit.modules import SequenceClassificationModule
from tests import tiny
from tests.cases import make_trainer

ENCODERS = {name: tiny.MASKED[name] for name in tiny.MASKED}
pytestmark = pytest.mark.filterwarnings("ignore:Metric `Spearman:UserWarning")
EVERY = {**ENCODERS, **tiny.CAUSAL}


def write(path, count=64, seed=0, task="single_label", pair=False):
    """Texts whose classes are the animals that they begin with."""
    rows = []
    for number, text in enumerate(tiny.sentences(count, seed)):
        there = [name for bit, name in enumerate(("fox", "dog")) if number >> bit & 1]
        text = " ".join([*there, *text.replace("fox", "old").replace("dog", "old").split()])
        label = {
            "single_label": "fox" if "fox" in there else "none",
            "multi_label": there,
            "regression": float("fox" in there),
        }[task]
        second = {"text_pair": "a dog sings"} if pair else {}
        rows.append(json.dumps({"text": text, **second, "label": label}) + "\n")
    path.write_text("".join(rows))
    return str(path)


@pytest.fixture
def make(tmp_path):
    def make(model="bert", task="single_label", pair=False, kind=None, data=None, **settings):
        model = EVERY.get(model, model) if isinstance(model, str) else model
        causal = isinstance(model, dict) and model["model_type"] in tiny.CAUSAL
        kind = kind or ("bpe" if causal else "wordpiece")
        built = SequenceClassificationDataModule(
            **{
                "train_file": write(tmp_path / "train.jsonl", task=task, pair=pair),
                "val_file": write(tmp_path / "val.jsonl", 20, 1, task, pair),
                "task": task,
                "tokenizer": tiny.tokenizer_folder(tmp_path / kind, kind),
                "max_length": 24,
                "batch_size": 8,
                "seed": 3,
                **(data or {}),
            }
        )
        rates = {"learning_rate": 1e-2, "warmup": 0}
        return SequenceClassificationModule(model, **{**rates, **settings}), built

    return make


@pytest.fixture
def fitted(make):
    def fitted(*args, steps=1, **kwargs):
        module, data = make(*args, **kwargs)
        trainer = make_trainer(max_steps=steps, max_epochs=-1)
        trainer.fit(module, data)
        scores = trainer.validate(module, data, verbose=False)[0]
        return module.eval(), data, scores

    return fitted


TASKS = ("single_label", "multi_label", "regression")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("pair", [False, True])
def test_the_loss_is_that_of_transformers(fitted, task, pair):
    module, data, _ = fitted(task=task, pair=pair)
    batch = next(iter(data.train_dataloader()))
    assert (batch["index"] >= 0).all()
    output = module.step(batch)
    inputs = {k: v for k, v in batch.items() if k != "index"}
    theirs = module.network(**inputs)
    assert ("token_type_ids" in batch) == pair
    assert torch.allclose(output.loss, theirs.loss, atol=1e-6)
    assert torch.allclose(output.logits, theirs.logits, atol=1e-6) and output.items == 8


#: A tiny network with the usual weights, of 0.02, takes long to begin to learn.
QUICK = {name: {**EVERY[name], "initializer_range": 0.2} for name in ("bert", "gpt2")}


@pytest.mark.parametrize("model", QUICK)
def test_it_learns_what_is_there_to_learn(fitted, model):
    _, _, scores = fitted(QUICK[model], steps=80, dropout=0.0)
    assert scores["val/accuracy"] == scores["val/macro_f1"] == scores["val/mcc"] == 1.0
    assert scores["val/loss"] < 0.1


def test_it_learns_several_labels(fitted):
    _, _, scores = fitted(QUICK["gpt2"], task="multi_label", steps=80, dropout=0.0)
    assert min(scores[f"val/{n}"] for n in ("accuracy", "f1", "macro_f1")) > 0.9


def test_it_learns_values(fitted):
    _, _, scores = fitted(QUICK["bert"], task="regression", steps=80, dropout=0.0)
    assert scores["val/pearson"] > 0.9 and scores["val/spearman"] > 0.7
    assert scores["val/mse"] == pytest.approx(scores["val/loss"]) and scores["val/mse"] < 0.1


@pytest.mark.parametrize("model", EVERY)
@pytest.mark.parametrize("task", ["single_label", "regression"])
def test_every_architecture_takes_pairs(fitted, model, task):
    """Those that know no types of texts are not given any."""
    module, _, scores = fitted(model, task=task, pair=True)
    assert torch.tensor(scores["val/loss"]).isfinite()
    assert isinstance(module("a fox", "a dog"), dict)


@pytest.mark.parametrize("model", EVERY)
def test_raw_pairs_are_read_as_the_data_are(make, model, tmp_path):
    module, data = make(model, pair=True, data={"max_length": 64})  # as many positions
    data.prepare_data()
    data.setup("fit")
    module.configure_model()
    module.tokenizer = data.tokenizer
    with torch.no_grad():
        for parameter in module.network.parameters():
            parameter.mul_(3)
    batch = next(iter(data.val_dataloader()))
    assert ("token_type_ids" in batch) >= (model == "bert")
    with torch.no_grad():
        expected = module.eval().step(batch).logits.softmax(-1)
    rows = [json.loads(line) for line in Path(data.hparams["val_file"]).read_text().splitlines()]
    said = module([row["text"] for row in rows], [row["text_pair"] for row in rows])
    for index, probabilities in zip(batch["index"].tolist(), expected, strict=True):
        if index >= 0:
            told = [*said[index]["probabilities"].values()]
            assert told == pytest.approx(probabilities.tolist(), abs=1e-5)
    export(module, tmp_path / "out")
    pipe = transformers.pipeline("text-classification", str(tmp_path / "out"), device="cpu")
    for row, mine in zip(rows[:4], said, strict=False):
        theirs = pipe({"text": row["text"], "text_pair": row["text_pair"]}, truncation=True)
        assert theirs["score"] == pytest.approx(mine["score"], abs=1e-5)


def test_an_export_has_types_of_texts_only_for_networks_that_know_them(fitted, tmp_path):
    module, _, _ = fitted("gpt2", steps=3)
    module.tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    export(module, tmp_path / "out")
    pipe = transformers.pipeline("text-classification", str(tmp_path / "out"), device="cpu")
    (theirs,) = pipe(["fox sings"])
    assert theirs["score"] == pytest.approx(module("fox sings")["score"], abs=1e-5)


@pytest.mark.parametrize("model", EVERY)
def test_padding_and_company_do_not_change_logits(fitted, model):
    module, data, _ = fitted(model)
    loader = data.val_dataloader()
    collate = loader.collate
    lengths = data.table("val").ragged("input_ids").lengths
    short, long = int(lengths.argmin()), int(lengths.argmax())
    assert lengths[long] > lengths[short] + 3
    with torch.no_grad():
        alone = module.step(collate(0, torch.tensor([short]))).logits
        together = module.step(collate(0, torch.tensor([long, short, -1]))).logits
    assert torch.allclose(alone[0], together[1], atol=1e-5)
    assert together.isfinite().all()


@pytest.mark.parametrize("model", EVERY)
def test_raw_text_is_read_as_the_data_are(fitted, model, tmp_path):
    (tmp_path / "ask.txt").write_text("fox sings\nan old fox\n")
    ask = {"predict_file": str(tmp_path / "ask.txt"), "eval_batch_size": 3}
    module, data, _ = fitted(model, data=ask)
    written = make_trainer().predict(module, data)[0][:2]
    texts = [data.inputs(row)["text"] for row in range(2)]
    said = module(texts)
    assert [row["label"] for row in said] == [row["label"] for row in written]
    for mine, theirs in zip(said, written, strict=True):
        assert mine["probabilities"] == pytest.approx(theirs["probabilities"], abs=1e-5)
    assert module(texts[0])["probabilities"] == pytest.approx(said[0]["probabilities"], abs=1e-5)


def test_raw_texts_are_padded_on_the_right_as_in_training(fitted):
    module, _, _ = fitted("gpt2")
    texts = ["a fox", "many small birds sing in old trees"]
    before = module(texts)
    module.tokenizer.padding_side = "left"
    assert module(texts) == before
    module.tokenizer.padding_side = "right"


def test_reading_raw_text_leaves_the_mode_and_takes_many_texts(fitted):
    module, _, _ = fitted()
    texts = tiny.sentences(70)
    module.train()
    said = module(texts)
    assert len(said) == 70 and module.network.training
    module.eval()
    assert module(texts[69])["probabilities"] == pytest.approx(said[69]["probabilities"], abs=1e-5)
    assert module([]) == []
    assert module(texts[0] * 40)["label"] in ("fox", "none")  # longer than the network


def test_raw_pairs_have_to_be_as_many_as_the_texts(fitted):
    module, _, _ = fitted(pair=True)
    assert len(module(["a", "b"], ["c", "d"])) == 2
    with pytest.raises(ValueError, match="got 2 texts and 1 second texts"):
        module(["a", "b"], ["c"])


def test_raw_text_of_several_labels_and_values(fitted):
    module, _, _ = fitted(task="multi_label", threshold=0.01)
    assert module("a fox") == {
        "labels": ["dog", "fox"],
        "probabilities": pytest.approx(module("a fox")["probabilities"]),
    }
    module, _, _ = fitted(task="regression")
    assert set(module("a fox")) == {"value"}


def test_text_needs_a_tokenizer():
    module = SequenceClassificationModule({**ENCODERS["bert"], "vocab_size": 99})
    module.configure_model()
    with pytest.raises(ValueError, match="has no tokenizer"):
        module("a fox")


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (None, None),
        ([3.0, 1.0], [3.0, 1.0]),
        ({"none": 0.25}, [1.0, 0.25]),
        ("balanced", [1.0, 1.0]),
    ],
)
def test_class_weights_are_those_of_the_named_classes(fitted, setting, expected):
    module, data, _ = fitted(class_weights=setting)
    assert data.labels == ["fox", "none"]
    assert (module.weights if expected is None else module.weights.tolist()) == expected
    batch = next(iter(data.train_dataloader()))
    output = module.step(batch)
    weight = None if expected is None else torch.tensor(expected)
    theirs = torch.nn.functional.cross_entropy(output.logits, batch["labels"], weight)
    assert torch.allclose(output.loss, theirs, atol=1e-6)


def test_class_weights_of_several_labels_weigh_the_positive_ones(fitted):
    module, data, _ = fitted(task="multi_label", class_weights={"fox": 3.0})
    batch = next(iter(data.train_dataloader()))
    output = module.step(batch)
    theirs = torch.nn.functional.binary_cross_entropy_with_logits(
        output.logits, batch["labels"], pos_weight=torch.tensor([1.0, 3.0])
    )
    assert data.labels == ["dog", "fox"] and torch.allclose(output.loss, theirs, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "task", "message"),
    [
        ({"class_weights": {"wolf": 2.0}}, "single_label", "unknown class 'wolf'"),
        ({"class_weights": [1.0]}, "single_label", "one weight for each of"),
        ({"class_weights": "even"}, "single_label", "class_weights must be 'balanced'"),
        ({"class_weights": [1.0]}, "regression", "class_weights is for classes"),
        ({"focal_gamma": 1.0}, "regression", "focal_gamma is for classes"),
        ({"label_smoothing": 0.1}, "regression", "label_smoothing is for one label"),
        ({"label_smoothing": 0.1}, "multi_label", "label_smoothing is for one label"),
    ],
)
def test_settings_that_do_not_go_with_the_task_are_refused(fitted, settings, task, message):
    with pytest.raises(ValueError, match=message):
        fitted(task=task, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing must lie in"),
        ({"focal_gamma": -1.0}, "focal_gamma must be at least 0"),
        ({"threshold": 0.0}, "threshold must lie in"),
        ({"threshold": 1.0}, "threshold must lie in"),
        ({"pooling": "max"}, "pooling must be one of cls, mean"),
    ],
)
def test_arguments_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SequenceClassificationModule(ENCODERS["bert"], **settings)


def test_label_smoothing_and_focal_loss_reach_the_loss(fitted):
    module, data, _ = fitted(label_smoothing=0.2)
    batch = next(iter(data.train_dataloader()))
    output = module.step(batch)
    theirs = torch.nn.functional.cross_entropy(output.logits, batch["labels"], label_smoothing=0.2)
    assert torch.allclose(output.loss, theirs, atol=1e-6)
    module, data, _ = fitted(focal_gamma=2.0)
    output = module.step(batch)
    p = output.logits.softmax(-1).gather(1, batch["labels"][:, None])
    assert torch.allclose(output.loss, -((1 - p) ** 2 * p.log()).mean(), atol=1e-6)


def test_balanced_weights_need_the_counts_of_a_data_module():
    module = SequenceClassificationModule(
        {**ENCODERS["bert"], "vocab_size": 99, "num_labels": 2}, class_weights="balanced"
    )
    rows = [{"input_ids": torch.ones(1, 3).long(), "attention_mask": torch.ones(1, 3).long()}]
    with pytest.raises(ValueError, match="class_weights='balanced' needs a data module"):
        make_trainer(max_steps=1).fit(module, rows)


def test_the_validation_loss_is_weighted_in_a_fit_and_alone(make):
    module, data = make(class_weights={"fox": 9.0})
    trainer = make_trainer(max_steps=2, val_check_interval=2)
    trainer.fit(module, data)
    inside = float(trainer.callback_metrics["val/loss"])
    trainer.save_checkpoint("a.ckpt")
    alone = SequenceClassificationModule.load_from_checkpoint("a.ckpt")
    scores = make_trainer().validate(alone, make()[1], verbose=False)[0]
    assert scores["val/loss"] == pytest.approx(inside, abs=1e-6)


def test_a_factor_of_all_class_weights_changes_no_step(make):
    """Also where the weights of an accumulation window add up to less than 1."""

    def trained(weight):
        torch.manual_seed(0)
        settings = {"class_weights": {"fox": weight, "none": 2 * weight}, "dropout": 0.0}
        sgd = {"class_path": "torch.optim.SGD"}
        module, data = make(optimizer=sgd, schedule="constant", learning_rate=1.0, **settings)
        make_trainer(max_steps=1, accumulate_grad_batches=2).fit(module, data)
        return module.network.classifier.bias.detach()

    assert torch.allclose(trained(0.01), trained(1.0), rtol=1e-3)


def test_layers_below_have_lower_rates(make):
    module, data = make(layer_decay=0.5, learning_rate=1e-3, schedule="constant")
    trainer = make_trainer(max_steps=1)
    trainer.fit(module, data)
    rates = {}
    for group in trainer.optimizers[0].param_groups:
        for parameter in group["params"]:
            rates[parameter] = group["initial_lr"]
    named = dict(module.named_parameters())
    assert len(rates) == len(named)
    by_name = {name: rates[parameter] for name, parameter in named.items()}
    order = [
        by_name["network.classifier.weight"],
        by_name["network.bert.encoder.layer.1.output.dense.weight"],
        by_name["network.bert.encoder.layer.0.output.dense.weight"],
        by_name["network.bert.embeddings.word_embeddings.weight"],
    ]
    assert order == pytest.approx([1e-3, 5e-4, 2.5e-4, 1.25e-4])


def test_pooling_is_chosen_where_there_is_a_choice(make):
    logits = {}
    for pooling in ("cls", "mean"):
        torch.manual_seed(0)
        module, data = make("modernbert", pooling=pooling)
        make_trainer(max_steps=0).fit(module, data)
        module.eval()
        assert module.network.config.classifier_pooling == pooling
        logits[pooling] = module.step(next(iter(data.val_dataloader()))).logits
    assert not torch.allclose(logits["cls"], logits["mean"])


def test_pooling_is_refused_where_there_is_none(make):
    module, data = make("bert", pooling="mean")
    with pytest.raises(ValueError, match="pooling='mean': the architecture 'bert' has one way"):
        make_trainer(max_steps=1).fit(module, data)


def test_the_data_have_to_be_of_the_networks_task(fitted, make):
    module, _, _ = fitted()
    _, data = make(data={"task": "multi_label"})
    with pytest.raises(ValueError, match=r"task='multi_label' and the model for 'single_label'"):
        make_trainer().validate(module, data)


@pytest.mark.parametrize("task", TASKS)
def test_a_checkpoint_loads_alone_with_its_labels(fitted, task, tmp_path):
    module, _, _ = fitted(task=task)
    module.trainer.save_checkpoint("a.ckpt")
    loaded = SequenceClassificationModule.load_from_checkpoint("a.ckpt").eval()
    assert loaded.task == task
    assert loaded.network.config.id2label == module.network.config.id2label
    assert loaded("fox sings") == module("fox sings")


def test_a_checkpoint_predicts_a_file_without_other_data(fitted, tmp_path):
    for task in TASKS:
        module, _, _ = fitted(task=task)
        module.trainer.save_checkpoint("a.ckpt")
        (tmp_path / "ask.txt").write_text("fox sings\n")
        data = SequenceClassificationDataModule(predict_file="ask.txt", max_length=24)
        loaded = SequenceClassificationModule.load_from_checkpoint("a.ckpt")
        (rows,) = make_trainer().predict(loaded, data)
        expected = module("fox sings")
        assert rows[0].keys() == expected.keys()
        for name, value in expected.items():
            assert rows[0][name] == (value if name.startswith("label") else pytest.approx(value))


class SaveAfter(Callback):
    """Saves a checkpoint in the middle of an epoch."""

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 5:
            trainer.save_checkpoint("a.ckpt")


def test_a_run_that_was_interrupted_goes_on_where_it_stopped(make):
    def fit(*callbacks, checkpoint=None):
        torch.manual_seed(0)
        settings = {"class_weights": "balanced", "layer_decay": 0.8, "dropout": 0.1}
        module, data = make(**settings)
        trainer = make_trainer(*callbacks, max_steps=11, max_epochs=-1)
        trainer.fit(module, data, ckpt_path=checkpoint)
        return module.state_dict()

    whole, resumed = fit(SaveAfter()), fit(checkpoint="a.ckpt")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("model", ["bert", "roberta", "gpt2"])
def test_a_pipeline_says_what_the_module_says(fitted, model, tmp_path):
    module, _, _ = fitted(model, steps=5)
    export(module, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["id2label"] == {"0": "fox", "1": "none"}
    assert config["label2id"] == {"fox": 0, "none": 1}
    assert config["problem_type"] == "single_label_classification"
    pipe = transformers.pipeline("text-classification", str(tmp_path / "out"), device="cpu")
    for text in ("fox sings", "many small birds sing in old trees"):
        (theirs,) = pipe([text])
        mine = module(text)
        assert theirs["label"] == mine["label"]
        assert theirs["score"] == pytest.approx(mine["score"], abs=1e-5)


def test_a_pipeline_of_several_labels_and_of_values(fitted, tmp_path):
    module, _, _ = fitted(task="multi_label")
    export(module, tmp_path / "many")
    pipe = transformers.pipeline("text-classification", str(tmp_path / "many"), top_k=None)
    (rows,) = pipe(["fox sings"])
    theirs = {row["label"]: row["score"] for row in rows}
    assert theirs == pytest.approx(module("fox sings")["probabilities"], abs=1e-5)
    module, _, _ = fitted(task="regression")
    export(module, tmp_path / "value")
    pipe = transformers.pipeline("text-classification", str(tmp_path / "value"))
    assert pipe(["fox sings"])[0]["score"] == pytest.approx(module("fox sings")["value"], abs=1e-5)


def folder(path, names):
    config = {**ENCODERS["bert"], "vocab_size": len(tiny.tokenizer())}
    module = SequenceClassificationModule({**config, "id2label": dict(enumerate(names))})
    module.configure_model()
    with torch.no_grad():
        module.network.classifier.bias += 1.0 + torch.arange(len(names))
    module.network.save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return module.network


@pytest.mark.parametrize(
    "names", [["a", "b", "c"], pytest.param(["a", "b"], id="as many classes of other names")]
)
def test_a_head_for_other_classes_is_replaced_by_a_fresh_one(make, names, tmp_path, caplog):
    before = folder(tmp_path / "model", names)
    caplog.set_level("INFO")
    module, data = make(str(tmp_path / "model"))
    make_trainer(max_steps=0).fit(module, data)
    assert module.network.config.id2label == {0: "fox", 1: "none"}
    assert module.network.classifier.weight.shape == (2, 16)
    assert not module.network.classifier.bias.any()
    some = ", ".join(map(repr, names))
    said = f"model has a head for {len(names)} other classes ({some}), so classifier.bias, classif"
    assert said in caplog.text and "has no weights" not in caplog.text
    old = before.bert.embeddings.word_embeddings.weight
    assert torch.equal(module.network.bert.embeddings.word_embeddings.weight, old)


def test_a_head_for_the_same_classes_is_kept_in_its_order(make, tmp_path):
    before = folder(tmp_path / "model", ["none", "fox"])
    module, data = make(str(tmp_path / "model"))
    make_trainer(max_steps=0).fit(module, data)
    assert data.labels == ["none", "fox"]
    assert torch.equal(module.network.classifier.bias, before.classifier.bias)


@pytest.mark.parametrize("model", list(tiny.CAUSAL))
def test_a_decoder_from_a_folder_without_padding_is_given_some(make, model, tmp_path):
    """GPT-2 has no padding token, and its head looks for the last token that is none."""
    tokenizer = tiny.tokenizer("bpe")
    config = transformers.AutoConfig.for_model(
        **{**tiny.CAUSAL[model], "vocab_size": len(tokenizer)}, eos_token_id=0, bos_token_id=0
    )
    config.pad_token_id = None
    network = AutoModelForSequenceClassification.from_config(config)
    network.save_pretrained(tmp_path / "model")
    module, data = make(str(tmp_path / "model"), kind="bpe")
    make_trainer(max_steps=1).fit(module, data)
    assert module.network.config.pad_token_id == data.tokenizer.pad_token_id
    assert isinstance(module(["a fox", "a fox and a dog"])[0]["label"], str)


def test_a_test_gives_tables_and_figures(fitted):
    for task, figures in (
        ("single_label", {"classes", "confusion", "reliability"}),
        ("multi_label", {"classes"}),
        ("regression", {"values"}),
    ):
        module, data, _ = fitted(task=task)
        trainer = make_trainer()
        scores = trainer.test(module, data, verbose=False)[0]
        assert "test/loss" in scores
        assert set(module.figures()) == figures
        rows = module.tables().get("classes", [])
        assert [row["label"] for row in rows] == ([] if task == "regression" else data.labels)
        if task == "single_label":
            assert [row["examples"] for row in rows] == [10, 10]


def test_a_second_test_begins_anew(fitted):
    module, data, _ = fitted()
    for _ in range(2):
        make_trainer().test(module, data, verbose=False)
        assert [row["examples"] for row in module.tables()["classes"]] == [10, 10]


def test_the_best_checkpoint_is_kept_by_a_metric_of_the_task(make, tmp_path):
    module, data = make()
    keep = CheckpointCallback(dirpath="kept", monitor="val/accuracy", mode="max")
    trainer = make_trainer(keep, max_steps=16, max_epochs=-1, val_check_interval=4)
    trainer.fit(module, data)
    loaded = SequenceClassificationModule.load_from_checkpoint(keep.best_model_path)
    assert loaded.network.config.id2label == {0: "fox", 1: "none"}
