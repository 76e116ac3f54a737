"""What a run says of the fits before it, through exports and checkpoints."""

from __future__ import annotations

import json

import pytest

import lmkit
from lmkit import callbacks
from lmkit.modules import SequenceClassificationModule
from lmkit.modules.history import NOTE, history_of, read_history
from tests import lessons
from tests.tiny_run import checkpoint


@pytest.fixture
def exported(tmp_path):
    """A factorized network, trained for a step and exported."""
    module = SequenceClassificationModule(str(lessons.teacher("sequence_classification")))
    low_rank = callbacks.LowRankCallback(method="plain", targets=["ffn_input"], rank=2)
    fit(module, tmp_path / "first", [low_rank])
    lmkit.export(module, tmp_path / "exported")
    return tmp_path / "exported"


def fit(module, folder, others=()):
    """Train for a step, and keep the checkpoint."""
    keep = callbacks.CheckpointCallback(dirpath=str(folder / "checkpoints"))
    rows = lessons.data("sequence_classification", folder)
    lessons.fit(module, rows, keep, *others, enable_checkpointing=True, max_steps=1)


def test_a_fit_adds_itself_to_what_the_export_before_it_says(exported, tmp_path):
    earlier = read_history(str(exported), pretrained=True)
    first = earlier[-1]
    assert first["module"] == "SequenceClassificationModule"
    assert [s["class_path"].rpartition(".")[2] for s in first["surgeries"]] == ["LowRank"]
    again = SequenceClassificationModule(str(exported), learning_rate=1e-4)
    fit(again, tmp_path / "second", [callbacks.BitFitCallback()])
    for said in (checkpoint(str(tmp_path / "second"))["lmkit"]["history"], history_of(again)):
        assert said[:-1] == earlier
        assert said[-1]["settings"]["learning_rate"] == 1e-4
        kinds = [s["class_path"].rpartition(".")[2] for s in said[-1]["surgeries"]]
        assert kinds and "LowRank" not in kinds
    loaded = lmkit.load(tmp_path / "second/checkpoints/last.ckpt")
    assert history_of(loaded) == said


def test_what_is_only_loaded_adds_no_fit(exported, tmp_path):
    loaded = lmkit.load(exported)
    assert history_of(loaded) == read_history(str(exported), pretrained=True) != []
    lmkit.export(loaded, tmp_path / "copy")
    assert read_history(str(tmp_path / "copy"), True) == read_history(str(exported), True)
    assert read_history(str(exported), pretrained=False) == []


@pytest.mark.parametrize("text", ["", "[]", '{"history": 3}', '{"history": [{"module": "X"}]}'])
def test_a_note_of_another_kind_tells_of_no_fits(text, tmp_path):
    (tmp_path / NOTE).write_text(text)
    assert read_history(str(tmp_path), True) == []
    (tmp_path / NOTE).write_text(json.dumps({"history": []}))
    assert read_history(str(tmp_path), True) == []
    assert read_history({"model_type": "bert"}, True) == []
