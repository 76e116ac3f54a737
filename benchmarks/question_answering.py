"""Extractive question answering on XQuAD, split by article: lmkit against transformers.Trainer.

The MiniLM encoder with a new head, the same initial weights, windows, steps, rows to a step and
learning rate for all; every fourth article is kept for the test, so that no text is in both parts.
One function answers the questions of the test and scores them, as the script of SQuAD 1.1 does. The
unit of speed is *real* tokens, padding apart, per CPU second. Each way runs in a process of its
own, in turn, for each seed of head, order and dropout.

`transformers` pads to the maximum, as the example script for this task does by default;
`transformers longest` to the longest window of a batch. `lmkit fp32` is without bf16 and without
the process settings of `lmkit fit`; `lmkit` has the settings, and bf16 where the processor has
matrix units.

    python benchmarks/question_answering.py --seeds 0 1 2 --json question_answering.json
    python benchmarks/question_answering.py --epochs 0.05     # to see that it runs
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pretraining import Clock

WAYS = ("transformers", "transformers longest", "lmkit fp32", "lmkit")
WARM = 3


def split_articles(folder: Path) -> None:
    """Write `train.json` and `test.json`, of three quarters and one quarter of the articles."""
    from measure import data_folder

    path = data_folder() / "xquad-en" / "xquad.en.json"
    articles = json.loads(path.read_text(encoding="utf-8"))["data"]
    parts = {
        "train": [a for number, a in enumerate(articles) if number % 4],
        "test": articles[::4],
    }
    for name, part in parts.items():
        (folder / f"{name}.json").write_text(json.dumps({"data": part}), encoding="utf-8")


def initial(folder: Path, seed: int) -> Path:
    """Save the encoder with a new head, so that all start from the same weights."""
    import torch
    from measure import encoder_folder
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    torch.manual_seed(seed)
    start = folder / f"start-{seed}"
    network = AutoModelForQuestionAnswering.from_pretrained(encoder_folder(), dtype=torch.float32)
    network.save_pretrained(start)
    AutoTokenizer.from_pretrained(encoder_folder()).save_pretrained(start)
    return start


def data_module(options: argparse.Namespace, part: str) -> Any:
    """Return lmkit's data for a part: `train` to fit, `test` to be scored."""
    from lmkit.datamodules.question_answering import QuestionAnsweringDataModule

    return QuestionAnsweringDataModule(
        **{"train_file" if part == "train" else "val_file": str(options.folder / f"{part}.json")},
        val_fraction=0,
        tokenizer=str(options.start),
        max_length=options.max_length,
        doc_stride=options.doc_stride,
        batch_size=options.rows,
        seed=options.seed,
        cache_dir=str(options.folder / "cache"),
    )


def steps_of(options: argparse.Namespace) -> int:
    """Return how many steps all ways take."""
    data = data_module(options, "train")
    data.setup()
    return max(WARM + 1, math.ceil(options.epochs * len(data.table("train")) / options.rows))


def run_lmkit(options: argparse.Namespace, clock: Clock) -> Any:
    """Train with lmkit; return the network."""
    from lightning.pytorch import Callback, seed_everything

    from lmkit import Trainer
    from lmkit.modules.question_answering import QuestionAnsweringModule

    class Tick(Callback):
        def on_train_batch_end(
            self, trainer: Any, module: Any, outputs: Any, batch: Any, *_: Any
        ) -> None:
            # A filler's one position is no token.
            clock.count(int(batch["attention_mask"][batch["index"] >= 0].sum()))
            clock.tick()

    seed_everything(options.seed)
    module = QuestionAnsweringModule(
        str(options.start), learning_rate=options.learning_rate, warmup=0.1, weight_decay=0.01
    )
    trainer = Trainer(
        accelerator="cpu",
        max_steps=options.steps,
        max_epochs=-1,
        gradient_clip_val=1.0,
        precision="32-true" if "fp32" in options.way else None,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[Tick()],
    )
    trainer.fit(module, data_module(options, "train"))
    return module.network


def peer_windows(options: argparse.Namespace, tokenizer: Any, padding: Any) -> Any:
    """Make windows and labels as transformers' example script for question answering does."""
    from datasets import Dataset

    document = json.loads((options.folder / "train.json").read_text(encoding="utf-8"))
    paragraphs = [p for article in document["data"] for p in article["paragraphs"]]
    asked = [(q["question"].lstrip(), p["context"], q) for p in paragraphs for q in p["qas"]]
    made = tokenizer(
        [question for question, _, _ in asked],
        [context for _, context, _ in asked],
        truncation="only_second",
        max_length=options.max_length,
        stride=options.doc_stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        padding=padding,
    )
    starts, ends = [], []
    for row, offsets in enumerate(made.pop("offset_mapping")):
        answer = asked[made["overflow_to_sample_mapping"][row]][2]["answers"][0]
        first = answer["answer_start"]
        last = first + len(answer["text"])
        inside = [
            column
            for column, (begin, end) in enumerate(offsets)
            if made.sequence_ids(row)[column] == 1 and begin < last and end > first
        ]
        whole = bool(inside) and offsets[inside[0]][0] <= first and offsets[inside[-1]][1] >= last
        starts.append(inside[0] if whole else 0)
        ends.append(inside[-1] if whole else 0)
    made.pop("overflow_to_sample_mapping")
    return Dataset.from_dict({**made, "start_positions": starts, "end_positions": ends})


