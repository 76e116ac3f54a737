"""One optimizer step of an lmkit module, so that its gradient can be held against one by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback
from torch import Tensor

from lmkit.functional import mix
from lmkit.modules import LMModule
from lmkit.modules.attention import use_fast_attention
from lmkit.types import Batch
from tests.callbacks.fitted import fit_task
from tests.cases import weights

_SETTINGS = {
    "optimizer": {"class_path": "torch.optim.SGD"},
    "learning_rate": 1.0,
    "weight_decay": 0.0,
    "schedule": "constant",
}


class Step(NamedTuple):
    """What a step was made of.

    Attributes:
        module: with the weights from before the step.
        batch: of the step.
        gradients: by name, what the step has moved each weight by.
        seed: of the dropout.
        logs: what the step has logged.
    """

    module: LMModule
    batch: Batch
    gradients: dict[str, Tensor]
    seed: int
    logs: dict[str, float]


class Keep(Callback):
    """Keeps weights and batch of the first step."""

    def __init__(self) -> None:
        self.before: dict[str, Tensor] = {}
        self.batch: Batch = {}
        self.seed = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.before = weights(pl_module)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.batch, self.seed = batch, mix(pl_module.seed, 0, 0, 0)


def one_step(
    task: str, folder: Path, *callbacks: Callback, dropout: float = 0.0, **data: Any
) -> Step:
    """Take a step of plain gradient descent with a rate of 1."""
    keep = Keep()
    # So that a prediction depends on its text by more than a rounding.
    settings = {**_SETTINGS, "dropout": dropout, "config": {"initializer_range": 0.3}}
    module, trainer, _ = fit_task(
        task, folder, *callbacks, keep, max_steps=1, module=settings, data=data, log_every_n_steps=1
    )
    after = weights(module)
    module.load_state_dict(keep.before)
    module.train()
    use_fast_attention(module.network)  # as in training
    gradients = {n: keep.before[n] - after[n] for n, _ in module.named_parameters()}
    logs = {n: float(v) for n, v in trainer.callback_metrics.items()}
    return Step(module, keep.batch, gradients, keep.seed, logs)


def differences(step: Step, loss: Tensor) -> float:
    """Return how far the gradients of a step are from those of a loss by hand.

    The largest difference, as a share of the largest gradient.
    """
    named = dict(step.module.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    worst = largest = 0.0
    for name, gradient in zip(named, found, strict=True):
        expected = torch.zeros_like(named[name]) if gradient is None else gradient
        worst = max(worst, float((step.gradients[name] - expected).abs().max()))
        largest = max(largest, float(expected.abs().max()))
    return worst / largest
