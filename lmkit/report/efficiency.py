"""`lmkit.report.efficiency`: what models cost and are worth, beside a dense one."""

from __future__ import annotations

import logging
import os
import platform
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningDataModule
from transformers.utils import logging as transformers_logging

from ..launcher import available_cores
from ..modules.distillation_metrics import main_metric
from ..modules.network import usable_positions
from ..surgery.arguments import check_whole
from ..trimming import corpus_texts
from .contenders import Contender, disk_bytes, open_contender
from .latency import speedup, summarize, time_in_turn
from .memory import peak_memory
from .quality import judge
from .results import EfficiencyReport, EfficiencyRow, lower_is_better
from .scores import Said

__all__ = ["efficiency"]

# What a language model is judged by, where there is nothing better.
_LAST = ("perplexity", "loss")

Result = TypeVar("Result")


def efficiency(
    models: Mapping[str, Any],
    data: LightningDataModule | str | os.PathLike[str] | Sequence[str] | None = None,
    dense: str | None = None,
    shapes: Sequence[tuple[int, int]] = ((1, 32), (32, 128)),
    rounds: int = 20,
    warmup: int = 3,
    threads: int = 1,
    split: str | None = None,
    metric: str | None = None,
    memory: bool = True,
) -> EfficiencyReport:
    """Measure what models cost and what they are worth, on this machine's processor.

    Each model is measured as it is deployed: from the folder of its export, which is written to a
    temporary place for a module or a checkpoint. Latencies are taken in turn, each model once a
    round, so that a slow spell of the machine falls on all; the speed-up is the median over the
    rounds of the ratio of the two times of a round. Beside the clock stands the processor time,
    which another job disturbs less. A run is one forward pass of random tokens without padding.

    Args:
        models: by name: modules, checkpoints, folders of exports, folders with an ONNX file, or hub
            names.
        data: a data module, for the task's own metrics and for agreement; or a file of texts, or
            several, for agreement alone. Each model reads them by its own tokenizer.
        dense: name of the model that the others are compared with; the first by default.
        shapes: rows and tokens of the runs that are timed.
        rounds: how often each is timed, at least 1; few say little of the 95th percentile.
        warmup: runs of each model and shape before.
        threads: of the processor, at least 1. With one the processor time is the time of a run.
        split: `"test"` or `"val"` of a data module; by default the test rows, if there are any.
        metric: name of the main one, without `val/`; by default what the task is mostly judged by.
        memory: whether each model is also loaded and run in a process of its own, for its memory.

    Returns:
        The report, which prints as a table: `.rows`, `.table()` (rich), `.to_json(path)`,
        `.plot(path)`.

    Raises:
        TypeError: a model is none of what is named above.
        ValueError: there are no models or no `dense` among them, a number lies outside its range, a
            run is longer than a model has positions, or data and model do not go together; names
            the model.

    Example:
        >>> efficiency({})
        Traceback (most recent call last):
        ...
        ValueError: models must name at least one model, e.g. {'dense': 'exported'}
    """
    dense = _check(models, dense, shapes, rounds, warmup, threads)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with _quiet(), tempfile.TemporaryDirectory(prefix="lmkit-report-") as scratch:
            opened = [
                _named(name, open_contender, name, given, Path(scratch), threads)
                for name, given in models.items()
            ]
            for each in opened:
                _check_positions(each, shapes)
            costs = _costs(opened, dense, shapes, rounds, warmup, threads, memory)
            worth, main = _worth(opened, dense, data, split, metric)
    finally:
        torch.set_num_threads(before)
    rows = [
        EfficiencyRow(
            each.name, each.kind, **costs[each.name], **worth[each.name], notes=tuple(each.notes)
        )
        for each in opened
    ]
    settings = {
        "shapes": [list(shape) for shape in shapes],
        "rounds": rounds,
        "warmup": warmup,
        "threads": threads,
        "split": split,
    }
    return EfficiencyReport(rows, dense, main, settings, _machine())


def _check(
    models: Mapping[str, Any],
    dense: str | None,
    shapes: Sequence[tuple[int, int]],
    rounds: int,
    warmup: int,
    threads: int,
) -> str:
    if not isinstance(models, Mapping) or not models:
        raise ValueError("models must name at least one model, e.g. {'dense': 'exported'}")
    dense = next(iter(models)) if dense is None else dense
    if dense not in models:
        raise ValueError(f"dense is {dense!r}, and models has {', '.join(map(repr, models))}")
    for word, number, least in (
        ("rounds", rounds, 1),
        ("warmup", warmup, 0),
        ("threads", threads, 1),
    ):
        check_whole(word, number, least)
    if not shapes or any(len(shape) != 2 for shape in shapes):
        raise ValueError(
            f"shapes must be pairs of rows and tokens, such as (1, 32), got {shapes!r}"
        )
    for number in (number for shape in shapes for number in shape):
        check_whole("shapes", number, 1)
    return dense