def run_transformers(options: argparse.Namespace, clock: Clock) -> Any:
    """Train with transformers.Trainer; return the network."""
    from transformers import (
        AutoModelForQuestionAnswering,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        default_data_collator,
        set_seed,
    )

    set_seed(options.seed)
    tokenizer = AutoTokenizer.from_pretrained(options.start)
    network = AutoModelForQuestionAnswering.from_pretrained(options.start)
    longest = "longest" in options.way
    rows = peer_windows(options, tokenizer, False if longest else "max_length")
    inner: Any = DataCollatorWithPadding(tokenizer) if longest else default_data_collator

    def collate(examples: Any) -> Any:
        batch = inner(examples)
        clock.count(int(batch["attention_mask"].sum()))
        return batch

    class Tick(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.tick()

    with tempfile.TemporaryDirectory() as out:
        settings = TrainingArguments(
            output_dir=out,
            max_steps=options.steps,
            per_device_train_batch_size=options.rows,
            learning_rate=options.learning_rate,
            warmup_steps=round(0.1 * options.steps),
            weight_decay=0.01,
            adam_beta2=0.98,
            adam_epsilon=1e-6,
            max_grad_norm=1.0,
            seed=options.seed,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=10**6,
        )
        Trainer(network, settings, collate, rows, callbacks=[Tick()]).train()
    return network


def score(network: Any, options: argparse.Namespace) -> dict[str, float]:
    """Answer the questions of the test with a network, whoever trained it, and score them."""
    from lightning.pytorch import Trainer

    from lmkit.modules.question_answering import QuestionAnsweringModule

    module = QuestionAnsweringModule(str(options.start))
    module.configure_model()
    module.network.load_state_dict(network.state_dict())
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        limit_val_batches=options.eval_batches or 1.0,
    )
    (found,) = trainer.validate(module, data_module(options, "test"), verbose=False)
    return {name: 100 * found[f"val/{name}"] for name in ("exact_match", "f1")}


def work(options: argparse.Namespace) -> None:
    """Run one way in this process, and print its figures as the last line."""
    if options.way == "lmkit":
        from lmkit import launcher

        launcher.tune_process()
    import torch

    torch.set_num_threads(options.threads)
    clock = Clock(WARM)
    run = run_lmkit if options.way.startswith("lmkit") else run_transformers
    network = run(options, clock)
    print(json.dumps({**clock.record(), "steps": clock.steps, **score(network, options)}))


def main() -> None:
    """Run all ways in turn for each seed, and compare."""
    from measure import arguments, write_json

    parser = arguments(__doc__)
    parser.add_argument("--epochs", type=float, default=6.0, help="rounds through the windows")
    parser.add_argument("--rows", type=int, default=16, help="windows to a step")
    parser.add_argument("--max-length", type=int, default=384)
    parser.add_argument("--doc-stride", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=2e-4, help="the peak")
    parser.add_argument("--eval-batches", type=int, help="all by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    for hidden in ("--way", "--start", "--folder", "--seed", "--steps"):
        kind = int if hidden in ("--seed", "--steps") else Path if hidden != "--way" else str
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        work(options)
        return
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        options.folder = Path(name)
        split_articles(options.folder)
        for seed in options.seeds:
            options.seed = seed
            options.start = initial(options.folder, options.seed)
            options.steps = steps_of(options)
            for way in options.ways:
                known = {"way": way, "start": options.start, "folder": name}
                known |= {"seed": options.seed, "steps": options.steps}
                more = [part for k, v in known.items() for part in (f"--{k}", str(v))]
                command = [sys.executable, __file__, *sys.argv[1:], *more]
                environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
                done = subprocess.run(command, capture_output=True, text=True, env=environment)
                if done.returncode:
                    raise SystemExit(f"{way} failed:\n{done.stderr[-3000:]}")
                runs.append({"way": way, "seed": options.seed})
                runs[-1] |= json.loads(done.stdout.strip().splitlines()[-1])
                print(runs[-1], flush=True)
    means = {
        way: {
            figure: statistics.mean(run[figure] for run in runs if run["way"] == way)
            for figure in ("exact_match", "f1", "rate")
        }
        for way in options.ways
    }
    figures: dict[str, Any] = {"means": means, "runs": runs}
    if "transformers" in means:
        peer = means["transformers"]["rate"]
        figures["rate over transformers"] = {way: m["rate"] / peer for way, m in means.items()}
    write_json(options.json, "question_answering", options, figures)


if __name__ == "__main__":
    main()
