"""Checkpoints to go on from and the best one to keep, written apart from each other."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any, Literal, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from ..dashboard import is_dry_run

__all__ = ["CheckpointCallback"]


class CheckpointCallback(ModelCheckpoint):
    """Writes `last.ckpt` often, and the best checkpoint after each validation.

    Lightning's `ModelCheckpoint(monitor="val/loss", save_last=True)` does both in one: it writes
    no `last.ckpt` before the first validation, and forgets the best one when a step-wise save fell
    on the same step. Here `last.ckpt` waits for nothing, so that a run that was killed loses at
    most `every_n_train_steps` steps with `--ckpt_path last`. After Ctrl-C the step is finished and
    saved before the run stops; a second Ctrl-C stops at once.

    Args:
        every_n_train_steps: how many optimizer steps may be lost; at least 1. The end of an epoch
            and the last step are saved in any case.
        monitor: the metric that says which checkpoint is best, or `None` to keep only `last.ckpt`.
            Without validation there is no best one.
        mode: whether the least or the greatest value of `monitor` is best.
        save_top_k: how many of the best to keep; -1 for all.
        dirpath: the folder; `<trainer.default_root_dir>/checkpoints` by default.
        filename: the name of a best checkpoint, with metrics in braces.

    Raises:
        ValueError: `every_n_train_steps` is below 1.

    Example:
        >>> callback = CheckpointCallback(every_n_train_steps=100)
        >>> callback.monitor
        'val/loss'
    """

    def __init__(
        self,
        every_n_train_steps: int = 200,
        monitor: str | None = "val/loss",
        mode: Literal["min", "max"] = "min",
        save_top_k: int = 1,
        dirpath: str | None = None,
        filename: str = "best-{step}",
    ) -> None:
        if every_n_train_steps < 1:
            raise ValueError(f"every_n_train_steps must be at least 1, got {every_n_train_steps}")
        super().__init__(
            dirpath=dirpath,
            filename=filename,
            monitor=monitor,
            mode=mode,
            save_top_k=save_top_k if monitor is not None else 0,
            save_last=True,
            every_n_train_steps=every_n_train_steps,
        )
        self.stride = every_n_train_steps
        # Step 0 has nothing to go on from. Lightning's own `_last_global_step_saved` does not
        # serve: a best checkpoint at the same step is no reason not to write the last one.
        self._saved_last_at = (0, False)
        self._interrupted = False

    @property
    def state_key(self) -> str:
        """The key of the state in a checkpoint: a resumed run may save more or less often."""
        return self._generate_state_key(monitor=self.monitor, mode=self.mode)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Settle the folder."""
        self._settle_folder(trainer)
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take care of Ctrl-C."""
        super().on_train_start(trainer, pl_module)
        self._interrupted = False
        # Ranks would stop at different steps, and wait for each other for ever. And a handler of
        # somebody else, or a thread, is left alone.
        is_free = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        in_main = threading.current_thread() is threading.main_thread()
        if trainer.world_size == 1 and is_free and in_main:
            signal.signal(signal.SIGINT, self._interrupt)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write `last.ckpt` if the step is due."""
        step = trainer.global_step
        ends = trainer.is_last_batch or trainer.should_stop or step == trainer.max_steps
        if not (step % self.stride == 0 or ends or self._interrupted):
            return
        # A run that resumes from here would not make up for a validation that follows, so it is
        # waited for. But after it the gradients of an unfinished accumulation window are gone.
        loop = trainer.fit_loop
        if not self._validates(trainer) or loop._should_accumulate():
            self._save_last(trainer)
            self._stop_if_asked()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the best checkpoint if this is one, and `last.ckpt`, which knows of it."""
        if self._is_idle(trainer):
            return
        if self.monitor is not None:
            candidates = self._monitor_candidates(trainer)
            if self.monitor not in candidates:
                raise ValueError(
                    f"the checkpoint's monitor {self.monitor!r} is not among the logged metrics "
                    f"{sorted(trainer.callback_metrics)}; set checkpoint.monitor to one of them, "
                    "or to null to keep only last.ckpt"
                )
            self._save_topk_checkpoint(trainer, candidates)
        if not trainer.fit_loop._should_accumulate():
            self._save_last(trainer)
            self._stop_if_asked()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write nothing: a run limited by steps that resumes from here repeats the epoch's end."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave Ctrl-C as it was."""
        self._release_signal()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave Ctrl-C as it was."""
        self._release_signal()

    def _interrupt(self, number: int, frame: object) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True
        rank_zero_info("Finishing the step and saving it; press Ctrl-C again to stop at once.")

    def _validates(self, trainer: Trainer) -> bool:
        """Whether a validation follows this batch: it is due, and there is something to see."""
        loop = trainer.fit_loop
        if not loop.epoch_loop._should_check_val_fx(cast(Any, loop._data_fetcher)):
            return False
        loop.epoch_loop.val_loop.setup_data()  # does nothing where it is done
        return not loop.epoch_loop.val_loop.skip

    def _stop_if_asked(self) -> None:
        if self._interrupted:
            raise KeyboardInterrupt

    def _release_signal(self) -> None:
        if signal.getsignal(signal.SIGINT) == self._interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _settle_folder(self, trainer: Trainer) -> None:
        # Lightning's own choice is a folder of the first logger, whose version differs from run
        # to run: `last` would never be found again.
        if self.dirpath is None:
            root = str(trainer.default_root_dir)
            folder = root if "://" in root else str(Path(root).resolve())
            self.dirpath = f"{folder}/checkpoints"

    def _find_last_checkpoints(self, trainer: Trainer) -> set[str]:
        # Lightning looks for `ckpt_path="last"` before it calls `setup`.
        self._settle_folder(trainer)
        return super()._find_last_checkpoints(trainer)

    def _save_last(self, trainer: Trainer) -> None:
        place = (trainer.global_step, trainer.validating)
        # The batches of an accumulation window are all at one step.
        if not self._is_idle(trainer) and self._saved_last_at != place:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
            self._saved_last_at = place

    def _is_idle(self, trainer: Trainer) -> bool:
        return (
            is_dry_run(trainer) or trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING
        )
