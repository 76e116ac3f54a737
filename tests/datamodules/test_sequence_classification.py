"""Labelled texts as batches: classes, splits, caches, resuming, and real files."""

import json
import logging
from pathlib import Path

import datasets
import pytest
import torch
from transformers import BertConfig

from lmkit.datamodules import SequenceClassificationDataModule
from lmkit.datamodules.text_rows import BadRows
from lmkit.modules import SequenceClassificationModule
from tests import tiny
from tests.cases import make_trainer

CSV = "text,label\n" + "".join(
    f"{text},{('good', 'bad')[n % 2]}\n" for n, text in enumerate(tiny.sentences(40))
)
PAIRS = "sentence1,sentence2,label\n" + "".join(
    f"{one},{two},{n % 3}\n"
    for n, (one, two) in enumerate(zip(tiny.sentences(30), tiny.sentences(30, 1), strict=True))
)


@pytest.fixture
def ready(tmp_path, tmp_path_factory):
    shared = tmp_path_factory.getbasetemp() / "word-pieces"
    if not shared.exists():
        tiny.tokenizer_folder(shared)

    def make(train=None, setup=True, **options):
        for split, content in [("train", train), ("val", options.pop("val", None))]:
            if content is not None:
                name, content = content if isinstance(content, tuple) else ("a.csv", content)
                path = tmp_path / split / name
                path.parent.mkdir(exist_ok=True)
                path.write_text(content, encoding=options.get("encoding", "utf-8"))
                options[f"{split}_file"] = str(path)
        settings = {
            "tokenizer": str(shared),
            "cache_dir": str(tmp_path / "cache"),
            "max_length": 24,
            "batch_size": 4,
            "seed": 1,
        }
        data = SequenceClassificationDataModule(**settings | options)
        if setup:
            data.prepare_data()
            data.setup("fit")
        return data

    return make


def seen(data, split):
    """Text and label of each example of an epoch."""
    found = []
    loader = {"train": data.train_dataloader, "val": data.val_dataloader}[split]()
    for batch in loader:
        for index, label in zip(batch["index"].tolist(), batch["labels"].tolist(), strict=True):
            if index >= 0:
                found.append((data.table(split).text("text", index), label))
    return sorted(found)


def test_a_batch_has_ids_mask_labels_and_numbers(ready):
    data = ready(CSV)
    batch = next(iter(data.train_dataloader()))
    assert set(batch) == {"input_ids", "attention_mask", "labels", "index"}
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["labels"].shape == batch["index"].shape == (4,)
    text = data.table("train").text("text", int(batch["index"][0]))
    ids = batch["input_ids"][0][batch["attention_mask"][0] == 1]
    assert ids.tolist() == data.tokenizer(text)["input_ids"]


def test_every_example_comes_with_its_label(ready):
    data = ready(CSV, val=CSV)
    rows = [line.split(",") for line in CSV.splitlines()[1:]]
    expected = sorted((text, ["bad", "good"].index(label)) for text, label in rows)
    assert data.labels == ["bad", "good"]
    assert seen(data, "train") == seen(data, "val") == expected


def test_without_val_file_some_of_each_class_are_held_out(ready):
    data = ready(CSV, val_fraction=0.25)
    train, val = seen(data, "train"), seen(data, "val")
    assert len(train) == 30 and [label for _, label in val].count(0) == 5 and len(val) == 10
    assert not {text for text, _ in train} & {text for text, _ in val}
    assert ready(CSV, val_fraction=0).val_dataloader() == []


def test_a_folder_has_splits_by_name(ready, tmp_path):
    folder = tmp_path / "reviews"
    folder.mkdir()
    for name, rows in (("train.csv", 20), ("dev.csv", 6), ("test.csv", 4)):
        (folder / name).write_text("\n".join(CSV.splitlines()[: rows + 1]))
    data = ready(source=str(folder))
    counts = [data.statistics[f"{split}/examples"] for split in ("train", "val", "test")]
    assert counts == [20, 6, 4] and len(data.test_dataloader()) == 1


