"""Tables and figures of a test reach the run's folder and the loggers."""

import json

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lmkit.callbacks import FiguresCallback
from lmkit.dashboard import log_figure


class Judged(LightningModule):
    """Knows two tables and a figure of what it has seen."""

    def __init__(self):
        super().__init__()
        self.seen = 0

    def test_step(self, batch, batch_idx):
        self.seen += len(batch["index"])

    def tables(self):
        return {"classes": [{"label": "é", "f1": 0.5, "n": self.seen}], "empty": []}

    def figures(self):
        from lmkit.figures import bar_figure

        return {"classes": bar_figure({"é": {"f1": 0.5}})}


def run(tmp_path, rows, module=None, draw=True, logger=False, **options):
    trainer = Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        callbacks=[FiguresCallback(draw=draw)],
        logger=logger,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **options,
    )
    module = module or Judged()
    trainer.test(module, rows(), verbose=False)
    return trainer, module


def test_a_test_leaves_tables_and_figures_in_the_runs_folder(rows, tmp_path):
    pytest.importorskip("matplotlib")
    run(tmp_path, rows)
    (row,) = map(json.loads, (tmp_path / "tables/test/classes.jsonl").open(encoding="utf-8"))
    assert row == {"step": 0, "label": "é", "f1": 0.5, "n": 20}
    assert (tmp_path / "figures/test/classes.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "tables/test/empty.jsonl").exists()


def test_without_drawing_there_are_tables_alone(rows, tmp_path):
    run(tmp_path, rows, draw=False)
    assert (tmp_path / "tables/test/classes.jsonl").exists()
    assert not (tmp_path / "figures").exists()


def test_a_module_that_knows_neither_is_left_alone(rows, tiny, tmp_path):
    module = tiny()
    module.test_step = module.validation_step
    run(tmp_path, rows, module)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_leaves_nothing(rows, tmp_path):
    run(tmp_path, rows, fast_dev_run=True)
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_shows_the_figure(rows, tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path, rows, logger=TensorBoardLogger(tmp_path, name="tb"))
    (events,) = tmp_path.glob("tb/**/events*")
    seen = EventAccumulator(str(events), size_guidance={"images": 0, "tensors": 0})
    seen.Reload()
    assert seen.Tags()["images"] == ["test/classes"]
    assert any("test/classes" in name for name in seen.Tags()["tensors"])


def test_mlflow_keeps_the_figure(rows, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    pytest.importorskip("mlflow")
    # A database needs sqlalchemy, which mlflow-skinny does without.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from lightning.pytorch.loggers import MLFlowLogger

    logger = MLFlowLogger(tracking_uri=f"file:{tmp_path / 'mlruns'}")
    run(tmp_path, rows, logger=logger)
    found = [path.name for path in (tmp_path / "mlruns").rglob("*") if path.is_file()]
    assert "classes.png" in found


def test_only_the_first_rank_writes(rows, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from lmkit.figures import bar_figure

    trainer, _ = run(tmp_path / "a", rows)
    monkeypatch.setattr(type(trainer), "is_global_zero", False)
    assert log_figure(trainer, "test/other", bar_figure({"a": {"f1": 1.0}})) is None
    assert not list((tmp_path / "a").rglob("other.png"))


def test_every_rank_is_asked_for_they_add_up_what_they_saw(rows, tmp_path, monkeypatch):
    asked = []

    class Asked(Judged):
        def tables(self):
            asked.append("tables")
            return {}

        def figures(self):
            asked.append("figures")
            return {}

    monkeypatch.setattr(Trainer, "is_global_zero", property(lambda _: False))
    run(tmp_path, rows, Asked())
    assert asked == ["tables", "figures"]


def test_a_figure_is_logged_at_the_step_that_is_given(rows, tmp_path):
    pytest.importorskip("matplotlib")
    from lmkit.figures import scatter_figure

    trainer, _ = run(tmp_path, rows)
    path = log_figure(trainer, "a/b", scatter_figure(torch.ones(2), torch.ones(2)), step=7)
    assert path == tmp_path / "figures" / "a" / "b.png" and path.is_file()
