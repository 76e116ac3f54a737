"""Several tasks on one encoder against one encoder for each, and ways to balance them.

MiniLM is fine-tuned on texts (SUBJ, TREC-6, CR), pairs (entailment and relatedness of SICK) and
words (entities of WNUT-17, parts of speech of UD English EWT). `single` trains each task alone for
`--steps` batches of `--rows`. All other ways train one model of all tasks, with as many batches of
each task as it has alone: with `sum`, `adapters` (each task has its own in each layer), `aggregate`
(and attends to those of all) and the names of weightings and of aggregations a step has a batch of
every task, and there are `--steps` of them; with the names of samplings it is of one task, and
there are `--steps` for each task together. `own_rate` gives heads and adapters `--own-rate`. `+` is
between parts that are given together. `--examples` cuts the training sets of all but SUBJ and
UD (`--small`) by a draw of the seed. Scores are of the test sets: accuracy, of relatedness
Spearman's correlation, of WNUT F1; the mean is that over the tasks. Throughput counts real tokens,
special ones included and padding not, per CPU second of training.

    python benchmarks/multitask.py --examples 500 --seeds 0 1 2 --json multitask.json
    python benchmarks/multitask.py --tasks trec relatedness ner --ways single sum pcgrad --steps 200
    python benchmarks/multitask.py --examples 500 --small cr entailment relatedness --steps 150 \
      --ways single single+own_rate round_robin round_robin+adapters+own_rate
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

import torch
from few_examples import examples_of
from lightning.pytorch import Callback, seed_everything
from measure import WARMUP, arguments, data_folder, encoder_folder, quiet_trainer, write_json
from sequence_classification import write_rows
from token_classification import read

from lmkit import tune_process
from lmkit.datamodules.multi_task import MultiTaskDataModule
from lmkit.datamodules.task_sampling import Sampling
from lmkit.modules.gradient_aggregation import AGGREGATIONS
from lmkit.modules.loss_weighting import WEIGHTINGS
from lmkit.modules.multi_task import MultiTaskModule

#: Kind and main metric of each task.
TASKS = {
    "subj": ("SequenceClassification", "accuracy"),
    "trec": ("SequenceClassification", "accuracy"),
    "cr": ("SequenceClassification", "accuracy"),
    "entailment": ("SequenceClassification", "accuracy"),
    "relatedness": ("SequenceClassification", "spearman"),
    "ner": ("TokenClassification", "f1"),
    "pos": ("TokenClassification", "accuracy"),
}
SMALL = ["trec", "cr", "entailment", "relatedness", "ner"]
#: Ways that draw the task of each step.
SAMPLINGS = [name for name in get_args(Sampling) if name != "weights"]
BALANCED = {
    **{name: {"weighting": name} for name in WEIGHTINGS},
    **{name: {"aggregation": name} for name in AGGREGATIONS if name != "sum"},
    "adapters": {"task_adapters": 64},
    "aggregate": {"task_adapters": {"size": 64, "aggregate": True}},
}
OWN_RATE = "own_rate"
WAYS = ["single", "sum", *SAMPLINGS, *BALANCED, OWN_RATE]


class Watch(Callback):
    """Counts optimizer steps, real tokens and CPU seconds of a training, of one task or several."""

    def __init__(self) -> None:
        self.steps, self.tokens, self.seconds, self.began = 0, 0, 0.0, 0.0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin."""
        self.began = time.process_time()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, out: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the tokens of all tasks in a batch."""
        masks = (batch[key] for key in batch if key.split("/")[-1] == "attention_mask")
        self.tokens += sum(int(mask.sum()) for mask in masks)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """End."""
        self.seconds, self.steps = time.process_time() - self.began, trainer.global_step


def pairs_of(task: str) -> list[list[dict[str, Any]]]:
    """Return the training and the test pairs of SICK."""
    column = {"entailment": "entailment_label", "relatedness": "relatedness_score"}[task]
    splits: dict[str, list[dict[str, Any]]] = {"TRAIN": [], "TEST": []}
    with gzip.open(data_folder() / "sick" / "SICK.txt.gz", "rt", encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            texts = {name: row[name] for name in ("sentence_A", "sentence_B")}
            label: Any = row[column]
            if task == "relatedness":  # from 1 to 5; squared errors of others' size from 0 to 1
                label = (float(label) - 1) / 4
            splits.get(row["SemEval_set"], []).append({**texts, "label": label})
    return list(splits.values())


def write_task(options: argparse.Namespace, folder: Path, task: str, seed: int) -> dict[str, Any]:
    """Write the files of a task, and return the arguments of its data module."""
    if task in ("entailment", "relatedness"):
        splits: Any = pairs_of(task)
    elif task in ("ner", "pos"):
        both = (read(task, split) for split in (0, 1))
        splits = [
            [{"tokens": w, "tags": t} for w, t in zip(rows.words, rows.tags, strict=True)]
            for rows in both
        ]
    else:
        splits = list(examples_of(task))
    if options.examples and task in options.small and options.examples < len(splits[0]):
        splits[0] = random.Random(seed).sample(splits[0], options.examples)
    made: dict[str, Any] = {"task": "regression"} if task == "relatedness" else {}
    for split, rows in zip(("train", "test"), splits, strict=True):
        path = folder / f"{task}-{split}.{'csv' if isinstance(rows[0], tuple) else 'jsonl'}"
        if path.suffix == ".csv":
            write_rows(path, rows)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        made[f"{split}_file"] = str(path)
    return {**made, "val_fraction": 0}


def fit(options: argparse.Namespace, module: Any, data: Any, steps: int, folder: Path) -> Any:
    """Train and test; returns what was logged of the test, and the watch."""
    watch = Watch()
    trainer = quiet_trainer(
        watch, max_steps=steps, default_root_dir=str(folder), precision=options.precision
    )
    trainer.fit(module, data)
    said = trainer.test(module, data, verbose=False)
    return {name: value for each in said for name, value in each.items()}, watch


def learn(
    options: argparse.Namespace, files: dict[str, dict[str, Any]], folder: Path, way: str, seed: int
) -> dict[str, Any]:
    """Train one way; return the scores of the tasks, and what it cost."""
    shared: dict[str, Any] = {
        "tokenizer": encoder_folder(),
        "max_length": 128,
        "batch_size": options.rows,
        "eval_batch_size": 64,
        "seed": seed,
        "cache_dir": str(folder / "cache"),
    }
    parts = way.split("+")
    how: dict[str, Any] = {"learning_rate": options.learning_rate, "warmup": WARMUP}
    for part in parts:
        how |= BALANCED.get(part, {})
    if OWN_RATE in parts:
        how["task_learning_rate"] = options.own_rate
    drawn = [part for part in parts if part in SAMPLINGS]
    plan: dict[str, Any] = {"sampling": drawn[0], "batches": "one"} if drawn else {"batches": "all"}
    # A module of one task is that task's own module, bit for bit.
    groups = [[task] for task in files] if "single" in parts else [list(files)]
    scores, watches = {}, []
    for group in groups:
        seed_everything(seed)
        specs = {task: {"class_path": f"{TASKS[task][0]}Module"} for task in group}
        module = MultiTaskModule(encoder_folder(), specs, **how)
        data = MultiTaskDataModule(
            {
                task: {"class_path": f"{TASKS[task][0]}DataModule", "init_args": files[task]}
                for task in group
            },
            **plan,
            **shared,
        )
        steps = options.steps * (len(group) if drawn else 1)
        said, watch = fit(options, module, data, steps, folder)
        scores |= {task: float(said[f"test/{task}/{TASKS[task][1]}"]) for task in group}
        watches.append(watch)
    return {
        "scores": scores,
        "mean": statistics.mean(scores.values()),
        "steps": sum(watch.steps for watch in watches),
        "cpu_s": sum(watch.seconds for watch in watches),
        "tokens": sum(watch.tokens for watch in watches),
    }


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Train all ways with each seed."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            files = {task: write_task(options, folder, task, seed) for task in options.tasks}
            for way in options.ways:
                runs.setdefault(way, []).append(learn(options, files, folder, way, seed))
                print({"seed": seed, way: runs[way][-1]}, flush=True)
    figures: dict[str, Any] = {}
    for way, found in runs.items():
        seconds = sum(run["cpu_s"] for run in found)
        means = [run["mean"] for run in found]
        each = {task: [run["scores"][task] for run in found] for task in options.tasks}
        figures[way] = {
            "mean": statistics.mean(means),
            "deviation": statistics.stdev(means) if len(means) > 1 else None,
            "means": means,
            "tasks": {task: statistics.mean(values) for task, values in each.items()},
            "cpu_s_per_step": seconds / sum(run["steps"] for run in found),
            "tokens_per_cpu_s": sum(run["tokens"] for run in found) / seconds,
        }
    for way in figures if "single" in figures else ():
        alone, ours = figures["single"], figures[way]
        ours["over single"] = ours["mean"] - alone["mean"]
        ours["throughput of single"] = ours["tokens_per_cpu_s"] / alone["tokens_per_cpu_s"]
    return figures


def way_of(text: str) -> str:
    """Check the name of a way."""
    if unknown := set(text.split("+")) - set(WAYS):
        raise argparse.ArgumentTypeError(
            f"{text!r} has {', '.join(sorted(unknown))}; there are {', '.join(WAYS)}, joined by +"
        )
    return text


def main() -> None:
    """Measure, print, write."""
    parser = arguments(__doc__)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--ways", nargs="+", type=way_of, default=["single", "sum", "temperature"])
    parser.add_argument("--examples", type=int, help="of each small training set; all by default")
    parser.add_argument("--small", nargs="*", choices=list(TASKS), default=SMALL)
    parser.add_argument("--steps", type=int, default=300, help="batches of each task")
    parser.add_argument("--rows", type=int, default=16, help="examples to a batch")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--own-rate", type=float, default=1e-3, help="of heads and adapters")
    parser.add_argument("--precision", help="by default what the processor is fastest in")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    tune_process()
    torch.set_num_threads(options.threads)
    write_json(options.json, "multitask", options, compare(options))


if __name__ == "__main__":
    main()
