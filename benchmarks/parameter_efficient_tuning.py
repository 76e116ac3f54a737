"""Parameter-efficient tuning: what it reaches and what it costs, against full tuning and the peer.

Quality (`--task`): TREC-6, SUBJ (8,000 / 2,000 of a fixed draw) and WNUT-17, by the MiniLM encoder
with a new head that is the same for all methods, each with a learning rate of its own, for as many
epochs as it needs. Trained parameters are those of the encoder, the head apart, over all of the
encoder. The checkpoint is what a trained-only one holds, weights and optimizer.

Cost (`--task cost`): SUBJ, or other texts of up to 128 tokens, each way in a process of its own, in
turn; one thread, CPU seconds of a step (median) and growth of the peak memory from before the
first step. The peer is `transformers.Trainer` with `peft.get_peft_model`, on the same rows, each
batch padded to its longest.

    python benchmarks/parameter_efficient_tuning.py --task trec --seeds 0 1 2 --json trec.json
    python benchmarks/parameter_efficient_tuning.py --task wnut --methods full lora --json wnut.json
    python benchmarks/parameter_efficient_tuning.py --task cost --rounds 5 --json cost.json
    python benchmarks/parameter_efficient_tuning.py --task cost --texts foods --rows 8
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from measure import arguments, write_json

STEPS_SKIPPED = 3


class Method(NamedTuple):
    """A class of `lmkit.callbacks` with its arguments, a learning rate, and epochs by task."""

    callback: str | None
    settings: dict[str, Any]
    rate: float
    epochs: dict[str, int]


def epochs(trec: int, subj: int, wnut: int) -> dict[str, int]:
    """Name the epochs of each task."""
    return {"trec": trec, "subj": subj, "wnut": wnut}


METHODS = {
    "full": Method(None, {}, 1e-4, epochs(4, 2, 5)),
    "lora": Method("LoRACallback", {"targets": ["all"]}, 1e-3, epochs(8, 3, 8)),
    "lora-qv": Method("LoRACallback", {}, 3e-3, epochs(8, 3, 8)),
    "adapter": Method("AdapterCallback", {}, 1e-3, epochs(8, 3, 8)),
    "bitfit": Method("BitFitCallback", {}, 3e-3, epochs(8, 3, 8)),
    "compacter": Method("AdapterCallback", {"kind": "compacter"}, 3e-3, epochs(8, 3, 8)),
    "ia3": Method("IA3Callback", {}, 5e-3, epochs(8, 3, 8)),
    "prefix": Method("PrefixTuningCallback", {"length": 20}, 3e-3, epochs(8, 3, 8)),
    "prompt": Method("PromptTuningCallback", {"length": 20}, 1e-2, epochs(8, 3, 8)),
    "top-2": Method("SelectiveTuningCallback", {"layers": 2}, 3e-4, epochs(4, 2, 5)),
}
WAYS = (
    "full",
    "lora-qv",
    "lora",
    "adapter",
    "bitfit",
    "full float32",
    "lora-qv float32",
    "lora float32",
    "Trainer",
    "Trainer + peft lora-qv",
    "Trainer + peft lora",
)


def callbacks_of(method: Method) -> list[Any]:
    """Make the callbacks of a method."""
    from lmkit import callbacks

    if method.callback is None:
        return []
    made = getattr(callbacks, method.callback)(**method.settings)
    return [made, callbacks.TrainableOnlyCheckpoint()]


def fit(
    module: Any, data: Any, method: Method, folder: str, *more: Any, **settings: Any
) -> tuple[Any, Any]:
    """Train a module by a method; returns the Trainer and the clock."""
    from measure import Clock, quiet_trainer

    clock = Clock()
    callbacks = *callbacks_of(method), clock.of_lightning(), *more
    trainer = quiet_trainer(*callbacks, default_root_dir=folder, **settings)
    trainer.fit(module, data)
    return trainer, clock


def quality(options: argparse.Namespace, name: str, start: Path, seed: int) -> dict[str, float]:
    """Train and test one method."""
    from lightning.pytorch import seed_everything

    method = METHODS[name]
    seed_everything(seed)
    rate = options.learning_rate or method.rate
    with tempfile.TemporaryDirectory() as folder:
        task = tagging if options.task == "wnut" else classification
        module, data, score = task(options, start, seed, rate, Path(folder))
        length = {"max_epochs": options.epochs or method.epochs[options.task]}
        if options.steps > 0:
            length = {"max_steps": options.steps}
        trainer, clock = fit(module, data, method, folder, **length)
        trainer.save_checkpoint(f"{folder}/last.ckpt")
        base = module.network.base_model
        trained = sum(p.numel() for p in base.parameters() if p.requires_grad)
        return {
            "score": score(trainer, module, data),
            "trained_share": trained / sum(p.numel() for p in original(start).parameters()),
            "checkpoint_bytes": Path(folder, "last.ckpt").stat().st_size,
            "cpu_s": clock.seconds,
            "cpu_s_per_step": clock.seconds / trainer.global_step,
        }


def original(start: Path) -> Any:
    """Return the encoder as it was before any method."""
    from transformers import AutoModel

    return AutoModel.from_pretrained(start)


def classification(
    options: argparse.Namespace, start: Path, seed: int, rate: float, folder: Path
) -> tuple[Any, Any, Callable[..., float]]:
    """Make module, data and score of a classification."""
    from sequence_classification import rows_of, write_rows

    from lmkit.datamodules import SequenceClassificationDataModule
    from lmkit.modules import SequenceClassificationModule

    train, test = rows_of(options.task)
    data = SequenceClassificationDataModule(
        train_file=write_rows(folder / "train.csv", train),
        test_file=write_rows(folder / "test.csv", test),
        val_fraction=0,
        max_length=128,
        batch_size=options.rows,
        eval_batch_size=64,
        seed=seed,
        cache_dir=str(folder),
    )
    module = SequenceClassificationModule(str(start), learning_rate=rate, warmup=0.1)

    def score(trainer: Any, module: Any, data: Any) -> float:
        return float(trainer.test(module, data, verbose=False)[0]["test/accuracy"])

    return module, data, score


def tagging(
    options: argparse.Namespace, start: Path, seed: int, rate: float, folder: Path
) -> tuple[Any, Any, Callable[..., float]]:
    """Make module, data and score of WNUT-17."""
    from measure import data_folder
    from token_classification import FILES, read, tagged
    from token_classification import score as score_of

    from lmkit.datamodules import TokenClassificationDataModule
    from lmkit.modules import TokenClassificationModule

    data = TokenClassificationDataModule(
        train_file=str(data_folder() / FILES["ner"][0]),
        val_fraction=0,
        batch_size=options.rows,
        seed=seed,
        cache_dir=str(folder),
    )
    module = TokenClassificationModule(str(start), learning_rate=rate, warmup=0.1)

    def score(trainer: Any, module: Any, data: Any) -> float:
        test = read("ner", 1)
        return score_of("ner", test.tags, tagged(module, test.words))

    return module, data, score


def initial(task: str, seed: int) -> Path:
    """Save the encoder with a new head, so that all methods start from the same weights."""
    if task == "wnut":
        from token_classification import initial as of_tags
        from token_classification import read

        return of_tags(sorted({tag for tags in read("ner", 0).tags for tag in tags}), seed)
    from sequence_classification import initial as of_classes
    from sequence_classification import rows_of

    return of_classes(sorted({label for _, label in rows_of(task)[0]}), seed)


class Ticks:
    """CPU seconds of each step, and how much the peak memory has grown."""

    def __init__(self) -> None:
        self.at: list[float] = []
        self.before = 0.0

    def begin(self, *_: Any, **__: Any) -> None:
        """Note the memory before the first step."""
        self.before = resident()
        self.at.append(time.process_time())

    def tick(self, *_: Any, **__: Any) -> None:
        """Note the end of a step."""
        self.at.append(time.process_time())

    def record(self) -> dict[str, float]:
        """Return both figures; the first steps do not count for time."""
        pairs = list(zip(self.at[:-1], self.at[1:], strict=True))[STEPS_SKIPPED:]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {
            "cpu_s_per_step": statistics.mean(b - a for a, b in pairs),
            "memory_growth_mib": peak - self.before,
        }


def resident() -> float:
    """Return the memory of this process in MiB."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def cost(options: argparse.Namespace) -> dict[str, float]:
    """Train some steps in this process in the way that is asked for."""
    import torch

    torch.set_num_threads(options.threads)
    run = peer_steps if options.way.startswith("Trainer") else our_steps
    return run(options)


