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
    anything but just what it says it leaves out. Of a base that was moved, give the new place:
    `load_from_checkpoint(path, model=...)`, or the module of a fit that goes on; a checkpoint to be
    given away is an export.

    Only what can be had again is left out: a frozen weight that differs from the base, because the
    network was tuned as a whole before, is kept, and so is one that an optimizer holds
    (`GradualUnfreezingCallback`). Where nothing is left out, as of a network from scratch, a
    warning says why.

    Raises:
        TypeError: in `setup`, the module is not lmkit's.

    Example:
        >>> from lmkit.callbacks import BitFitCallback
        >>> callbacks = [BitFitCallback(), TrainableOnlyCheckpoint()]
    """

    #: What a module goes by, for the fits of a Trainer with this callback and for no others.
    leaves_out = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the module can leave weights out."""
        if not isinstance(pl_module, LMModule):
            raise TypeError(
                f"TrainableOnlyCheckpoint needs a module of lmkit, got {type(pl_module).__name__}"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what the checkpoints will hold."""
        module = cast(LMModule, pl_module)
        missing, state = left_out(module), module.state_dict()
        if missing:
            # Tied weights have several names, and stand in a file once.
            sizes = {state[key].data_ptr(): state[key].nbytes for key in missing}
            rank_zero_info(
                f"checkpoints leave out {len(missing)} frozen weights "
                f"({sum(sizes.values()) / 2**20:,.1f} MiB) of the base {module.base['name']!r}"
            )
            return
        if "fingerprint" not in module.base:
            why = (
                "the network was made from scratch, so the checkpoints have to hold its frozen "
                "weights as well"
            )
        elif all(p.requires_grad for p in module.network.parameters()):
            why = (
                "nothing is frozen, so the checkpoints hold all weights; add e.g. LoRACallback or "
                "BitFitCallback"
            )
        else:
            why = (
                f"no frozen weight is as in the base {module.base['name']!r}, so the checkpoints "
                "have to hold them as well; if it was tuned before, start from an export of it"
            )
        rank_zero_warn(f"TrainableOnlyCheckpoint: {why}")
