"""Checks that the language models share: transformers' own loss, and metrics over tokens."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from lmkit.modules import LMModule
from lmkit.types import Batch


def make(cls: type[LMModule], config: dict[str, Any], **kwargs: Any) -> LMModule:
    """Make a module with a vocabulary of 99, the same each time."""
    torch.manual_seed(0)
    module = cls(model={**config, "vocab_size": 99}, **kwargs)
    module.configure_model()
    return module


def check_loss_is_that_of_transformers(module: LMModule, batch: Batch, items: int) -> None:
    """Compare loss, count and every gradient with what transformers makes of the labels."""
    module.eval()
    ours = module.step(batch)
    ours.loss.backward()
    gradients = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    names = ("input_ids", "attention_mask", "labels")
    theirs = module.network(**{name: batch[name] for name in names}).loss
    theirs.backward()
    assert abs(ours.loss.item() - theirs.item()) <= 1e-6
    assert ours.items.item() == items
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(gradients[name], parameter.grad, atol=1e-6), name


def validate(module: LMModule, rows: list[Batch], batch_size: int) -> dict[str, float]:
    """Return the metrics of a validation."""
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    (metrics,) = trainer.validate(module, DataLoader(rows, batch_size), verbose=False)
    return dict(metrics)


def check_metrics_are_over_tokens(module: LMModule, whole: Batch) -> None:
    """Compare the metrics of any batch size and order, and with batches that have no label."""
    count = len(whole["index"])
    rows = [{name: tensor[i] for name, tensor in whole.items()} for i in range(count)]
    with torch.no_grad():
        total = module.eval().step(whole).loss.item()
    first = validate(module, rows, 1)
    filler = {**rows[0], "labels": torch.full_like(rows[0]["labels"], -100)}
    others = [
        validate(module, rows, 3),
        validate(module, rows, count),
        validate(module, rows[::-1], 4),
        validate(module, [filler, *rows, filler], 1),
    ]
    assert first["val/loss"] == pytest.approx(total, rel=1e-6)
    assert first["val/perplexity"] == pytest.approx(math.exp(total), rel=1e-6)
    for other in others:
        assert other == pytest.approx(first, rel=1e-6)
