"""What a run costs: real tokens per second, padding, waiting, seconds per step, memory, MFU."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from ..dashboard import log_stride
from .utilization import attended_context, flops_per_second, peak_flops

__all__ = ["EfficiencyCallback", "count_parameters", "count_tokens"]


class EfficiencyCallback(Callback):
    """Logs the cost of training under `efficiency/…`, once every `trainer.log_every_n_steps` steps.

    - `efficiency/tokens_per_second`: tokens that are no padding, over all ranks. The count of
      rank 0 stands for each, for counting all would cost a collective.
    - `efficiency/padding_share`: share of the batch that is padding, in `[0, 1]`.
    - `efficiency/data_wait_share`: share of the time between the end of a step and the beginning
      of the next, in which the loader is waited for, in `[0, 1]`.
    - `efficiency/step_seconds`: wall-clock seconds per optimizer step, waiting for data included,
      validation excluded.
    - `efficiency/mfu`: model FLOPs utilization (arXiv:2204.02311), in `[0, 1]`: the operations that
      real tokens need by `training_flops_per_token` over those that the device can do: of a GPU its
      rating, of a CPU the product of two large matrices in the precision of the run, measured once
      for half a second. Not logged for encoder-decoders and unknown devices.
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
        self._slots = 0
        self._steps = 0
        self._began = self._ended = 0.0
        self._paused = self._waited = 0.0
        self._logged_parameters = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the first window."""
        self._logged_parameters = False
        self._begin(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop the clock of waiting."""
        if self._ended:
            self._waited += time.perf_counter() - self._ended

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch, and log if the step is due."""
        tokens = count_tokens(batch)
        if tokens is not None:
            self._tokens = tokens if self._tokens is None else self._tokens + tokens
            self._slots += batch["input_ids"].numel() if "input_ids" in batch else 0
        steps = trainer.global_step - self._steps
        if steps >= 1 and trainer.global_step % log_stride(trainer) == 0:
            self._log(trainer, pl_module, batch, steps)
            self._begin(trainer)
        self._ended = time.perf_counter()

    def _log(self, trainer: Trainer, module: LightningModule, batch: Any, steps: int) -> None:
        figures: dict[str, float] = {}
        if self._tokens is not None:
            # `.item()` waits for the device, so the time taken next covers the work done.
            counted = float(self._tokens.item())
            rate = counted / self._elapsed()
            whole = rate * trainer.world_size
            module.log("efficiency/tokens_per_second", whole, prog_bar=True, on_step=True)
            if self._slots:
                figures["efficiency/padding_share"] = 1 - counted / self._slots
            context = attended_context(batch)
            needed = None if context is None else flops_per_second(module, batch, context, rate)
            peak = None if needed is None else peak_flops(trainer)
            if needed is not None and peak is not None:
                figures["efficiency/mfu"] = needed / peak
        elapsed = self._elapsed()
        figures["efficiency/data_wait_share"] = min(1.0, self._waited / elapsed)
        figures["efficiency/step_seconds"] = elapsed / steps
        figures["efficiency/peak_memory_mib"] = _peak_memory(module.device)
        if not self._logged_parameters:
            total, trainable = count_parameters(module)
            figures["efficiency/parameters"] = float(total)
            figures["efficiency/trainable_parameters"] = float(trainable)
            self._logged_parameters = True
        module.log_dict(figures, on_step=True)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._paused -= time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the clock run again."""
        self._paused += time.perf_counter()
        self._ended = 0.0

    def _begin(self, trainer: Trainer) -> None:
        self._tokens, self._slots = None, 0
        self._steps = trainer.global_step
        self._paused = self._waited = 0.0
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
