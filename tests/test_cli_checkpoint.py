"""The command goes on, tests and predicts from a checkpoint that needs its base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from lmkit.cli import main
from tests import task_files
from tests.callbacks.tuned import save_encoder
from tests.tiny_run import lmkit, same_state

LAST = "run/checkpoints/last.ckpt"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Fit the biases of a classifier on `base` with the command; the checkpoint is small."""
    files = task_files.labelled_texts(tmp_path / "data")
    config = {
        "model": {
            "class_path": "SequenceClassificationModule",
            "init_args": {"model": save_encoder(tmp_path / "base"), "learning_rate": 0.01},
        },
        "data": {
            "class_path": "SequenceClassificationDataModule",
            "init_args": {**files, "test_file": files["val_file"], "max_length": 16},
        },
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 3,
            "default_root_dir": "run",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [
                {"class_path": "BitFitCallback"},
                {"class_path": "TrainableOnlyCheckpoint"},
            ],
        },
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    assert lmkit("fit -c tiny.yaml") == 0
    assert torch.load(tmp_path / LAST, weights_only=True)["lmkit"]["left_out"]
    return tmp_path


def metrics(folder: Path, command: str) -> dict[str, str]:
    """Return the newest figures of an evaluation."""
    newest = max((folder / "run" / f"csv_{command}").glob("*/metrics.csv"))
    names, values = newest.read_text().splitlines()[:2]
    return dict(zip(names.split(","), values.split(","), strict=True))


def test_a_base_that_was_moved_is_named_by_a_flag(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lmkit(f"test --ckpt_path {LAST}") == 0
    expected = metrics(run, "test")
    whole = ["fit", "-c", "tiny.yaml", "--trainer.max_steps=5", "--ckpt_path", LAST]
    assert main([*whole, "--trainer.default_root_dir=whole"]) == 0
    (run / "base").rename(run / "moved")
    (run / "ask.txt").write_text("the quick fox\n")
    capsys.readouterr()
    export = f"export --ckpt {LAST} --output exported"
    assert lmkit(export) != 0 and "lmkit export --base" in capsys.readouterr().err
    assert lmkit(f"{export} --base moved") == 0 and (run / "exported" / "config.json").is_file()
    assert lmkit(f"test --ckpt_path {LAST}") == 2
    assert "there is no model folder at" in (said := capsys.readouterr().err)
    assert "--model.model" in said
    for command in (
        "test",
        "validate",
        "predict --data.predict_file=ask.txt",
        "fit --trainer.max_steps=5",
    ):
        assert lmkit(f"{command} --ckpt_path {LAST} --model.model=moved") == 0
        assert 'model.model is "moved"; the checkpoint' in capsys.readouterr().err
    assert metrics(run, "test") == expected
    assert json.loads((run / "run" / "predictions.jsonl").read_text())["label"] in (
        "fox",
        "moons",
        "trees",
    )
    ours, theirs = (
        torch.load(run / folder / "checkpoints" / "last.ckpt", weights_only=True)
        for folder in ("run", "whole")
    )
    assert ours["global_step"] == 5 and same_state(ours["state_dict"], theirs["state_dict"])
    assert same_state(ours["optimizer_states"], theirs["optimizer_states"])
    # It names the new place by now.
    assert lmkit(f"test --ckpt_path {LAST}") == 0


@pytest.mark.parametrize("command", ["test", "fit --trainer.max_steps=5"])
def test_another_base_is_refused_all_the_same(
    command: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_encoder(run / "other", seed=1)
    assert lmkit(f"{command} --ckpt_path {LAST} --model.model=other") != 0
    assert "started from the base" in capsys.readouterr().err


def test_only_a_flag_names_another_place(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "tiny.yaml"
    path.write_text(path.read_text().replace(str(run / "base"), "elsewhere"))
    assert lmkit(f"test -c tiny.yaml --ckpt_path {LAST}") == 0
    assert 'model.model="elsewhere" is overridden' in capsys.readouterr().err


def test_data_to_test_on_may_lack_a_class(run: Path) -> None:
    for names in (["moons", "fox"], ["trees"]):
        rows = [f"a text of {label},{label}" for label in names]
        (run / "few.csv").write_text("\n".join(["text,label", *rows]) + "\n")
        line = f"test --ckpt_path {LAST} --data.test_file=few.csv"
        assert lmkit(line) == 0
        known = metrics(run, "test")
        # Without the training data, which name all classes.
        assert lmkit(f"{line} --data.train_file=null --data.val_file=null") == 0
        assert metrics(run, "test") == known


def test_a_class_that_was_never_seen_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "new.csv").write_text("text,label\na text,fox\na text,stars\n")
    more = "--data.train_file=null --data.val_file=null --data.test_file=new.csv"
    assert lmkit(f"test --ckpt_path {LAST} {more}") != 0
    assert "unknown label 'stars' (known: 'fox', 'moons', 'trees')" in capsys.readouterr().err
