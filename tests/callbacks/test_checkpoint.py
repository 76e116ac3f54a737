"""The last checkpoint waits for nothing; the best one is kept beside it."""

import pytest
import torch

from lmkit.callbacks import CheckpointCallback


def saved(tmp_path):
    return sorted(path.name for path in (tmp_path / "checkpoints").glob("*"))


def step_of(path):
    return torch.load(path, weights_only=True)["global_step"]


def test_last_and_best_are_written_to_the_runs_folder(fit, tmp_path):
    fit(CheckpointCallback())
    assert saved(tmp_path) == ["best-step=5.ckpt", "last.ckpt"]


def test_last_does_not_wait_for_a_validation(fit, tiny, tmp_path):
    with pytest.raises(OSError, match="No space"):
        fit(CheckpointCallback(every_n_train_steps=2), module=tiny(explode_at=3))
    assert saved(tmp_path) == ["last.ckpt"]
    assert step_of(tmp_path / "checkpoints" / "last.ckpt") == 2


def test_best_is_kept_when_last_was_written_at_the_same_step(fit, tmp_path):
    fit(CheckpointCallback(every_n_train_steps=1), val_check_interval=2)
    assert saved(tmp_path) == ["best-step=4.ckpt", "last.ckpt"]


def test_the_best_checkpoint_survives_a_resume(fit, tmp_path):
    fit(CheckpointCallback())
    last = tmp_path / "checkpoints" / "last.ckpt"
    callback = CheckpointCallback(every_n_train_steps=3)
    fit(callback, max_epochs=2, ckpt_path=last)
    assert callback.best_model_path.endswith("best-step=10.ckpt")
    assert saved(tmp_path) == ["best-step=10.ckpt", "last.ckpt"]
    assert step_of(last) == 10


def test_lightning_finds_last_by_its_word(fit, tmp_path):
    fit(CheckpointCallback(), max_steps=3, max_epochs=-1)
    trainer, _ = fit(CheckpointCallback(), max_steps=4, max_epochs=-1, ckpt_path="last")
    assert trainer.ckpt_path == str(tmp_path / "checkpoints" / "last.ckpt")
    assert trainer.global_step == 4


def test_without_validation_there_is_only_last(fit, tmp_path):
    fit(CheckpointCallback(), limit_val_batches=0)
    assert saved(tmp_path) == ["last.ckpt"]


def test_without_validation_rows_the_last_step_is_saved_though_a_validation_is_due(fit, tmp_path):
    fit(CheckpointCallback(), val=[], max_steps=4, val_check_interval=2)
    assert step_of(tmp_path / "checkpoints" / "last.ckpt") == 4


def test_a_new_run_in_the_same_folder_keeps_the_old_last(fit, tmp_path):
    fit(CheckpointCallback(monitor=None))
    fit(CheckpointCallback(monitor=None))
    assert saved(tmp_path) == ["last-v1.ckpt", "last.ckpt"]


def test_a_metric_that_nobody_logs_is_named(fit):
    with pytest.raises(ValueError, match=r"'val/f1' is not among.*'val/loss'"):
        fit(CheckpointCallback(monitor="val/f1"))


def test_a_stride_below_one_is_refused():
    with pytest.raises(ValueError, match="every_n_train_steps must be at least 1, got 0"):
        CheckpointCallback(every_n_train_steps=0)
