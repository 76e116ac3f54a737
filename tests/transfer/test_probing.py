"""Encoders beside one another: what is measured of them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

import lmkit as package
from lmkit.callbacks import LowRankCallback
from lmkit.datamodules import (
    MaskedLMDataModule,
    SequenceClassificationDataModule,
    TokenClassificationDataModule,
)
from lmkit.functional.transferability import leave_one_out, log_evidence
from lmkit.modules import (
    CausalLMModule,
    SequenceClassificationModule,
    TokenClassificationModule,
)
from lmkit.transfer import TransferReport, TransferRow, transferability
from lmkit.transfer.results import score_of
from tests import task_files, tiny
from tests.callbacks.tuned import fit, save_encoder
from tests.several_tasks import make_module as make_tasks_module
from tests.tiny_run import lmkit


def telling_encoder(folder: Path) -> str:
    """Save an encoder whose first token holds how often the text has each token.

    Its one layer attends to all tokens alike and leaves out what it does beside: so the first
    state is, up to its normalization, the first embedding and the mean of all.
    """
    words = len(tiny.tokenizer())
    config = BertConfig(
        vocab_size=words,
        hidden_size=2 * words,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=1,
        max_position_embeddings=66,
    )
    network = BertModel(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        for name, module in network.named_modules():
            if name.endswith("LayerNorm"):
                module.weight.fill_(1)
        network.embeddings.word_embeddings.weight[:, :words] = torch.eye(words)
        attention = network.encoder.layer[0].attention
        attention.self.value.weight.copy_(torch.eye(2 * words))
        attention.output.dense.weight[words:, :words] = 10 * torch.eye(words)
    network.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


def data(folder: Path, **settings: Any) -> SequenceClassificationDataModule:
    known: dict[str, Any] = task_files.labelled_texts(folder)
    return SequenceClassificationDataModule(**{**known, **settings})


def test_an_encoder_that_knows_the_classes_wins_over_a_random_one(tmp_path):
    models = {
        "random": save_encoder(tmp_path / "random"),
        "knows": telling_encoder(tmp_path / "knows"),
    }
    kinds = ("fox", "moons", "trees")
    rows = ["text,label"]
    for number, text in enumerate(tiny.sentences(120)):
        words = [word for word in text.split() if word not in kinds]
        words.insert(number % len(words), kinds[number % 3])
        rows.append(f"{' '.join(words)},{kinds[number % 3]}")
    (tmp_path / "rows.csv").write_text("\n".join(rows) + "\n")
    report = transferability(models, tmp_path / "rows.csv")
    best, other = report.rows
    assert (best.name, other.name) == ("knows", "random")
    assert best.log_evidence > other.log_evidence + 0.1
    assert best.score > 0.95 and other.score < best.score - 0.1
    assert report.metric == "accuracy" and best.items == other.items == 120
    assert best.baseline == other.baseline < 0.5
    assert other.width == 16


@pytest.mark.parametrize("pooling", ["first", "mean", "last"])
def test_the_figures_are_those_of_the_last_states(pooling, tmp_path):
    path = save_encoder(tmp_path / "it")
    (row,) = transferability({"it": path}, data(tmp_path), pooling=pooling, batch_size=7).rows
    network, tokenizer = BertModel.from_pretrained(path).eval(), tiny.tokenizer()
    texts, labels = read(tmp_path / "train-rows.csv")
    states = []
    for text in texts:  # one by one, without padding
        with torch.no_grad():
            found = network(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        states.append({"first": found[0], "mean": found.mean(0), "last": found[-1]}[pooling])
    names = sorted(set(labels))
    targets = torch.eye(len(names))[[names.index(label) for label in labels]]
    evidence = float(log_evidence(torch.stack(states), targets).value.mean())
    assert row.log_evidence == pytest.approx(evidence, abs=1e-4)
    left_out = leave_one_out(torch.stack(states), targets)
    right = left_out.predictions.argmax(1) == targets.argmax(1)
    assert row.score == pytest.approx(float(right.double().mean()), abs=0.02)
    assert row.penalty == left_out.penalty


def read(path: Path) -> tuple[list[str], list[str]]:
    """Texts and labels of a table."""
    import csv

    with path.open() as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], [row["label"] for row in rows]


def test_exports_checkpoints_modules_and_heads_are_the_same_encoder(tmp_path):
    module, trainer = fit(tmp_path, max_steps=2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    models = {
        "module": module.train(),
        "checkpoint": tmp_path / "last.ckpt",
        "export": package.export(module, tmp_path / "export"),
        "encoder": package.export(module, tmp_path / "encoder", head=False),
        "other": save_encoder(tmp_path / "other", seed=5),
    }
    factors, _ = fit(tmp_path, LowRankCallback(rank=4, calibration_batches=1), max_steps=1)
    structure = package.export(factors, tmp_path / "factors", head=False)
    assert (structure / "structure.json").is_file()
    pair = transferability({"module": factors, "folder": structure}, data(tmp_path)).rows
    assert pair[0].log_evidence == pytest.approx(pair[1].log_evidence, abs=1e-6)
    rows = {row.name: row for row in transferability(models, data(tmp_path)).rows}
    figures = {name: (row.log_evidence, row.score) for name, row in rows.items()}
    for name in ("checkpoint", "export", "encoder"):
        assert figures[name] == pytest.approx(figures["module"], abs=1e-6)
    assert figures["other"] != pytest.approx(figures["module"], abs=1e-3)
    after = module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert module.training and module.network.training


def test_tagged_words_are_read_at_their_first_piece(tmp_path):
    files = task_files.tagged_words(tmp_path)
    path = save_encoder(tmp_path / "it")
    report = transferability({"it": path}, files["train_file"], batch_size=5, examples=10_000)
    (row,) = report.rows
    whole: dict[str, Any] = {"train_file": files["train_file"], "val_fraction": 0.0}
    target = TokenClassificationDataModule(**whole, tokenizer=path)
    target.max_length = 64
    target.setup("fit")
    # The same, by the rows of training, whose labels are those of first pieces.
    module = TokenClassificationModule(path)
    module.configure_model()
    module.network.eval()
    states, labels = [], []
    for batch in target.every_row("train"):
        with torch.no_grad():
            found = module.network.bert(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            )[0]
        known = batch["labels"] >= 0
        states.append(found[known])
        labels.append(batch["labels"][known])
    targets = torch.nn.functional.one_hot(torch.cat(labels)).double()
    expected = float(log_evidence(torch.cat(states), targets).value.mean())
    assert row.items == len(targets) and row.log_evidence == pytest.approx(expected, abs=1e-4)
    assert report.settings["task"] == "tagging"
    # Long sentences are read whole, in windows.
    short = TokenClassificationDataModule(**whole, max_length=8)
    (cut,) = transferability({"it": path}, short, examples=10_000).rows
    assert cut.items == row.items and cut.log_evidence != row.log_evidence
    (few,) = transferability({"it": path}, short, examples=50).rows
    assert 50 <= few.items < 80


def test_a_word_that_the_tokenizer_makes_nothing_of_is_no_item(tmp_path):
    path, files = save_encoder(tmp_path / "it"), task_files.tagged_words(tmp_path)
    text = Path(files["train_file"]).read_text(encoding="utf-8")
    first, _, rest = text.partition("\n\n")
    (tmp_path / "void.conll").write_text(f"{first}\n\x00 O\n\n{rest}", encoding="utf-8")
    found = [
        transferability(
            {"it": path}, TokenClassificationDataModule(train_file=file, val_file=file)
        ).rows[0]
        for file in (files["train_file"], str(tmp_path / "void.conll"))
    ]
    assert found[0].items == found[1].items
    assert found[0].log_evidence == pytest.approx(found[1].log_evidence, abs=1e-6)


def test_values_and_several_labels_have_scores_of_their_own(tmp_path):
    path = save_encoder(tmp_path / "it")
    scored = task_files.scored_pairs(tmp_path / "pairs")
    report = transferability({"it": path}, scored["train_file"], task="regression")
    assert report.metric == "r2" and report.rows[0].score < 1 and report.rows[0].baseline == 0.0
    rows = ["text,label", *(f"the fox {n},{'a b' if n % 3 else 'b'}" for n in range(30))]
    (tmp_path / "several.csv").write_text("\n".join(rows) + "\n")
    several = SequenceClassificationDataModule(
        train_file=str(tmp_path / "several.csv"), task="multi_label", label_separator=" "
    )
    assert transferability({"it": path}, several).metric == "micro_f1"


def test_scores_are_what_they_are_by_definition():
    sklearn = pytest.importorskip("sklearn.metrics")
    draw = torch.Generator().manual_seed(0)
    said = torch.rand(50, 4, generator=draw, dtype=torch.float64)
    truth = (torch.rand(50, 4, generator=draw) > 0.4).double()
    score, baseline = score_of(said, truth, "multi_label")
    assert score == pytest.approx(sklearn.f1_score(truth, said > 0.5, average="micro"))
    always = (truth.mean(0) > 0.5).expand_as(truth)
    assert baseline == pytest.approx(sklearn.f1_score(truth, always, average="micro"))
    score, baseline = score_of(said[:, :1], truth[:, :1] + said[:, 1:2], "regression")
    assert score == pytest.approx(sklearn.r2_score(truth[:, :1] + said[:, 1:2], said[:, :1]))
    classes = torch.eye(4)[truth.sum(1).long() % 4]
    score, baseline = score_of(said, classes, "single_label")
    assert score == pytest.approx(sklearn.accuracy_score(classes.argmax(1), said.argmax(1)))
    assert baseline == float(classes.double().mean(0).max())


def test_without_an_example_its_class_is_the_rarer_one():
    classes = torch.eye(2)[torch.arange(20) % 2]
    left_out = leave_one_out(torch.zeros(20, 4), classes)
    assert score_of(left_out.predictions, classes, "single_label") == (0.0, 0.5)


def test_the_seed_draws_the_same_examples_for_all(tmp_path):
    path = save_encoder(tmp_path / "it")
    models = {"one": path, "two": path}
    first, second = transferability(models, data(tmp_path), examples=20).rows
    assert (first.log_evidence, first.items) == (second.log_evidence, 20)
    other, _ = transferability(models, data(tmp_path), examples=20, seed=1).rows
    assert other.log_evidence != first.log_evidence


def test_models_are_named_as_by_the_command(tmp_path):
    path, own = save_encoder(tmp_path / "it"), data(tmp_path)
    for models, names in {path: {"it"}, (path, f"other={path}"): {"it", "other"}}.items():
        assert {row.name for row in transferability(models, own).rows} == names
    assert transferability(tmp_path / "it", own).rows[0].name == "it"
    for wrong in (3, [path, 3], SequenceClassificationModule(path), None):
        with pytest.raises(TypeError, match="models must be a mapping of names to models, as in"):
            transferability(wrong, own)


def test_a_decoder_is_read_at_its_last_token(tmp_path):
    torch.manual_seed(0)
    module = CausalLMModule(dict(tiny.CAUSAL["gpt2"]))
    module.tokenizer = tiny.tokenizer("bpe")
    folder = package.export(module, tmp_path / "decoder", head=False)
    figures = {
        pooling: transferability({"it": folder}, data(tmp_path), pooling=pooling).rows[0]
        for pooling in (None, "last", "first")
    }
    assert figures[None] == figures["last"] != figures["first"]


@pytest.mark.parametrize(
    ("told", "pooling"), [("cls", "first"), ("bos", "first"), ("mean", "mean"), ("late", "mean")]
)
def test_a_text_is_read_as_the_config_tells_the_head(told, pooling, tmp_path):
    # ModernBERT's and EuroBERT's words; the second is not in every release of transformers.
    path = Path(save_encoder(tmp_path / "it"))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "classifier_pooling": told}))
    own, asked = (
        transferability({"it": path}, data(tmp_path), pooling=each).rows for each in (None, pooling)
    )
    assert own == asked


def test_texts_longer_than_the_positions_are_cut(tmp_path):
    files = task_files.labelled_texts(tmp_path)
    text = Path(files["train_file"]).read_text().splitlines()
    rows = [text[0], *(row.replace(" ", " fox " * 80, 1) for row in text[1:])]
    (tmp_path / "long.csv").write_text("\n".join(rows) + "\n")
    path = save_encoder(tmp_path / "it")
    (row,) = transferability({"it": path}, tmp_path / "long.csv").rows
    assert row.items == 60


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"models": {}}, "models must name at least one"),
        ({"models": []}, "models must name at least one"),
        ({"models": ["a/it", "b/it"]}, "two models are called 'it': give them names"),
        ({"models": "=it"}, "given as NAME=MODEL or MODEL, got '=it'"),
        ({"models": ["it="]}, "given as NAME=MODEL or MODEL, got 'it='"),
        ({"seed": "x"}, "seed must be a whole number, got 'x'"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"examples": 9}, "examples must be at least 10, got 9"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"pooling": "max"}, "pooling must be one of first, mean, last, got 'max'"),
        ({"device": "tpuu"}, "device must be one that is here, such as cpu, got 'tpuu': "),
        ({"device": "cuda"}, "device must be one that is here, such as cpu, got 'cuda': "),
        ({"device": "meta"}, "device must be one that is here, such as cpu, got 'meta': "),
        ({"task": "ner"}, "task must be one of single_label"),
        ({"models": {"it": "./nowhere"}}, "it: there is no model folder at ./nowhere"),
        # Before the data are read.
        ({"models": {"it": "it", "other": "it/it"}, "data": "one.csv"}, "other: the model 'it/it'"),
        ({"data": "few.csv"}, "^there are 6 examples with labels, and it takes 10 at least"),
        ({"data": "one.csv"}, "^one.csv: there is only one class"),
        ({"data": "empty.csv"}, "^empty.csv"),
        (
            {"data": "same.csv", "task": "regression"},
            "^the examples have only one value",
        ),
        ({"data": "bare.csv"}, "^bare.csv: which column is the label"),
        ({"data": "run.yaml", "task": "tagging"}, "is for a file with labels"),
    ],
)
def test_bad_input_is_answered_in_plain_words(settings, match, tmp_path):
    for name, labels in {
        "few.csv": "abc" * 2,
        "one.csv": "a" * 20,
        "same.csv": "1" * 20,
        "train.csv": "ab" * 10,
    }.items():
        rows = [f"the fox {n},{label}" for n, label in enumerate(labels)]
        (tmp_path / name).write_text("\n".join(["text,label", *rows]) + "\n")
    (tmp_path / "bare.csv").write_text("text\nthe fox\nthe dog\n")
    (tmp_path / "empty.csv").write_text("")
    known: dict[str, Any] = {"models": {"it": save_encoder(tmp_path / "it")}, "data": "train.csv"}
    with pytest.raises(ValueError, match=match):
        transferability(**{**known, **settings})


@pytest.mark.parametrize("file", ["few.csv", "empty.csv"])
def test_what_is_wrong_with_the_data_is_told_before_a_model_is_loaded(file, tmp_path, monkeypatch):
    (tmp_path / "few.csv").write_text("text,label\nthe fox,a\nthe dog,b\n")
    (tmp_path / "empty.csv").write_text("")
    monkeypatch.setattr("lmkit.transfer.probing.open_encoder", None)
    module = SequenceClassificationModule(save_encoder(tmp_path / "it"))
    models = {"bare": module, "it": tmp_path / "it"}
    with pytest.raises(ValueError, match=r"^there are 2 examples|^empty\.csv"):
        transferability(models, file)


def test_what_is_no_encoder_or_no_task_is_refused(tmp_path):
    path, own = save_encoder(tmp_path / "it"), data(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no file nowhere"):
        transferability({"it": path}, "nowhere.csv")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at nowhere\.ckpt"):
        transferability({"it": "nowhere.ckpt"}, own)
    with pytest.raises(TypeError, match="a model must be a module of lmkit, or the path"):
        transferability({"it": BertModel.from_pretrained(path)}, own)
    with pytest.raises(TypeError, match="data must be those of a classification"):
        transferability({"it": path}, MaskedLMDataModule("text.txt"))
    bart = {"model_type": "bart", "d_model": 8, "encoder_layers": 1, "decoder_layers": 1}
    bart |= {"encoder_attention_heads": 1, "decoder_attention_heads": 1, "vocab_size": 99}
    module = SequenceClassificationModule(bart)
    with pytest.raises(ValueError, match=r"it: a BartFor.* is an encoder-decoder, and these"):
        transferability({"it": module}, own)
    module.network.save_pretrained(tmp_path / "bart")
    with pytest.raises(ValueError, match=r"it: .*bart is an encoder-decoder, and these are not"):
        transferability({"it": tmp_path / "bart"}, own)
    one = f"{{class_path: SequenceClassificationDataModule, init_args: {{train_file: {path}}}}}"
    tasks = f"{{class_path: MultiTaskDataModule, init_args: {{tasks: {{a: {one}, b: {one}}}}}}}"
    (tmp_path / "tasks.yaml").write_text(f"data: {tasks}\n")
    with pytest.raises(TypeError, match="these are of several: give the file of one"):
        transferability({"it": path}, tmp_path / "tasks.yaml")
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"")
    with pytest.raises(ValueError, match="is ONNX, which has no encoder to begin from"):
        transferability({"it": tmp_path / "onnx"}, own)
    with pytest.raises(ValueError, match="an adapter of each task inside"):
        transferability({"it": make_tasks_module("ner", "topic", task_adapters=2)}, own)
    copies = data(tmp_path, transforms="RandomDeletion", augmentations_per_example=1)
    with pytest.raises(ValueError, match="augmentations_per_example makes copies"):
        transferability({"it": path}, copies)


def test_a_report_is_sorted_and_written(tmp_path):
    rows = [TransferRow(n, v, 0.5, 0.25, 1.0, 10, 4) for n, v in (("a", -1.0), ("b", 2.0))]
    report = TransferReport.of(rows, {"task": "tagging", "seed": 3})
    assert [row.name for row in report.rows] == ["b", "a"] and report.table().row_count == 2
    assert "│ b " in str(report) and "LogME" in str(report) and "\x1b" not in str(report)
    said = json.loads(report.to_json(tmp_path / "new" / "report.json").read_text())
    assert said["metric"] == "accuracy" and said["settings"]["seed"] == 3
    assert said["rows"][0] == {
        "name": "b",
        "log_evidence": 2.0,
        "score": 0.5,
        "baseline": 0.25,
        "penalty": 1.0,
        "items": 10,
        "width": 4,
    }


def test_the_command_line_probes(tmp_path, capsys):
    files = task_files.labelled_texts(tmp_path)
    one, two = save_encoder(tmp_path / "one"), save_encoder(tmp_path / "two", seed=3)
    line = f"probe {one} again={two} --data {files['train_file']} --examples 40"
    assert lmkit(f"{line} --json report.json --pooling mean --device cpu") == 0
    shown = capsys.readouterr().out
    assert "LogME" in shown and "again" in shown and "report.json" in shown
    rows = json.loads(Path("report.json").read_text())["rows"]
    assert {row["name"] for row in rows} == {"one", "again"} and rows[0]["items"] == 40
    assert lmkit(f"probe {one} {one} --data {files['train_file']}") == 2
    assert "two models are called 'one'" in capsys.readouterr().err
    assert lmkit(f"probe {one} --data nowhere.csv") == 2
    assert "there is no file nowhere.csv" in capsys.readouterr().err
    assert lmkit("probe") == 2


def test_the_command_line_tells_how_a_file_is_read(tmp_path, capsys):
    path = save_encoder(tmp_path / "it")
    rows = [f"the fox {n},the dog {n},{'a;b' if n % 3 else 'b'}" for n in range(30)]
    (tmp_path / "some.csv").write_text("\n".join([*rows, "the fox"]) + "\n")
    line = f"probe {path} --data some.csv --column_names one two said --text_column two"
    line += " --label_column said --on_bad_row skip --json found.json"
    assert lmkit(f"{line} --task multi_label --label_separator ;") == 0
    found = json.loads(Path("found.json").read_text())
    given = {"column_names": ["one", "two", "said"], "label_column": "said", "val_fraction": 0.0}
    same = SequenceClassificationDataModule(
        train_file="some.csv",
        task="multi_label",
        text_column="two",
        label_separator=";",
        on_bad_row="skip",
        **given,
    )
    (row,) = transferability({"it": path}, same).rows
    assert found["rows"][0]["log_evidence"] == row.log_evidence and row.items == 30
    capsys.readouterr()
    with pytest.warns(UserWarning, match="'a;b' is taken for one label.*--label_separator"):
        assert lmkit(f"{line} --task multi_label") == 0
    (tmp_path / "run.yaml").write_text("data:\n  class_path: SequenceClassificationDataModule\n")
    (tmp_path / "some.conll").write_text("fox A\n\n")
    for file, said in {
        "run.yaml": "label_column is for a file with labels, and these data know theirs",
        "some.conll": "label_column is for a table of texts, and some.conll has tagged words",
    }.items():
        assert lmkit(f"probe {path} --data {file} --label_column x") == 2
        assert said in capsys.readouterr().err


def test_values_are_not_silently_taken_for_classes(tmp_path):
    path = save_encoder(tmp_path / "it")
    rows = ["text,label", *(f"the fox {n},{1 + n % 41 / 10}" for n in range(82))]
    (tmp_path / "values.csv").write_text("\n".join(rows) + "\n")
    for _ in range(2):  # of encoded rows that are kept too
        with pytest.warns(UserWarning, match="are 41 numbers.*task='regression'.*--task regr"):
            transferability({"it": path}, "values.csv")
    (row,) = transferability({"it": path}, "values.csv", task="regression").rows
    assert row.items == 82


def test_the_data_are_those_of_a_run(tmp_path):
    files = task_files.labelled_texts(tmp_path)
    path = save_encoder(tmp_path / "it")
    section = f"data:\n  class_path: SequenceClassificationDataModule\n  init_args: {files}\n"
    (tmp_path / "config.yaml").write_text(section)
    (row,) = transferability({"it": path}, tmp_path / "config.yaml").rows
    assert row == transferability({"it": path}, data(tmp_path)).rows[0]
