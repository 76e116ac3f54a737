"""Fits of a few steps that the tests of injected adapters share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from lmkit.datamodules import SequenceClassificationDataModule
from lmkit.modules import LMModule, SequenceClassificationModule
from tests import task_files, tiny
from tests.cases import CASES, make_trainer, weights

BY_NAME = {case.name: case for case in CASES}
#: Tasks that adapters are trained on.
TASKS = (
    "masked_lm",
    "causal_lm",
    "sequence_classification",
    "token_classification",
    "question_answering",
    "seq2seq",
)


class Look(Callback):
    """Keeps the weights that a fit starts from, and looks at its dropouts after a step."""

    def __init__(self) -> None:
        self.before: dict[str, Tensor] = {}
        self.asleep: set[str] = set()

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.before = weights(pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        for name, module in pl_module.network.named_modules():
            if isinstance(module, nn.Dropout) and not module.training:
                self.asleep.add(name)


class SaveAt(Callback):
    """Writes a checkpoint after some batches, counted from 1."""

    def __init__(self, places: set[int], folder: Path) -> None:
        self.places, self.folder, self.seen = places, folder, 0

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.seen += 1
        if self.seen in self.places:
            trainer.save_checkpoint(self.folder / f"{self.seen}.ckpt")


def fit_task(
    task: str, folder: Path, *callbacks: Callback, data: dict[str, Any] | None = None, **how: Any
) -> tuple[LMModule, Trainer, Look]:
    """Fit a network from scratch on a task of the table."""
    seed_everything(7)
    look, ckpt_path = Look(), how.pop("ckpt_path", None)
    module = BY_NAME[task].make_module(**how.pop("module", {}))
    trainer = make_trainer(*callbacks, look, **{"max_steps": 4, **how})
    trainer.fit(module, BY_NAME[task].make_data(folder, **(data or {})), ckpt_path=ckpt_path)
    return module, trainer, look


def fit_on_base(
    folder: Path, *callbacks: Callback, **how: Any
) -> tuple[SequenceClassificationModule, Trainer, Look]:
    """Fit a classifier on a tiny encoder that was saved as a base before."""
    base = folder / "base"
    if not base.exists():
        config = {k: v for k, v in tiny.MASKED["bert"].items() if k != "model_type"}
        torch.manual_seed(0)
        BertModel(BertConfig(**config, vocab_size=len(tiny.tokenizer()))).save_pretrained(base)
        tiny.tokenizer().save_pretrained(base)
    seed_everything(7)
    look, ckpt_path = Look(), how.pop("ckpt_path", None)
    settings = {"learning_rate": 1e-2, "warmup": 0, **how.pop("module", {})}
    module = SequenceClassificationModule(str(base), **settings)
    data = SequenceClassificationDataModule(
        **task_files.labelled_texts(folder), tokenizer=str(base), batch_size=8, max_length=16
    )
    trainer = make_trainer(*callbacks, look, **{"max_steps": 4, **how})
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return module, trainer, look


def moved(module: LMModule, look: Look) -> set[str]:
    """Name the weights of the network that a fit has changed."""
    now = weights(module)
    changed = {name for name, old in look.before.items() if not torch.equal(now[name], old)}
    return {name for name in changed if name.startswith("network.")}


def same(one: LMModule, other: LMModule) -> bool:
    """Whether two modules have the same weights, bit for bit."""
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
