"""Names of classes: their order, and what a network calls them."""

import logging
import warnings
from itertools import permutations
from types import SimpleNamespace

import pytest
from transformers import BertConfig

from lmkit.datamodules.label_names import (
    align_labels,
    label_number,
    network_labels,
    sorted_labels,
    warn_of_mixed_labels,
    warn_of_unlikely_labels,
)
from lmkit.datamodules.text_rows import BadRows


def test_numbers_are_sorted_by_size_and_names_by_the_alphabet():
    assert sorted_labels({"10", "9", "-1"}) == ["-1", "9", "10"]
    assert sorted_labels({"b", "10", "a", "9"}) == ["10", "9", "a", "b"]
    assert sorted_labels(set()) == []


@pytest.mark.parametrize("names", [{"--1", "2"}, {"-", "1"}, {"1-", "2"}, {"²", "1"}])
def test_what_only_looks_like_numbers_is_sorted_as_names(names):
    assert sorted_labels(names) == sorted(names)


def test_numbers_of_one_size_have_one_order_in_every_process():
    """A set has another order in each."""
    names = ["1", "01", "001"]
    assert {tuple(sorted_labels(order)) for order in permutations(names)} == {("001", "01", "1")}


def test_labels_follow_the_order_of_a_network_that_knows_them_all():
    assert align_labels(["a", "b"], ["b", "c", "a"], trained=False) == ["b", "c", "a"]
    assert align_labels(["a", "b"], [], trained=True) == ["a", "b"]


def test_a_network_with_other_labels_gets_those_of_the_data_unless_it_is_trained():
    assert align_labels(["a", "b"], ["b", "c"], trained=False) == ["a", "b"]
    assert align_labels(["a", "b"], ["b", "c"], trained=True) == ["b", "c"]


def test_an_unknown_label_names_line_and_nearest():
    known = {"positive": 0, "negative": 1}
    assert label_number("negative", known, "v.csv", 3, BadRows()) == 1
    with pytest.raises(
        ValueError,
        match=r"v\.csv, line 3: unknown label 'positiv' .*'positive', 'negative'.*did you mean "
        r"'positive'\?.*on_bad_row='skip'",
    ):
        label_number("positiv", known, "v.csv", 3, BadRows())
    bad = BadRows("skip")
    assert label_number("x", known, "v.csv", 3, bad) is None and bad.count == 1
    many = {str(number): number for number in range(500)}
    with pytest.raises(ValueError, match=r"'19' \.\.\."):
        label_number("x", many, "v.csv", 3, BadRows())


def module(model=None, network=None, **hparams):
    return SimpleNamespace(hparams={"model": model, **hparams}, network=network)


def test_the_names_of_a_network_come_in_the_order_of_its_head(tmp_path):
    names = {number: f"c{12 - number}" for number in range(12)}
    expected = [f"c{12 - number}" for number in range(12)]
    config = BertConfig(id2label=names)
    config.save_pretrained(tmp_path)
    built = SimpleNamespace(config=config)
    assert network_labels(module(network=built)) == (expected, True)
    assert network_labels(module(str(tmp_path))) == (expected, False)
    written = {str(number): name for number, name in names.items()}
    assert network_labels(module({"model_type": "bert", "id2label": written})) == (expected, False)


def test_numbered_names_are_none(tmp_path):
    BertConfig(num_labels=3).save_pretrained(tmp_path)
    for model in (str(tmp_path), {"model_type": "bert"}, str(tmp_path / "nowhere")):
        assert network_labels(module(model)) == ([], False)
    assert network_labels(None) == ([], False)
    built = SimpleNamespace(config=BertConfig(num_labels=2))
    assert network_labels(module(network=built)) == ([], True)


def test_a_folder_whose_weights_are_not_taken_has_no_names(tmp_path):
    BertConfig(id2label={0: "no", 1: "yes"}).save_pretrained(tmp_path)
    assert network_labels(module(str(tmp_path), pretrained=False)) == ([], False)


def test_skipped_rows_are_said_once(caplog):
    bad = BadRows("skip")
    for line in (2, 5):
        label_number("x", {"y": 0}, "v.csv", line, bad)
    with caplog.at_level(logging.WARNING, logger="lmkit"):
        bad.report()
        bad.report()
    (message,) = caplog.messages
    assert "skipped 2 bad rows" in message and "line 2" in message


@pytest.mark.parametrize(("names", "mixed"), [("2 4.5 -1", False), ("1 yes", True), ("a b", False)])
def test_numbers_among_names_are_told_and_fractions_are_numbers(names, mixed):
    found = {name: f"train.csv, line {line}" for line, name in enumerate(names.split(), 2)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_mixed_labels(found)
    assert bool(caught) == mixed
    if mixed:
        assert "'1' (train.csv, line 2) and 'yes' (train.csv, line 3)" in str(caught[0].message)


@pytest.mark.parametrize(
    ("task", "labels", "said"),
    [
        ("single_label", ["1", "1.5", "2"], "the labels are 3 numbers (1, 1.5, 2 ...)"),
        ("single_label", list(map(str, range(21))), "the labels are 21 numbers (0, 1, 2 ...)"),
        ("single_label", list(map(str, range(20))), ""),
        ("single_label", ["1.0", "2.0"], ""),
        ("single_label", ["1.5", "a;b"], ""),
        ("single_label", [], ""),
        ("multi_label", ["1", "1.5"], ""),
        ("multi_label", ["a", "a;b"], "'a;b' is taken for one label"),
        ("multi_label", ["a|b", "a"], "'a|b' is taken for one label"),
        ("regression", [], ""),
    ],
)
def test_values_and_joined_labels_are_told(task, labels, said):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_unlikely_labels(task, labels)
    assert len(caught) == bool(said) and said in "".join(str(w.message) for w in caught)