def test_statistics_count_examples_tokens_and_classes(ready):
    data = ready(CSV, val_fraction=0, max_length=10)
    facts = data.statistics
    assert facts["train/examples"] == 40 and facts["labels"] == "bad, good"
    assert facts["train/label/good"] == facts["train/label/bad"] == 20
    assert facts["train/tokens"] == data.table("train").ragged("input_ids").values.size
    assert facts["train/longest"] == 10 and 0 < facts["train/truncated"] < 40
    assert data.label_counts() == [20, 20]


def test_types_of_texts_come_with_pairs_alone(ready):
    data = ready(PAIRS, val_fraction=0)
    batch = next(iter(data.train_dataloader()))
    row = batch["token_type_ids"][0]
    ids = batch["input_ids"][0].tolist()
    end = ids.index(data.tokenizer.sep_token_id) + 1
    assert row[:end].sum() == 0 and (row[end : batch["attention_mask"][0].sum()] == 1).all()
    assert "token_type_ids" not in next(iter(ready(CSV).train_dataloader()))


def test_the_longer_text_of_a_pair_is_cut_first(ready):
    table = f"sentence1,sentence2,label\n{'fox ' * 40},the dog,0\nthe dog,{'fox ' * 40},1\n"
    data = ready(table, val_fraction=0)
    for number in range(2):
        text = data.tokenizer.decode(data.table("train").ragged("input_ids")[number])
        assert "the dog" in text and text.count("fox") == 19
    assert data.statistics["train/truncated"] == 2


def test_no_example_is_longer_than_max_length(ready):
    lengths = ready(PAIRS, max_length=8).table("train").ragged("input_ids").lengths
    assert lengths.max() == 8


def test_a_validation_label_that_training_never_saw_names_file_and_line(ready):
    val = "text,label\na fox,good\na dog,godo\n"
    with pytest.raises(
        ValueError,
        match=r"val/a\.csv, line 3: unknown label 'godo' .*'bad', 'good'.*did you mean 'good'",
    ):
        ready(CSV, val=val)
    data = ready(CSV, val=val, on_bad_row="skip")
    assert data.statistics["val/examples"] == 1


def test_labels_that_mix_numbers_and_names_are_told_with_their_lines(ready):
    with pytest.warns(UserWarning, match=r"'1' \(.*a\.csv, line 42\) and 'bad' \(.*line 3\)"):
        data = ready(CSV + "a fox,1\n")
    assert data.labels == ["1", "bad", "good"]


def test_no_example_left_is_an_error_that_names_the_split(ready):
    with pytest.raises(ValueError, match="val: there is no example left"):
        ready(CSV, val="text,label\na dog,x\n", on_bad_row="skip")
    with pytest.raises(ValueError, match=r"train: there is no example in .*a\.csv"):
        ready("text,label\n")


def test_skipped_rows_are_counted_in_the_log(ready, caplog):
    with caplog.at_level(logging.WARNING, logger="lmkit"):
        data = ready(CSV + ",good\na fox,\n", on_bad_row="skip", val_fraction=0)
    assert data.statistics["train/examples"] == 40
    (message,) = [m for m in caplog.messages if "skipped" in m]
    assert "skipped 2 bad rows" in message and "line 42: the text 'text' is empty" in message


def test_a_class_without_example_is_warned_of(ready):
    label = datasets.ClassLabel(names=["no", "maybe", "yes"])
    features = datasets.Features({"text": datasets.Value("string"), "label": label})
    rows = {"text": ["a fox", "a dog"] * 3, "label": [0, 2] * 3}
    with pytest.warns(UserWarning, match="no training example has the label 'maybe'"):
        data = ready(source=datasets.Dataset.from_dict(rows, features=features), val_fraction=0)
    assert data.labels == ["no", "maybe", "yes"] and data.label_counts() == [3, 0, 3]


