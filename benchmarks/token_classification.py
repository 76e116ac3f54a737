"""Entities (WNUT-17) and parts of speech (UD English EWT): lmkit against transformers.Trainer.

Both fine-tune the MiniLM encoder with the same new head on the same sentences with the same
hyper-parameters, in turn, one thread each, once for each seed of head, order and dropout. Both
label the first piece of each word, and are scored at words by seqeval (entities) or by the share of
words that are right. Throughput counts real tokens, special ones included and padding not, per CPU
second of training. The peer is what the example script of transformers does: sentences tokenized
with `is_split_into_words`, cut at `max_length`, padded to the longest of a batch, in random order.

    pip install seqeval
    python benchmarks/token_classification.py --task ner --epochs 5 --seeds 0 1 2 --json ner.json
    python benchmarks/token_classification.py --task pos --epochs 3 --seeds 0 1 2 --json pos.json
"""

from __future__ import annotations

import argparse
import math
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
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
from seqeval.metrics import f1_score
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
)
from transformers import Trainer as PeerTrainer

from lmkit.datamodules.conll import read_conll
from lmkit.datamodules.token_classification import TokenClassificationDataModule
from lmkit.functional.tagging import Span, bio_tags, to_bio
from lmkit.modules.token_classification import TokenClassificationModule

FILES = {
    "ner": ("wnut17/wnut17train.conll", "wnut17/emerging.test.annotated"),
    "pos": (
        "ud-english-ewt/en_ewt-ud-train.conllu.gz",
        "ud-english-ewt/en_ewt-ud-test.conllu.gz",
    ),
}


class Result(NamedTuple):
    """F1 or share of words; real tokens that were trained on; CPU seconds of that."""

    score: float
    tokens: int
    seconds: float


class Sentences(NamedTuple):
    """Words and their tags."""

    words: list[list[str]]
    tags: list[list[str]]


def read(task: str, split: int) -> Sentences:
    """Return the training (0) or the test sentences (1)."""
    rows = list(read_conll(data_folder() / FILES[task][split]))
    tags = [to_bio(row.tags) if task == "ner" else row.tags for row in rows]
    return Sentences([row.words for row in rows], tags)


def initial(labels: list[str], seed: int) -> Path:
    """Save the encoder with a new head, so that both start from the same weights."""
    torch.manual_seed(seed)
    folder = Path(tempfile.mkdtemp())
    network = AutoModelForTokenClassification.from_pretrained(
        encoder_folder(),
        dtype=torch.float32,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={name: number for number, name in enumerate(labels)},
    )
    network.save_pretrained(folder)
    AutoTokenizer.from_pretrained(encoder_folder()).save_pretrained(folder)
    return folder


