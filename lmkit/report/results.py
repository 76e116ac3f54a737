"""What a report of efficiency holds, and how it is shown."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .latency import Latency
from .pareto import pareto_figure

__all__ = ["EfficiencyReport", "EfficiencyRow", "as_text", "lower_is_better"]


def as_text(table: Table) -> str:
    """Return a table as plain text, as wide as the terminal."""
    out = io.StringIO()
    Console(file=out, color_system=None).print(table)
    return out.getvalue().rstrip("\n")


@dataclass(frozen=True)
class EfficiencyRow:
    """What one model costs and is worth; `None` where it is not known.

    Attributes:
        name: of the model.
        kind: what runs it, `"torch"` or `"onnx"`.
        parameters: numbers of all weights, what is tied counted once.
        trainable_parameters: those that would be trained.
        nonzero_parameters: those that are not zero.
        embedding_parameters: those in tables of tokens.
        disk_bytes: weights, config and tokenizer.
        memory_bytes: the most that a process needs to load and run it.
        macs: multiplications of one run, by shape.
        latency: milliseconds of one run, by shape.
        speedup: times as fast as the dense model on the clock, by shape.
        cpu_speedup: the same in processor time.
        metrics: what the module's own evaluation logs.
        metric: the main one of these.
        retention: the main metric as a share of the dense model's; of a loss or a perplexity the
            other way about.
        agreement: share of items that are decided as by the dense model.
        divergence: mean KL divergence from the dense model's probabilities; of values the mean
            squared difference.
        items: how many were compared: examples, labelled tokens, answers.
        notes: what a reader should know.
    """

    name: str
    kind: str
    parameters: int | None = None
    trainable_parameters: int | None = None
    nonzero_parameters: int | None = None
    embedding_parameters: int | None = None
    disk_bytes: int | None = None
    memory_bytes: int | None = None
    macs: Mapping[str, int | None] = field(default_factory=dict)
    latency: Mapping[str, Latency] = field(default_factory=dict)
    speedup: Mapping[str, float] = field(default_factory=dict)
    cpu_speedup: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    metric: float | None = None
    retention: float | None = None
    agreement: float | None = None
    divergence: float | None = None
    items: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class EfficiencyReport:
    """Models beside a dense one.

    Attributes:
        rows: one for each model, in the order in which they were given.
        dense: name of the model that the others are compared with.
        metric: name of the main metric; `None` without one.
        settings: of the measurement: shapes, rounds, threads ...
        machine: what it was measured on.
    """

    rows: list[EfficiencyRow]
    dense: str
    metric: str | None
    settings: Mapping[str, Any]
    machine: Mapping[str, Any]

    def __str__(self) -> str:
        return as_text(self.table())

    def __rich__(self) -> Table:
        return self.table()

    def table(self) -> Table:
        """Return a table for a terminal: a column for each model."""
        machine, rounds = self.machine, self.settings["rounds"]
        table = Table(
            title=f"compared with {self.dense}",
            caption=f"{machine['processor']}, {self.settings['threads']} of {machine['cores']} "
            f"threads, {rounds} rounds in turn; 'x as fast' is the median of the rounds' ratios",
            caption_justify="left",
        )
        table.add_column("")
        for row in self.rows:
            table.add_column(row.name, justify="right", overflow="fold")
        for words, texts in self._lines():
            if any(texts):
                table.add_row(words, *(text or "-" for text in texts))
        for row in self.rows:
            if row.notes:
                table.caption = f"{table.caption}\n{row.name}: {'; '.join(row.notes)}"
        return table

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data."""
        rows = [
            asdict(row) | {"latency": {s: t._asdict() for s, t in row.latency.items()}}
            for row in self.rows
        ]
        said = {"dense": self.dense, "metric": self.metric, "rows": rows}
        return {**said, "settings": dict(self.settings), "machine": dict(self.machine)}

    def to_json(self, path: str | os.PathLike[str]) -> Path:
        """Write the report as JSON, and return where."""
        place = Path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        return place

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Draw the main metric against latency and size, with the Pareto front; returns where.

        Without a metric the agreement with the dense model takes its place. Models for which it is
        not known are left out.

        Args:
            path: of the picture, such as `report.png`.

        Raises:
            ValueError: there is neither metric nor agreement.
            ImportError: the extra `plot` is not installed.
        """
        word = "metric" if self.metric is not None else "agreement"
        rows = [row for row in self.rows if getattr(row, word) is not None]
        if not rows:
            raise ValueError(
                "there is no quality to draw costs against: give data with labels, or texts"
            )
        shape = list(rows[0].latency)[-1]
        costs = {
            f"median milliseconds at {shape}": [row.latency[shape].median for row in rows],
            "MiB on disk": [(row.disk_bytes or 0) / 2**20 for row in rows],
        }
        values = [getattr(row, word) for row in rows]
        label = self.metric if self.metric is not None else f"agreement with {self.dense}"
        if self.metric is not None and lower_is_better(self.metric):
            label, values = f"- {label}", [-value for value in values]
        figure = pareto_figure([row.name for row in rows], costs, values, label)
        place = Path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(place, dpi=150)
        return place

    def _lines(self) -> list[tuple[str, list[str]]]:
        """Return the lines of the table: what they say, and a text for each model."""
        rows = self.rows
        lines = [
            ("run by", [row.kind for row in rows]),
            ("parameters", [_count(row.parameters) for row in rows]),
            ("  not zero", [_share(row.nonzero_parameters, row.parameters) for row in rows]),
            ("  in tables of tokens", [_count(row.embedding_parameters) for row in rows]),
            ("  trainable", [_count(row.trainable_parameters) for row in rows]),
            ("MiB on disk", [_mebibytes(row.disk_bytes) for row in rows]),
            ("MiB of memory", [_mebibytes(row.memory_bytes) for row in rows]),
        ]
        for shape in rows[0].latency:
            times = [row.latency[shape] for row in rows]
            macs = [row.macs.get(shape) for row in rows]
            lines += [
                (f"{shape}: million MACs", ["" if n is None else f"{n / 1e6:,.1f}" for n in macs]),
                ("  ms, median (p95)", [f"{_time(t.median)} ({_time(t.p95)})" for t in times]),
                (
                    "  CPU ms, median (least)",
                    [f"{_time(t.cpu_median)} ({_time(t.cpu_least)})" for t in times],
                ),
                ("  x as fast", [f"{row.speedup[shape]:.2f}" for row in rows]),
                ("  x as fast in CPU time", [f"{row.cpu_speedup[shape]:.2f}" for row in rows]),
            ]
        return [
            *lines,
            (str(self.metric), [_number(row.metric) for row in rows]),
            ("  % of the dense one's", [_percent(row.retention) for row in rows]),
            ("% decided alike", [_percent(row.agreement) for row in rows]),
            ("divergence", [_number(row.divergence) for row in rows]),
            ("  items compared", [_count(row.items) for row in rows]),
        ]


def lower_is_better(metric: str) -> bool:
    """Whether less of a metric is more: of losses, errors and perplexities.

    Example:
        >>> lower_is_better("perplexity"), lower_is_better("f1")
        (True, False)
    """
    return any(word in metric for word in ("loss", "perplexity", "mse", "mae", "error"))


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _time(milliseconds: float) -> str:
    return f"{milliseconds:,.0f}" if milliseconds >= 100 else f"{milliseconds:.3g}"


def _share(part: int | None, whole: int | None) -> str:
    return "" if part is None or not whole else f"{part / whole:.1%}"


def _mebibytes(size: int | None) -> str:
    return "" if size is None else f"{size / 2**20:,.1f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