def glue(name_of_val="validation", **more):
    names = ["entailment", "neutral", "contradiction"]
    features = datasets.Features(
        {
            "premise": datasets.Value("string"),
            "hypothesis": datasets.Value("string"),
            "label": datasets.ClassLabel(names=names),
            "idx": datasets.Value("int32"),
        }
    )

    def split(count, labels=None, seed=0):
        rows = {
            "premise": tiny.sentences(count, seed),
            "hypothesis": tiny.sentences(count, seed + 9),
            "label": labels or [n % 3 for n in range(count)],
            "idx": list(range(count)),
        }
        return datasets.Dataset.from_dict(rows, features=features)

    return datasets.DatasetDict(
        {
            "train": split(24),
            name_of_val: split(6, seed=1),
            "test": split(5, [-1] * 5, seed=2),
            **{name: split(3, seed=3) for name in more},
        }
    )


def test_a_data_set_of_the_hub_brings_names_and_splits(ready):
    data = ready(source=glue())
    assert data.labels == ["entailment", "neutral", "contradiction"]
    assert data.statistics["train/examples"] == 24 and data.statistics["val/examples"] == 6
    assert "token_type_ids" in next(iter(data.train_dataloader()))


def test_a_test_without_labels_is_not_tested_on(ready):
    data = ready(source=glue())
    assert "test/examples" not in data.statistics
    # It falls back to the validation.
    assert sum((b["index"] >= 0).sum() for b in data.test_dataloader()) == 6


def test_the_matched_validation_of_mnli_is_the_validation(ready):
    data = ready(source=glue("validation_matched", validation_mismatched=True))
    assert data.statistics["val/examples"] == 6 and data.statistics["train/examples"] == 24


def test_several_labels_of_a_data_set_keep_their_names_and_order(ready):
    labels = datasets.List(datasets.ClassLabel(names=["joy", "fear", "anger"]))
    features = datasets.Features({"text": datasets.Value("string"), "labels": labels})
    rows = {"text": ["a fox", "a dog", "old trees"], "labels": [[1, 0], [], [2]]}
    source = datasets.Dataset.from_dict(rows, features=features)
    data = ready(source=source, task="multi_label", val_fraction=0)
    assert data.labels == ["joy", "fear", "anger"]
    assert dict(seen(data, "train")) == {
        "a fox": [1, 1, 0],
        "a dog": [0, 0, 0],
        "old trees": [0, 0, 1],
    }


def test_several_labels_are_a_row_of_0_and_1(ready):
    table = ("a.tsv", "text\tlabels\na fox\tb, a\na dog\t\nold trees\tc\n")
    data = ready(table, task="multi_label", val_fraction=0)
    assert data.labels == ["a", "b", "c"] and data.label_counts() == [1, 1, 1]
    assert dict(seen(data, "train"))["a fox"] == [1.0, 1.0, 0.0]
    settings = data.network_settings()
    assert settings["problem_type"] == "multi_label_classification" and settings["num_labels"] == 3
    batch = next(iter(data.train_dataloader()))
    assert batch["labels"].dtype == torch.float32
    assert batch["labels"][batch["index"] < 0].isnan().all()


def test_a_label_that_never_stands_alone_is_seen_all_the_same(ready, recwarn):
    table = ("a.tsv", "text\tlabels\na fox\tb, a\na dog\ta\nold trees\tc, a\n")
    data = ready(table, task="multi_label", val_fraction=0)
    assert not [str(w.message) for w in recwarn if "no training example" in str(w.message)]
    counts = {k: v for k, v in data.statistics.items() if k.startswith("train/label/")}
    assert counts == {"train/label/a": 3, "train/label/b": 1, "train/label/c": 1}


def test_columns_of_0_and_1_are_the_classes_in_their_order(ready):
    table = "text,toxic,insult\na fox,1,0\na dog,1,1\n"
    data = ready(table, task="multi_label", label_column=["toxic", "insult"], val_fraction=0)
    assert data.labels == ["toxic", "insult"]
    assert dict(seen(data, "train")) == {"a fox": [1, 0], "a dog": [1, 1]}


def test_a_regression_has_values_and_no_classes(ready):
    table = PAIRS.replace("label", "score")
    data = ready(table, task="regression", val_fraction=0)
    assert data.labels == []
    assert data.network_settings() == {"num_labels": 1, "problem_type": "regression"}
    batch = list(data.train_dataloader())
    assert all(b["labels"].dtype == torch.float32 for b in batch)
    fillers = torch.cat([b["labels"][b["index"] < 0] for b in batch])
    assert len(fillers) == 2 and fillers.isnan().all()
    with pytest.raises(ValueError, match=r"line 2: the label of a regression must be a number"):
        ready(CSV, task="regression")


