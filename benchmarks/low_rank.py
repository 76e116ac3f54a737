"""Low-rank layers: what is left of the accuracy, by method and by share of the parameters kept.

The MiniLM encoder is fine-tuned on TREC-6 (5,452 / 500) once for each seed. Of that one network all
projections of all layers are factorized, by plain, Fisher-weighted and activation-aware
decompositions, at several shares of their parameters, from the first training batches. Each is
tested as it comes out (`before`) and after a short fine-tuning (`after`, none with `--epochs 0`).
Embeddings, which are half of the network, stay.

    python benchmarks/low_rank.py --seeds 0 1 2 --json low_rank.json
    python benchmarks/low_rank.py --shares 0.8 0.6 --methods plain activation --epochs 0
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything
from measure import WARMUP, arguments, quiet_trainer, write_json
from sequence_classification import initial, rows_of, write_rows

METHODS = ("plain", "fisher", "activation")


def make_data(options: argparse.Namespace, folder: Path, seed: int) -> Any:
    """Make the data module of TREC-6."""
    from lmkit.datamodules import SequenceClassificationDataModule

    train, test = (rows[: options.texts] for rows in rows_of("trec"))
    return SequenceClassificationDataModule(
        train_file=write_rows(folder / "train.csv", train),
        test_file=write_rows(folder / "test.csv", test),
        val_fraction=0,
        max_length=128,
        batch_size=options.rows,
        eval_batch_size=64,
        seed=seed,
        cache_dir=str(folder),
    )


def fit(model: Path, data: Any, epochs: int, *callbacks: Any) -> tuple[Any, float]:
    """Fit a classifier for some epochs, 0 for its set-up alone; returns it and its accuracy."""
    from lmkit.modules import SequenceClassificationModule

    module = SequenceClassificationModule(str(model), learning_rate=1e-4, warmup=WARMUP)
    length = {"max_epochs": epochs} if epochs else {"max_steps": 0}
    trainer = quiet_trainer(*callbacks, **length)
    trainer.fit(module, data)
    return module, float(trainer.test(module, data, verbose=False)[0]["test/accuracy"])


def factorized(
    options: argparse.Namespace, tuned: Path, data: Any, method: str, share: float
) -> dict[str, float]:
    """Factorize the tuned network and test it, before and after a short fit."""
    from lmkit.callbacks.low_rank import LowRankCallback
    from lmkit.surgery.low_rank import low_rank_layers

    def callback() -> Any:
        how = {"parameters": share, "calibration_batches": options.batches}
        return LowRankCallback(method=method, **how)

    began = time.process_time()
    module, before = fit(tuned, data, 0, callback())
    layers = low_rank_layers(module.network)
    figures = {
        "before": before,
        "set_up_and_test_cpu_s": time.process_time() - began,
        "parameters": float(sum(p.numel() for p in module.network.parameters())),
        "layers": float(len(layers)),
        "least_rank": float(min(layer.rank for layer in layers.values())),
    }
    if options.epochs:
        figures["after"] = fit(tuned, data, options.epochs, callback())[1]
    return figures


def measure(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Tune once, then factorize that network in every way."""
    import lmkit

    seed_everything(seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = make_data(options, folder, seed)
        start = initial(sorted({label for _, label in rows_of("trec")[0]}), seed)
        module, dense = fit(start, data, options.tuning_epochs)
        tuned = lmkit.export(module, folder / "tuned")
        found: dict[str, Any] = {"dense": dense}
        print(seed, "dense", dense, flush=True)
        for share in options.shares:
            for method in options.methods:
                found[f"{method} {share}"] = factorized(options, tuned, data, method, share)
                print(seed, method, share, found[f"{method} {share}"], flush=True)
    return found


def main() -> None:
    """Measure every method at every share, for each seed."""
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--shares", type=float, nargs="+", default=[0.9, 0.8, 0.6, 0.4])
    parser.add_argument("--tuning-epochs", type=int, default=4, help="of the dense network")
    parser.add_argument("--epochs", type=int, default=1, help="after factorizing")
    parser.add_argument("--batches", type=int, default=32, help="to calibrate on")
    parser.add_argument("--rows", type=int, default=16, help="to a step")
    parser.add_argument("--texts", type=int, help="of each split at most, for a try")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    runs = [measure(options, seed) for seed in options.seeds]
    figures: dict[str, Any] = {"runs": runs}
    figures["dense"] = statistics.mean(run["dense"] for run in runs)
    for name in runs[0]:
        if name != "dense":
            figures[name] = {
                key: statistics.mean(run[name][key] for run in runs) for key in runs[0][name]
            }
    write_json(options.json, "low_rank", options, figures)


if __name__ == "__main__":
    main()
