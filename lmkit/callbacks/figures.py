"""What a test found, as tables and figures."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from ..dashboard import is_dry_run, log_figure, log_table, run_directory

__all__ = ["FiguresCallback"]


class FiguresCallback(Callback):
    """Writes the tables and figures of each test to the run's folder and to the loggers.

    Of a classification these are the scores of each class, the confusion of classes and the
    reliability of the probabilities; of tagging the scores of each type; what a module's `tables`
    and `figures` return. Tables go to `<run>/tables/test/<name>.jsonl`, figures to
    `<run>/figures/test/<name>.png`.

    Args:
        draw: whether figures are drawn, which needs matplotlib (extra `plot`), and not only tables.

    Example:
        >>> FiguresCallback(draw=False).draw
        False
    """

    def __init__(self, draw: bool = True) -> None:
        super().__init__()
        self.draw = draw
        self._draws = draw

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Say before a test, and not after it, that there is nothing to draw with."""
        self._draws = self.draw and find_spec("matplotlib") is not None
        if self.draw and not self._draws:
            rank_zero_warn("figures need matplotlib: pip install 'lmkit[plot]'; tables are written")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ask the module on every rank, for the ranks add up what they saw; rank 0 writes."""
        module: Any = pl_module
        if is_dry_run(trainer):
            return
        found: Mapping[str, list[dict[str, Any]]] = getattr(module, "tables", dict)()
        for name, rows in found.items():
            if rows:
                cells = [list(row.values()) for row in rows]
                log_table(trainer, f"test/{name}", list(rows[0]), cells)
        figures: Mapping[str, Any] = getattr(module, "figures", dict)() if self._draws else {}
        for name, figure in figures.items():
            log_figure(trainer, f"test/{name}", figure)
        if found or figures:
            rank_zero_info(f"tables and figures of the test are in {run_directory(trainer)}")