def test_classes_of_numbers_are_sorted_by_size(ready):
    rows = "".join(json.dumps({"text": "a fox", "label": n}) + "\n" for n in (10, 9, 1.0, "1"))
    assert ready(("a.jsonl", rows), val_fraction=0).labels == ["1", "9", "10"]


def test_the_order_of_classes_follows_the_model(ready, tmp_path):
    data = ready(CSV, setup=False)
    model = {**tiny.MASKED["bert"], "id2label": {0: "good", 1: "bad"}}
    module = SequenceClassificationModule(model)
    make_trainer(max_steps=1).fit(module, data)
    assert data.labels == ["good", "bad"]
    assert module.network.config.id2label == {0: "good", 1: "bad"}
    text, label = seen(data, "train")[0]
    assert f"{text},{data.labels[label]}" in CSV


def test_a_folder_with_names_of_its_own_gives_the_order(ready, tmp_path):
    config = BertConfig(**{k: v for k, v in tiny.MASKED["bert"].items() if k != "model_type"})
    config.id2label, config.label2id = {0: "good", 1: "bad"}, {"good": 0, "bad": 1}
    config.vocab_size = len(tiny.tokenizer())
    network = SequenceClassificationModule.auto_class.from_config(config)
    network.save_pretrained(tmp_path / "model")
    data = ready(CSV, setup=False)
    module = SequenceClassificationModule(str(tmp_path / "model"))
    make_trainer(max_steps=1).fit(module, data)
    assert data.labels == ["good", "bad"]


