"""What the model says, side by side over time: a table of the same examples at each validation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from ..dashboard import log_table

__all__ = ["SamplesCallback"]


class SamplesCallback(Callback):
    """Shows at each validation what the model makes of the same validation rows.

    For a masked language model these are filled masks, for a causal one continued prompts: what
    `module.sample(batch, rows)` returns as one dictionary a row. They go to every logger and to
    `<run>/tables/<name>.jsonl`. The sanity check before the training, if there is one, gives the
    table at step 0, so that before and after can be compared.

    Args:
        rows: how many validation rows, at least 1; as many as one batch holds at most.
        name: the table's name.

    Raises:
        ValueError: `rows` is below 1.
        TypeError: the module has no method `sample`.

    Example:
        >>> SamplesCallback(rows=4).rows
        4
    """

    def __init__(self, rows: int = 8, name: str = "samples") -> None:
        super().__init__()
        if rows < 1:
            raise ValueError(f"rows must be at least 1, got {rows}")
        self.rows = rows
        self.name = name
        self._batch: dict[str, Tensor] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the module can show samples."""
        if not callable(getattr(pl_module, "sample", None)):
            raise TypeError(
                f"SamplesCallback needs a module with a method sample(batch, rows), and "
                f"{type(pl_module).__name__} has none; leave the callback out"
            )
        self._batch = None

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep some rows of the first validation: those in the middle, where rows can be asked for.

        Rows are evaluated in the order of their length, and the first are unlike the most.
        """
        if self._batch is None and batch_idx == 0 and dataloader_idx == 0:
            loader: Any = trainer.val_dataloaders
            loader = loader[0] if isinstance(loader, list) and loader else loader
            if callable(getattr(loader, "batch", None)):
                batch = loader.batch(len(loader) // 2)
            rows = self.rows
            if "index" in batch:  # fillers stand at the end, and show nothing
                rows = min(rows, max(1, int((batch["index"] >= 0).sum())))
            self._batch = {
                name: value[:rows].detach().cpu().clone() for name, value in batch.items()
            }

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ask the module, and log the table."""
        if self._batch is None:
            return
        # Lightning types every attribute of a module as a tensor or a module.
        sample = cast("Callable[[dict[str, Tensor], int], list[dict[str, Any]]]", pl_module.sample)
        batch = {name: value.to(pl_module.device) for name, value in self._batch.items()}
        # Every rank asks, for a sharded module computes together; rank 0 writes. Drawing words
        # must not move the random numbers that the training will draw.
        with isolate_rng():
            samples = sample(batch, self.rows)
        if samples:
            columns = list(samples[0])
            rows = [[sample.get(column) for column in columns] for sample in samples]
            log_table(trainer, self.name, columns, rows, trainer.global_step)
