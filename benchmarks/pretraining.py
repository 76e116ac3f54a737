"""Speed of masked-LM pre-training on a CPU: lmkit, transformers.Trainer, and plain Lightning.

The MiniLM encoder with a new masked language-model head on WikiText-2, 16 rows of 128 tokens,
AdamW, gradients clipped at 1. The unit is *real* tokens, padding apart, per CPU second of one
thread. Each way runs in a process of its own, in turn, round after round, so that process-wide
settings do not leak and the noise of a shared machine falls on all alike; medians over the rounds
are compared.

    python benchmarks/pretraining.py --rounds 5 --json pretraining.json
    python benchmarks/pretraining.py --losses --tokens 100000 --json pretraining_losses.json

With `--losses` all ways train on as many real tokens, as many to an update, from the same weights,
and one function evaluates them on the same masked validation text.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

LENGTH = 128


@dataclass(frozen=True)
class Way:
    """One way to pre-train.

    Attributes:
        by: `transformers`, `lightning` (a module as one writes it first) or `lmkit`.
        rows: `lines` padded to the maximum, or `grouped` (of transformers); lmkit's own otherwise.
        bf16: mixed precision.
        dropout: of the model.
        tuned: process settings of `lmkit fit`.
    """

    by: str
    rows: str = "lines"
    bf16: bool = False
    dropout: float = 0.1
    tuned: bool = False


WAYS = {
    "transformers lines": Way("transformers"),
    "transformers grouped": Way("transformers", "grouped"),
    "transformers grouped bf16": Way("transformers", "grouped", bf16=True),
    "lightning lines": Way("lightning"),
    "lmkit fp32 dropout 0.1": Way("lmkit", "pack"),
    "lmkit fp32": Way("lmkit", "pack", dropout=0.0),
    "lmkit bf16 dropout 0.1": Way("lmkit", "pack", bf16=True, tuned=True),
    "lmkit bf16": Way("lmkit", "pack", bf16=True, dropout=0.0, tuned=True),
}
PEERS = ("transformers lines", "transformers grouped", "transformers grouped bf16")


class Clock:
    """CPU seconds and real tokens of the steps after the first ones, which warm up."""

    def __init__(self, warm: int) -> None:
        self.warm, self.steps, self.tokens = warm, 0, 0
        self.began = self.ended = 0.0

    def count(self, tokens: int) -> None:
        """Take note of a batch."""
        if self.steps >= self.warm:
            self.tokens += tokens

    def tick(self) -> None:
        """Take note of the end of a step."""
        self.steps += 1
        self.ended = time.process_time()
        if self.steps == self.warm:
            self.began = self.ended

    def record(self) -> dict[str, float]:
        """Return the figures."""
        seconds = self.ended - self.began
        return {"tokens": self.tokens, "seconds": seconds, "rate": self.tokens / seconds}


def corpus(split: str) -> Path:
    """Return a file of WikiText-2; its training split is not distributed, so `test` serves."""
    from measure import data_folder

    return data_folder() / "wikitext-2" / {"train": "test.txt", "val": "valid.txt"}[split]


def peer_rows(way: Way, split: str, tokenizer: Any) -> Any:
    """Make the rows as `run_mlm.py` does: each line padded, or all lines joined and cut."""
    from datasets import Dataset

    lines = corpus(split).read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line.strip()]
    if way.rows == "lines":
        settings = {"padding": "max_length", "truncation": True, "max_length": LENGTH}
        return Dataset.from_dict(
            dict(tokenizer(lines, return_special_tokens_mask=True, **settings))
        )
    stream = list(chain.from_iterable(tokenizer(lines)["input_ids"]))
    rows = [stream[i : i + LENGTH] for i in range(0, len(stream) - LENGTH + 1, LENGTH)]
    return Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * LENGTH] * len(rows)})


def peer_network(way: Way, start: str) -> Any:
    """Build the network with its dropout."""
    from transformers import AutoModelForMaskedLM

    rates = {"hidden_dropout_prob": way.dropout, "attention_probs_dropout_prob": way.dropout}
    return AutoModelForMaskedLM.from_pretrained(start, **rates)


def run_transformers(way: Way, start: str, rows: int, steps: int, clock: Clock, seed: int) -> Any:
    """Train with transformers.Trainer as its example script does; return the network."""
    from transformers import (
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        TrainerCallback,
        TrainingArguments,
    )
    from transformers import Trainer as PeerTrainer

    tokenizer = AutoTokenizer.from_pretrained(start)
    inner = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)

    def collate(examples: Any) -> Any:
        batch = inner(examples)
        clock.count(int(batch["attention_mask"].sum()))
        return batch

    class Tick(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.tick()

    network = peer_network(way, start)
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=rows,
            learning_rate=3e-4,
            warmup_steps=steps // 16,
            weight_decay=0.01,
            adam_beta2=0.98,
            adam_epsilon=1e-6,
            bf16=way.bf16,
            seed=seed,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=10**6,
        )
        data = peer_rows(way, "train", tokenizer)
        PeerTrainer(network, settings, collate, data, callbacks=[Tick()]).train()
    return network


def run_lightning(way: Way, start: str, rows: int, steps: int, clock: Clock, seed: int) -> Any:
    """Train with a LightningModule as one writes it first, and Lightning's defaults."""
    import lightning.pytorch as pl
    import torch
    from torch.utils.data import DataLoader
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = peer_network(way, start).train()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            clock.count(int(batch["attention_mask"].sum()))
            loss = self.network(**batch).loss
            self.log("train_loss", loss, prog_bar=True)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=3e-4, weight_decay=0.01)

        def on_train_batch_end(self, *args: Any) -> None:
            clock.tick()

    tokenizer = AutoTokenizer.from_pretrained(start)
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    loader: Any = DataLoader(
        peer_rows(way, "train", tokenizer), rows, shuffle=True, collate_fn=collate
    )
    module = Module()
    with tempfile.TemporaryDirectory() as folder:
        pl.seed_everything(seed)
        trainer = pl.Trainer(
            accelerator="cpu",
            max_steps=steps,
            gradient_clip_val=1.0,
            default_root_dir=folder,
            enable_progress_bar=False,
        )
        trainer.fit(module, loader)
    return module.network


