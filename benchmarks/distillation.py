"""Distillation: a student of 3 of the teacher's 6 layers, with and without its teacher.

The MiniLM encoder is fine-tuned on TREC-6, SUBJ, small-fine-foods or WNUT-17: the teacher. The
students have layers 0, 2 and 5 (`--layers`) of it, with its embeddings and its head, and train for
equal steps: `hard` on the labels alone, the others on the teacher too. `plain` starts from the
layers of the plain encoder, and `random` from none, both with logits. `textbrewer`, where it is
installed, is that library's distiller, with labels and logits, on the same batches. `... of more`
has also read `--copies` of each training text with words drawn anew, of which only the teacher says
anything.
Accuracy is of the test set (entity F1 for WNUT-17), retention a share of the teacher's.

`--task speed` compares CPU seconds: student and teacher at 32 rows of 128 tokens; an epoch of the
student alone, with a live teacher and with a cached one; a plain PyTorch loop that runs the teacher
in each step, as most scripts do; and, where it is installed, the distiller of TextBrewer.

    python benchmarks/distillation.py --task trec --seeds 0 1 2 --json trec.json
    python benchmarks/distillation.py --task speed --json speed.json
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything
from measure import WARMUP, Clock, arguments, encoder_folder, quiet_trainer, write_json
from sequence_classification import rows_of, write_rows

#: Epochs of teacher and student, and their peak learning rates.
TASKS = {
    "trec": (4, 6, 1e-4, 3e-4),
    "subj": (2, 4, 1e-4, 2e-4),
    "foods": (3, 5, 1e-4, 2e-4),
    "wnut": (5, 8, 2e-4, 3e-4),
}
LOGITS = {"class_path": "LogitLoss", "init_args": {"weight": 0.5, "temperature": 2.0}}
HIDDEN = {"class_path": "HiddenLoss", "init_args": {"weight": 1.0}}
RELATIONS = {"class_path": "RelationLoss", "init_args": {"weight": 1.0}}
#: Losses and weight of the labels.
WAYS: dict[str, tuple[list[dict[str, Any]], float]] = {
    "hard": ([], 1.0),
    "logits": ([LOGITS], 0.5),
    "hidden": ([HIDDEN], 1.0),
    "relations": ([RELATIONS], 1.0),
    "logits+hidden": ([LOGITS, HIDDEN], 0.5),
    "logits+relations": ([LOGITS, RELATIONS], 0.5),
    "all": ([LOGITS, HIDDEN, RELATIONS], 0.5),
    "logits of more": ([LOGITS], 0.5),
    "logits+hidden of more": ([LOGITS, HIDDEN], 0.5),
    "plain": ([LOGITS], 0.5),
    "random": ([LOGITS], 0.5),
}


def data_of(
    options: argparse.Namespace, folder: Path, seed: int, model: str, more: bool = False
) -> Any:
    """Make the data module of the task, perhaps with more texts that have no labels."""
    unlabelled = drawn_anew(options, folder, seed) if more else None
    if options.task == "wnut":
        from measure import data_folder
        from token_classification import FILES

        from lmkit.datamodules import TokenClassificationDataModule

        return TokenClassificationDataModule(
            train_file=str(data_folder() / FILES["ner"][0]),
            unlabelled_file=unlabelled,
            val_fraction=0,
            tokenizer=model,
            batch_size=options.rows,
            seed=seed,
            cache_dir=str(folder / "cache"),
        )
    from lmkit.datamodules import SequenceClassificationDataModule

    train, test = rows_of(options.task)
    return SequenceClassificationDataModule(
        train_file=write_rows(folder / "train.csv", train),
        test_file=write_rows(folder / "test.csv", test),
        unlabelled_file=unlabelled,
        val_fraction=0,
        tokenizer=model,
        max_length=128,
        batch_size=options.rows,
        eval_batch_size=64,
        seed=seed,
        cache_dir=str(folder / "cache"),
    )


def drawn_anew(options: argparse.Namespace, folder: Path, seed: int) -> str:
    """Write copies of the training texts in which some words are drawn anew; return the file.

    Each word is left out in one case of ten, and is another word of the training set in two, drawn
    as often as it stands there.
    """
    if options.task == "wnut":
        from token_classification import read

        texts = read("ner", 0).words
    else:
        texts = [text.split() for text, _ in rows_of(options.task)[0]]
    words = [word for text in texts for word in text]
    draw = random.Random(seed)
    path = folder / f"more-{seed}-{options.copies}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for text in texts * options.copies:
            made = []
            for word in text:
                place = draw.random()
                if place > 0.1:
                    made.append(draw.choice(words) if place < 0.3 else word)
            made = made or text
            row = {"tokens": made} if options.task == "wnut" else {"text": " ".join(made)}
            file.write(json.dumps(row) + "\n")
    return str(path)


def task_module(options: argparse.Namespace, model: Any, rate: float, **more: Any) -> Any:
    """Make the module of the task."""
    from lmkit.modules import SequenceClassificationModule, TokenClassificationModule

    cls = TokenClassificationModule if options.task == "wnut" else SequenceClassificationModule
    return cls(model, learning_rate=rate, warmup=0.1, **more)


def fit(module: Any, data: Any, folder: Path, *callbacks: Any, **length: Any) -> tuple[Any, Clock]:
    """Train a module; returns the Trainer and the clock."""
    clock = Clock()
    parts = (clock.of_lightning(), *callbacks)
    trainer = quiet_trainer(*parts, default_root_dir=str(folder), **length)
    trainer.fit(module, data)
    return trainer, clock


def score_of(options: argparse.Namespace, trainer: Any, module: Any, data: Any) -> float:
    """Return accuracy or F1 on the test set."""
    if options.task != "wnut":
        return float(trainer.test(module, data, verbose=False)[0]["test/accuracy"])
    from token_classification import read, score, tagged

    test = read("ner", 1)
    return float(score("ner", test.tags, tagged(module, test.words)))


def teach(options: argparse.Namespace, folder: Path, seed: int) -> tuple[str, float]:
    """Fine-tune the teacher, and return its folder and score; one that was kept is read."""
    import lmkit

    kept = options.keep and options.keep / f"{options.task}-{seed}"
    if kept and (kept / "score.json").exists():
        return str(kept), float(json.loads((kept / "score.json").read_text()))
    epochs, _, rate, _ = TASKS[options.task]
    seed_everything(seed)
    start = encoder_folder()
    module, data = task_module(options, start, rate), data_of(options, folder, seed, start)
    trainer, _ = fit(module, data, folder, **length_of(options, epochs))
    score = score_of(options, trainer, module, data)
    made = lmkit.export(module, kept or folder / "teacher", overwrite=True)
    if kept:
        (kept / "score.json").write_text(json.dumps(score))
    return str(made), score


def length_of(options: argparse.Namespace, epochs: int, more: Any = None) -> dict[str, int]:
    """Return how long a run is; with more texts it has as many steps, and so fewer epochs."""
    if options.steps > 0:
        return {"max_steps": options.steps}
    if more is None:
        return {"max_epochs": epochs}
    more.prepare_data()
    more.setup("fit")
    own = more.row_count("train") // (1 + options.copies)
    return {"max_steps": epochs * math.ceil(own / options.rows)}


def learn(
    options: argparse.Namespace, folder: Path, seed: int, teacher: str, way: str
) -> dict[str, float]:
    """Train a student one way."""
    from lmkit.modules import DistillationModule

    _, epochs, _, rate = TASKS[options.task]
    epochs, rate = options.epochs or epochs, options.learning_rate or rate
    seed_everything(seed)
    losses, hard = WAYS[way]
    start = encoder_folder() if way == "plain" else teacher
    module = DistillationModule(
        task_module(options, start, rate, pretrained=way != "random"),
        teacher,
        losses=losses,
        hard_weight=hard,
        student_layers=options.layers,
        cache=bool(losses),
    )
    more = way.endswith(" of more")
    data = data_of(options, folder, seed, teacher, more)
    trainer, clock = fit(module, data, folder, **length_of(options, epochs, data if more else None))
    score = score_of(options, trainer, module, data)
    return {"score": score, "cpu_s": clock.seconds}


def quality(options: argparse.Namespace) -> dict[str, Any]:
    """Train teacher and students for each seed."""
    found: dict[str, list[float]] = {}
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            teacher, score = teach(options, folder, seed)
            found.setdefault("teacher", []).append(score)
            print({"seed": seed, "teacher": score}, flush=True)
            for way in options.ways:
                peer = way == "textbrewer"
                how = learn_by_textbrewer if peer else partial(learn, way=way)
                said = how(options, folder, seed, teacher)
                found.setdefault(way, []).append(said["score"])
                print({"seed": seed, way: said}, flush=True)
    best = statistics.mean(found["teacher"])
    return {
        way: {
            "scores": scores,
            "mean": statistics.mean(scores),
            "retention": statistics.mean(scores) / best,
        }
        for way, scores in found.items()
    }


def naive_epoch(student: Any, teacher: Any, data: Any, steps: int) -> float:
    """Train as a plain script does: live teacher, padded batches, float32; CPU seconds."""
    from torch.nn.functional import kl_div, log_softmax, softmax

    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    student.train()
    teacher.eval()
    loader = iter(data.train_dataloader())
    began = time.process_time()
    for _ in range(steps):
        batch = next(loader)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            target = softmax(teacher(**inputs).logits / 2, -1)
        output = student(**inputs, labels=batch["labels"])
        soft = kl_div(log_softmax(output.logits / 2, -1), target, reduction="batchmean") * 4
        (0.5 * output.loss + 0.5 * soft).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return time.process_time() - began


def textbrewer_run(
    student: Any, teacher: Any, batches: list[Any], folder: Path, rate: float = 1e-4
) -> float:
    """Train by the distiller of TextBrewer on batches, float32, one pass; CPU seconds.

    Half of its loss is of the labels and half of the logits at temperature 2, and its rate rises
    and falls as ours does.
    """
    from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig
    from transformers import get_linear_schedule_with_warmup

    def adaptor(batch: Any, output: Any) -> dict[str, Any]:
        loss = output.loss
        return {"logits": (output.logits,), **({} if loss is None else {"losses": (loss,)})}

    optimizer = torch.optim.AdamW(student.parameters(), lr=rate, weight_decay=0.01)
    rise = {"num_warmup_steps": int(WARMUP * len(batches)), "num_training_steps": len(batches)}
    places = {"log_dir": None, "output_dir": str(folder / "textbrewer"), "device": "cpu"}
    distiller = GeneralDistiller(
        train_config=TrainingConfig(**places, ckpt_frequency=1),
        distill_config=DistillationConfig(temperature=2, kd_loss_weight=0.5, hard_label_weight=0.5),
        model_T=teacher,
        model_S=student,
        adaptor_T=adaptor,
        adaptor_S=adaptor,
    )
    began = time.process_time()
    with distiller:
        distiller.train(
            optimizer,
            batches,
            num_epochs=1,
            max_grad_norm=1.0,
            scheduler_class=get_linear_schedule_with_warmup,
            scheduler_args=rise,
            callback=lambda **_: None,
        )
    return time.process_time() - began


def plain_batches(data: Any, steps: int) -> list[Any]:
    """Return the batches of as many steps, epoch after epoch, with what a network takes."""
    loader, made = data.train_dataloader(), []
    while len(made) < steps:
        made += [
            {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
            for batch, _ in zip(loader, range(steps - len(made)), strict=False)
        ]
    return made


def learn_by_textbrewer(
    options: argparse.Namespace, folder: Path, seed: int, teacher: str
) -> dict[str, float]:
    """Train the same student, on the same batches, by the distiller of TextBrewer."""
    from transformers import AutoModelForSequenceClassification

    from lmkit.modules import DistillationModule

    _, epochs, _, rate = TASKS[options.task]
    epochs, rate = options.epochs or epochs, options.learning_rate or rate
    seed_everything(seed)
    module = DistillationModule(
        task_module(options, teacher, rate),
        teacher,
        losses=[],
        hard_weight=1.0,
        student_layers=options.layers,
    )
    module.configure_model()
    data = data_of(options, folder, seed, teacher)
    data.prepare_data()
    data.setup("fit")
    steps = options.steps if options.steps > 0 else epochs * len(data.train_dataloader())
    large = AutoModelForSequenceClassification.from_pretrained(teacher)
    spent = textbrewer_run(
        module.network.train(), large.eval(), plain_batches(data, steps), folder, rate
    )
    score = score_of(options, quiet_trainer(default_root_dir=str(folder)), module, data)
    return {"score": score, "cpu_s": spent}


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """Compare the costs, by turns."""
    from transformers import AutoModelForSequenceClassification

    from lmkit.modules import DistillationModule

    options.task = "subj"
    rounds: dict[str, list[float]] = {}

    def clocked(name: str, run: Callable[[], Any]) -> None:
        began = time.process_time()
        run()
        rounds.setdefault(name, []).append(time.process_time() - began)

    with tempfile.TemporaryDirectory() as place:
        folder, steps = Path(place), options.steps if options.steps > 0 else 40
        options.steps = steps
        teacher, _ = teach(options, folder, 0)

        def student(losses: list[Any], cache: bool) -> Any:
            return DistillationModule(
                task_module(options, teacher, 1e-4),
                teacher,
                losses=losses,
                hard_weight=0.5 if losses else 1.0,
                student_layers=options.layers,
                cache=cache,
            )

        ids = torch.randint(1000, 30000, (32, 128))
        mask = torch.ones_like(ids)
        large = AutoModelForSequenceClassification.from_pretrained(teacher).eval()
        small = student([], False)
        small.configure_model()
        few = small.network.eval()
        for number in range(options.rounds):
            with torch.no_grad():
                clocked("teacher forward", lambda: large(input_ids=ids, attention_mask=mask))
                clocked("student forward", lambda: few(input_ids=ids, attention_mask=mask))
            for name, losses, cache in (
                ("student alone", [], False),
                ("live teacher", [LOGITS], False),
                ("cached teacher", [LOGITS], True),
                ("cached teacher, hidden", [LOGITS, HIDDEN], True),
            ):
                seed_everything(number)
                module = student(losses, cache)
                data = data_of(options, folder, 0, teacher)
                _, clock = fit(module, data, folder, max_steps=steps)
                rounds.setdefault(name, []).append(clock.seconds)
            data = data_of(options, folder, 0, teacher)
            data.setup()
            plain = student([], False)
            plain.configure_model()
            spent = naive_epoch(plain.network, large, data, steps)
            rounds.setdefault("plain loop", []).append(spent)
            if find_spec("textbrewer"):
                plain = student([], False)
                plain.configure_model()
                batches = plain_batches(data, steps)
                spent = textbrewer_run(plain.network, large, batches, folder)
                rounds.setdefault("textbrewer", []).append(spent)
            print({name: values[-1] for name, values in rounds.items()}, flush=True)
    middle = {name: statistics.median(values) for name, values in rounds.items()}
    return {
        "cpu_s": middle,
        "speedup": middle["teacher forward"] / middle["student forward"],
        "cached over alone": middle["cached teacher"] / middle["student alone"],
        "live over alone": middle["live teacher"] / middle["student alone"],
        **{
            f"{name} over cached": middle[name] / middle["cached teacher"]
            for name in ("plain loop", "textbrewer")
            if name in middle
        },
    }


def main() -> None:
    """Measure, print, write."""
    parser = arguments(__doc__)
    parser.add_argument("--task", choices=[*TASKS, "speed"], default="trec")
    parser.add_argument("--ways", nargs="+", choices=[*WAYS, "textbrewer"], default=list(WAYS))
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 2, 5])
    parser.add_argument("--epochs", type=int, help="of the students; by task without it")
    parser.add_argument("--learning-rate", type=float, help="of the students; by task without it")
    parser.add_argument("--steps", type=int, default=-1, help="ends each run before its epochs do")
    parser.add_argument("--copies", type=int, default=2, help="of each text, of `... of more`")
    parser.add_argument("--keep", type=Path, help="a folder where teachers are kept and found")
    parser.add_argument("--rows", type=int, default=16, help="examples to a step")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=3, help="of --task speed")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    figures = speed(options) if options.task == "speed" else quality(options)
    write_json(options.json, "distillation", options, figures)


if __name__ == "__main__":
    main()
