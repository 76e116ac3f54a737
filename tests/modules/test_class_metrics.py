"""Metrics of classes and values against scikit-learn, over batches and ranks."""

import warnings

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn import metrics as sk

from lmkit.functional.classification import binary_loss, class_loss, regression_loss
from lmkit.modules.class_metrics import (
    Confusion,
    LabelCounts,
    Reliability,
    ValuePairs,
    class_figures,
    class_rows,
    label_rows,
    task_metrics,
    update_class_metrics,
)
from lmkit.types import StepOutput

NAN = float("nan")
ROWS = 41


def single():
    labels = torch.randint(0, 4, (ROWS,))
    logits = torch.randn(ROWS, 5) + 1.5 * torch.nn.functional.one_hot(labels, 5)
    return logits, labels, class_loss


def multi():
    labels = (torch.rand(ROWS, 3) < 0.4).float()
    return 3 * (torch.randn(ROWS, 3) + labels), labels, binary_loss


def values():
    labels = torch.randn(ROWS)
    labels[5] = labels[9]  # a tie
    return (labels + torch.randn(ROWS)).unsqueeze(1), labels, regression_loss


MAKE = {"single_label": single, "multi_label": multi, "regression": values}
FILLER = {"single_label": -100, "multi_label": NAN, "regression": NAN}


def with_filler(task, logits, labels):
    logits = torch.cat([logits, 99 * torch.ones_like(logits[:1])])
    return logits, torch.cat([labels, torch.full_like(labels[:1], FILLER[task])])


def update(made, task, logits, labels, loss, threshold=0.5):
    output = StepOutput(*loss(logits, labels), logits)
    update_class_metrics(made, output, labels, task, threshold)


def result(made):
    return {name: float(metric.compute()) for name, metric in made.items()}


def metrics_of(task, logits):
    return {"loss": task_metrics("regression", 1)["mse"], **task_metrics(task, logits.shape[1])}


pytestmark = pytest.mark.filterwarnings("ignore:Metric|The ``compute``:UserWarning")


def filled(task, size=7, threshold=0.5, part=slice(None)):
    logits, labels, loss = MAKE[task]()
    made = metrics_of(task, logits)
    logits, labels = logits[part], labels[part]
    for first in range(0, len(labels), size):
        rows = slice(first, first + size)
        update(made, task, *with_filler(task, logits[rows], labels[rows]), loss, threshold)
    return made


def reference(task, threshold=0.5):
    logits, labels, loss = MAKE[task]()
    expected = {"loss": float(loss(logits, labels)[0])}
    y = labels.numpy()
    if task == "regression":
        p = logits[:, 0].numpy()
        return expected | {
            "pearson": pearsonr(p, y)[0],
            "spearman": spearmanr(p, y)[0],
            "mse": sk.mean_squared_error(y, p),
        }
    if task == "multi_label":
        p = (logits.sigmoid() >= threshold).numpy()
        return expected | {
            "accuracy": float((p == y).mean()),
            "f1": sk.f1_score(y, p, average="micro"),
            "macro_f1": sk.f1_score(y, p, average="macro"),
        }
    p = logits.argmax(-1).numpy()
    return expected | {
        "accuracy": sk.accuracy_score(y, p),
        "macro_f1": sk.f1_score(y, p, average="macro"),
        "mcc": sk.matthews_corrcoef(y, p),
    }


@pytest.mark.parametrize("task", MAKE)
@pytest.mark.parametrize("size", [1, 7, 41])
def test_metrics_are_those_of_scikit_learn_for_any_batch_size_and_fillers(task, size):
    torch.manual_seed(1)
    found = result(filled(task, size))
    torch.manual_seed(1)
    assert found == pytest.approx(reference(task), abs=1e-5)


@pytest.mark.parametrize("threshold", [0.2, 0.8])
def test_several_labels_are_said_from_the_threshold_on(threshold):
    torch.manual_seed(1)
    found = result(filled("multi_label", threshold=threshold))
    torch.manual_seed(1)
    assert found == pytest.approx(reference("multi_label", threshold), abs=1e-5)


def join(one, other):
    """Let one metric see what another one has seen on its own rank."""
    states = iter([getattr(other, name) for name in other._defaults])
    flat = []
    for state in states:
        parts = [torch.cat(state)] if isinstance(state, list) else [state]
        flat += parts
    waiting = iter(flat)

    def gather(tensor, group=None):
        return [tensor, next(waiting)]

    one.dist_sync_fn, one.distributed_available_fn = gather, lambda: True
    return one


@pytest.mark.parametrize("task", MAKE)
def test_two_ranks_give_what_one_gives(task):
    torch.manual_seed(1)
    whole = result(filled(task))
    ranks = []
    for part in (slice(0, 15), slice(15, None)):
        torch.manual_seed(1)
        ranks.append(filled(task, part=part))
    for name in ranks[0]:
        assert float(join(ranks[0][name], ranks[1][name]).compute()) == pytest.approx(
            whole[name], abs=1e-5
        )


def tables(task, logits):
    if task == "regression":
        return [ValuePairs()]
    return (
        [LabelCounts(3)] if task == "multi_label" else [Confusion(logits.shape[1]), Reliability()]
    )


