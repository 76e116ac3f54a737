"""Modules on small bases that the tests of adapters share, and checkpoints without a fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmkit.modules import (
    CausalLMModule,
    LMModule,
    Seq2SeqModule,
    SequenceClassificationModule,
    TokenClassificationModule,
)
from tests.cases import make_trainer
from tests.surgery.adapted import build, logits

MODULES: dict[str, type[LMModule]] = {
    "bert": SequenceClassificationModule,
    "tagging": TokenClassificationModule,
    "roberta": SequenceClassificationModule,
    "modernbert": SequenceClassificationModule,
    "gpt2": CausalLMModule,
    "llama": CausalLMModule,
    "t5": Seq2SeqModule,
}


def base(folder: Path, name: str = "bert", seed: int = 0) -> Path:
    """Save a base without the head of a task; with another seed, another one."""
    place = folder / f"{name}-{seed}"
    if not place.exists():
        network: Any = build(name)
        if seed:
            torch.manual_seed(seed)
            network = type(network)(network.config)
        has_head = network.get_output_embeddings() is None
        (network.base_model if has_head else network).save_pretrained(place)
    return place


def make(folder: Path, *surgeries: Any, name: str = "bert", seed: int = 0) -> LMModule:
    """Make a module on a base, and give what surgeries let learn other values."""
    torch.manual_seed(5)
    module = MODULES[name](model=str(base(folder, name, seed)))
    module.configure_model()
    for surgery in surgeries:
        module.operate(surgery)
    if surgeries:
        train(module)
    module.eval()
    return module


@torch.no_grad()
def train(module: LMModule) -> None:
    """Move whatever learns."""
    generator = torch.Generator().manual_seed(3)
    for parameter in module.network.parameters():
        if parameter.requires_grad:
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)


def save(module: LMModule, path: Path, trainable_only: bool = False) -> Path:
    """Write a checkpoint."""
    trainer = make_trainer()
    trainer.strategy.connect(module)
    module.trainer = trainer
    module.trainable_only = trainable_only
    trainer.save_checkpoint(path)
    return path


@torch.no_grad()
def said(network: Any) -> Tensor:
    """Return the logits of a fixed batch."""
    return logits(network.eval())
