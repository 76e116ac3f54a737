"""Callbacks on the command line: one more, two of a kind, and the options of one that is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import task_files
from tests.callbacks.tuned import save_encoder
from tests.tiny_run import lmkit, write_config


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    """Write the config of a classifier with LoRA, and a callback after it."""
    files = task_files.labelled_texts(tmp_path / "data")
    callbacks: list[dict[str, Any]] = [
        {"class_path": "LoRACallback", "init_args": {"rank": 2, "targets": ["query"]}},
        {"class_path": "TrainableOnlyCheckpoint"},
    ]
    config = {
        "model": {
            "class_path": "SequenceClassificationModule",
            "init_args": {"model": save_encoder(tmp_path / "base"), "learning_rate": 0.01},
        },
        "data": {
            "class_path": "SequenceClassificationDataModule",
            "init_args": {**files, "max_length": 16},
        },
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 1,
            "default_root_dir": "run",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": callbacks,
        },
    }
    path = tmp_path / "tuned.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.parametrize("variant", ["lora", "adalora"])
def test_two_adapters_of_one_name_are_refused_with_a_remedy(
    variant: str, tuned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = "--trainer.callbacks+=LoRACallback --trainer.callbacks.rank=4"
    assert lmkit(f"fit -c {tuned} {more} --trainer.callbacks.variant={variant}") == 1
    said = capsys.readouterr().err
    assert "there is a LoRA adapter 'default' already" in said
    assert "give this one another name" in said
    assert lmkit(f"fit -c {tuned} {more} --trainer.callbacks.name=other") == 0


def test_two_callbacks_of_one_state_are_refused_without_a_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(tmp_path, callbacks=[{"class_path": "LossPlotCallback"}] * 2)
    assert lmkit("fit -c tiny.yaml") == 2
    assert "more than one stateful callback of type `LossPlotCallback`" in capsys.readouterr().err