def no_reading(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("it was read again")

    monkeypatch.setattr(SequenceClassificationDataModule, "read", refuse)
    monkeypatch.setattr(SequenceClassificationDataModule, "encode", refuse)


def test_a_second_run_takes_the_cache_and_reads_nothing(ready, monkeypatch):
    one = ready(CSV)
    no_reading(monkeypatch)
    two = ready(CSV)
    assert two.fingerprint == one.fingerprint and two.labels == one.labels
    assert two.statistics == one.statistics
    for mine, theirs in zip(one.train_dataloader(), two.train_dataloader(), strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_data_set_in_memory_takes_the_cache_too(ready, monkeypatch):
    one = ready(source=glue())
    no_reading(monkeypatch)
    assert ready(source=glue()).fingerprint == one.fingerprint


@pytest.mark.parametrize(
    "changes",
    [
        {"max_length": 9},
        {"val_fraction": 0.3},
        {"examples_per_class": 5},
        {"text_column": "text"},
        {"task": "multi_label"},
    ],
)
def test_what_changes_examples_changes_the_cache(ready, changes):
    before, after = ready(CSV), ready(CSV, **changes)
    assert before.fingerprint != after.fingerprint
    table = [ready.table("train").path for ready in (before, after)]
    assert table[0] != table[1]


def test_another_tokenizer_has_another_cache(ready, tmp_path):
    one = ready(CSV)
    two = ready(CSV, tokenizer=tiny.tokenizer_folder(tmp_path / "bpe", "bpe"))
    assert one.table("train").path != two.table("train").path
    three = ready(CSV)
    three.use_tokenizer(two.tokenizer)
    assert three.fingerprint == two.fingerprint
    assert seen(three, "train")[0][0].strip() in CSV


def test_a_broken_cache_is_made_anew(ready):
    data = ready(CSV)
    path = data.table("train").path / "labels.npy"
    path.write_bytes(path.read_bytes()[:-8])
    assert seen(ready(CSV), "train") == seen(data, "train")


def test_few_examples_are_so_many_of_each_class_and_depend_on_the_seed(ready):
    sets = [ready(CSV, examples_per_class=n, seed=seed) for n, seed in ((3, 1), (6, 1), (3, 2))]
    assert [data.label_counts() for data in sets] == [[3, 3], [6, 6], [3, 3]]
    three, six, other = ({t for t, _ in seen(d, "train")} for d in sets)
    assert three < six and three != other
    val = [seen(data, "val") for data in sets]
    assert val[0] == val[1] == val[2] and len(val[0]) == 4


def test_balanced_classes_come_as_often(ready):
    rows = CSV.splitlines()
    table = "\n".join(rows[:1] + [row for n, row in enumerate(rows[1:]) if n % 2 or n < 8])
    data = ready(table, class_balanced=True, val_fraction=0)
    labels = torch.cat([b["labels"][b["index"] >= 0] for b in data.train_dataloader()])
    assert data.label_counts() == [20, 4] and labels.bincount().tolist() == [12, 12]


@pytest.mark.parametrize("workers", [0, 1])
def test_training_goes_on_in_the_middle_of_an_epoch(ready, workers):
    whole = ready(CSV).train_dataloader()
    expected = [b["input_ids"] for _ in range(2) for b in whole]
    first = ready(CSV).train_dataloader()
    batches = iter(first)
    done = [next(batches)["input_ids"] for _ in range(3)]
    state = first.state_dict()
    second = ready(CSV, num_workers=workers).train_dataloader()
    second.load_state_dict(state)
    rest = [b["input_ids"] for _ in range(2) for b in second]
    assert len(expected) == len(done + rest)
    assert all(torch.equal(a, b) for a, b in zip(expected, done + rest, strict=True))


def test_a_run_that_resumes_with_other_data_says_so(ready, tmp_path):
    def fit(table, steps, checkpoint=None, **options):
        trainer = make_trainer(max_steps=steps)
        module = SequenceClassificationModule(tiny.MASKED["bert"])
        trainer.fit(module, ready(table, setup=False, **options), ckpt_path=checkpoint)
        trainer.save_checkpoint("last.ckpt")

    fit(CSV, 2)
    fit(CSV, 3, "last.ckpt")
    with pytest.raises(ValueError, match="train text"):
        fit(CSV + "more fox,good\n", 4, "last.ckpt")
    with pytest.raises(ValueError, match="max_length"):
        fit(CSV, 4, "last.ckpt", max_length=9)


def test_a_few_examples_that_nobody_seeded_are_the_same_after_a_resume(ready, monkeypatch):
    few = {"examples_per_class": 4, "seed": None}
    trainer = make_trainer(max_steps=1)
    data = ready(CSV, setup=False, **few)
    trainer.fit(SequenceClassificationModule(tiny.MASKED["bert"]), data)
    trainer.save_checkpoint("last.ckpt")
    monkeypatch.setenv("PL_GLOBAL_SEED", "77")
    again = ready(CSV, setup=False, **few)
    module = SequenceClassificationModule(tiny.MASKED["bert"])
    make_trainer(max_steps=2).fit(module, again, ckpt_path="last.ckpt")
    assert seen(again, "train") == seen(data, "train")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("ask.txt", "a quick fox\n\nan old dog, asleep\n"),
        ("ask.csv", 'id,text\n1,a quick fox\n2,"an old dog, asleep"\n'),
        ("ask.csv", 'text,label\na quick fox,unknown\n"an old dog, asleep",\n'),
    ],
)
@pytest.mark.parametrize("task", ["single_label", "multi_label", "regression"])
def test_texts_to_predict_on_come_in_their_order(ready, tmp_path, name, content, task):
    (tmp_path / name).write_text(content)
    table = CSV.replace(",good", ",1").replace(",bad", ",0")
    data = ready(table, predict_file=str(tmp_path / name), task=task)
    (batch,) = data.predict_dataloader()
    assert batch["index"].tolist() == [0, 1, -1, -1]
    found = [data.inputs(row) for row in (0, 1)]
    assert [row.pop("line") for row in found] in ([1, 3], [2, 3])  # a blank line; a header
    assert found == [
        {"text": "a quick fox"},
        {"text": "an old dog, asleep"},
    ]


def test_pairs_to_predict_on_have_both_texts(ready, tmp_path):
    (tmp_path / "ask.jsonl").write_text('{"premise": "a fox", "hypothesis": "a dog"}\n')
    data = ready(PAIRS, predict_file=str(tmp_path / "ask.jsonl"))
    (batch,) = data.predict_dataloader()
    assert batch["token_type_ids"].sum() == 3
    assert data.inputs(0) == {"line": 1, "text": "a fox", "text_pair": "a dog"}


