"""Checkpoints of what was trained alone."""

from __future__ import annotations

from typing import cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from ..modules import LMModule
from ..modules.frozen_base import left_out

__all__ = ["TrainableOnlyCheckpoint"]


class TrainableOnlyCheckpoint(Callback):
    """Leaves the frozen weights of the base out of every checkpoint of a run.

    What remains are the trained weights, the optimizer, the structure, the name and the hash of the
    base: megabytes instead of gigabytes under LoRA. Whatever writes checkpoints writes them so:
    `CheckpointCallback`, Lightning's own, `trainer.save_checkpoint`. Loading builds the base anew
    from its name or folder, refuses one with another hash, and refuses a checkpoint that lacks
    anything but just the frozen weights. So a folder that the model was loaded from must stay where
    it is; a checkpoint to be given away is an export.

    Where nothing is frozen, or the network was made from scratch and no base could give the frozen
    weights back, the checkpoints are whole, and a warning says so.

    Raises:
        TypeError: in `setup`, the module is not lmkit's.

    Example:
        >>> from lmkit.callbacks import BitFitCallback
        >>> callbacks = [BitFitCallback(), TrainableOnlyCheckpoint()]
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tell the module."""
        if not isinstance(pl_module, LMModule):
            raise TypeError(
                f"TrainableOnlyCheckpoint needs a module of lmkit, got {type(pl_module).__name__}"
            )
        pl_module.trainable_only = True

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what the checkpoints will hold."""
        module = cast(LMModule, pl_module)
        missing, state = left_out(module), module.state_dict()
        if missing:
            bytes_left = sum(state[key].nbytes for key in missing)
            rank_zero_info(
                f"checkpoints leave out {len(missing)} frozen weights "
                f"({bytes_left / 2**20:,.1f} MiB) of the base {module.base['name']!r}"
            )
        elif "fingerprint" not in module.base:
            rank_zero_warn(
                "TrainableOnlyCheckpoint: the network was made from scratch, so the checkpoints "
                "have to hold its frozen weights as well"
            )
        else:
            rank_zero_warn(
                "TrainableOnlyCheckpoint: nothing is frozen, so the checkpoints hold all weights; "
                "add e.g. LoRACallback or BitFitCallback before it"
            )
