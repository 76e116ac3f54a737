"""Translation from scratch: lmkit against transformers.Seq2SeqTrainer, on Multi30k en-de.

A small encoder-decoder, the same initial weights, tokenizer, steps, rows to a step, learning rate
and smoothing for both; one function evaluates them on the validation set: loss over all target
tokens without smoothing, and BLEU (sacreBLEU's 13a) of what beam search writes. The unit of speed
is *real* tokens of both sides, padding apart, per CPU second. Each way runs in a process of its
own.

    python benchmarks/translation.py --steps 3000 --json translation.json
    python benchmarks/translation.py --steps 5 --examples 8     # to see that it runs
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pretraining import Clock

LENGTH = 64
LAYOUTS: dict[str, dict[str, Any]] = {
    "bart": {
        "model_type": "bart",
        "d_model": 256,
        "encoder_layers": 3,
        "decoder_layers": 3,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 1024,
        "decoder_ffn_dim": 1024,
        "max_position_embeddings": 2 * LENGTH,
        "scale_embedding": True,
    },
    "t5": {
        "model_type": "t5",
        "d_model": 256,
        "d_kv": 64,
        "d_ff": 512,
        "num_layers": 3,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "initializer_factor": 0.2,
    },
}


def files(split: str) -> list[str]:
    """Return the English and the German file of a split."""
    from measure import data_folder

    return [str(data_folder() / "multi30k" / f"{split}.{lang}.gz") for lang in ("en", "de")]


def texts(split: str) -> list[list[str]]:
    """Return the English and the German lines of a split."""
    return [gzip.open(name, "rt", encoding="utf-8").read().splitlines() for name in files(split)]


def initial(folder: str, options: argparse.Namespace) -> None:
    """Save tokenizer and initial weights, from which all start."""
    import torch

    from lmkit.datamodules import Seq2SeqDataModule
    from lmkit.modules import Seq2SeqModule

    data = Seq2SeqDataModule(train_file=files("train"), val_fraction=0, vocab_size=options.vocab)
    data.setup("fit")
    torch.manual_seed(options.seed)
    module = Seq2SeqModule(LAYOUTS[options.layout], beams=options.beams)
    module.tokenizer = data.tokenizer
    module.configure_model()
    module.network.save_pretrained(folder)
    assert data.tokenizer is not None
    data.tokenizer.save_pretrained(folder)


def run_transformers(folder: str, options: argparse.Namespace, clock: Clock) -> Any:
    """Train with Seq2SeqTrainer as its translation example does; return the network."""
    from datasets import Dataset
    from transformers import (
        AutoModelForSeq2SeqLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
        TrainerCallback,
    )

    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForSeq2SeqLM.from_pretrained(folder)
    sources, targets = texts("train")
    encoded = tokenizer(sources, text_target=targets, max_length=LENGTH, truncation=True)
    # The decoder starts from the token that the tokenizer begins a text with.
    first = int(encoded["labels"][0][0] == network.config.decoder_start_token_id)
    encoded["labels"] = [ids[first:] for ids in encoded["labels"]]
    inner = DataCollatorForSeq2Seq(tokenizer, network)

    def collate(examples: Any) -> Any:
        batch = inner(examples)
        clock.count(int(batch["attention_mask"].sum() + (batch["labels"] != -100).sum()))
        return batch

    class Tick(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.tick()

    with tempfile.TemporaryDirectory() as out:
        settings = Seq2SeqTrainingArguments(
            output_dir=out,
            max_steps=options.steps,
            per_device_train_batch_size=options.rows,
            learning_rate=options.learning_rate,
            warmup_steps=options.steps // 10,
            weight_decay=0.01,
            adam_beta2=0.98,
            adam_epsilon=1e-6,
            label_smoothing_factor=0.1,
            seed=options.seed,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=10**6,
        )
        data = Dataset.from_dict(dict(encoded))
        Seq2SeqTrainer(network, settings, collate, data, callbacks=[Tick()]).train()
    return network


def run_lmkit(folder: str, options: argparse.Namespace, clock: Clock) -> Any:
    """Train with lmkit; return the network."""
    from lightning.pytorch import Callback, seed_everything

    from lmkit import Trainer
    from lmkit.datamodules import Seq2SeqDataModule
    from lmkit.modules import Seq2SeqModule

    class Tick(Callback):
        def on_train_batch_end(
            self, trainer: Any, module: Any, outputs: Any, batch: Any, *_: Any
        ) -> None:
            labels = batch["labels"] != -100
            dropped = len(labels) if module.prepare(batch)["labels"] is not batch["labels"] else 0
            clock.count(int(batch["attention_mask"].sum() + labels.sum()) - dropped)
            clock.tick()

    seed_everything(options.seed)
    data = Seq2SeqDataModule(
        train_file=files("train"),
        val_fraction=0,
        max_length=LENGTH,
        max_target_length=LENGTH,
        batch_size=options.rows,
        seed=options.seed,
    )
    module = Seq2SeqModule(
        folder,
        learning_rate=options.learning_rate,
        warmup=options.steps // 10,
        label_smoothing=0.1,
    )
    with tempfile.TemporaryDirectory() as out:
        trainer = Trainer(
            accelerator="cpu",
            max_steps=options.steps,
            gradient_clip_val=1.0,
            precision=options.precision,
            default_root_dir=out,
            enable_progress_bar=False,
            limit_val_batches=0,
            callbacks=[Tick()],
        )
        trainer.fit(module, data)
    return module.network


def evaluate(network: Any, folder: str, options: argparse.Namespace) -> dict[str, float]:
    """Return loss and BLEU on the validation set, by the same code for both."""
    import torch
    from transformers import AutoTokenizer

    from lmkit.modules.text_metrics import Bleu

    tokenizer = AutoTokenizer.from_pretrained(folder)
    sources, targets = (lines[: options.examples] for lines in texts("val"))
    total = items = 0.0
    bleu = Bleu()
    network.eval()
    with torch.no_grad():
        for low in range(0, len(sources), 50):
            references = targets[low : low + 50]
            batch = tokenizer(
                sources[low : low + 50],
                text_target=references,
                max_length=LENGTH,
                truncation=True,
            )
            first = int(batch["labels"][0][0] == network.config.decoder_start_token_id)
            batch["labels"] = [ids[first:] for ids in batch["labels"]]
            width = max(map(len, batch["labels"]))
            labels = torch.tensor([ids + [-100] * (width - len(ids)) for ids in batch["labels"]])
            del batch["labels"]
            inputs = tokenizer.pad(batch, return_tensors="pt")
            count = int((labels != -100).sum())
            total += float(network(**inputs, labels=labels).loss) * count
            items += count
            ids = network.generate(**inputs, num_beams=options.beams, max_new_tokens=LENGTH)
            bleu.update(tokenizer.batch_decode(ids, skip_special_tokens=True), references)
    return {"val_loss": total / items, "val_bleu": float(bleu.compute())}


def work(options: argparse.Namespace) -> None:
    """Run one way in this process, and print its figures as the last line."""
    import torch

    torch.set_num_threads(options.threads)
    clock = Clock(min(2, options.steps - 1))
    run = {"transformers": run_transformers, "lmkit": run_lmkit}[options.way]
    network = run(options.start, options, clock)
    figures = clock.record()
    print(json.dumps({**figures, **evaluate(network, options.start, options)}))


def main() -> None:
    """Run both ways in turn, and compare."""
    from measure import arguments, write_json

    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, default=3000, help="optimizer steps")
    parser.add_argument("--rows", type=int, default=64, help="pairs to a step")
    parser.add_argument("--layout", choices=list(LAYOUTS), default="bart")
    parser.add_argument("--vocab", type=int, default=8192, help="tokens of the vocabulary")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="the peak")
    parser.add_argument("--beams", type=int, default=4, help="of the search")
    parser.add_argument("--examples", type=int, default=1014, help="to evaluate on")
    parser.add_argument("--precision", default="32-true", help="of lmkit; the peer has float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ways", nargs="+", default=["transformers", "lmkit"])
    parser.add_argument("--start", help=argparse.SUPPRESS)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        work(options)
        return
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        initial(folder, options)
        for way in options.ways:
            command = [sys.executable, __file__, "--way", way, "--start", folder, *sys.argv[1:]]
            environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                raise SystemExit(f"{way} failed:\n{done.stderr[-3000:]}")
            figures[way] = json.loads(done.stdout.strip().splitlines()[-1])
            print(way, figures[way], flush=True)
    if {"lmkit", "transformers"} <= set(figures):
        figures["rate of lmkit / transformers"] = round(
            figures["lmkit"]["rate"] / figures["transformers"]["rate"], 2
        )
    write_json(options.json and Path(options.json), "translation", options, figures)


if __name__ == "__main__":
    main()
