"""Classification of texts: lmkit against transformers.Trainer and against TF-IDF.

TREC-6 (5,452 / 500), SUBJ (8,000 / 2,000 of a fixed draw) and small fine foods (4,000 / 1,000), by
the MiniLM encoder with a new head. lmkit and the peer start from the same weights and have the same
hyper-parameters; the peer comes as its example script has it, padded to `max_length`, and padded to
the longest text of each batch (`--ways`). Throughput counts real tokens, special ones included and
padding not, per CPU second of one thread. The third way is TF-IDF of words and pairs of words with
logistic regression (`pip install scikit-learn`).

    python benchmarks/sequence_classification.py --task trec --seeds 0 1 2 --json trec.json
    python benchmarks/sequence_classification.py --task foods --ways lmkit tfidf --json foods.json
    python benchmarks/sequence_classification.py --task trec --steps 40 --ways lmkit \
        "lmkit float32" transformers "transformers padded" --json speed.json
"""

from __future__ import annotations

import argparse
import csv
import gzip
import random
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import seed_everything
from measure import (
    WARMUP,
    Clock,
    arguments,
    data_folder,
    encoder_folder,
    peer_arguments,
    quiet_trainer,
    write_json,
)
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
)
from transformers import Trainer as PeerTrainer

WAYS = ("lmkit", "lmkit float32", "transformers", "transformers padded", "tfidf")


class Result(NamedTuple):
    """Accuracy; real tokens that were trained on; CPU seconds of that."""

    score: float
    tokens: int
    seconds: float


