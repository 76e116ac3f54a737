"""Labelled rows of files and of data sets, and which column is which."""

import os

import datasets
import pytest

from lmkit.datamodules.records import DatasetRecords, FileRecords, RecordOptions, choose_column
from lmkit.datamodules.text_rows import BadRows


def dataset(rows, **features):
    names = {name: datasets.Value("string") for name in rows if name not in features}
    return datasets.Dataset.from_dict(rows, features=datasets.Features({**names, **features}))


def records(source):
    return [record.values for record in source.records(BadRows())]


def test_class_labels_come_by_name_and_minus_one_as_none():
    label = datasets.ClassLabel(names=["no", "yes"])
    data = dataset({"text": ["a", "b", "c"], "label": [1, 0, -1]}, label=label)
    source = RecordOptions().of_dataset(data, "glue[test]")
    assert [row["label"] for row in records(source)] == ["yes", "no", None]
    assert source.class_columns() == ["label"] and source.class_names("label") == ["no", "yes"]
    assert [(r.file, r.line) for r in source.records(BadRows())][-1] == ("glue[test]", 3)


def test_lists_of_class_labels_come_by_name():
    labels = datasets.List(datasets.ClassLabel(names=["joy", "fear"]))
    data = dataset({"text": ["a", "b"], "labels": [[1, 0], []]}, labels=labels)
    source = DatasetRecords(data, "x", RecordOptions())
    assert [row["labels"] for row in records(source)] == [["fear", "joy"], []]
    assert source.class_columns() == [] and source.class_names("labels") == ["joy", "fear"]


def test_the_key_of_a_data_set_follows_its_rows(tmp_path):
    def key(rows, **options):
        return RecordOptions(**options).of_dataset(dataset(rows), "x").key(tmp_path)

    assert key({"text": ["a"]}) == key({"text": ["a"]})
    assert key({"text": ["a"]}) != key({"text": ["b"]})
    assert key({"text": ["a"]}) != key({"text": ["a"]}, on_bad_row="skip")


def test_the_key_of_files_follows_content_order_and_reading(tmp_path):
    one, two = tmp_path / "a.csv", tmp_path / "b.csv"
    one.write_text("text,label\na,x\n")
    two.write_text("text,label\nb,x\n")

    def key(*files, **options):
        return FileRecords(files, RecordOptions(**options)).key(tmp_path)

    base = key(one, two)
    assert base == key(one, two) and base != key(two, one)
    assert base != key(one, two, column_names=("text", "label"))
    assert base != key(one, two, encoding="latin-1")
    os.utime(one, (1, 1))
    assert base == key(one, two)
    one.write_text("text,label\nc,x\n")
    assert base != key(one, two)


def test_files_are_read_one_after_the_other(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{name},x\n")
    source = RecordOptions().of_files((tmp_path / "a.csv", tmp_path / "b.csv"))
    assert [row["text"] for row in records(source)] == ["a", "b"]
    assert source.name.endswith("a.csv and 1 more files")


def test_the_options_refuse_another_policy_and_nothing_at_all(tmp_path):
    with pytest.raises(ValueError, match="on_bad_row must be one of error, skip, got 'drop'"):
        RecordOptions(on_bad_row="drop")
    with pytest.raises(ValueError, match="there are no data: pass train_file"):
        RecordOptions().of_nothing(tmp_path)


def test_a_column_is_the_wanted_one_or_the_first_usual_one():
    columns = ["Label", "body", "text"]
    usual = ("text", "body", "label")
    assert choose_column(columns, None, usual, "text_column", "f") == "text"
    assert choose_column(columns, "body", usual, "text_column", "f") == "body"
    assert choose_column(columns, None, ("label",), "label_column", "f") == "Label"
    assert choose_column(columns, None, ("sentence",), "text_column", "f") is None


def test_a_missing_column_names_those_that_there_are():
    with pytest.raises(
        ValueError, match=r"f\.csv: no column 'txt' \(text_column\); there are 'text', 'y'; did "
    ):
        choose_column(["text", "y"], "txt", (), "text_column", "f.csv")
