"""The same validation rows are shown every time."""

import json

import pytest
import torch
from lightning.pytorch import LightningModule

from lmkit.callbacks import SamplesCallback


class Batches:
    """A loader, and not a list, which Lightning takes for several."""

    def __init__(self, batches):
        self.batches = list(batches)

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)

    def batch(self, position):
        return self.batches[position]


def table(tmp_path, name="samples"):
    return [json.loads(line) for line in (tmp_path / "tables" / f"{name}.jsonl").open()]


def test_the_same_rows_are_shown_at_each_validation(fit, tmp_path):
    _, module = fit(SamplesCallback(rows=2), max_epochs=2)
    assert module.asked == [[0, 1], [0, 1]]
    assert [row["step"] for row in table(tmp_path)] == [5, 5, 10, 10]
    assert table(tmp_path)[0] == {"step": 5, "text": "row 0", "fills": [0.5, "é"]}


def test_the_sanity_check_shows_the_untrained_model(fit, tmp_path):
    fit(SamplesCallback(rows=1, name="before/after"), num_sanity_val_steps=1)
    assert [row["step"] for row in table(tmp_path, "before/after")] == [0, 5]


def test_showing_samples_moves_no_random_number(fit, tiny):
    drawn = []

    class Drawing(tiny):
        def on_validation_end(self):
            drawn.append(torch.rand(1).item())

    for callbacks in ([], [SamplesCallback()]):
        torch.manual_seed(3)
        fit(*callbacks, module=Drawing())
    assert drawn[0] == drawn[1]


def test_a_module_without_samples_is_refused_at_setup():
    with pytest.raises(TypeError, match=r"LightningModule has none"):
        SamplesCallback().setup(None, LightningModule(), "fit")


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="rows must be at least 1, got 0"):
        SamplesCallback(rows=0)


def test_rows_of_the_middle_are_shown_where_rows_can_be_asked_for(fit, rows):
    _, module = fit(SamplesCallback(rows=1), val=Batches(rows()))
    assert module.asked == [[8]]


def test_filler_rows_are_not_shown(fit, rows):
    *_, last = rows()
    assert last["index"].tolist() == [16, 17, 18, -1]
    _, module = fit(SamplesCallback(), val=Batches([last]))
    assert module.asked == [[16, 17, 18]]
