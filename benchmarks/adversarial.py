"""Adversarial and consistency training: what a step costs, and what it is worth with few labels.

`--part cost` takes each way through steps of the MiniLM encoder on texts of `--length` tokens, in
a process of its own, tuned as `lmkit fit` does by itself. Every other step is a plain one, and the
CPU seconds of both are compared (medians). The peak of its memory is compared with that of a
process of plain steps alone.

`--part quality` fine-tunes MiniLM on `--examples` of SUBJ, CR, TREC-6 or small fine foods, drawn by
the seed, for as many steps each way, and tests on the whole test set (of CR what a fixed draw of
3,000 leaves). `vat of more` and `uda of more` also see the other training texts, without their
labels; a fifth of their rows then has one. `+` is between parts that are given together.

    python benchmarks/adversarial.py --part cost --json cost.json
    python benchmarks/adversarial.py --part quality --task cr --examples 500 --seeds 0 1 2 3 4
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, seed_everything
from measure import (
    WARMUP,
    Clock,
    arguments,
    data_folder,
    encoder_folder,
    median,
    quiet_trainer,
    write_json,
)
from sequence_classification import rows_of, write_rows

from lmkit import callbacks, tune_process
from lmkit.datamodules import SequenceClassificationDataModule
from lmkit.modules import SequenceClassificationModule
from lmkit.trainer import best_precision

WAYS: dict[str, Callable[[], list[Callback]]] = {
    "plain": list,
    "fgm": lambda: [callbacks.FGMCallback()],
    "fgm 0.05": lambda: [callbacks.FGMCallback(0.05)],
    "pgd-3": lambda: [callbacks.PGDCallback()],
    "free_lb-3": lambda: [callbacks.FreeLBCallback()],
    "free_lb-3 0.05": lambda: [callbacks.FreeLBCallback(0.05)],
    "awp": lambda: [callbacks.AWPCallback()],
    "smart-1": lambda: [callbacks.SMARTCallback()],
    "smart-1 bregman": lambda: [callbacks.SMARTCallback(bregman_weight=1.0)],
    "vat": lambda: [callbacks.VATCallback()],
    "r_drop": lambda: [callbacks.RDropCallback()],
    "mixup": lambda: [callbacks.MixupCallback()],
    "mixup layers": lambda: [callbacks.MixupCallback(0.4, [3, 4, 5])],
    "cutoff": lambda: [callbacks.CutoffCallback()],
    "uda": lambda: [callbacks.UDACallback()],
    "fgm+r_drop": lambda: [callbacks.FGMCallback(), callbacks.RDropCallback()],
}
#: With texts that have no label, beside the others.
MORE = {"vat of more": "vat", "uda of more": "uda"}


def examples_of(task: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return text and label of the training and of the test examples."""
    if task != "cr":
        return rows_of(task)
    path = data_folder() / "cr" / "custrev.all"
    lines = path.read_text(encoding="latin-1").strip().split("\n")
    pairs = ((text, label) for label, _, text in (line.partition(" ") for line in lines))
    rows = [(text, label) for text, label in pairs if text.strip()]
    random.Random(0).shuffle(rows)
    return rows[:3000], rows[3000:]


