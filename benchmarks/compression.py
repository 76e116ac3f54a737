"""Smaller and faster models: pruned, distilled, trimmed, int8, and all of it, beside a dense one.

The MiniLM encoder is fine-tuned on TREC-6, SUBJ or small-fine-foods: the dense model, and teacher
of the others. Each of `--ways` makes a smaller one of it:

- `narrow`: half the inner neurons and 6 of 12 heads of each layer are removed in the course of a
  training with the teacher; `narrow at once`: the same before the training.
- `small`: the same of a student of 3 of the 6 layers.
- `int8`: the dense model in ONNX Runtime, weights of 8 bits.
- `chain`: `small` with the tokens that come `--min-count` times in the training texts alone, in
  ONNX Runtime with 8 bits.
- `untrained ...`: what is left of accuracy if units are removed and nothing is trained: by
  `taylor`, `activation`, `magnitude` and at `random`.

Accuracy is of the test set; retention a share of the dense model's; speed in CPU seconds of one
thread, by turns with the dense model (PyTorch, float32), at 1 row of 32 tokens and 32 rows of 128.

    python benchmarks/compression.py --task trec --seeds 0 1 2 --json trec.json
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from distillation import HIDDEN, LOGITS, TASKS, data_of, fit, length_of, task_module, teach
from lightning.pytorch import seed_everything
from measure import arguments, write_json
from rich.console import Console
from sequence_classification import rows_of

UNTRAINED = [f"untrained {by}" for by in ("taylor", "activation", "magnitude", "random")]
WAYS = ("narrow", "narrow at once", "small", "int8", "chain", *UNTRAINED)


def pruned(options: argparse.Namespace, folder: Path, seed: int, teacher: str, way: str) -> Path:
    """Make a narrow model, perhaps of fewer layers, and return its export."""
    import lmkit
    from lmkit.callbacks import StructuredPruningCallback
    from lmkit.modules import DistillationModule

    output = folder / way.replace(" ", "-")
    if output.exists():
        return output
    _, epochs, _, rate = TASKS[options.task]
    epochs, rate = options.epochs or epochs, options.learning_rate or rate
    seed_everything(seed)
    at_once = way == "narrow at once" or way in UNTRAINED
    importance = way.removeprefix("untrained ") if way in UNTRAINED else "taylor"
    callback = StructuredPruningCallback(
        ffn=0.5,
        heads=0.5,
        importance=importance,
        start=0.0 if at_once else 0.05,
        end=0.0 if at_once else 0.4,
        seed=seed,
    )
    module = DistillationModule(
        task_module(options, teacher, 0.0 if way in UNTRAINED else rate),
        teacher,
        losses=[LOGITS, HIDDEN],
        hard_weight=0.5,
        student_layers=[0, 2, 5] if way == "small" else None,
        cache=True,
    )
    data = data_of(options, folder, seed, teacher, more=options.more)
    length = (
        {"max_steps": 1}
        if way in UNTRAINED
        else length_of(options, epochs, data if options.more else None)
    )
    fit(module, data, folder, callback, **length)
    return lmkit.export(module, output)


def made(options: argparse.Namespace, folder: Path, seed: int, teacher: str, way: str) -> Path:
    """Make the model of a way, and return its folder."""
    import lmkit

    if way not in ("int8", "chain"):
        return pruned(options, folder, seed, teacher, way)
    source = teacher
    if way == "chain":
        texts = [text for text, _ in rows_of(options.task)[0]]
        small = lmkit.load(pruned(options, folder, seed, teacher, "small"))
        lmkit.trim_vocabulary(small, texts, min_count=options.min_count)
        source = lmkit.export(small, folder / "trimmed", overwrite=True)
    return lmkit.export(source, folder / way, format="onnx", quantize="int8", overwrite=True)


def compare(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Make all models of a seed, and compare them."""
    from lmkit.report import efficiency

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.keep:
            folder = options.keep / f"{options.task}-{seed}-smaller"
            folder.mkdir(parents=True, exist_ok=True)
        teacher, _ = teach(options, folder, seed)
        models = {"dense": teacher}
        for way in options.ways:
            models[way] = str(made(options, folder, seed, teacher, way))
        data = data_of(options, folder, seed, teacher)
        report = efficiency(models, data, dense="dense", rounds=options.rounds)
        Console(width=160).print(report.table())
        return {"seed": seed, **report.to_dict()}


def main() -> None:
    """Measure, print, write."""
    parser = arguments(__doc__)
    parser.add_argument("--task", choices=["trec", "subj", "foods"], default="trec")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--epochs", type=int, help="of all but the dense model; by task without it")
    parser.add_argument("--learning-rate", type=float, help="likewise")
    parser.add_argument("--steps", type=int, default=-1, help="ends each run before its epochs do")
    parser.add_argument("--copies", type=int, default=2, help="of each text, words drawn anew")
    parser.add_argument("--more", action="store_true", help="train on such copies too")
    parser.add_argument("--min-count", type=int, default=1, help="of a token in `chain`")
    parser.add_argument("--keep", type=Path, help="a folder where models are kept and found")
    parser.add_argument("--rows", type=int, default=16, help="examples to a step")
    parser.add_argument("--rounds", type=int, default=15, help="of the clock")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    write_json(options.json, "compression", options, [compare(options, s) for s in options.seeds])


if __name__ == "__main__":
    main()
