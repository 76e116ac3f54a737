"""Tiny tasks of several kinds on one encoder."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from lmkit.datamodules.multi_task import MultiTaskDataModule
from lmkit.modules.multi_task import MultiTaskModule
from tests import task_files, tiny

#: By name the word of its modules, the writer of its files, and settings of its data.
KINDS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "topic": ("SequenceClassification", task_files.labelled_texts, {}),
    "ner": ("TokenClassification", task_files.tagged_words, {}),
    "score": (
        "SequenceClassification",
        partial(task_files.scored_pairs, scale=0.2),
        {"task": "regression"},
    ),
    "qa": ("QuestionAnswering", task_files.questions, {"doc_stride": 8, "max_question_length": 10}),
    "choice": ("MultipleChoice", task_files.choices, {}),
    "mlm": ("MaskedLM", None, {"max_length": 16}),
}

FAST = {"learning_rate": 1e-2, "warmup": 0}


def specs(*names: str) -> dict[str, Any]:
    """Return the tasks of a module."""
    return {name: {"class_path": f"lmkit.modules.{KINDS[name][0]}Module"} for name in names}


def make_module(*names: str, **settings: Any) -> MultiTaskModule:
    """Make a module of some tasks on a BERT from scratch."""
    return MultiTaskModule(dict(tiny.MASKED["bert"]), specs(*names), **{**FAST, **settings})


def data_specs(folder: Path, *names: str) -> dict[str, Any]:
    """Write the files of some tasks, and return the tasks of a data module."""
    made = {}
    for name in names:
        word, write, settings = KINDS[name]
        if write is None:
            tiny.write_text(folder / "train.txt", 60)
            tiny.write_text(folder / "val.txt", 12, seed=1)
            files = {f"{split}_file": str(folder / f"{split}.txt") for split in ("train", "val")}
        else:
            files = write(folder / name)
        arguments = {**files, **settings}
        made[name] = {"class_path": f"{word}DataModule", "init_args": arguments}
    return made


def make_data(folder: Path, *names: str, **settings: Any) -> MultiTaskDataModule:
    """Make the data of some tasks."""
    if not (folder / "tokenizer").exists():
        tiny.tokenizer_folder(folder / "tokenizer")
    shared = {"tokenizer": str(folder / "tokenizer"), "max_length": 48, "batch_size": 4, "seed": 3}
    return MultiTaskDataModule(data_specs(folder, *names), **{**shared, **settings})


def make_case_module(config: dict[str, Any], **settings: Any) -> MultiTaskModule:
    """Make a module that tags words and tells topics, with the classes of their files."""
    model = {**tiny.MASKED["bert"], **config}
    labels = {"ner": ("O", "B-X", "I-X"), "topic": ("fox", "moons", "trees")}
    tasks = specs(*labels)
    for name, each in labels.items():
        known = {"id2label": dict(enumerate(each)), "label2id": {n: i for i, n in enumerate(each)}}
        tasks[name]["init_args"] = {"model": {**model, **known}}
    return MultiTaskModule(model, tasks, **settings)


def make_case_data(folder: Path, **settings: Any) -> MultiTaskDataModule:
    """Make the data of `make_case_module`; both tasks come in turn."""
    return make_data(folder, "ner", "topic", **{"sampling": "round_robin", **settings})