@pytest.mark.parametrize("task", MAKE)
def test_tables_of_two_ranks_are_those_of_one(task):
    logits, labels, _ = MAKE[task]()
    for whole, one, two in zip(*(tables(task, logits) for _ in range(3)), strict=True):
        whole.update(logits, labels)
        one.update(*with_filler(task, logits[:9], labels[:9]))
        for rows in (slice(9, 30), slice(30, None)):
            two.update(*with_filler(task, logits[rows], labels[rows]))
        assert torch.allclose(join(one, two).compute(), whole.compute())


@pytest.mark.parametrize("task", MAKE)
def test_a_batch_of_fillers_changes_nothing(task):
    logits, labels, loss = MAKE[task]()
    fillers = torch.full_like(labels, FILLER[task])
    made = metrics_of(task, logits)
    update(made, task, logits, labels, loss)
    before = result(made)
    update(made, task, logits, fillers, loss)
    assert result(made) == before
    for table in tables(task, logits):
        table.update(logits, labels)
        kept = table.compute().clone()
        table.update(logits, fillers)
        assert torch.equal(table.compute(), kept)


def test_confusion_is_that_of_scikit_learn():
    logits, labels, _ = single()
    table = Confusion(5)
    table.update(*with_filler("single_label", logits, labels))
    expected = sk.confusion_matrix(labels, logits.argmax(-1), labels=range(5))
    assert np.array_equal(table.compute(), expected)
    rows = class_rows(list("abcde"), table.compute())
    scores = sk.precision_recall_fscore_support(
        labels, logits.argmax(-1), labels=range(5), zero_division=0
    )
    found = [[row[n] for row in rows] for n in ("precision", "recall", "f1", "examples")]
    assert np.allclose(found, scores)
    assert [row["predicted"] for row in rows] == expected.sum(0).tolist()


def test_counts_of_several_labels_give_the_scores_of_scikit_learn():
    logits, labels, _ = multi()
    table = LabelCounts(3, threshold=0.3)
    table.update(*with_filler("multi_label", logits, labels))
    rows = label_rows(list("abc"), table.compute())
    said = (logits.sigmoid() >= 0.3).numpy()
    scores = sk.precision_recall_fscore_support(labels.numpy(), said, zero_division=0)
    found = [[row[n] for row in rows] for n in ("precision", "recall", "f1", "examples")]
    assert np.allclose(found, scores)


def test_reliability_is_accuracy_and_confidence_bin_by_bin():
    logits, labels, _ = single()
    table = Reliability(bins=4)
    table.update(*with_filler("single_label", logits, labels))
    sure, said = logits.softmax(-1).max(-1)
    right = (said == labels).double()
    error = 0.0
    for place, (confidence, accuracy, count) in enumerate(table.compute().T.tolist()):
        inside = (sure >= place / 4) & (sure < (place + 1) / 4)
        assert count == inside.sum()
        if count:
            assert confidence == pytest.approx(float(sure[inside].mean()), abs=1e-6)
            assert accuracy == pytest.approx(float(right[inside].mean()), abs=1e-6)
            error += count / ROWS * abs(accuracy - confidence)
    assert Reliability.calibration_error(table.compute()) == pytest.approx(error, abs=1e-6)


def test_a_prediction_that_is_certain_falls_into_the_last_bin():
    table = Reliability(bins=3)
    table.update(torch.tensor([[0.0, 100.0]]), torch.tensor([1]))
    assert table.compute()[:, -1].tolist() == [1, 1, 1]
    assert Reliability.calibration_error(Reliability().compute()) == 0


def test_values_are_pairs_of_true_and_predicted():
    table = ValuePairs()
    assert table.compute().shape == (2, 0)
    table = ValuePairs()
    table.update(torch.tensor([[1.0], [7.0]]), torch.tensor([2.0, NAN]))
    table.update(torch.tensor([[3.0]]), torch.tensor([4.0]))
    assert table.compute().tolist() == [[2, 4], [1, 3]]


def test_a_class_that_never_comes_has_scores_of_0_and_not_nan():
    (_, row) = label_rows(["a", "b"], torch.tensor([[1, 0], [1, 0], [1, 0]]))
    assert row == {
        "label": "b",
        "precision": 0,
        "recall": 0,
        "f1": 0,
        "examples": 0,
        "predicted": 0,
    }


def test_figures_are_drawn_of_what_was_found():
    pytest.importorskip("matplotlib")
    logits, labels, _ = single()
    found = {}
    for name, table in (("confusion", Confusion(5)), ("reliability", Reliability())):
        table.update(logits, labels)
        found[name] = table.compute()
    rows = class_rows(list("abcde"), found["confusion"])
    assert set(class_figures(found, rows, list("abcde"))) == {"classes", "confusion", "reliability"}
    assert set(class_figures({"pairs": torch.randn(2, 4)}, [], [])) == {"values"}
    assert class_figures({}, [], []) == {}


@pytest.mark.parametrize("task", MAKE)
def test_metrics_of_one_example_are_finite_or_nan_without_a_crash(task):
    logits, labels, loss = MAKE[task]()
    made = metrics_of(task, logits)
    update(made, task, logits[:1], labels[:1], loss)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert set(result(made)) == set(made)
