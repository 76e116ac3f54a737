"""What a run costs: real tokens per second, waiting, memory, MFU, and what it saves by freezing."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from ..dashboard import log_stride
from ..surgery.parameter_counts import parameter_counts
from ..surgery.tuning import is_tuned_in_part, trainable_at_first
from .utilization import attended_context, flops_per_second, peak_flops

__all__ = ["EfficiencyCallback", "count_parameters", "count_tokens", "optimizer_bytes"]


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
      for half a second. Frozen weights count for less, as no gradient of them is computed. Not
      logged for encoder-decoders and unknown devices.
    - `efficiency/peak_memory_mib`: the most memory so far, in MiB: of the accelerator, or of the
      process if there is none.
    - `efficiency/parameters`, `efficiency/trainable_parameters`, `efficiency/nonzero_parameters`
      (not zero) and `efficiency/embedding_parameters` (in tables of tokens): counts, and
      `efficiency/trainable_share`, in `[0, 1]`; taken once, and at the end of the fit those that
      have changed.
    - `efficiency/optimizer_mib`: what the optimizer keeps of the weights, in MiB on rank 0; counted
      when it first keeps something, and again when it does of more weights.
    - `efficiency/checkpoint_mib`: the size of the newest checkpoint file, in MiB, once there is
      one; looked up on rank 0 when figures are logged, and at the end of the fit.

    Where a technique trains a part of a network (LoRA, adapters, biases ...), also what these are
    of the same with all weights trained, which need not be run to be known:

    - `efficiency/optimizer_share`: of an optimizer with as many bytes for each weight.
    - `efficiency/checkpoint_share`: of a checkpoint with all weights and that optimizer.

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
        self._counted: dict[str, float] = {}
        self._kept = 0
        self._written: tuple[Path, float] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the first window."""
        self._counted = {}
        self._kept, self._written = 0, None
        self._begin(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the size of the last checkpoint, if there is one, and counts that have changed."""
        figures = self._tuning(trainer, pl_module)
        if self._counted:
            figures |= self._count(pl_module)
        if figures:
            for logger in trainer.loggers:
                logger.log_metrics(figures, step=trainer.global_step)

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
        if not self._counted:
            figures |= self._count(module)
        module.log_dict(figures | self._tuning(trainer, module), on_step=True)

    def _count(self, module: LightningModule) -> dict[str, float]:
        """Return the numbers of parameters that are others than when they were last asked for."""
        counts, before = parameter_counts(module), self._counted
        self._counted = {
            "efficiency/parameters": float(counts.total),
            "efficiency/trainable_parameters": float(counts.trainable),
            "efficiency/nonzero_parameters": float(counts.nonzero),
            "efficiency/embedding_parameters": float(counts.embedding),
            "efficiency/trainable_share": counts.trainable / max(1, counts.total),
        }
        return {name: count for name, count in self._counted.items() if before.get(name) != count}

    def _tuning(self, trainer: Trainer, module: LightningModule) -> dict[str, float]:
        """Return sizes of optimizer and checkpoint, if they are new, and shares of full tuning."""
        figures: dict[str, float] = {}
        kept = sum(len(optimizer.state) for optimizer in trainer.optimizers)
        own, full = 0, 0.0
        written = _newest_checkpoint(trainer)
        if kept != self._kept or written not in (None, self._written):
            own, full = optimizer_bytes(module, trainer.optimizers)
        if kept != self._kept:
            self._kept = kept
            figures["efficiency/optimizer_mib"] = own / 2**20
            if full:
                figures["efficiency/optimizer_share"] = own / full
        if written is not None and written != self._written:
            self._written = written
            size = written[0].stat().st_size
            figures["efficiency/checkpoint_mib"] = size / 2**20
            if full:
                weights = sum(p.nbytes for p in _with_full_tuning(module).values())
                figures["efficiency/checkpoint_share"] = size / (weights + full)
        return figures

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


def optimizer_bytes(module: nn.Module, optimizers: Sequence[Optimizer]) -> tuple[int, float]:
    """Return the bytes that optimizers keep, and those they would keep with all weights trained.

    Args:
        module: with a network that was frozen in part.
        optimizers: after a step.

    Returns:
        The bytes of all tensors of their states; and as many for each weight of full tuning as the
        trained ones have, 0 if nothing tells: nothing is frozen by a technique, or the states have
        other sizes than the weights.

    Example:
        >>> layer = nn.Linear(2, 3)
        >>> optimizer = torch.optim.Adam(layer.parameters())
        >>> layer(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> optimizer_bytes(layer, [optimizer])  # two moments of 9 weights, two counts of steps
        (80, 0.0)
    """
    states = [item for optimizer in optimizers for item in optimizer.state.items()]
    own, alike, trained = 0, 0, 0
    for parameter, state in states:
        tensors = [value for value in state.values() if isinstance(value, Tensor)]
        own += sum(tensor.nbytes for tensor in tensors)
        alike += sum(t.nbytes for t in tensors if t.numel() == parameter.numel() and t.dim())
        trained += parameter.numel()
    if not alike or not any(is_tuned_in_part(part) for part in module.modules()):
        return own, 0.0
    weights = sum(parameter.numel() for parameter in _with_full_tuning(module).values())
    return own, alike / trained * weights


def _with_full_tuning(module: nn.Module) -> dict[int, nn.Parameter]:
    """Return what would be trained if no technique had frozen anything, by identity."""
    parts = [part for part in module.modules() if is_tuned_in_part(part)]
    inside = {id(p) for part in parts for p in part.parameters()}
    chosen = {id(p): p for part in parts for p in trainable_at_first(part).values()}
    outside = {id(p): p for p in module.parameters() if p.requires_grad and id(p) not in inside}
    return chosen | outside


def _newest_checkpoint(trainer: Trainer) -> tuple[Path, float] | None:
    """Return path and time of the newest file that a callback has written, `None` if there is none.

    Nothing is written to know it, and only the folder is asked.
    """
    named = {
        Path(path)
        for callback in trainer.checkpoint_callbacks
        for name in ("last_model_path", "best_model_path")
        # Rank 0 removes files that another one might be looking at.
        if (path := getattr(callback, name, "")) and trainer.is_global_zero
    }
    found = [(path, path.stat().st_mtime) for path in named if path.is_file()]
    return max(found, key=lambda item: item[1], default=None)


def _peak_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kilobytes on Linux, bytes on macOS.
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
