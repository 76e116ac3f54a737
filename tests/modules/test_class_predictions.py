"""Logits in names, and how much each class counts."""

import pytest
import torch

from lmkit.modules.class_predictions import class_weights, read_classes

NAMES = ["ham", "spam", "eggs"]


def test_a_prediction_has_label_score_and_probabilities_by_name():
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])
    first, second = read_classes(logits, NAMES, "single_label", 0.5)
    p = logits.softmax(-1)
    assert first["label"] == "spam" and second["label"] == "ham"
    assert first["score"] == pytest.approx(float(p[0, 1]), abs=1e-6)
    assert list(first["probabilities"]) == NAMES
    assert list(first["probabilities"].values()) == pytest.approx(p[0].tolist(), abs=1e-6)


def test_the_label_is_that_of_the_largest_logit_however_near_the_next():
    logits = torch.zeros(1, 3)
    logits[0, 2] = 2e-7
    (row,) = read_classes(logits, NAMES, "single_label", 0.5)
    assert row["label"] == NAMES[int(logits.argmax())] == "eggs"


def test_of_equal_logits_the_first_class_is_said_as_argmax_does():
    (row,) = read_classes(torch.zeros(1, 3), NAMES, "single_label", 0.5)
    assert row["label"] == "ham"


@pytest.mark.parametrize(("threshold", "expected"), [(0.5, ["ham", "spam"]), (0.6, ["spam"])])
def test_several_labels_are_those_from_the_threshold_on(threshold, expected):
    logits = torch.tensor([[0.0, 2.0, -1.0]])
    (row,) = read_classes(logits, NAMES, "multi_label", threshold)
    assert row["labels"] == expected
    assert list(row["probabilities"].values()) == pytest.approx(
        logits[0].sigmoid().tolist(), abs=1e-6
    )
    (row,) = read_classes(torch.full((1, 3), -9.0), NAMES, "multi_label", threshold)
    assert row["labels"] == []


def test_a_regression_has_a_value():
    rows = read_classes(torch.tensor([[1.5], [-2.0]]), ["LABEL_0"], "regression", 0.5)
    assert rows == [{"value": 1.5}, {"value": -2.0}]


def test_half_precision_is_read_in_float32():
    logits = torch.tensor([[0.1, 0.2, 0.3]], dtype=torch.bfloat16)
    (row,) = read_classes(logits, NAMES, "single_label", 0.5)
    assert sum(row["probabilities"].values()) == pytest.approx(1, abs=3e-6)


def test_weights_come_as_a_list_by_name_or_balanced():
    counts = [6, 3, 1]
    assert class_weights(None, NAMES, counts) is None
    assert class_weights([1, 2, 0.5], NAMES, []).tolist() == [1, 2, 0.5]
    assert class_weights({"eggs": 4}, NAMES, []).tolist() == [1, 1, 4]
    assert class_weights({}, NAMES, []).tolist() == [1, 1, 1]
    balanced = class_weights("balanced", NAMES, counts)
    assert balanced.tolist() == pytest.approx([10 / 18, 10 / 9, 10 / 3])
    assert float((balanced * torch.tensor(counts)).sum()) == pytest.approx(sum(counts))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"spamm": 2.0}, r"unknown class 'spamm' \(there are 'ham', .*did you mean 'spam'"),
        ([1.0, 2.0], "one weight for each of 'ham', 'spam', 'eggs'"),
        ("balance", "class_weights must be 'balanced'"),
        ([1.0, -1.0, 1.0], "class_weights must be at least 0"),
        ({"ham": -0.1}, "class_weights must be at least 0"),
        ([1.0, float("nan"), 1.0], "class_weights must be at least 0, and one above"),
        ([1.0, float("inf"), 1.0], "class_weights must be at least 0, and one above"),
        ([0.0, 0.0, 0.0], "class_weights must be at least 0, and one above"),
    ],
)
def test_weights_that_are_none_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        class_weights(setting, NAMES, [1, 1, 1])


@pytest.mark.parametrize("counts", [[], [0, 0, 0]])
def test_a_balance_needs_examples_with_labels(counts):
    with pytest.raises(ValueError, match="class_weights='balanced' needs a data module"):
        class_weights("balanced", NAMES, counts)