@pytest.mark.parametrize("task", ["single_label", "multi_label", "regression"])
def test_a_file_can_be_predicted_on_without_training_data(ready, tmp_path, task):
    (tmp_path / "ask.txt").write_text("a quick fox\n")
    data = ready(predict_file=str(tmp_path / "ask.txt"), task=task)
    (batch,) = data.predict_dataloader()
    assert batch["index"].tolist() == [0, -1, -1, -1]


def test_a_file_to_predict_on_has_to_have_a_row(ready, tmp_path):
    (tmp_path / "ask.csv").write_text("text\n")
    with pytest.raises(ValueError, match=r"predict_file: there is no row in .*ask\.csv"):
        ready(CSV, predict_file=str(tmp_path / "ask.csv")).predict_dataloader()
    with pytest.raises(ValueError, match="pass predict_file"):
        ready(CSV).predict_dataloader()


def test_from_scratch_a_tokenizer_is_trained_on_the_texts(ready):
    data = ready(CSV, tokenizer=None, setup=False)
    data.vocab_size = 200
    module = SequenceClassificationModule(tiny.MASKED["bert"])
    make_trainer(max_steps=1).fit(module, data)
    assert module.network.config.vocab_size == len(data.tokenizer) <= 200
    assert data.tokenizer.tokenize("quick fox")
    ids = data.table("train").ragged("input_ids")[0]
    assert ids[0] == data.tokenizer.cls_token_id and ids[-1] == data.tokenizer.sep_token_id


def test_a_table_without_classes_to_tell_apart_is_refused(ready):
    with pytest.raises(ValueError, match=r"a\.csv: there is only one class, 'x'"):
        ready("text,label\na fox,x\na dog,x\n", val_fraction=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "classification"}, "task must be one of single_label, multi_label, regression"),
        ({"task": "multi_label", "class_balanced": True}, "class_balanced is for"),
        ({"class_balanced": True, "unlabelled_file": "a.txt"}, "texts of unlabelled_file have no"),
        ({"label_column": ["a", "b"]}, "label_column=.* names several columns"),
        ({"max_length": 4}, "max_length must be at least 8, got 4"),
        ({"val_fraction": 1.0}, r"val_fraction must lie in \[0, 1\)"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"examples_per_class": 0}, "examples_per_class must be at least 1"),
        ({"on_bad_row": "drop"}, "on_bad_row must be one of"),
    ],
)
def test_arguments_out_of_range_are_refused(ready, options, message):
    with pytest.raises(ValueError, match=message):
        ready(setup=False, **options)


def test_a_regression_test_without_values_is_not_tested_on(ready):
    def split(values):
        texts = tiny.sentences(len(values))
        return datasets.Dataset.from_dict({"sentence1": texts, "sentence2": texts, "label": values})

    source = datasets.DatasetDict({"train": split([1.0, 4.5] * 9), "test": split([-1.0] * 4)})
    data = ready(source=source, task="regression")
    assert "test/examples" not in data.statistics and data.statistics["train/examples"] == 16


MORE = "text,label\n" + "".join(f"{text},{n}\n" for n, text in enumerate(tiny.sentences(9, 7)))


@pytest.fixture
def more(tmp_path):
    """Texts with labels that no training text has, to be trained on without them."""
    (tmp_path / "more.csv").write_text(MORE)
    return str(tmp_path / "more.csv")


@pytest.mark.parametrize("task", ["single_label", "multi_label", "regression"])
def test_texts_without_a_label_stand_behind_the_others_and_change_none(ready, more, task):
    table = CSV.replace(",good", ",1").replace(",bad", ",0")
    if task == "multi_label":
        table = ("a.tsv", table.replace(",", "\t"))
    options = {"task": task, "val_fraction": 0.2}
    plain, both = ready(table, **options), ready(table, unlabelled_file=more, **options)
    before, after = plain.table("train"), both.table("train")
    count = len(before)
    assert both.labels == plain.labels and len(after) == count + 9 == count + both.unlabelled_rows
    assert plain.unlabelled_rows == 0
    for row in range(count):
        ours, theirs = (t.ragged("input_ids")[row].tolist() for t in (before, after))
        assert ours == theirs
    labels = torch.tensor(after.array("labels"))
    assert labels[:count].tolist() == before.array("labels").tolist()
    none = labels[count:] == -100 if task == "single_label" else labels[count:].isnan()
    assert none.all()
    texts = [line.split(",")[0] for line in MORE.splitlines()[1:]]
    assert [after.text("text", count + row) for row in range(9)] == texts
    assert seen(both, "val") == seen(plain, "val")


