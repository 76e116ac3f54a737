"""What an exact resume needs beyond what Lightning saves: dropout, gradients, batches in flight."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from ..functional import mix
from .checkpoint_io import read_checkpoint
from .checks import check_same

if TYPE_CHECKING:
    from .base import LMModule

__all__ = [
    "coming_ledger",
    "pending_gradients",
    "restore_gradients",
    "rewind_unfinished",
    "seed_batch",
    "take_up",
]


def coming_ledger(module: LMModule) -> list[dict[str, Any]] | None:
    """Return the ledger of the checkpoint that is going to be restored, in `Callback.setup`.

    For surgeries that are costly to decide on: what the checkpoint has is to be taken from there.

    Args:
        module: attached to a Trainer that sets up.

    Returns:
        The ledger; `None` where no checkpoint follows, or one that is a folder of shards.

    Raises:
        FileNotFoundError: the checkpoint is not there.
        ValueError: it is cut short, or of another class or base.
    """
    path = _coming_checkpoint(module.trainer)
    if path is None or Path(path).is_dir():
        return None
    reader = module.trainer.strategy.checkpoint_io
    if isinstance(reader, TorchCheckpointIO) and "://" not in path:
        checkpoint = read_checkpoint(path, mmap=True)
    else:
        checkpoint = reader.load_checkpoint(path, map_location="cpu", weights_only=True)
    ledger: list[dict[str, Any]] = check_same(module, checkpoint)["ledger"]
    return ledger


def _coming_checkpoint(trainer: Trainer) -> str | None:
    # Lightning tells its hooks of it when it is restored, after the set-up. Until then the path is
    # an argument of the method that calls them, and nowhere else. Were that renamed, nothing would
    # be found, and computed anew; the ledgers are compared in any case.
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "_run" and frame.f_locals.get("self") is trainer:
            path = frame.f_locals.get("ckpt_path")
            return None if path is None else str(path)
        frame = frame.f_back
    return None


def take_up(module: LMModule) -> None:
    """Give a module that begins to train its seed, and what an interrupted window had gathered."""
    resumed, module.pending = module.pending, {}
    seed = resumed.get("seed")
    if seed is None:
        seed = int(os.environ.get("PL_GLOBAL_SEED", torch.initial_seed()))
    module.seed = int(module.trainer.strategy.broadcast(seed))
    if resumed.get("gradients"):
        restore_gradients(module, resumed["gradients"])
        module.item_mean.window = resumed["window"].to(module.device)


def seed_batch(seed: int, trainer: Trainer, batch_idx: int) -> None:
    """Make every random draw of a training step a function of (seed, epoch, batch, rank).

    A checkpoint of Lightning holds no state of the generators, and restoring one would not do:
    what draws between two steps (a validation, a loader) differs between a run and its resumption.
    """
    step_seed = mix(seed, trainer.current_epoch, batch_idx, trainer.global_rank)
    # `torch.manual_seed` also writes down the stack for each accelerator that is not in use, which
    # takes a millisecond.
    torch.default_generator.manual_seed(step_seed)
    device = trainer.strategy.root_device.type
    if device != "cpu":
        torch.get_device_module(device).manual_seed(step_seed)


def pending_gradients(trainer: Trainer, module: nn.Module) -> dict[str, Tensor]:
    """Return the gradients that an unfinished accumulation window has gathered, by name.

    Under several ranks it is their mean, the same for each: the sum over the window that the
    optimizer sees in the end is unchanged by it. Empty outside a window.
    """
    fitting = trainer.state.fn == TrainerFn.FITTING
    if not (fitting and trainer.fit_loop.epoch_loop._should_accumulate()):
        return {}
    gradients = {}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            gradient = parameter.grad.detach().clone()
            gradients[name] = trainer.strategy.reduce(gradient, reduce_op="mean").cpu()
    return gradients


def restore_gradients(module: nn.Module, gradients: Mapping[str, Tensor]) -> None:
    """Give the parameters the gradients of `pending_gradients` back."""
    parameters = dict(module.named_parameters())
    for name, gradient in gradients.items():
        parameters[name].grad = gradient.to(parameters[name], copy=True)


def rewind_unfinished(checkpoint: dict[str, Any], accumulate: int) -> bool:
    """Set a checkpoint that was taken in the middle of a batch back to the last whole step.

    An exception or Ctrl-C strikes while a batch is being computed: the loader has handed it over,
    but the weights have not seen it, and of its accumulation window the gradients are incomplete.
    So the window is to be done again from its first batch.

    Args:
        checkpoint: as Lightning dumped it; changed in place.
        accumulate: batches per optimizer step.

    Returns:
        Whether a batch was in flight.
    """
    fit_loop = checkpoint["loops"]["fit_loop"]
    progress = fit_loop["epoch_loop.batch_progress"]
    current, total = progress["current"], progress["total"]
    if current["ready"] == current["processed"]:
        return False
    undone = current["completed"] % accumulate
    start = current["completed"] - undone
    overall = total["completed"] - undone
    for stage in ("ready", "started", "processed", "completed"):
        current[stage], total[stage] = start, overall
    progress["is_last_batch"] = False
    for loader in fit_loop.get("state_dict", {}).get("combined_loader", []):
        if isinstance(loader, dict) and "position" in loader:
            loader["position"] = start
    return True
