"""What a run costs: real tokens per second, seconds per step, memory, parameters."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from ..dashboard import log_stride

__all__ = ["EfficiencyCallback", "count_parameters", "count_tokens"]


class EfficiencyCallback(Callback):
    """Logs the cost of training under `efficiency/…`, once every `trainer.log_every_n_steps` steps.

    - `efficiency/tokens_per_second`: tokens that are no padding, over all ranks. The count of
      rank 0 stands for each, for counting all would cost a collective.
    - `efficiency/step_seconds`: wall-clock seconds per optimizer step, waiting for data included,
      validation excluded.
    - `efficiency/peak_memory_mib`: the most memory so far, in MiB: of the accelerator, or of the
      process if there is none.
    - `efficiency/parameters`, `efficiency/trainable_parameters`: counts, logged once.

    Tokens are added up on the device and read when they are logged, so that a step never waits.

    Example:
        >>> trainer = Trainer(callbacks=[EfficiencyCallback()], logger=False, accelerator="cpu",
        ...                   enable_checkpointing=False)
    """

    def __init__(self) -> None:
        super().__init__()
        self._tokens: Tensor | None = None
        self._steps = 0
        self._began = 0.0
        self._paused = 0.0
        self._logged_parameters = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the first window."""
        self._logged_parameters = False
        self._begin(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch, and log if the step is due."""
        tokens = count_tokens(batch)
        if tokens is not None:
            self._tokens = tokens if self._tokens is None else self._tokens + tokens
        steps = trainer.global_step - self._steps
        if steps < 1 or trainer.global_step % log_stride(trainer) != 0:
            return
        figures: dict[str, float] = {}
        if self._tokens is not None:
            # `.item()` waits for the device, so the time taken next covers the work done.
            counted = float(self._tokens.item()) * trainer.world_size
            seconds = self._elapsed()
            pl_module.log(
                "efficiency/tokens_per_second", counted / seconds, prog_bar=True, on_step=True
            )
        figures["efficiency/step_seconds"] = self._elapsed() / steps
        figures["efficiency/peak_memory_mib"] = _peak_memory(pl_module.device)
        if not self._logged_parameters:
            total, trainable = count_parameters(pl_module)
            figures["efficiency/parameters"] = float(total)
            figures["efficiency/trainable_parameters"] = float(trainable)
            self._logged_parameters = True
        pl_module.log_dict(figures, on_step=True)
        self._begin(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._paused -= time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the clock run again."""
        self._paused += time.perf_counter()

    def _begin(self, trainer: Trainer) -> None:
        self._tokens = None
        self._steps = trainer.global_step
        self._paused = 0.0
        self._began = time.perf_counter()

    def _elapsed(self) -> float:
        return max(1e-9, time.perf_counter() - self._began - self._paused)


def count_tokens(batch: Any) -> Tensor | None:
    """Count the tokens of `batch` that are no padding and stand in no filler row.

    Args:
        batch: a dictionary with `attention_mask` or `input_ids`, each `[B, L]`, and perhaps
            `index` `[B]`, which is -1 for a filler row.

    Returns:
        An integer scalar on the batch's device, or `None` for a batch without either key.

    Example:
        >>> mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
        >>> count_tokens({"attention_mask": mask, "index": torch.tensor([4, -1])})
        tensor(2)
    """
    if not isinstance(batch, dict):
        return None
    mask = batch.get("attention_mask")
    if mask is None:
        ids = batch.get("input_ids")
        return None if ids is None else torch.tensor(ids.numel(), device=ids.device)
    counts = mask.sum(dim=tuple(range(1, mask.dim())))
    index = batch.get("index")
    total: Tensor = (counts if index is None else counts * (index >= 0)).sum()
    return total


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """Return the numbers of all and of trainable parameters.

    Example:
        >>> layer = nn.Linear(2, 3)
        >>> layer.bias = layer.bias.requires_grad_(False)
        >>> count_parameters(layer)
        (9, 6)
    """
    parameters = list(module.parameters())
    return (
        sum(p.numel() for p in parameters),
        sum(p.numel() for p in parameters if p.requires_grad),
    )


def _peak_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kilobytes on Linux, bytes on macOS.
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