def learn(options: argparse.Namespace, way: str, seed: int) -> tuple[float, float]:
    """Train one way; return accuracy and CPU seconds."""
    train, test = examples_of(options.task)
    draw = random.Random(seed)
    order = draw.sample(range(len(train)), len(train))
    few = [train[number] for number in order[: options.examples]]
    with tempfile.TemporaryDirectory() as name:
        folder, more = Path(name), None
        if way in MORE:
            rest = [train[number][0] for number in order[options.examples :]]
            # Rows of the labelled ones again, so that each batch has some.
            copies = max(1, len(rest) // (4 * len(few)))
            few = few * copies
            more = str(folder / "more.jsonl")
            Path(more).write_text("".join(json.dumps({"text": t}) + "\n" for t in rest))
        seed_everything(seed)
        data = SequenceClassificationDataModule(
            train_file=write_rows(folder / "train.csv", few),
            test_file=write_rows(folder / "test.csv", test),
            unlabelled_file=more,
            val_fraction=0,
            tokenizer=encoder_folder(),
            max_length=128,
            batch_size=options.rows * (2 if more else 1),
            eval_batch_size=64,
            seed=seed,
            cache_dir=str(folder / "cache"),
        )
        module = SequenceClassificationModule(
            encoder_folder(), learning_rate=options.learning_rate, warmup=WARMUP
        )
        clock = Clock()
        made = WAYS[MORE.get(way, way)]()
        trainer = quiet_trainer(
            clock.of_lightning(), *made, max_steps=options.steps, default_root_dir=name
        )
        trainer.fit(module, data)
        score = float(trainer.test(module, data, verbose=False)[0]["test/accuracy"])
    return score, clock.seconds


def quality(options: argparse.Namespace) -> dict[str, Any]:
    """Train each way with each seed."""
    found: dict[str, list[float]] = {}
    for seed in options.seeds:
        for way in options.ways:
            score, seconds = learn(options, way, seed)
            found.setdefault(way, []).append(score)
            print({"seed": seed, way: score, "cpu_s": round(seconds, 1)}, flush=True)
    plain = found.get("plain")
    return {
        way: {
            "scores": scores,
            "mean": statistics.mean(scores),
            **({"over plain": _gain(scores, plain)} if plain else {}),
        }
        for way, scores in found.items()
    }


def _gain(scores: list[float], plain: list[float]) -> dict[str, float]:
    """Mean difference of pairs of runs with one seed, and its standard error."""
    gains = [a - b for a, b in zip(scores, plain, strict=True)]
    error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
    return {"mean": statistics.mean(gains), "standard error": error}


class StepClock(Callback):
    """Lets every other step be a plain one, and keeps the CPU seconds of both kinds.

    Steps of one process are compared, for those of two differ by several percent on a machine that
    has other work. To be given behind the callbacks that it switches off.
    """

    def __init__(self) -> None:
        self.plain: list[float] = []
        self.ours: list[float] = []
        self._began = 0.0
        self._kept: list[Any] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        """Begin; a plain step has no wrappers around its objective."""
        self._kept = module.objective_wrappers
        if batch_idx % 2 == 0:
            module.objective_wrappers = []
        self._began = time.process_time()

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End."""
        spent = time.process_time() - self._began
        (self.ours if batch_idx % 2 else self.plain).append(spent)
        module.objective_wrappers = self._kept


def cost_of(options: argparse.Namespace, way: str) -> dict[str, float]:
    """Take the steps of one way in this process."""
    words = list("abcdefghijklmnopqrstuvwxyz")
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [
            (" ".join(draw.choices(words, k=options.length - 2)), str(n % 2))
            for n in range(options.rows * options.steps)
        ]
        seed_everything(0)
        data = SequenceClassificationDataModule(
            train_file=write_rows(folder / "train.csv", rows),
            val_fraction=0,
            tokenizer=encoder_folder(),
            max_length=options.length,
            batch_size=options.rows,
            cache_dir=str(folder / "cache"),
        )
        module = SequenceClassificationModule(encoder_folder(), learning_rate=1e-4)
        clock = StepClock()
        trainer = quiet_trainer(
            *WAYS[way](),
            clock,
            max_steps=options.steps,
            precision=options.precision,
            default_root_dir=name,
        )
        trainer.fit(module, data)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    # The first ones warm up the kernels and the allocator.
    ours, plain = median(clock.ours[1:]), median(clock.plain[1:])
    return {"step_s": ours, "plain_s": plain, "time over plain": ours / plain, "peak_mib": peak}


def cost(options: argparse.Namespace) -> dict[str, Any]:
    """Take each way in processes of their own, by turns."""
    rounds: dict[str, list[dict[str, float]]] = {}
    shared = ["--threads", "--rows", "--length", "--steps", "--precision"]
    said = [f"{name}={getattr(options, name.removeprefix('--'))}" for name in shared]
    for _ in range(options.rounds):
        for way in options.ways:
            command = [sys.executable, __file__, "--part", "one", "--ways", way, *said]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            figures = json.loads(done.stdout.splitlines()[-1])
            rounds.setdefault(way, []).append(figures)
            print({way: figures}, flush=True)
    middle = {
        way: {name: median([each[name] for each in found]) for name in found[0]}
        for way, found in rounds.items()
    }
    plain = middle.get("plain")
    if plain:
        for figures in middle.values():
            figures["memory over plain"] = figures["peak_mib"] / plain["peak_mib"]
    return middle


def main() -> None:
    """Measure, print, write."""
    parser = arguments(__doc__)
    parser.add_argument("--part", choices=["cost", "quality", "one"], default="cost")
    parser.add_argument("--task", choices=["subj", "cr", "trec", "foods"], default="cr")
    parser.add_argument("--ways", nargs="+", choices=[*WAYS, *MORE], default=list(WAYS))
    parser.add_argument("--examples", type=int, default=500, help="labelled ones, of quality")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=125, help="of each run")
    parser.add_argument("--rows", type=int, default=16, help="texts to a step")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--length", type=int, default=64, help="tokens of a text, of cost")
    parser.add_argument("--precision", default=best_precision("cpu"), help="of cost")
    parser.add_argument("--rounds", type=int, default=1, help="of cost")
    options = parser.parse_args()
    # What it puts into the environment is there when a process of its own begins.
    tune_process()
    torch.set_num_threads(options.threads)
    if options.part == "one":
        sys.stdout.write(json.dumps(cost_of(options, options.ways[0])) + "\n")
        return
    figures = cost(options) if options.part == "cost" else quality(options)
    write_json(options.json, "adversarial", options, figures)


if __name__ == "__main__":
    main()