def our_steps(options: argparse.Namespace) -> dict[str, float]:
    """Train with lmkit."""
    from lightning.pytorch import Callback, seed_everything

    ticks = Ticks()

    class Watch(Callback):
        on_train_start = ticks.begin
        on_train_batch_end = ticks.tick

    name, _, precision = options.way.partition(" ")
    seed_everything(0)
    with tempfile.TemporaryDirectory() as folder:
        module, data, _ = classification(options, options.start, 0, 1e-4, Path(folder))
        extra = {"precision": "32-true"} if precision else {}
        fit(module, data, METHODS[name], folder, Watch(), max_steps=options.steps, **extra)
    return ticks.record()


def peer_steps(options: argparse.Namespace) -> dict[str, float]:
    """Train with transformers.Trainer, with peft if the way says so."""
    from peft import LoraConfig, TaskType, get_peft_model
    from sequence_classification import peer_trainer
    from transformers import AutoModelForSequenceClassification, TrainerCallback

    import lmkit  # noqa: F401  # both have it in memory

    ticks = Ticks()

    class Watch(TrainerCallback):
        on_train_begin = ticks.begin
        on_step_end = ticks.tick

    network: Any = AutoModelForSequenceClassification.from_pretrained(options.start)
    if "peft" in options.way:
        every = ["query", "key", "value", "dense"]
        config = LoraConfig(
            task_type=TaskType.SEQ_CLS,
            r=8,
            lora_alpha=16,
            lora_dropout=0.0,
            target_modules=["query", "value"] if options.way.endswith("qv") else every,
            exclude_modules=r".*pooler\.dense",
        )
        network = get_peft_model(network, config)
    options.epochs, options.batch_size, options.max_length = 1, options.rows, 128
    options.learning_rate = 1e-4
    peer_trainer(options, network, options.start, Watch()).train()
    return ticks.record()


