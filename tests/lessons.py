"""For each task a teacher, a student and data, and what a fit of the student went through."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

import lmkit
from lmkit.modules import DistillationModule, LMModule
from lmkit.types import Batch
from tests import task_files, tiny
from tests.cases import CASES, make_trainer, named


def several_labels(folder: Path) -> dict[str, Any]:
    """Texts with any number of two labels."""
    files = {}
    for split, count in (("train", 40), ("val", 13)):
        rows = [
            {"text": text, "labels": [kind for bit, kind in enumerate(("a", "b")) if n >> bit & 1]}
            for n, text in enumerate(tiny.sentences(count))
        ]
        path = folder / f"{split}.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        files[f"{split}_file"] = str(path)
    return files


def labelled_pairs(folder: Path) -> dict[str, Any]:
    """Pairs of texts with one of two classes: whether both are the same."""
    files = task_files.scored_pairs(folder)
    for name, path in files.items():
        rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
        kinds = [{**row, "label": ("other", "same")[row.pop("score") == 4.5]} for row in rows]
        made = Path(path).with_name(f"pairs-{Path(path).name}")
        made.write_text("\n".join(map(json.dumps, kinds)))
        files[name] = str(made)
    return files


BY_NAME = {case.name: case for case in CASES}
_TEXTS = BY_NAME["sequence_classification"]
_BERT = tiny.MASKED["bert"]
LESSONS = {
    name: BY_NAME[name]
    for name in (
        "sequence_classification",
        "regression",
        "token_classification",
        "question_answering",
        "multiple_choice",
        "masked_lm",
        "chunks",
        "causal_lm",
        "packed_causal",
        "denoising",
        "seq2seq",
    )
} | {
    "pairs": replace(
        _TEXTS,
        name="pairs",
        model={**_BERT, **named("other", "same")},
        files=labelled_pairs,
        data_settings={"max_length": 40},
    ),
    "multi_label": replace(
        _TEXTS,
        name="multi_label",
        model={**_BERT, **named("a", "b")},
        files=several_labels,
        data_settings={"task": "multi_label"},
    ),
}

# Deeper and wider than the students, and with opinions of its own.
_LARGER: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 24, "num_hidden_layers": 4, "initializer_range": 0.3},
    "gpt2": {"n_embd": 24, "n_layer": 4, "initializer_range": 0.3},
    "llama": {"hidden_size": 24, "num_hidden_layers": 4, "initializer_range": 0.3},
    "t5": {"d_model": 24, "num_layers": 4, "initializer_factor": 2.0},
}


def backwards(config: dict[str, Any]) -> dict[str, Any]:
    """Return the names of the classes of a config in reverse, if it has any."""
    return named(*reversed(config["id2label"].values())) if "id2label" in config else {}


@cache
def teacher(name: str, seed: int = 7, **config: Any) -> str:
    """Write a teacher of a task, its classes in reverse; return the folder of its export."""
    case, folder = LESSONS[name], Path(tempfile.mkdtemp(prefix="lmkit-teacher-"))
    larger = _LARGER[case.model["model_type"]] | backwards(case.model) | config
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = case.make_module(config=larger, dropout=0.0, learning_rate=1e-4)
        make_trainer(max_steps=1).fit(module, case.make_data(folder))
    return str(lmkit.export(module, folder / "export"))


def student(name: str, **settings: Any) -> LMModule:
    """Make the student of a task, as in its row of the table, and with opinions of its own too."""
    case = LESSONS[name]
    spread = {k: v for k, v in _LARGER[case.model["model_type"]].items() if "initializer" in k}
    config = spread | settings.pop("config", {})
    return case.make_module(**{"dropout": 0.0, "weight_decay": 0.0, "config": config, **settings})


def distill(name: str, *, pupil: dict[str, Any] | None = None, **settings: Any) -> Any:
    """Make a distillation of a task; `pupil` are settings of the student."""
    settings.setdefault("teacher", teacher(name))
    return DistillationModule(student(name, **(pupil or {})), **settings)


def data(name: str, folder: Path, **settings: Any) -> Any:
    """Make the data of a task."""
    return LESSONS[name].make_data(folder, **settings)


def half_labelled(name: str, folder: Path, **settings: Any) -> Any:
    """Make the data of a task with the rows of its validation as rows without a label too."""
    write = LESSONS[name].files
    assert write is not None
    return data(name, folder, unlabelled_file=write(folder)["val_file"], **settings)


class Seen(Callback):
    """Keeps what each training step was given, and what came out."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.batches: list[Batch] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.losses.append(outputs["loss"].detach().clone())
        self.batches.append(batch)


def fit(module: LMModule, data: Any, *extra: Callback, ckpt_path: Any = None, **kw: Any) -> Trainer:
    """Fit for two steps, the same each time."""
    torch.manual_seed(5)
    trainer = make_trainer(*extra, **{"max_steps": 2, **kw})
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return trainer


def texts_of(batch: Batch) -> list[dict[str, Tensor]]:
    """Take a batch apart into its texts, each `[1, L]` and without padding; fillers are left out.

    A text of a packed row stands alone; what a batch has for each token or row goes with it.
    """
    found = []
    whole = batch["input_ids"].shape
    for row in range(whole[0]):
        if "index" in batch and batch["index"][row] < 0:
            continue
        real = batch["attention_mask"][row].bool()
        places: Sequence[Tensor] = [real]
        if "segment_ids" in batch:
            numbers = batch["segment_ids"][row]
            places = [numbers == number for number in range(1, int(numbers.max()) + 1)]
        for place in places:
            text = {
                name: (tensor[row][place] if tensor.shape == whole else tensor[row]).unsqueeze(0)
                for name, tensor in batch.items()
                if tensor.shape[:1] == whole[:1]
            }
            found.append(text)
    return found
