"""A tiny encoder in a folder, and fits of a classifier that start from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from lmkit.datamodules import SequenceClassificationDataModule
from lmkit.modules import SequenceClassificationModule
from tests import task_files, tiny
from tests.cases import make_trainer


def save_encoder(folder: Path, seed: int = 0) -> str:
    """Save a tiny encoder and its tokenizer; says where."""
    config = {k: v for k, v in tiny.MASKED["bert"].items() if k != "model_type"}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        BertModel(BertConfig(**config, vocab_size=len(tiny.tokenizer()))).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


def make_module(folder: Path, **settings: Any) -> SequenceClassificationModule:
    """Make a classifier on the encoder in `folder / "base"`, which is made if it is not there."""
    base = folder / "base"
    if "model" not in settings and not base.exists():
        save_encoder(base)
    return SequenceClassificationModule(
        **{"model": str(base), "learning_rate": 1e-2, "warmup": 0, **settings}
    )


def make_data(folder: Path, **settings: Any) -> SequenceClassificationDataModule:
    """Make data of 60 texts with one of three labels."""
    if not (folder / "tokenizer").exists():
        tiny.tokenizer_folder(folder / "tokenizer")
    known: dict[str, Any] = task_files.labelled_texts(folder)
    known |= {"tokenizer": str(folder / "tokenizer"), "batch_size": 8, "max_length": 16}
    return SequenceClassificationDataModule(**{**known, **settings})


def fit(
    folder: Path, *callbacks: Callback, ckpt_path: Path | None = None, **settings: Any
) -> tuple[SequenceClassificationModule, Trainer]:
    """Fit a classifier; `module` and `data` among the settings are theirs, the rest a Trainer's."""
    seed_everything(7)
    module = settings.pop("module", None)
    if not isinstance(module, SequenceClassificationModule):
        module = make_module(folder, **(module or {}))
    data = make_data(folder, **settings.pop("data", {}))
    trainer = make_trainer(*callbacks, **settings)
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    return module, trainer


def logits(network: nn.Module) -> Tensor:
    """Return what a network says of two texts, in evaluation mode; its mode stays as it was."""
    ids = torch.randint(5, 99, (2, 9), generator=torch.Generator().manual_seed(5))
    mode = network.training
    with torch.no_grad():
        said: Tensor = network.eval()(input_ids=ids).logits
    network.train(mode)
    return said


def learns(module: nn.Module) -> dict[str, Tensor]:
    """Return what is trainable by name."""
    return {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}


class Watch(Callback):
    """Keeps weights and logits of the start, which dropouts slept, and what the optimizer holds."""

    def __init__(self) -> None:
        self.started: dict[str, Tensor] = {}
        self.asleep: set[str] = set()
        self.held: list[int] = []

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.started = {n: t.clone() for n, t in pl_module.state_dict().items()}
        self.logits = logits(pl_module.network)
        pl_module.network.train()
        groups = [group for each in trainer.optimizers for group in each.param_groups]
        self.held = [id(p) for group in groups for p in group["params"]]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        modules = pl_module.network.named_modules()
        self.asleep |= {n for n, m in modules if isinstance(m, nn.Dropout) and not m.training}


class SaveAt(Callback):
    """Saves a checkpoint after a batch."""

    def __init__(self, batch: int, path: Path) -> None:
        self.batch, self.path, self.seen = batch, path, 0

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.seen += 1
        if self.seen == self.batch:
            trainer.save_checkpoint(self.path)
