"""What augmentation, adversarial and consistency training are worth with few labelled examples.

MiniLM is fine-tuned on `--examples` of SUBJ, CR, TREC-6 or small fine foods, drawn by the seed, for
as many steps each way, and tested on the whole test set (of CR what a fixed draw of 3,000 leaves),
as it is and with typing errors in `--typos` of its words; `--attacked` of its texts are attacked by
words of like meaning and by misspelling. Since all ways take as many steps of as many rows, `plain`
is also the row of the same examples repeated as often. `typos beside` learns the labels of the
texts as they are, and to say the same of each with typing errors. `... attacked` has two trainings,
the second one also on what an attack of the first made of the training texts. `... of more` also
see `--unlabelled` other training texts, in each step as many as labelled ones on average. `+` is
between parts that are given together. Differences are of runs with one seed; their interval is of
10,000 draws of the seeds with replacement (paired bootstrap).

    python benchmarks/few_examples.py --task cr --ways plain r_drop eda --json few_examples.json
    python benchmarks/few_examples.py --task trec --examples 100 --ways plain "uda of more"
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adversarial import WAYS as LOSSES
from lightning.pytorch import seed_everything
from measure import (
    WARMUP,
    Clock,
    arguments,
    data_folder,
    encoder_folder,
    quiet_trainer,
    write_json,
)
from sequence_classification import rows_of, write_rows

from lmkit import callbacks, tune_process
from lmkit.attacks import Attack, CharacterAttack, WordAttack
from lmkit.datamodules import SequenceClassificationDataModule
from lmkit.modules import SequenceClassificationModule
from lmkit.transforms import CharacterNoise, Protection, example_rng, transform_text

#: Ways to change the words of the training texts, by the names of the transforms.
TRANSFORMS: dict[str, list[Any]] = {
    "eda": ["EDA"],
    "synonyms": ["SynonymReplacement"],
    "swap": ["RandomSwap"],
    "deletion": ["RandomDeletion"],
    "typos": [
        {
            "class_path": "Sometimes",
            "init_args": {
                "transform": {"class_path": "CharacterNoise", "init_args": {"rate": 0.4}},
                "probability": 0.5,
            },
        }
    ],
}
#: Ways that also see texts without a label.
MORE = ("vat of more", "uda of more", "substitution of more", "synonyms of more")
#: A changed text is a second view beside the first, with what it says of the first as its target.
BESIDE = "typos beside"
#: Attacks whose texts are trained on, and that test texts are attacked by.
ATTACKS: dict[str, Callable[[], Attack]] = {
    "words": lambda: WordAttack(similarity=encoder_folder()),
    "characters": lambda: CharacterAttack(max_changed=0.2),
}
ATTACKED = " attacked"
TWICE = tuple(name + ATTACKED for name in ATTACKS)


def examples_of(task: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return text and label of the training and of the test examples."""
    if task != "cr":
        return rows_of(task)
    path = data_folder() / "cr" / "custrev.all"
    lines = path.read_text(encoding="latin-1").strip().split("\n")
    pairs = ((text, label) for label, _, text in (line.partition(" ") for line in lines))
    rows = [(text, label) for text, label in pairs if text.strip()]
    random.Random(0).shuffle(rows)
    return rows[:3000], rows[3000:]


def mistyped(rows: list[tuple[str, str]], share: float) -> list[tuple[str, str]]:
    """Return rows with typing errors in a share of the words."""
    noise = CharacterNoise(rate=share)
    kept = Protection(negations=False, names=False)
    return [
        (transform_text(noise, text, example_rng(0, 0, number), kept), label)
        for number, (text, label) in enumerate(rows)
    ]


def settings_of(
    way: str, few: list[tuple[str, str]], more: list[str], rate: float
) -> dict[str, Any]:
    """Return the options of the data that a way has: transforms, and whether as another view."""
    if way.startswith("substitution of"):
        texts = [text for text, _ in few] + more
        counts: dict[str, int] = {}
        for word in " ".join(texts).split():
            counts[word] = counts.get(word, 0) + 1
        drawn = {"class_path": "RandomSubstitution", "init_args": {"source": counts, "rate": rate}}
        return {"transforms": [drawn], "transform_options": {"view": True}}
    if way.startswith("synonyms of"):
        drawn = {"class_path": "SynonymReplacement", "init_args": {"alpha": rate}}
        return {"transforms": [drawn], "transform_options": {"view": True}}
    if way == BESIDE:
        noise = {"class_path": "CharacterNoise", "init_args": {"rate": 0.4}}
        return {"transforms": [noise], "transform_options": {"view": True}}
    names = [name for name in way.split("+") if name in TRANSFORMS]
    return {"transforms": [each for name in names for each in TRANSFORMS[name]]} if names else {}


def callbacks_of(way: str, options: dict[str, Any]) -> list[Any]:
    """Return the callbacks of a way; the options are those of what compares two views."""
    if way.endswith(" of more") or way == BESIDE:
        kind = callbacks.VATCallback if way.startswith("vat") else callbacks.UDACallback
        return [kind(**options)]
    return [made for name in way.split("+") if name in LOSSES for made in LOSSES[name]()]


