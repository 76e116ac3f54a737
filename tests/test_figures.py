"""Figures of a test: what they show, for one class and for a thousand."""

import io

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")

from lmkit.figures import bar_figure, confusion_figure, reliability_figure, scatter_figure


def png(figure):
    """Draw it, as the run's folder gets it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def axes(figure):
    return figure.axes[0]


def test_confusion_shows_counts_and_shares_of_the_true_class():
    figure = confusion_figure(torch.tensor([[3, 1], [0, 4]]), ["ham", "spam"])
    assert {text.get_text() for text in axes(figure).texts} == {"3", "1", "4"}
    assert np.allclose(axes(figure).images[0].get_array(), [[0.75, 0.25], [0, 1]])
    labels = [label.get_text() for label in axes(figure).get_yticklabels()]
    assert labels == ["ham", "spam"]
    assert (axes(figure).get_xlabel(), axes(figure).get_ylabel()) == ("predicted", "true")
    assert png(figure).startswith(b"\x89PNG")


@pytest.mark.parametrize("classes", [1, 25, 150])
def test_confusion_of_few_and_many_classes_is_drawn(classes):
    figure = confusion_figure(np.eye(classes, dtype=int), [f"class {n}" for n in range(classes)])
    assert len(axes(figure).texts) == (1 if classes == 1 else 0)
    assert len(axes(figure).get_yticklabels()) == classes or classes > 60
    assert max(figure.get_size_inches()) < 16
    assert png(figure)


def test_a_class_without_example_has_an_empty_row():
    figure = confusion_figure([[0, 0], [1, 1]], ["a", "b"])
    assert np.allclose(axes(figure).images[0].get_array(), [[0, 0], [0.5, 0.5]])


def test_bars_show_each_score_of_each_thing():
    figure = bar_figure({"ham": {"f1": 0.5, "recall": 1.0}, "spam": {"f1": 0.0, "recall": 0.25}})
    heights = [[bar.get_height() for bar in group] for group in axes(figure).containers]
    assert heights == [[0.5, 0.0], [1.0, 0.25]]
    assert [text.get_text() for text in axes(figure).get_legend().get_texts()] == ["f1", "recall"]
    assert [label.get_text() for label in axes(figure).get_xticklabels()] == ["ham", "spam"]
    assert axes(figure).get_ylim() == (0, 1) and png(figure)


def test_bars_of_a_thousand_classes_fit_into_an_image():
    scores = {"precision": 0.1, "recall": 0.2, "f1": 0.3}
    figure = bar_figure({f"class {number}": scores for number in range(1000)})
    assert figure.get_size_inches()[0] * 150 < 2**16
    assert len(axes(figure).patches) == 3000 and len(axes(figure).get_xticklabels()) < 20


def test_bars_of_nothing_are_drawn(recwarn):
    assert png(bar_figure({}))
    assert not recwarn.list


def test_reliability_leaves_out_empty_bins_and_names_the_error():
    figure = reliability_figure([0.2, 0.0, 0.9], [0.5, 0.0, 1.0], [4, 0, 12], 0.1234)
    diagonal, model = axes(figure).get_lines()
    assert np.allclose(diagonal.get_xydata(), [[0, 0], [1, 1]])
    assert np.allclose(model.get_xydata(), [[0.2, 0.5], [0.9, 1.0]])
    assert [bar.get_height() for bar in axes(figure).patches] == [0.25, 0.75]
    assert axes(figure).get_title() == "expected calibration error 0.123"
    assert png(figure) and png(reliability_figure([0.0], [0.0], [0], 0.0))


@pytest.mark.parametrize("count", [0, 1, 50])
def test_values_are_drawn_beside_the_diagonal(count):
    true, predicted = torch.randn(count), torch.randn(count)
    figure = scatter_figure(true, predicted)
    points = axes(figure).collections[0].get_offsets()
    assert np.allclose(points, torch.stack([true, predicted], 1))
    assert (len(axes(figure).get_lines()) == 1) == bool(count)
    assert png(figure)


def test_no_figure_is_kept_by_pyplot():
    import matplotlib.pyplot as plt

    confusion_figure([[1]], ["a"])
    bar_figure({"a": {"f1": 1.0}})
    assert plt.get_fignums() == []