def run_lmkit(way: Way, start: str, rows: int, steps: int, clock: Clock, seed: int) -> Any:
    """Train with lmkit's defaults, but for what `way` says; return the network."""
    from lightning.pytorch import Callback, seed_everything

    from lmkit import Trainer
    from lmkit.datamodules import MaskedLMDataModule
    from lmkit.modules import MaskedLMModule

    class Tick(Callback):
        def on_train_batch_end(
            self, trainer: Any, module: Any, outputs: Any, batch: Any, *_: Any
        ) -> None:
            clock.count(int(batch["attention_mask"].sum()))
            clock.tick()

    seed_everything(seed)
    data = MaskedLMDataModule(
        train_file=str(corpus("train")),
        val_fraction=0,
        max_length=LENGTH,
        batch_size=rows,
        seed=seed,
    )
    module = MaskedLMModule(start, learning_rate=3e-4, warmup=steps // 16, dropout=way.dropout)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            max_steps=steps,
            gradient_clip_val=1.0,
            precision="bf16-mixed" if way.bf16 else "32-true",
            default_root_dir=folder,
            enable_progress_bar=False,
            limit_val_batches=0,
            callbacks=[Tick()],
        )
        trainer.fit(module, data)
    return module.network


def evaluate(network: Any, start: str, rows: int = 400) -> float:
    """Return the loss on the first rows of the validation text, masked once and for all."""
    import torch
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling

    tokenizer = AutoTokenizer.from_pretrained(start)
    data = peer_rows(Way("transformers"), "val", tokenizer).select(range(rows))
    torch.manual_seed(0)
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    network.eval()
    total = items = 0.0
    with torch.no_grad():
        for low in range(0, rows, 16):
            batch = collate([data[i] for i in range(low, low + 16)])
            count = int((batch["labels"] != -100).sum())
            total += float(network(**batch).loss) * count
            items += count
    return total / items


def work(options: argparse.Namespace) -> None:
    """Run one way in this process, and print its figures as the last line."""
    way = WAYS[options.way]
    if way.tuned:
        from lmkit import tune_process

        tune_process()
    import torch

    torch.set_num_threads(options.threads)
    run = {"transformers": run_transformers, "lightning": run_lightning, "lmkit": run_lmkit}[way.by]
    if options.losses:
        # As many real tokens to an update: of padded lines 16 rows have fewer.
        rows = 27 if way.rows == "lines" else 16
        clock = Clock(1)
        steps = options.tokens // 2048
        network = run(way, options.start, rows, steps, clock, options.seed)
        figures = {**clock.record(), "val_loss": evaluate(network, options.start)}
    else:
        clock = Clock(2)
        run(way, options.start, 16, 2 + options.steps, clock, options.seed)
        figures = clock.record()
    print(json.dumps(figures))


def main() -> None:
    """Run every way in turn, and compare."""
    from measure import arguments, encoder_folder, median, write_json

    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often each way runs")
    parser.add_argument("--steps", type=int, default=4, help="measured steps of a run")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--losses", action="store_true", help="compare validation losses")
    parser.add_argument("--tokens", type=int, default=100_000, help="to train on for --losses")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=list(WAYS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        work(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        initial(folder, encoder_folder(), options.seed)
        figures: dict[str, list[dict[str, float]]] = {name: [] for name in options.ways}
        for _ in range(1 if options.losses else options.rounds):
            for name in options.ways:
                command = [sys.executable, __file__, "--way", name, "--start", folder]
                for option in ("steps", "threads", "tokens", "seed"):
                    command += [f"--{option}", str(getattr(options, option))]
                command += ["--losses"] * options.losses
                environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
                done = subprocess.run(command, capture_output=True, text=True, env=environment)
                if done.returncode:
                    raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
                figures[name].append(json.loads(done.stdout.strip().splitlines()[-1]))
                print(name, figures[name][-1], flush=True)
    rates = {name: median([run["rate"] for run in runs]) for name, runs in figures.items()}
    table: dict[str, Any] = {
        name: {
            "tokens_per_cpu_second": round(rate),
            **{f"x {peer}": round(rate / rates[peer], 2) for peer in PEERS if peer in rates},
        }
        for name, rate in rates.items()
    }
    if options.losses:
        for name, runs in figures.items():
            table[name]["val_loss"] = runs[0]["val_loss"]
    write_json(
        options.json,
        "pretraining",
        options,
        {"table": table, "runs": figures, "ways": {n: asdict(WAYS[n]) for n in options.ways}},
    )


def initial(folder: str, encoder: str, seed: int) -> None:
    """Save the encoder with a new head, so that all start from the same weights."""
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    torch.manual_seed(seed)
    AutoModelForMaskedLM.from_pretrained(encoder, dtype=torch.float32).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    tokenizer.model_max_length = 10**9  # long lines are grouped, not refused
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
