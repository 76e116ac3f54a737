"""What all callbacks share that change the structure of a network."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from transformers import PreTrainedModel

from ..modules import LMModule
from ..types import Surgery
from .efficiency import count_parameters

__all__ = ["SurgeryCallback"]


class SurgeryCallback(Callback):
    """Asks the module in `setup` to perform a surgery; the base of all that change structure.

    A module of lmkit writes the surgery into its ledger, so its checkpoints load without the
    callback. On any other LightningModule the surgery is performed on the network of transformers
    that it holds (on itself if it holds none), and a checkpoint needs the callback to be loaded.

    What is trainable then is logged as `<word>/trainable_parameters` and `<word>/trainable_share`.

    Args:
        surgery: a frozen dataclass of plain data that is called on a network.

    Example:
        >>> from lmkit.surgery.selection import Selection
        >>> SurgeryCallback(Selection(biases=True)).word
        'surgery'
    """

    #: Under which its figures are logged.
    word = "surgery"

    def __init__(self, surgery: Surgery) -> None:
        super().__init__()
        self.surgery = surgery

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the surgery be performed, once."""
        if isinstance(pl_module, LMModule):
            pl_module.operate(self.surgery)
            return
        done: list[Surgery] = getattr(pl_module, "_surgeries", [])
        if self.surgery not in done:
            inside = (m for m in pl_module.modules() if isinstance(m, PreTrainedModel))
            self.surgery(next(inside, pl_module))
            pl_module.train()
            object.__setattr__(pl_module, "_surgeries", [*done, self.surgery])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say and log how much is trained."""
        module: Any = pl_module
        total, trainable = count_parameters(getattr(module, "network", module))
        share = trainable / max(1, total)
        rank_zero_info(
            f"{type(self).__name__}: of {total:,} parameters {trainable:,} are trained "
            f"({share:.2%})"
        )
        figures = {
            f"{self.word}/trainable_parameters": float(trainable),
            f"{self.word}/trainable_share": share,
        }
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=trainer.global_step)