def test_an_epoch_has_every_text_once_with_a_label_or_without(ready, more):
    data = ready(CSV, unlabelled_file=more, val_fraction=0)
    batches = list(data.train_dataloader())
    index, labels = (torch.cat([batch[name] for batch in batches]) for name in ("index", "labels"))
    found = sorted(zip(index[index >= 0].tolist(), labels[index >= 0].tolist(), strict=True))
    assert [index for index, _ in found] == list(range(49))
    assert [label == -100 for _, label in found] == [False] * 40 + [True] * 9


def test_texts_without_a_label_are_not_drawn_and_counted_by_themselves(ready, more, caplog):
    few = {"examples_per_class": 3}
    plain = ready(CSV, **few)
    with caplog.at_level(logging.INFO):
        data = ready(CSV, unlabelled_file=more, **few)
    assert data.label_counts() == plain.label_counts() == [3, 3]
    assert data.statistics["train/examples"] == 15 and data.statistics["train/unlabelled"] == 9
    assert "train/unlabelled" not in plain.statistics
    assert "train 15 examples (9 of them without a label), " in caplog.text
    table = ("a.tsv", CSV.replace(",", "\t"))
    several = ready(table, unlabelled_file=more, task="multi_label", val_fraction=0)
    assert several.label_counts() == [20, 20]


def test_texts_without_a_label_are_part_of_the_cache_and_the_fingerprint(ready, more, monkeypatch):
    plain = ready(CSV)
    data = ready(CSV, unlabelled_file=more)
    Path(more).write_text(MORE + "another fox,0\n")
    changed = ready(CSV, unlabelled_file=more)
    assert len({d.fingerprint for d in (plain, data, changed)}) == 3
    assert len({d.table("train").path for d in (plain, data, changed)}) == 3
    assert "unlabelled text" not in plain.state_dict()["facts"]
    no_reading(monkeypatch)
    again = ready(CSV, unlabelled_file=more)
    assert again.fingerprint == changed.fingerprint and again.unlabelled_rows == 10
    assert again.statistics == changed.statistics


@pytest.mark.filterwarnings("ignore:.*have no label:UserWarning")
def test_a_run_that_resumes_with_other_texts_without_a_label_says_so(ready, more):
    def fit(steps, checkpoint=None):
        data = ready(CSV, setup=False, unlabelled_file=more)
        trainer = make_trainer(max_steps=steps)
        trainer.fit(SequenceClassificationModule(tiny.MASKED["bert"]), data, ckpt_path=checkpoint)
        trainer.save_checkpoint("last.ckpt")

    fit(1)
    fit(2, "last.ckpt")
    Path(more).write_text(MORE + "another fox,0\n")
    with pytest.raises(ValueError, match=r"cannot resume: .*the unlabelled text was changed"):
        fit(3, "last.ckpt")


@pytest.mark.filterwarnings("ignore:.*have no label:UserWarning")
def test_texts_without_a_label_alone_are_of_the_classes_of_the_network(ready, more):
    data = ready(setup=False, unlabelled_file=more, val="text,label\na fox,good\n")
    names = {"id2label": {0: "good", 1: "bad"}}
    make_trainer(max_steps=1).fit(SequenceClassificationModule(tiny.MASKED["bert"] | names), data)
    assert data.labels == ["good", "bad"] and data.label_counts() == [0, 0]
    assert len(data.table("train")) == data.unlabelled_rows == 9
    assert seen(data, "val") == [("a fox", 0)]