def measure_cost(options: argparse.Namespace) -> dict[str, Any]:
    """Run every way in a process of its own, in turn, and compare medians."""
    options.task = options.texts
    start = initial(options.texts, 0)
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in options.ways}
    for _ in range(options.rounds):
        for way in options.ways:
            command = [sys.executable, __file__, "--way", way, "--start", str(start)]
            for name in ("texts", "rows", "steps", "threads"):
                command += [f"--{name}", str(getattr(options, name))]
            environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                raise SystemExit(f"{way} failed:\n{done.stderr[-3000:]}")
            runs[way].append(json.loads(done.stdout.strip().splitlines()[-1]))
            print(way, runs[way][-1], flush=True)
    medians = {
        way: {key: statistics.median(run[key] for run in found) for key in found[0]}
        for way, found in runs.items()
    }
    ratios: dict[str, dict[str, float]] = {}
    for way, over in [
        *((way, "full") for way in ("lora-qv", "lora", "adapter", "bitfit")),
        ("lora-qv float32", "full float32"),
        ("lora float32", "full float32"),
        ("lora-qv float32", "Trainer + peft lora-qv"),
        ("lora-qv", "Trainer + peft lora-qv"),
        ("lora float32", "Trainer + peft lora"),
        ("lora", "Trainer + peft lora"),
    ]:
        if {way, over} <= set(medians):
            ratios[f"{way} / {over}"] = {
                key: medians[way][key] / medians[over][key] for key in medians[way]
            }
    return {"medians": medians, "ratios": ratios, "runs": runs}


def measure_quality(options: argparse.Namespace) -> dict[str, Any]:
    """Run every method for each seed, and compare their means with full tuning's."""
    import shutil

    import torch

    torch.set_num_threads(options.threads)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in options.methods}
    for seed in options.seeds:
        start = initial(options.task, seed)
        for name in options.methods:
            runs[name].append(quality(options, name, start, seed))
            print(seed, name, runs[name][-1], flush=True)
        shutil.rmtree(start)
    figures: dict[str, Any] = {"runs": runs}
    for name, found in runs.items():
        figures[name] = {key: statistics.mean(run[key] for run in found) for key in found[0]}
        figures[name]["scores"] = [run["score"] for run in found]
    for name in runs if "full" in runs else ():
        for ratio, key in (("of_full", "score"), ("checkpoint_share", "checkpoint_bytes")):
            figures[name][ratio] = figures[name][key] / figures["full"][key]
    return figures


def main() -> None:
    """Measure quality or cost."""
    parser = arguments(__doc__)
    parser.add_argument("--task", choices=("trec", "subj", "wnut", "cost"), default="trec")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS)[:5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="of every method, in place of its own")
    parser.add_argument("--learning-rate", type=float, help="of every method, in place of its own")
    parser.add_argument("--steps", type=int, default=0, help="of a run; of cost 20 by default")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=3, help="of cost")
    parser.add_argument(
        "--texts", choices=("trec", "subj", "foods"), default="subj", help="of cost"
    )
    parser.add_argument("--rows", type=int, default=16, help="to a step")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        options.task = options.texts
        print(json.dumps(cost(options)))
        return
    if options.task == "cost":
        options.steps = options.steps or 20
        figures = measure_cost(options)
    else:
        figures = measure_quality(options)
    write_json(options.json, "parameter_efficient_tuning", options, figures)


if __name__ == "__main__":
    main()
