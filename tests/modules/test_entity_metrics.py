"""Scores of entities are seqeval's, however the sentences fall into batches and ranks."""

import random
import warnings

import pytest
import torch
from seqeval.metrics import (
    accuracy_score,
    classification_report,
    f1_score,
    precision_score,
    recall_score,
)
from seqeval.scheme import IOB2

from lmkit.modules.entity_metrics import (
    EntityF1,
    EntityPrecision,
    EntityRecall,
    EntityTypes,
    WordAccuracy,
    WordConfusion,
    confusion_rows,
    entity_rows,
)

LABELS = ["O", *(f"{p}-{t}" for t in ("LOC", "PER", "a-b") for p in "BI")]
SCORES = {EntityF1: f1_score, EntityPrecision: precision_score, EntityRecall: recall_score}
Tags = list[list[str]]


def drawn(seed: int, count: int = 40) -> tuple[Tags, Tags]:
    """Sentences and predictions that are often right, with tags that no scheme would have."""
    rng = random.Random(seed)
    gold = [
        rng.choices(LABELS, [4, *[1] * (len(LABELS) - 1)], k=rng.randint(1, 15))
        for _ in range(count)
    ]
    return gold, [[t if rng.random() < 0.7 else rng.choice(LABELS) for t in s] for s in gold]


def batches(gold: Tags, guess: Tags, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    made = []
    for start in range(0, len(gold), size):
        rows = range(start, min(start + size, len(gold)))
        width = max(len(gold[row]) for row in rows)
        labels = torch.full((len(rows), width), -100)
        predictions = torch.randint(len(LABELS), labels.shape)
        for place, row in enumerate(rows):
            words = len(gold[row])
            labels[place, :words] = torch.tensor([LABELS.index(t) for t in gold[row]])
            predictions[place, :words] = torch.tensor([LABELS.index(t) for t in guess[row]])
        made.append((predictions, labels))
    return made


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("metric", SCORES)
def test_scores_are_those_of_seqeval(metric: type[EntityTypes], strict: bool) -> None:
    how = {"mode": "strict", "scheme": IOB2} if strict else {}
    for seed in range(25):
        gold, guess = drawn(seed)
        ours = metric(LABELS, strict)
        for batch in batches(gold, guess, size=7):
            ours.update(*batch)
        assert ours.compute().item() == pytest.approx(SCORES[metric](gold, guess, **how), abs=1e-6)


def test_nothing_predicted_and_nothing_there_is_zero_as_in_seqeval() -> None:
    for gold, guess in (([["O"]], [["O"]]), ([["B-PER"]], [["O"]]), ([["O"]], [["B-PER"]])):
        for metric, theirs in SCORES.items():
            ours = metric(LABELS)
            ours.update(*batches(gold, guess, 1)[0])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert ours.compute().item() == theirs(gold, guess)


def test_the_table_is_that_of_seqeval() -> None:
    gold, guess = drawn(3)
    metric = EntityTypes(LABELS)
    for batch in batches(gold, guess, 9):
        metric.update(*batch)
    *rows, total = entity_rows(metric.types, metric.compute())
    report = classification_report(gold, guess, output_dict=True)
    for row, name in [*((row, row["type"]) for row in rows), (total, "micro avg")]:
        theirs = report[name]
        assert row["precision"] == pytest.approx(theirs["precision"], abs=1e-4)
        assert row["recall"] == pytest.approx(theirs["recall"], abs=1e-4)
        assert row["f1"] == pytest.approx(theirs["f1-score"], abs=1e-4)
        assert row["gold"] == theirs["support"]


@pytest.mark.parametrize("metric", [EntityF1, EntityPrecision, EntityRecall, EntityTypes])
def test_batches_and_ranks_do_not_matter(metric: type[EntityTypes]) -> None:
    gold, guess = drawn(5)
    whole = metric(LABELS)
    whole.update(*batches(gold, guess, 40)[0])
    # What a gather over two ranks does: the states are added, and divided once.
    parts = [metric(LABELS), metric(LABELS)]
    for number, batch in enumerate(batches(gold, guess, 3)):
        parts[number % 3 == 0].update(*batch)
    joined = metric(LABELS)
    assert joined._reductions["counts"](torch.tensor([1, 2])) == 3
    joined.counts = parts[0].counts + parts[1].counts
    joined._update_count = 1
    assert torch.equal(whole.compute(), joined.compute())


def test_a_word_without_prediction_is_outside_and_a_missed_entity() -> None:
    labels = torch.tensor([[1, 0, 5]])
    predictions = torch.tensor([[1, 0, -1]])
    recall, precision = EntityRecall(LABELS), EntityPrecision(LABELS)
    recall.update(predictions, labels)
    precision.update(predictions, labels)
    assert (recall.compute().item(), precision.compute().item()) == (0.5, 1.0)


def test_accuracy_is_that_of_seqeval_and_counts_missing_words() -> None:
    gold, guess = drawn(7)
    metric = WordAccuracy(outside=0)
    for batch in batches(gold, guess, 9):
        metric.update(*batch)
    assert metric.compute().item() == pytest.approx(accuracy_score(gold, guess), abs=1e-6)
    labels, none = torch.tensor([[0, 1, -100]]), torch.tensor([[-1, -1, -1]])
    outside, wrong = WordAccuracy(outside=0), WordAccuracy()
    outside.update(none, labels)
    wrong.update(none, labels)
    assert (outside.compute().item(), wrong.compute().item()) == (0.5, 0.0)


def test_the_confusion_of_words_has_every_word_once() -> None:
    gold, guess = drawn(9)
    metric = WordConfusion(len(LABELS))
    for batch in batches(gold, guess, 6):
        metric.update(*batch)
    matrix = metric.compute()
    for row, name in enumerate(LABELS):
        for column, other in enumerate(LABELS):
            expected = sum(
                (a, b) == (name, other)
                for right, made in zip(gold, guess, strict=True)
                for a, b in zip(right, made, strict=True)
            )
            assert matrix[row, column] == expected
    assert matrix[:, -1].sum() == 0
    for row in confusion_rows(LABELS, matrix):
        assert row["gold"] == sum(right.count(row["tag"]) for right in gold)


def test_a_label_that_spells_no_entity_is_refused() -> None:
    with pytest.raises(ValueError, match="'NOUN' is no tag of an entity"):
        EntityF1(["O", "NOUN"])
