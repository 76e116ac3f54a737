"""Models are measured side by side, from what they were given as to one report."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import lmkit
from lmkit.callbacks import PruningCallback
from lmkit.report import efficiency
from lmkit.trimming import trim
from tests import tiny
from tests.callbacks.tuned import fit, make_data
from tests.report.test_scores import TASKS, trained

QUICK: dict[str, Any] = {"shapes": [(1, 8), (3, 16)], "rounds": 3, "warmup": 1, "memory": False}


def test_dense_trimmed_and_pruned_models_side_by_side(tmp_path: Path) -> None:
    module, trainer = fit(tmp_path, max_steps=12)
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    small, _ = trim(tmp_path / "it.ckpt", tmp_path / "small", tiny.sentences(80))
    pruning = PruningCallback(sparsity=0.6, start=0, end=0.5)
    pruned, _ = fit(tmp_path, pruning, max_steps=12)
    models = {"pruned": pruned, "dense": tmp_path / "it.ckpt", "small": str(small)}
    threads = torch.get_num_threads()
    made = efficiency(models, make_data(tmp_path, tokenizer=None), dense="dense", **QUICK)
    assert torch.get_num_threads() == threads
    rows = {row.name: row for row in made.rows}
    assert list(rows) == list(models) and (made.dense, made.metric) == ("dense", "accuracy")
    dense = rows["dense"]
    assert dense.parameters == sum(p.numel() for p in module.network.parameters())
    assert (dense.retention, dense.agreement, dense.divergence) == (1.0, 1.0, 0.0)
    assert dense.speedup == dense.cpu_speedup == {"1x8": 1.0, "3x16": 1.0}
    trimmed = rows["small"]
    assert trimmed.parameters < dense.parameters  # type: ignore[operator]
    assert trimmed.disk_bytes < dense.disk_bytes  # type: ignore[operator]
    assert trimmed.macs == dense.macs and trimmed.metrics == pytest.approx(dense.metrics)
    assert (trimmed.agreement, trimmed.items) == (1.0, 13)
    zeros = rows["pruned"]
    assert zeros.parameters == dense.parameters and zeros.macs == dense.macs
    assert zeros.nonzero_parameters < 0.9 * zeros.parameters  # type: ignore[operator]
    assert zeros.notes == ("zeros are stored and multiplied like all else: masks save no time",)
    for row in made.rows:
        assert row.metric == row.metrics["accuracy"]
        assert row.retention == pytest.approx(row.metric / dense.metric)  # type: ignore[operator]
        assert list(row.latency) == ["1x8", "3x16"]
        assert all(t.least <= t.median <= t.p95 for t in row.latency.values())
        assert row.memory_bytes is None and not math.isnan(row.divergence or 0.0)
    assert json.loads(made.to_json(tmp_path / "r.json").read_text())["settings"]["rounds"] == 3
    assert made.machine["processor"] and made.machine["cores"] >= 1


def test_a_language_model_is_judged_by_its_perplexity_the_other_way_about(tmp_path: Path) -> None:
    module = trained("causal_lm", tmp_path)
    folder = lmkit.export(module, tmp_path / "dense")
    worse = lmkit.load(folder)
    with torch.no_grad():
        for parameter in worse.network.parameters():
            parameter.mul_(30)
    data = TASKS["causal_lm"].make_data(tmp_path)
    made = efficiency({"dense": folder, "worse": worse}, data, metric="perplexity", **QUICK)
    first, second = made.rows
    assert made.metric == "perplexity" and second.metric > first.metric  # type: ignore[operator]
    assert second.retention == pytest.approx(first.metric / second.metric)  # type: ignore[operator]
    assert second.divergence > 0 and second.items == first.items  # type: ignore[operator]


def test_costs_alone_and_texts_alone(tmp_path: Path) -> None:
    module = trained("sequence_classification", tmp_path)
    (only,) = efficiency({"it": module}, **QUICK).rows
    assert only.metrics == {} and only.agreement is None and only.latency
    tiny.write_text(tmp_path / "texts.txt", 7)
    made = efficiency({"it": module}, tmp_path / "texts.txt", **QUICK)
    assert made.metric is None
    assert (made.rows[0].agreement, made.rows[0].items) == (1.0, 7)


def test_another_main_metric_and_split(tmp_path: Path) -> None:
    module = trained("sequence_classification", tmp_path)
    data = TASKS["sequence_classification"].make_data(tmp_path)
    made = efficiency({"it": module}, data, metric="loss", split="val", **QUICK)
    assert (made.metric, made.rows[0].retention) == ("loss", 1.0)
    with pytest.raises(ValueError, match=r"metric is 'bleu', and the evaluation has loss, accur"):
        efficiency({"it": module}, data, metric="bleu", **QUICK)
    with pytest.raises(ValueError, match="it: split is 'test', and there are no test examples"):
        efficiency({"it": module}, data, split="test", **QUICK)


@pytest.mark.parametrize(
    ("models", "how", "message"),
    [
        ({}, {}, "models must name at least one model"),
        (["folder"], {}, "models must name at least one model"),
        ({"a": "x"}, {"dense": "b"}, "dense is 'b', and models has 'a'"),
        ({"a": "x"}, {"rounds": 0}, "rounds must be at least 1"),
        ({"a": "x"}, {"threads": 1.5}, "threads must be a whole number"),
        ({"a": "x"}, {"warmup": -1}, "warmup must be at least 0"),
        ({"a": "x"}, {"shapes": []}, "shapes must be pairs of rows and tokens"),
        ({"a": "x"}, {"shapes": [(1,)]}, "shapes must be pairs"),
        ({"a": "x"}, {"shapes": [(0, 5)]}, "shapes must be at least 1"),
        ({"a": "./nowhere"}, {}, r"a: '\./nowhere' is neither a checkpoint, nor a folder"),
        ({"a": "no.ckpt"}, {}, r"a: there is no checkpoint at no\.ckpt"),
    ],
)
def test_bad_input_is_named(models: Any, how: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        efficiency(models, **{**QUICK, **how})


def test_runs_that_are_too_long_and_data_of_other_classes_are_named(tmp_path: Path) -> None:
    module = trained("sequence_classification", tmp_path)
    with pytest.raises(ValueError, match="it has 66 positions, and a run should have 67 tokens"):
        efficiency({"it": module}, **{**QUICK, "shapes": [(1, 67)]})
    (tmp_path / "val-rows.csv").write_text("text,label\na fox,cat\na dog,fox\n")
    data = TASKS["sequence_classification"].make_data(tmp_path)
    with pytest.raises(ValueError, match=r"^it: .*cat"):
        efficiency({"it": module}, data, **QUICK)


@pytest.mark.slow
def test_an_onnx_file_and_memory_beside_them(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    module, _ = fit(tmp_path, max_steps=2)
    onnx = lmkit.export(module, tmp_path / "onnx", format="onnx")
    how = {**QUICK, "memory": True}
    made = efficiency({"dense": module, "file": onnx}, make_data(tmp_path, tokenizer=None), **how)
    dense, file = made.rows
    assert (file.kind, file.agreement) == ("onnx", 1.0)
    assert file.metrics == pytest.approx(dense.metrics, rel=1e-4)
    assert file.divergence == pytest.approx(0.0, abs=1e-6)
    assert file.trainable_parameters is None and file.macs == {"1x8": None, "3x16": None}
    assert file.parameters >= dense.parameters  # type: ignore[operator]
    assert dense.memory_bytes > 0 and file.memory_bytes > 0  # type: ignore[operator]
