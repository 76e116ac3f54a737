"""Unstructured pruning: what is left of a classifier with one weight in ten, and in thirty-three.

TREC-6 (5,452 / 500) by the MiniLM encoder with a new head, fine-tuned while the projections of its
layers are pruned: by magnitude at once, and by magnitude, movement, soft movement and chance along
the cubic schedule. The peer is `torch.nn.utils.prune.global_unstructured` in a plain loop of
PyTorch, at once and along the same schedule. All start from the same weights and have the same
hyper-parameters; `dense` is the same without pruning. Magnitudes are compared over all matrices, as
the peer does, movements within each, as in the paper; `--scope` says otherwise. Accuracy is that of
the test after the last step, CPU seconds are those of one thread, masks included.

Zeros make nothing faster, so there is no column of speed; `--time` measures just that, a dense
network and one with 90 % zeros in turn.

    python benchmarks/pruning.py --seeds 0 1 2 --json pruning.json
    python benchmarks/pruning.py --ways dense "movement cubic" --left 0.03 --epochs 10
    python benchmarks/pruning.py --time --json time.json
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import seed_everything
from measure import WARMUP, Clock, arguments, median, quiet_trainer, write_json
from sequence_classification import initial, rows_of, write_rows
from torch.nn.utils import prune as torch_prune
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lmkit.functional.pruning import SCOPES, last_update, planned_sparsity, share_of_zeros
from lmkit.functional.schedule import schedule_factor
from lmkit.surgery.prunable import prunable_layers

PEER = "torch "
WAYS = (
    "dense",
    "magnitude one_shot",
    "magnitude cubic",
    "movement cubic",
    "soft_movement cubic",
    "random cubic",
    "torch one_shot",
    "torch cubic",
)


class Result(NamedTuple):
    """Accuracy, share of zeros in what was pruned, optimizer steps, CPU seconds."""

    score: float
    sparsity: float
    steps: int
    seconds: float


def zeros(network: Any) -> float:
    """Return the share of zeros in the projections of the layers."""
    return share_of_zeros(layer.weight for layer in prunable_layers(network, ["all"]).values())


def ours(options: argparse.Namespace, start: Path, seed: int, way: str, left: float) -> Result:
    """Train, prune and test with lmkit."""
    from lmkit.callbacks.pruning import PruningCallback
    from lmkit.datamodules import SequenceClassificationDataModule
    from lmkit.modules import SequenceClassificationModule

    seed_everything(seed)
    clock = Clock()
    callbacks = [clock.of_lightning()]
    if way != "dense":
        criterion, schedule = way.split()
        scope = options.scope or ("global" if criterion == "magnitude" else None)
        how: dict[str, Any] = {"scope": scope, "schedule": schedule, "start": options.start}
        how |= {"end": options.end, "interval": options.interval}
        callbacks.append(PruningCallback(1 - left, criterion, **how))
    train, test = rows_of("trec")
    with tempfile.TemporaryDirectory() as folder:
        data = SequenceClassificationDataModule(
            train_file=write_rows(Path(folder) / "train.csv", train),
            test_file=write_rows(Path(folder) / "test.csv", test),
            val_fraction=0,
            max_length=options.max_length,
            batch_size=options.batch_size,
            eval_batch_size=64,
            seed=seed,
            cache_dir=folder,
        )
        rate = options.learning_rate
        module = SequenceClassificationModule(str(start), learning_rate=rate, warmup=WARMUP)
        trainer = quiet_trainer(
            *callbacks,
            max_epochs=options.epochs,
            max_steps=options.steps,
            precision=options.precision,
        )
        trainer.fit(module, data)
        score = float(trainer.test(module, data, verbose=False)[0]["test/accuracy"])
    return Result(score, zeros(module.network), trainer.global_step, clock.seconds)


def peer(options: argparse.Namespace, start: Path, seed: int, schedule: str, left: float) -> Result:
    """Train, prune and test in a plain loop, with torch's own pruning."""
    seed_everything(seed)
    network = AutoModelForSequenceClassification.from_pretrained(start, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(start)
    layers = [(layer, "weight") for layer in prunable_layers(network, ["all"]).values()]
    total = sum(layer.weight.numel() for layer, _ in layers)
    rows, test = rows_of("trec")
    steps = options.epochs * -(-len(rows) // options.batch_size)
    steps = steps if options.steps < 0 else min(steps, options.steps)
    first, last = round(options.start * steps), round(options.end * steps)
    table = first, first if schedule == "one_shot" else last, options.interval
    decayed = [p for p in network.parameters() if p.dim() >= 2]
    others = [p for p in network.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}],
        lr=options.learning_rate,
        betas=(0.9, 0.98),
        eps=1e-6,
        fused=True,
    )
    warmup = round(WARMUP * steps)
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: schedule_factor(step, steps, warmup)
    )
    done = pruned = 0
    began = time.process_time()
    network.train()
    while done < steps:
        order = torch.randperm(len(rows)).tolist()
        for place in range(0, len(rows), options.batch_size):
            if done == steps:
                break
            batch = [rows[i] for i in order[place : place + options.batch_size]]
            loss = network(**encode(options, tokenizer, network, batch)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            rates.step()
            optimizer.zero_grad()
            done += 1
            due = last_update(done, *table)
            planned = 0.0 if due is None else planned_sparsity(due, *table[:2], 1 - left, schedule)
            # A number of weights is one of those that are not pruned yet.
            if (more := round(planned * total) - pruned) > 0:
                method = torch_prune.L1Unstructured
                torch_prune.global_unstructured(layers, method, amount=more)
                pruned += more
    seconds = time.process_time() - began
    for layer, name in layers:
        if torch_prune.is_pruned(layer):
            torch_prune.remove(layer, name)
    network.eval()
    right = 0
    with torch.inference_mode():
        for place in range(0, len(test), 64):
            inputs = encode(options, tokenizer, network, test[place : place + 64])
            labels = inputs.pop("labels")
            right += int((network(**inputs).logits.argmax(-1) == labels).sum())
    return Result(right / len(test), zeros(network), done, seconds)


def encode(
    options: argparse.Namespace, tokenizer: Any, network: Any, rows: list[tuple[str, str]]
) -> dict[str, torch.Tensor]:
    """Make a batch, padded to its longest text."""
    how = {"truncation": True, "max_length": options.max_length, "padding": True}
    inputs = dict(tokenizer([text for text, _ in rows], return_tensors="pt", **how))
    inputs["labels"] = torch.tensor([network.config.label2id[label] for _, label in rows])
    return inputs


def times(start: Path, rounds: int) -> dict[str, Any]:
    """Measure a dense network and one with 90 % zeros in turn: medians of CPU milliseconds."""
    networks = {}
    for name in ("dense", "pruned"):
        network = AutoModelForSequenceClassification.from_pretrained(start, dtype=torch.float32)
        layers = [(layer, "weight") for layer in prunable_layers(network, ["all"]).values()]
        if name == "pruned":
            torch_prune.global_unstructured(layers, torch_prune.L1Unstructured, amount=0.9)
            for layer, weight in layers:
                torch_prune.remove(layer, weight)
        networks[name] = network.eval()
    figures: dict[str, Any] = {"sparsity": zeros(networks["pruned"])}
    for shape in ((1, 32), (32, 128)):
        ids = torch.randint(1000, 20000, shape)
        taken: dict[str, list[float]] = {name: [] for name in networks}
        with torch.inference_mode():
            for turn in range(rounds + 1):
                for name, network in networks.items():
                    began = time.process_time()
                    network(input_ids=ids)
                    if turn:
                        taken[name].append(1000 * (time.process_time() - began))
        found = {f"{name}_ms": median(each) for name, each in taken.items()}
        ratio = found["dense_ms"] / found["pruned_ms"]
        figures[f"{shape[0]}x{shape[1]}"] = {**found, "times_as_fast": ratio}
    return figures


def main() -> None:
    """Run the ways in turn, for each seed and share of weights that are left."""
    parser = arguments(__doc__)
    parser.add_argument("--ways", choices=WAYS, nargs="+", default=list(WAYS))
    parser.add_argument("--left", type=float, nargs="+", default=[0.1, 0.03])
    parser.add_argument("--scope", choices=SCOPES, help="of lmkit; see above")
    parser.add_argument("--start", type=float, default=0.1, help="share of the run before pruning")
    parser.add_argument("--end", type=float, default=0.7, help="share of the run at its end")
    parser.add_argument("--interval", type=int, default=10, help="steps between two choices")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--steps", type=int, default=-1, help="ends the run before")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--precision", help="of lmkit; its own choice by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--time", action="store_true", help="measure the speed, and train nothing")
    parser.add_argument("--rounds", type=int, default=20, help="of --time")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    labels = sorted({label for _, label in rows_of("trec")[0]})
    if options.time:
        start = initial(labels, 0)
        write_json(options.json, "pruning", options, times(start, options.rounds))
        shutil.rmtree(start)
        return
    runs: dict[str, list[Result]] = {}
    for seed in options.seeds:
        start = initial(labels, seed)
        for way in options.ways:
            for left in options.left if way != "dense" else [1.0]:
                if way.startswith(PEER):
                    result = peer(options, start, seed, way.removeprefix(PEER), left)
                else:
                    result = ours(options, start, seed, way, left)
                runs.setdefault(f"{way} {left:.0%}", []).append(result)
                print(seed, way, left, result, flush=True)
        shutil.rmtree(start)
    figures = {
        name: {
            "score": statistics.mean(each.score for each in results),
            "scores": [each.score for each in results],
            "sparsity": [each.sparsity for each in results],
            "steps": results[0].steps,
            "cpu_s": statistics.mean(each.seconds for each in results),
        }
        for name, results in runs.items()
    }
    write_json(options.json, "pruning", options, figures)


if __name__ == "__main__":
    main()
