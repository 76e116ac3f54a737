"""Adversarial and consistency training: what a step costs.

Each way takes steps of the MiniLM encoder on texts of `--length` tokens, in a process of its own,
tuned as `lmkit fit` does by itself. Every other step is a plain one, and the CPU seconds of both
are compared (medians). The peak of its memory is compared with that of a process of plain steps
alone.
What the ways are worth is measured by `few_examples.py`.

    python benchmarks/adversarial.py --json adversarial.json
"""

from __future__ import annotations

import argparse
import json
import random
import resource
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
    arguments,
    encoder_folder,
    median,
    quiet_trainer,
    write_json,
)
from sequence_classification import write_rows

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
            command = [sys.executable, __file__, "--one", "--ways", way, *said]
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
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--steps", type=int, default=125, help="of each run")
    parser.add_argument("--rows", type=int, default=16, help="texts to a step")
    parser.add_argument("--length", type=int, default=64, help="tokens of a text")
    parser.add_argument("--precision", default=best_precision("cpu"))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--one", action="store_true", help="one way, in this process")
    options = parser.parse_args()
    # What it puts into the environment is there when a process of its own begins.
    tune_process()
    torch.set_num_threads(options.threads)
    if options.one:
        sys.stdout.write(json.dumps(cost_of(options, options.ways[0])) + "\n")
        return
    write_json(options.json, "adversarial", options, cost(options))


if __name__ == "__main__":
    main()
