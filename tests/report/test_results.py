"""A report is shown as a table, as JSON and as a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lmkit.report import EfficiencyReport, EfficiencyRow
from lmkit.report.latency import Latency
from lmkit.report.results import lower_is_better


def row(name: str, milliseconds: float, **more: Any) -> EfficiencyRow:
    times = {
        shape: Latency(milliseconds * k, 2 * milliseconds * k, milliseconds, 1.5, 1.25)
        for shape, k in (("1x32", 1), ("32x128", 30))
    }
    known: dict[str, Any] = {
        "parameters": 22_713_986,
        "nonzero_parameters": 11_356_993,
        "embedding_parameters": 11_720_448,
        "trainable_parameters": 3,
        "disk_bytes": 90 * 2**20,
        "memory_bytes": 200 * 2**20,
        "macs": {"1x32": 340_000_000, "32x128": None},
        "latency": times,
        "speedup": {"1x32": 8 / milliseconds, "32x128": 8 / milliseconds},
        "cpu_speedup": {"1x32": 1.0, "32x128": 1.0},
    }
    return EfficiencyRow(name, "torch", **{**known, **more})


def report(metric: str | None = "accuracy", **more: Any) -> EfficiencyReport:
    quality: list[dict[str, Any]] = [
        {"metric": 0.9, "retention": 1.0, "agreement": 1.0, "divergence": 0.0, "items": 500},
        {"metric": 0.88, "retention": 0.88 / 0.9, "agreement": 0.95, "divergence": 0.02},
    ]
    if metric is None:
        quality = [{}, {"agreement": 0.9}]
    rows = [row("dense", 8.0, **quality[0]), row("small", 2.0, notes=("a note",), **quality[1])]
    machine = {"processor": "a processor", "cores": 2, "versions": {}}
    settings = {"shapes": [[1, 32], [32, 128]], "rounds": 20, "threads": 1}
    return EfficiencyReport(rows, "dense", metric, settings, machine)


def shown(made: EfficiencyReport, width: int = 100) -> str:
    console = Console(width=width)
    with console.capture() as captured:
        console.print(made)
    return captured.get()


def test_the_table_has_a_column_for_each_model() -> None:
    text = shown(report())
    assert str(report()).splitlines()[1:] == [*shown(report(), 80).rstrip("\n").splitlines()][1:]
    lines = {line.split("│")[1].strip(): line for line in text.splitlines() if "│" in line}
    assert "22,713,986" in lines["parameters"] and "50.0%" in lines["not zero"]
    assert lines["MiB on disk"].count("90.0") == 2
    assert "340.0" in lines["1x32: million MACs"]
    assert "32x128: million MACs" not in lines  # not known of any
    assert "88" in lines["accuracy"] and "97.8" in lines["% of the dense one's"]
    assert "95.0" in lines["% decided alike"] and "0.02" in lines["divergence"]
    assert "4.00" in lines["x as fast"]
    assert "240 (480)" in lines["ms, median (p95)"]
    assert "compared with dense" in text and "a processor, 1 of 2 threads, 20 rounds" in text
    assert "small: a note" in text


def test_what_nothing_is_known_of_is_left_out() -> None:
    text = shown(report(None))
    assert "divergence" not in text and "None" not in text and "% decided alike" in text


def test_the_json_holds_everything(tmp_path: Path) -> None:
    made = report()
    path = made.to_json(tmp_path / "folder" / "report.json")
    read = json.loads(path.read_text())
    assert read == json.loads(json.dumps(made.to_dict()))
    assert (read["dense"], read["metric"]) == ("dense", "accuracy")
    first, second = read["rows"]
    assert first["latency"]["32x128"] == {
        "median": 240.0,
        "p95": 480.0,
        "least": 8.0,
        "cpu_median": 1.5,
        "cpu_least": 1.25,
    }
    assert second["retention"] == 0.88 / 0.9 and second["notes"] == ["a note"]
    assert set(first) == set(EfficiencyRow.__dataclass_fields__)


@pytest.mark.parametrize("metric", ["accuracy", "perplexity", None])
def test_the_picture_is_drawn(metric: str | None, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = report(metric).plot(tmp_path / "folder" / "report.png")
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5_000


def test_without_any_quality_there_is_nothing_to_draw(tmp_path: Path) -> None:
    made = report()
    rows = [row("dense", 8.0)]
    bare = EfficiencyReport(rows, "dense", None, made.settings, made.machine)
    with pytest.raises(ValueError, match="no quality to draw costs against"):
        bare.plot(tmp_path / "report.png")


def test_losses_and_errors_are_better_when_they_are_lower() -> None:
    low = ("loss", "perplexity", "mse", "mae", "generator_loss", "calibration_error")
    high = ("accuracy", "f1", "spearman", "mcc", "exact_match", "bleu", "chrf", "pearson")
    assert all(map(lower_is_better, low)) and not any(map(lower_is_better, high))
