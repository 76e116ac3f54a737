"""The config that a run leaves in its folder, where an earlier run makes room for it."""

from __future__ import annotations

from pathlib import Path

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn

from .cli_checkpoint import say
from .dashboard import log_config, run_directory

__all__ = ["SaveConfig", "set_aside"]


class SaveConfig(SaveConfigCallback):
    """Writes the resolved config to `<run>/config.yaml` and shows it on every logger.

    Other commands than `fit` write `config.<command>.yaml`, so that the run's own stays. A fit
    writes it when training begins, and sets an earlier run aside then: one that fails before leaves
    the earlier run as it was.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Show the config on the loggers, and write that of any other command than `fit`."""
        # Loggers keep what they are shown by now: TensorBoard writes its file before training.
        if trainer.is_global_zero:
            log_config(trainer, {"config": yaml.safe_load(self._text())})
        if stage != TrainerFn.FITTING:
            super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set an earlier run aside unless it goes on, and write the config."""
        if trainer.ckpt_path is None and trainer.is_global_zero:
            set_aside(run_directory(trainer))
        super().setup(trainer, pl_module, TrainerFn.FITTING)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write; Lightning calls this on global rank 0."""
        command = TrainerFn(stage).value
        name = "config.yaml" if command == "fit" else f"config.{command}.yaml"
        path = run_directory(trainer) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self._text(), encoding="utf-8")

    def _text(self) -> str:
        return str(self.parser.dump(self.config, skip_none=False))


def set_aside(root: Path) -> None:
    """Move the checkpoints and config of an earlier run out of the way of a new one.

    Otherwise `last.ckpt` would be the earlier run's, beside the config of the new one.

    Args:
        root: the run's folder.
    """
    if not any((root / "checkpoints").glob("*.ckpt")):
        return
    number = 1
    while (folder := root / f"earlier-{number}").exists():
        number += 1
    folder.mkdir()
    for name in ("checkpoints", "config.yaml"):
        if (root / name).exists():
            (root / name).replace(folder / name)
    say(f"{root} held an earlier run, whose checkpoints are now in {folder / 'checkpoints'}")