def learn(options: argparse.Namespace, way: str, seed: int) -> dict[str, float]:
    """Train one way; return its accuracies and CPU seconds."""
    train, test = examples_of(options.task)
    draw = random.Random(seed)
    order = draw.sample(range(len(train)), len(train))
    few = [train[number] for number in order[: options.examples]]
    more = [train[number][0] for number in order[options.examples :]][: options.unlabelled]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if way in TWICE:
            first, _, _ = fitted(options, "plain", seed, few, more, folder)
            texts, labels = [text for text, _ in few], [label for _, label in few]
            found = ATTACKS[way.removesuffix(ATTACKED)]().run(first, texts, labels)
            few = few + [(row["text"], row["label"]) for row in found.rows(["succeeded"])]
        module, shared, seconds = fitted(options, way, seed, few, more, folder)
        tests = {"accuracy": test}
        for share in options.typos:
            tests[f"accuracy, typos {share}"] = mistyped(test, share)
        scores: dict[str, float] = {}
        for number, (kind, rows) in enumerate(tests.items()):
            data = SequenceClassificationDataModule(
                **shared, test_file=write_rows(folder / f"test{number}.csv", rows)
            )
            said = quiet_trainer().test(module, data, verbose=False)[0]
            scores[kind] = float(said["test/accuracy"])
        if options.attacked:
            scores |= attacked(module, random.Random(0).sample(test, options.attacked))
    return {**scores, "labelled": len(few), "cpu_s": round(seconds, 1)}


def fitted(
    options: argparse.Namespace,
    way: str,
    seed: int,
    few: list[tuple[str, str]],
    more: list[str],
    folder: Path,
) -> tuple[Any, dict[str, Any], float]:
    """Train; return the module, what its data were made with, and the CPU seconds."""
    kept, unlabelled = settings_of(way, few, more, options.rate), None
    if way.endswith(" of more"):
        # Rows of the labelled ones again, so that each batch has some.
        few = few * max(1, len(more) // len(few))
        path = folder / "more.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in more))
        unlabelled = str(path)
    seed_everything(seed)
    shared: dict[str, Any] = {
        "train_file": write_rows(folder / "train.csv", few),
        "val_fraction": 0,
        "tokenizer": encoder_folder(),
        "max_length": 128,
        "eval_batch_size": 64,
        "seed": seed,
        "cache_dir": str(folder / "cache"),
    }
    data = SequenceClassificationDataModule(
        **shared,
        unlabelled_file=unlabelled,
        batch_size=options.rows * (2 if unlabelled else 1),
        **kept,
    )
    module = SequenceClassificationModule(
        encoder_folder(), learning_rate=options.learning_rate, warmup=WARMUP
    )
    clock = Clock()
    parts = clock.of_lightning(), *callbacks_of(way, options.options)
    quiet_trainer(*parts, max_steps=options.steps, default_root_dir=str(folder)).fit(module, data)
    return module, shared, clock.seconds


def attacked(module: Any, rows: list[tuple[str, str]]) -> dict[str, Any]:
    """Return the share of the texts that were right before and that attacks flip."""
    texts, labels = [text for text, _ in rows], [label for _, label in rows]
    return {
        f"flipped, {name}": attack().run(module, texts, labels).success_rate
        for name, attack in ATTACKS.items()
    }


def over(scores: list[float], plain: list[float]) -> dict[str, Any]:
    """Return the mean difference of pairs of runs, and its interval of 95 % by the bootstrap."""
    gains = np.subtract(scores, plain)
    drawn = np.random.default_rng(0).choice(gains, (10_000, len(gains))).mean(1)
    return {"mean": float(gains.mean()), "interval": np.quantile(drawn, [0.025, 0.975]).tolist()}


def quality(options: argparse.Namespace) -> dict[str, Any]:
    """Train each way with each seed."""
    runs: dict[str, list[dict[str, float]]] = {}
    for seed in options.seeds:
        for way in options.ways:
            runs.setdefault(way, []).append(learn(options, way, seed))
            print({"seed": seed, way: runs[way][-1]}, flush=True)
    figures: dict[str, Any] = {}
    for way, found in runs.items():
        figures[way] = {}
        for name in (name for name in found[0] if name not in ("cpu_s", "labelled")):
            scores = [run[name] for run in found]
            figures[way][name] = {"scores": scores, "mean": statistics.mean(scores)}
            if way != "plain" and "plain" in runs:
                plain = [run[name] for run in runs["plain"]]
                figures[way][name]["over plain"] = over(scores, plain)
        figures[way]["cpu_s"] = statistics.median(run["cpu_s"] for run in found)
    return figures


def way_of(text: str) -> str:
    """Check the name of a way."""
    known = {*LOSSES, *TRANSFORMS}
    alone = (*MORE, *TWICE, BESIDE)
    if text not in alone and not set(text.split("+")) <= known:
        listed = ", ".join(map(repr, [*known, *alone]))
        raise argparse.ArgumentTypeError(f"{text!r} is none of {listed}, nor such joined by +")
    return text


def main() -> None:
    """Measure, print, write."""
    parser = arguments(__doc__)
    parser.add_argument("--task", choices=["subj", "cr", "trec", "foods"], default="cr")
    parser.add_argument("--ways", nargs="+", type=way_of, default=["plain", *TRANSFORMS])
    parser.add_argument("--examples", type=int, default=500, help="with a label")
    parser.add_argument("--unlabelled", type=int, default=2000, help="of `... of more`")
    parser.add_argument("--rate", type=float, default=0.3, help="of words, for `... of more`")
    parser.add_argument(
        "--options", type=json.loads, default={}, help="of VAT or UDA, as JSON, for `... of more`"
    )
    parser.add_argument("--typos", type=float, nargs="*", default=[], help="shares, to test on")
    parser.add_argument("--attacked", type=int, default=0, help="test texts, by two attacks")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=125, help="of each run")
    parser.add_argument("--rows", type=int, default=16, help="texts to a step")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    options = parser.parse_args()
    tune_process()
    torch.set_num_threads(options.threads)
    write_json(options.json, "few_examples", options, quality(options))


if __name__ == "__main__":
    main()