def test_texts_without_a_label_alone_need_names_of_classes(ready, more):
    with pytest.raises(ValueError, match="unlabelled_file alone does not tell which classes"):
        ready(unlabelled_file=more)
    with pytest.raises(ValueError, match="unlabelled_file alone does not tell which classes"):
        ready(unlabelled_file=more, val="text,label\na fox,good\na dog,bad\n")
    named = ready(unlabelled_file=more, task="multi_label", label_column=["x", "y"])
    assert named.labels == ["x", "y"] and named.table("train").array("labels").shape == (9, 2)
    assert ready(unlabelled_file=more, task="regression").unlabelled_rows == 9


def test_pairs_and_single_texts_do_not_mix(ready, more, tmp_path):
    with pytest.raises(ValueError, match=r"more\.csv, line 2 has one text, .* label have two"):
        ready(PAIRS, unlabelled_file=more)
    (tmp_path / "pairs.csv").write_text(PAIRS)
    with pytest.raises(ValueError, match=r"pairs\.csv, line 2 has two texts, .* label have one"):
        ready(CSV, unlabelled_file=str(tmp_path / "pairs.csv"))
    data = ready(PAIRS, unlabelled_file=str(tmp_path / "pairs.csv"))
    assert data.unlabelled_rows == 30


@pytest.mark.parametrize("workers", [0, 1])
def test_texts_without_a_label_go_on_in_the_middle_of_an_epoch(ready, more, workers):
    whole = ready(CSV, unlabelled_file=more).train_dataloader()
    expected = [b for _ in range(2) for b in whole]
    first = ready(CSV, unlabelled_file=more).train_dataloader()
    batches = iter(first)
    done = [next(batches) for _ in range(5)]
    second = ready(CSV, unlabelled_file=more, num_workers=workers).train_dataloader()
    second.load_state_dict(first.state_dict())
    found = done + [b for _ in range(2) for b in second]
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


REAL = {
    "trec6": ("train_file", "TREC.train.all", {"encoding": "latin-1"}, 5452, 6),
    "subj": ("train_file", "subj.all", {"encoding": "latin-1"}, 10_000, 2),
    "small-fine-foods": ("train_file", "train.csv.gz", {}, 4000, 2),
    "sick": ("train_file", "SICK.txt.gz", {}, 9840, 3),
    "wnli": ("train_file", "train.tsv", {}, 635, 2),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files_keep_all_their_rows(ready, data_folder, name):
    argument, file, options, rows, classes = REAL[name]
    source = data_folder / name / file
    if not source.is_file():
        pytest.skip(f"there is no {source}")
    data = ready(**{argument: str(source)}, val_fraction=0, max_length=16, setup=False, **options)
    sources = data.record_options.of_files((source,))
    examples = data.read(sources, True, BadRows())
    assert len(examples) == rows
    assert len(data.label_names(examples)) == classes


def test_a_rare_class_that_is_held_out_is_known(tmp_path: Path) -> None:
    rows = [f"text {n},{'a' if n % 2 else 'b'}" for n in range(20)] + ["odd one,c"] * 2
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    data = SequenceClassificationDataModule(
        train_file=str(tmp_path / "rows.csv"),
        tokenizer=str(tiny.tokenizer_folder(tmp_path / "tokenizer")),
        max_length=16,
        cache_dir=str(tmp_path / "cache"),
    )
    data.setup()
    assert data.labels == ["a", "b", "c"]


def test_a_header_in_the_middle_and_tagged_words_are_refused(tmp_path: Path) -> None:
    tokenizer = str(tiny.tokenizer_folder(tmp_path / "tokenizer"))
    (tmp_path / "rows.csv").write_text("text,label\ntext,label\na b,x\nc d,y\n")
    with pytest.raises(ValueError, match=r"rows\.csv, line 2: the header stands here again"):
        SequenceClassificationDataModule(
            train_file=str(tmp_path / "rows.csv"), tokenizer=tokenizer, max_length=16
        ).setup()
    (tmp_path / "rows.conll").write_text("Ada B-PER\n")
    with pytest.raises(ValueError, match="it is for token classification"):
        SequenceClassificationDataModule(
            train_file=str(tmp_path / "rows.conll"), tokenizer=tokenizer, max_length=16
        ).setup()
