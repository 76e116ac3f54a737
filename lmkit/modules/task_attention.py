"""What attention each task pays to the adapters of the others, on the dashboard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from ..surgery.fusion_attention import FusionAttention
from ..surgery.task_adapter import mixture_name
from ..surgery.task_aggregation import aggregated_tasks
from .own_callbacks import OwnCallback
from .task_batches import parts_of

if TYPE_CHECKING:
    from .multi_task import MultiTaskModule

__all__ = ["TaskAttention"]


class TaskAttention(OwnCallback):
    """Logs `train/<task>/attention/<other>` each time that the Trainer logs.

    Each is the mean over layers and positions of a batch of the task: the first since the last
    time, so that no task is left out whose turns and the logger's stride do not meet.
    """

    def __init__(self) -> None:
        self._watch = FusionAttention()
        self._mixed: set[str] = set()
        self._watched: set[str] = set()
        self._last: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Learn which tasks attend; forget what was seen of another training."""
        self._mixed = set(aggregated_tasks(cast("MultiTaskModule", pl_module).ledger))
        self._watched, self._last = set(), {}

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Watch the tasks of a batch that were not watched since the last time."""
        if not self._mixed or not trainer.loggers:
            return
        module = cast("MultiTaskModule", pl_module)
        new = (parts_of(batch, module.names).keys() & self._mixed) - self._watched
        self._watch.begin(module.network, map(mixture_name, sorted(new)))
        self._watched |= new

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log what was seen of each task last."""
        module = cast("MultiTaskModule", pl_module)
        seen = self._watch.end()
        for task in module.tasks:
            for other, mean in seen.get(mixture_name(task), {}).items():
                self._last[f"train/{task}/attention/{other}"] = mean
        if self._last and trainer._logger_connector.should_update_logs:
            module.log_dict(self._last, batch_size=1)
            self._watched = set()
