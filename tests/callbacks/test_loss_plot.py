"""The loss is drawn, and a resumed run draws all of it."""

import pytest

from lmkit.callbacks import CheckpointCallback, LossPlotCallback

pytest.importorskip("matplotlib")


def test_a_picture_is_written(fit, tmp_path):
    callback = LossPlotCallback()
    fit(callback)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    points = callback.state_dict()
    assert [step for step, _ in points["train"]] == [1, 2, 3, 4, 5]
    assert points["val"] == [[5, 5]]


def test_a_resumed_run_keeps_the_curve(fit, tmp_path):
    fit(LossPlotCallback(), CheckpointCallback(), max_steps=2, max_epochs=-1)
    last = tmp_path / "checkpoints" / "last.ckpt"
    callback = LossPlotCallback()
    fit(callback, CheckpointCallback(), max_steps=4, max_epochs=-1, ckpt_path=last)
    assert [step for step, _ in callback.state_dict()["train"]] == [1, 2, 3, 4]


def test_the_state_does_not_grow_without_bound(fit, monkeypatch):
    monkeypatch.setattr("lmkit.callbacks.loss_plot._MOST_POINTS", 6)
    callback = LossPlotCallback()
    fit(callback, max_epochs=4)
    steps = [step for step, _ in callback.state_dict()["train"]]
    assert len(steps) <= 6
    assert (steps[0], steps[-1]) == (1, 20)


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("lmkit.callbacks.loss_plot.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"lmkit\[plot\]"):
        LossPlotCallback().setup(None, None, "fit")