def _check_positions(contender: Contender, shapes: Sequence[tuple[int, int]]) -> None:
    longest, positions = (
        max(length for _, length in shapes),
        usable_positions(contender.module.network),
    )
    if positions is not None and longest > positions:
        raise ValueError(
            f"{contender.name} has {positions} positions, and a run should have {longest} tokens: "
            "give shorter shapes"
        )


def _costs(
    opened: Sequence[Contender],
    dense: str,
    shapes: Sequence[tuple[int, int]],
    rounds: int,
    warmup: int,
    threads: int,
    memory: bool,
) -> dict[str, dict[str, Any]]:
    """Return the fields of each row that say what a model costs."""
    found: dict[str, dict[str, Any]] = {}
    for each in opened:
        counts = each.counts()
        known = each.kind == "torch" and counts is not None
        found[each.name] = {
            "parameters": counts and counts.total,
            "nonzero_parameters": counts and counts.nonzero,
            "trainable_parameters": counts.trainable if known and counts else None,
            "embedding_parameters": counts.embedding if known and counts else None,
            "disk_bytes": disk_bytes(each.folder),
            "memory_bytes": peak_memory(each.folder, shapes, threads) if memory else None,
            "macs": {_word(shape): each.macs(*shape) for shape in shapes},
            "latency": {},
            "speedup": {},
            "cpu_speedup": {},
        }
        if counts and counts.nonzero < 0.9 * counts.total:
            each.notes.append("zeros are stored and multiplied like all else: masks save no time")
    for shape in shapes:
        samples = time_in_turn({each.name: each.call(*shape) for each in opened}, rounds, warmup)
        for name, own in samples.items():
            found[name]["latency"][_word(shape)] = summarize(own)
            found[name]["speedup"][_word(shape)] = speedup(samples[dense].wall, own.wall)
            found[name]["cpu_speedup"][_word(shape)] = speedup(samples[dense].cpu, own.cpu)
    return found


def _worth(
    opened: Sequence[Contender], dense: str, data: Any, split: str | None, metric: str | None
) -> tuple[dict[str, dict[str, Any]], str | None]:
    """Return the fields of each row that say what a model is worth, and the main metric."""
    found: dict[str, dict[str, Any]] = {each.name: {} for each in opened}
    if data is None:
        return found, None
    given = data if isinstance(data, LightningDataModule) else list(corpus_texts(data))
    first: Said | None = None
    # The dense one first: the others are asked about the items that it was asked about.
    for each in sorted(opened, key=lambda one: one.name != dense):
        judged = _named(each.name, judge, each, given, split, first)
        first = judged.said if each.name == dense else first
        found[each.name] = judged.fields
    main = _main(found[dense]["metrics"], metric)
    best = found[dense]["metrics"].get(main)
    for fields in found.values():
        own = fields["metrics"].get(main)
        fields["metric"] = own
        if own is not None and best is not None:
            top, below = (best, own) if lower_is_better(str(main)) else (own, best)
            fields["retention"] = top / below if below else None
    return found, main


def _main(metrics: Mapping[str, float], metric: str | None) -> str | None:
    if metric is not None and metric not in metrics:
        raise ValueError(
            f"metric is {metric!r}, and the evaluation has {', '.join(metrics) or 'none'}"
        )
    known = main_metric(list(metrics)) or next((name for name in _LAST if name in metrics), None)
    return metric or known


def _named(name: str, function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function, and put the name of the model before what it has to complain about."""
    try:
        return function(*arguments)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{name}: {error}") from error


def _word(shape: tuple[int, int]) -> str:
    return f"{shape[0]}x{shape[1]}"


def _machine() -> dict[str, Any]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        processor = next(names, "") or platform.machine()
    except OSError:
        processor = platform.processor() or platform.machine()
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {"processor": processor, "cores": available_cores(), "versions": versions}


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what loading, exporting and a Trainer say each time."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    had_bar = transformers_logging.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if had_bar:
            transformers_logging.enable_progress_bar()
