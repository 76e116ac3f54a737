"""Masked language modelling on real text: lmkit against transformers.Trainer.

Both train the MiniLM encoder with the same new masked language-model head on the same Wikipedia
articles with the same hyper-parameters and the same number of tokens per step, in turn, one thread
each, once for each seed of head, order, masks and dropout. Both results are then evaluated by one
function on the same masked rows of WikiText-2, laid out once as lmkit lays rows out and once as the
example script of transformers does.

    python benchmarks/masked_lm.py --steps 300 --json masked_lm.json
"""

from __future__ import annotations

import argparse
import gzip
import shutil
import tempfile
import time
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from lightning.pytorch import Trainer, seed_everything
from measure import arguments, data_folder, encoder_folder, median, peer_arguments, write_json
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    TrainerCallback,
)
from transformers import Trainer as PeerTrainer

from lmkit.datamodules import MaskedLMDataModule
from lmkit.modules import MaskedLMModule

WARMUP = 0.06


def texts() -> tuple[Path, Path]:
    """Return the files to train on and to validate on."""
    folder = data_folder()
    return (
        folder / "wikipedia-106-gensim" / "wikipedia_sample.txt.gz",
        folder / "wikitext-2" / "valid.txt",
    )


def initial(seed: int) -> Path:
    """Save the encoder with a new head, so that both start from the same weights."""
    torch.manual_seed(seed)
    folder = Path(tempfile.mkdtemp())
    network = AutoModelForMaskedLM.from_pretrained(encoder_folder(), dtype=torch.float32)
    network.save_pretrained(folder)
    AutoTokenizer.from_pretrained(encoder_folder()).save_pretrained(folder)
    return folder


def ours(options: argparse.Namespace, start: Path, seed: int) -> tuple[torch.nn.Module, float, Any]:
    """Train with lmkit; return the network, CPU seconds per step, and the validation batches."""
    seed_everything(seed)
    train, val = texts()
    data = MaskedLMDataModule(
        train_file=str(train),
        val_file=str(val),
        max_length=options.max_length,
        batch_size=options.batch_size,
        seed=seed,
    )
    module = MaskedLMModule(
        str(start), learning_rate=options.learning_rate, warmup=WARMUP, weight_decay=0.01
    )
    trainer = Trainer(
        max_steps=options.steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        limit_val_batches=0,
        gradient_clip_val=1.0,
    )
    data.prepare_data()
    began = time.process_time()
    trainer.fit(module, data)
    seconds = (time.process_time() - began) / options.steps
    return module.network, seconds, list(data.val_dataloader())


def peer(options: argparse.Namespace, start: Path, seed: int) -> tuple[torch.nn.Module, float, Any]:
    """Train with transformers.Trainer as its example script does, texts grouped."""
    seed_everything(seed)
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder())
    network = AutoModelForMaskedLM.from_pretrained(start, dtype=torch.float32)
    train, val = (grouped(path, tokenizer, options.max_length) for path in texts())
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)

    class Clock(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.start = time.process_time()

    with tempfile.TemporaryDirectory() as folder:
        settings = peer_arguments(
            folder, options.steps, options.batch_size, options.learning_rate, seed, WARMUP
        )
        clock = Clock()
        trainer = PeerTrainer(
            model=network,
            args=settings,
            train_dataset=train,
            data_collator=collator,
            callbacks=[clock],
        )
        trainer.train()
        seconds = (time.process_time() - clock.start) / options.steps
    torch.manual_seed(0)
    batches = list(DataLoader(val, options.batch_size, collate_fn=collator))  # type: ignore[arg-type]
    return network, seconds, batches


def grouped(path: Path, tokenizer: Any, length: int) -> Dataset:
    """Tokenize line by line with special tokens, join, and cut, dropping the remainder."""
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    stream = list(chain.from_iterable(tokenizer(lines)["input_ids"]))
    rows = [stream[i : i + length] for i in range(0, len(stream) - length + 1, length)]
    return Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * length] * len(rows)})


@torch.no_grad()
def evaluate(network: torch.nn.Module, batches: list[dict[str, torch.Tensor]]) -> float:
    """Return the mean negative log-likelihood over all masked tokens, by transformers' own loss."""
    network.eval()
    total, tokens = 0.0, 0
    for batch in batches:
        names = ("input_ids", "attention_mask", "labels")
        items = int((batch["labels"] != -100).sum())
        if items:
            loss = network(**{name: batch[name] for name in names}).loss
            total, tokens = total + loss.item() * items, tokens + items
    return total / tokens


def main() -> None:
    """Run both in turn for each seed."""
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--eval-batches", type=int, help="all by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    runs = []
    for seed in options.seeds:
        networks = {}
        seconds = {}
        start = initial(seed)
        networks["lmkit"], seconds["lmkit"], our_rows = ours(options, start, seed)
        networks["transformers"], seconds["transformers"], peer_rows = peer(options, start, seed)
        shutil.rmtree(start)
        loss = {
            layout: {
                name: evaluate(network, rows[: options.eval_batches])
                for name, network in networks.items()
            }
            for layout, rows in (("lmkit rows", our_rows), ("grouped rows", peer_rows))
        }
        runs.append({"seed": seed, "val_loss": loss, "cpu_s_per_step": seconds})
        print(runs[-1], flush=True)
    figures = {
        "runs": runs,
        "val_loss_ratio": {
            layout: median(
                [
                    r["val_loss"][layout]["lmkit"] / r["val_loss"][layout]["transformers"]
                    for r in runs
                ]
            )
            for layout in ("lmkit rows", "grouped rows")
        },
        "cpu_ratio": median(
            [r["cpu_s_per_step"]["lmkit"] / r["cpu_s_per_step"]["transformers"] for r in runs]
        ),
    }
    write_json(options.json, "masked_lm", options, figures)


if __name__ == "__main__":
    main()
