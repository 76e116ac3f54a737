"""Few examples: a pretrained encoder against the same network from scratch.

TREC-6 with 50, 200, 1,000 and all training examples (of each class as many as there are of any
other, as far as they go), tested on its 500 test questions; the MiniLM encoder, and a network of
its architecture with weights drawn at random. Both train as many steps.

    python benchmarks/transfer.py --json transfer.json --figure transfer.png
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything
from measure import arguments, data_folder, encoder_folder, quiet_trainer, write_json

CLASSES = 6


def run(options: argparse.Namespace, examples: int | None, pretrained: bool, seed: int) -> float:
    """Return the accuracy on the test set."""
    from lmkit.datamodules import SequenceClassificationDataModule
    from lmkit.modules import SequenceClassificationModule

    seed_everything(seed)
    folder = data_folder() / "trec6"
    data = SequenceClassificationDataModule(
        train_file=str(folder / "TREC.train.all"),
        test_file=str(folder / "TREC.test.all"),
        encoding="latin-1",
        val_fraction=0,
        examples_per_class=None if examples is None else -(-examples // CLASSES),
        tokenizer=encoder_folder(),
        batch_size=options.batch_size,
        eval_batch_size=64,
        seed=seed,
    )
    module = SequenceClassificationModule(
        encoder_folder(),
        pretrained=pretrained,
        learning_rate=options.learning_rate,
        warmup=0.1,
    )
    with tempfile.TemporaryDirectory() as place:
        trainer = quiet_trainer(
            max_steps=options.steps if examples is not None else 2 * options.steps,
            max_epochs=-1,
            default_root_dir=place,
        )
        trainer.fit(module, data)
        (found,) = trainer.test(module, data, verbose=False)
    return float(found["test/accuracy"])


def draw(path: Path, figures: dict[str, Any]) -> None:
    """Draw both curves."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, points in figures.items():
        sizes = [5452 if size == "all" else int(size) for size in points]
        axes.plot(sizes, [p["accuracy"] for p in points.values()], marker="o", label=name)
    axes.set(xscale="log", xlabel="training examples", ylabel="test accuracy", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure every size, pretrained and from scratch."""
    parser = arguments(__doc__)
    parser.add_argument("--sizes", nargs="+", default=["50", "200", "1000", "all"])
    parser.add_argument("--steps", type=int, default=200, help="of each run; twice as many for all")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--figure", type=Path, help="where the curves go")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    figures: dict[str, Any] = {}
    for size in options.sizes:
        examples = None if size == "all" else int(size)
        for name, pretrained in (("pretrained", True), ("from scratch", False)):
            found = [run(options, examples, pretrained, seed) for seed in options.seeds]
            figures.setdefault(name, {})[size] = {
                "accuracy": statistics.mean(found),
                "runs": found,
            }
            print(size, name, json.dumps(found), flush=True)
    write_json(options.json, "transfer", options, figures)
    if options.figure:
        draw(options.figure, figures)


if __name__ == "__main__":
    main()