def score(task: str, gold: list[list[str]], guess: list[list[str]]) -> float:
    """Return seqeval's F1, or the share of words that are right."""
    if task == "ner":
        return float(f1_score(gold, guess))
    pairs = [pair for rows in zip(gold, guess, strict=True) for pair in zip(*rows, strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs)


def ours(options: argparse.Namespace, start: Path, seed: int) -> Result:
    """Train with lmkit, and tag the test sentences as they are."""
    seed_everything(seed)
    train, _ = FILES[options.task]
    data = TokenClassificationDataModule(
        train_file=str(data_folder() / train),
        val_fraction=0,
        max_length=options.max_length,
        batch_size=options.batch_size,
        seed=seed,
    )
    module = TokenClassificationModule(
        str(start), learning_rate=options.learning_rate, warmup=WARMUP, weight_decay=0.01
    )
    clock = Clock()
    trainer = quiet_trainer(
        clock.of_lightning(),
        max_epochs=options.epochs,
        max_steps=options.steps,
        precision=options.precision,
    )
    trainer.fit(module, data)
    test = read(options.task, 1)
    return Result(
        score(options.task, test.tags, tagged(module, test.words)), clock.tokens, clock.seconds
    )


def tagged(module: TokenClassificationModule, words: list[list[str]]) -> list[list[str]]:
    """Return a tag for each word, as the module gives them on raw input."""
    found = []
    for row, record in zip(words, module(words), strict=True):
        if "words" in record:
            found.append([word["tag"] or "?" for word in record["words"]])
            continue
        entities = record["entities"]
        spans = [Span(e["start_word"], e["end_word"], e["type"]) for e in entities]
        found.append(bio_tags(spans, len(row)))
    return found


def peer(options: argparse.Namespace, start: Path, seed: int) -> Result:
    """Train with transformers.Trainer; a word that was cut off counts as `O`, or as wrong."""
    seed_everything(seed)
    tokenizer = AutoTokenizer.from_pretrained(start)
    network = AutoModelForTokenClassification.from_pretrained(start, dtype=torch.float32)
    train, test = (read(options.task, split) for split in (0, 1))
    epochs = options.epochs * math.ceil(len(train.words) / options.batch_size)
    total = epochs if options.steps < 0 else min(epochs, options.steps)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        settings = peer_arguments(
            folder,
            total,
            options.batch_size,
            options.learning_rate,
            seed,
            num_train_epochs=options.epochs,
        )
        trainer = PeerTrainer(
            model=network,
            args=settings,
            train_dataset=aligned(train, tokenizer, network.config.label2id, options.max_length),
            data_collator=clock.counting(DataCollatorForTokenClassification(tokenizer)),
            callbacks=[clock.of_transformers()],
        )
        trainer.train()
    network.eval()
    names, missing = network.config.id2label, "O" if options.task == "ner" else "?"
    guess = []
    for words in test.words:
        encoded = tokenizer(
            words, is_split_into_words=True, truncation=True, max_length=options.max_length
        )
        with torch.no_grad():
            choices = network(input_ids=torch.tensor([encoded["input_ids"]])).logits[0].argmax(-1)
        tags = [missing] * len(words)
        for place, owner in reversed(list(enumerate(encoded.word_ids()))):
            if owner is not None:
                tags[owner] = names[int(choices[place])]
        guess.append(tags)
    return Result(score(options.task, test.tags, guess), clock.tokens, clock.seconds)


def aligned(sentences: Sentences, tokenizer: Any, numbers: dict[str, int], length: int) -> Dataset:
    """Tokenize sentences, and label the first piece of each word."""
    encoded = tokenizer(
        sentences.words, is_split_into_words=True, truncation=True, max_length=length
    )
    labels = []
    for row, tags in enumerate(sentences.tags):
        owners = encoded.word_ids(row)
        labels.append(
            [
                -100 if owner is None or owner == before else numbers[tags[owner]]
                for owner, before in zip(owners, [None, *owners], strict=False)
            ]
        )
    return Dataset.from_dict(
        {**{k: encoded[k] for k in ("input_ids", "attention_mask")}, "labels": labels}
    )


WAYS = {"lmkit": ours, "transformers": peer}


def main() -> None:
    """Run both in turn for each seed."""
    parser = arguments(__doc__)
    parser.add_argument("--task", choices=list(FILES), default="ner")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=-1, help="ends the run before the epochs do")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--precision", help="of lmkit; by default what the processor is fastest in")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    labels = sorted({tag for tags in read(options.task, 0).tags for tag in tags})
    runs = []
    for seed in options.seeds:
        start = initial(labels, seed)
        found = {way: WAYS[way](options, start, seed) for way in options.ways}
        shutil.rmtree(start)
        runs.append({"seed": seed, **{name: result._asdict() for name, result in found.items()}})
        print(runs[-1], flush=True)
    names = options.ways
    means = {name: statistics.mean(run[name]["score"] for run in runs) for name in names}  # type: ignore[index]
    speed = {
        name: sum(run[name]["tokens"] for run in runs) / sum(run[name]["seconds"] for run in runs)  # type: ignore[index]
        for name in names
    }
    figures = {"runs": runs, "score": means, "tokens_per_cpu_s": speed}
    if len(names) == len(WAYS):
        figures["difference"] = means["lmkit"] - means["transformers"]
        figures["speed_ratio"] = speed["lmkit"] / speed["transformers"]
    write_json(options.json, "token_classification", options, figures)


if __name__ == "__main__":
    main()