def rows_of(task: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return text and label of the training and of the test examples."""
    folder = data_folder()
    if task == "foods":
        found = []
        for split in ("train", "test"):
            path = folder / "small-fine-foods" / f"{split}.csv.gz"
            with gzip.open(path, "rt", encoding="utf-8") as file:
                found.append([(row["review"], row["score"]) for row in csv.DictReader(file)])
        return found[0], found[1]
    names = {"trec": ["trec6/TREC.train.all", "trec6/TREC.test.all"], "subj": ["subj/subj.all"]}
    splits = []
    for name in names[task]:
        lines = (folder / name).read_text(encoding="latin-1").strip().split("\n")
        splits.append([(text, label) for label, _, text in (li.partition(" ") for li in lines)])
    if len(splits) == 2:
        return splits[0], splits[1]
    random.Random(0).shuffle(splits[0])
    return splits[0][:8000], splits[0][8000:]


def write_rows(path: Path, rows: list[tuple[str, str]]) -> str:
    """Write texts and labels as a csv, and return its name."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return str(path)


def initial(labels: list[str], seed: int) -> Path:
    """Save the encoder with a new head, so that all start from the same weights."""
    torch.manual_seed(seed)
    folder = Path(tempfile.mkdtemp())
    network = AutoModelForSequenceClassification.from_pretrained(
        encoder_folder(),
        dtype=torch.float32,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={name: number for number, name in enumerate(labels)},
    )
    network.save_pretrained(folder)
    AutoTokenizer.from_pretrained(encoder_folder()).save_pretrained(folder)
    return folder


def ours(options: argparse.Namespace, start: Path, seed: int, precision: str | None) -> Result:
    """Train and test with lmkit."""
    from lmkit.datamodules import SequenceClassificationDataModule
    from lmkit.modules import SequenceClassificationModule

    seed_everything(seed)
    train, test = rows_of(options.task)
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
        module = SequenceClassificationModule(
            str(start), learning_rate=options.learning_rate, warmup=WARMUP
        )
        clock = Clock()
        trainer = quiet_trainer(
            clock.of_lightning(),
            max_epochs=options.epochs,
            max_steps=options.steps,
            precision=precision,
        )
        trainer.fit(module, data)
        score = 0.0
        if options.steps < 0:
            score = trainer.test(module, data, verbose=False)[0]["test/accuracy"]
    return Result(score, clock.tokens, clock.seconds)


def peer(options: argparse.Namespace, start: Path, seed: int, padded: bool) -> Result:
    """Train and test with transformers.Trainer."""
    seed_everything(seed)
    network = AutoModelForSequenceClassification.from_pretrained(start, dtype=torch.float32)
    clock = Clock()
    trainer = peer_trainer(
        options, network, start, clock.of_transformers(), seed=seed, padded=padded, clock=clock
    )
    trainer.train()
    tokens, seconds, score = clock.tokens, clock.seconds, 0.0
    if options.steps < 0:
        found = trainer.predict(encoded(options, "test", network, start, padded))
        score = float((found.predictions.argmax(-1) == found.label_ids).mean())
    return Result(score, tokens, seconds)


def encoded(
    options: argparse.Namespace, split: str, network: Any, start: Path, padded: bool
) -> Any:
    """Tokenize the training or the test examples."""
    from datasets import Dataset

    rows = rows_of(options.task)[split == "test"]
    made = AutoTokenizer.from_pretrained(start)(
        [text for text, _ in rows],
        truncation=True,
        max_length=options.max_length,
        padding="max_length" if padded else False,
    )
    return Dataset.from_dict(
        {**made, "labels": [network.config.label2id[label] for _, label in rows]}
    )


def peer_trainer(
    options: argparse.Namespace,
    network: Any,
    start: Path,
    *callbacks: Any,
    seed: int = 0,
    padded: bool = False,
    clock: Clock | None = None,
) -> Any:
    """Make a transformers.Trainer with lmkit's hyper-parameters."""
    collate: Any = DataCollatorWithPadding(AutoTokenizer.from_pretrained(start))
    rows = encoded(options, "train", network, start, padded)
    steps = options.epochs * -(-len(rows) // options.batch_size)
    total = steps if options.steps < 0 else min(steps, options.steps)
    settings = peer_arguments(
        tempfile.mkdtemp(),
        total,
        options.batch_size,
        options.learning_rate,
        seed,
        num_train_epochs=options.epochs,
    )
    return PeerTrainer(
        model=network,
        args=settings,
        train_dataset=rows,
        data_collator=clock.counting(collate) if clock else collate,
        callbacks=list(callbacks),
    )


def tfidf(options: argparse.Namespace) -> Result:
    """Fit a logistic regression on words and pairs of words."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    train, test = rows_of(options.task)
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    model = make_pipeline(words, LogisticRegression(max_iter=1000, C=10))
    model.fit([text for text, _ in train], [label for _, label in train])
    guess = model.predict([text for text, _ in test])
    right = sum(a == label for a, (_, label) in zip(guess, test, strict=True))
    return Result(right / len(test), 0, 0.0)


def main() -> None:
    """Run the ways in turn for each seed."""
    parser = arguments(__doc__)
    parser.add_argument("--task", choices=("trec", "subj", "foods"), default="trec")
    parser.add_argument("--ways", choices=WAYS, nargs="+", default=["lmkit", "transformers"])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=-1, help="ends the run, untested, before")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    labels = sorted({label for _, label in rows_of(options.task)[0]})
    runs: dict[str, list[Result]] = {}
    for seed in options.seeds:
        start = initial(labels, seed)
        for way in options.ways:
            if way == "tfidf":
                result = tfidf(options)
            elif way.startswith("lmkit"):
                precision = "32-true" if way.endswith("float32") else None
                result = ours(options, start, seed, precision)
            else:
                result = peer(options, start, seed, way.endswith("padded"))
            runs.setdefault(way, []).append(result)
            print(seed, way, result, flush=True)
        shutil.rmtree(start)
    figures: dict[str, Any] = {
        way: {
            "score": statistics.mean(result.score for result in results),
            "scores": [result.score for result in results],
            "tokens_per_cpu_s": sum(result.tokens for result in results)
            / max(1e-9, sum(result.seconds for result in results)),
        }
        for way, results in runs.items()
    }
    write_json(options.json, "sequence_classification", options, figures)


if __name__ == "__main__":
    main()
