"""Distillation from the command line, from YAML and from flags."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification

import lmkit as package
from tests import lessons, task_files, tiny
from tests.tiny_run import checkpoint, lmkit, same_state

NAME = "sequence_classification"
RUN = "runs/tiny/checkpoints/last.ckpt"


def write(folder: Path, **changed: Any) -> dict[str, Any]:
    """Write `tiny.yaml`, its data and its teacher."""
    teacher = lessons.teacher(NAME)
    if not (folder / "teacher").exists():
        shutil.copytree(teacher, folder / "teacher")
        shutil.copytree(teacher, folder / "start")
        tiny.tokenizer_folder(folder / "tokenizer")
    config = {
        "model": {
            "class_path": "DistillationModule",
            "init_args": {
                "student": {
                    "class_path": "SequenceClassificationModule",
                    "init_args": {"model": "start", "learning_rate": 1e-3, "dropout": 0.1},
                },
                "teacher": "teacher",
                "student_layers": [0, 3],
                "losses": [
                    {"class_path": "LogitLoss", "init_args": {"temperature": 4.0}},
                    {"class_path": "HiddenLoss", "init_args": {"weight": 0.1, "stop": 0.5}},
                ],
                **changed,
            },
        },
        "data": {
            "class_path": "SequenceClassificationDataModule",
            "init_args": {
                **task_files.labelled_texts(folder),
                "tokenizer": "tokenizer",
                "max_length": 16,
                "batch_size": 8,
            },
        },
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 6,
            "val_check_interval": 3,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "enable_model_summary": False,
            "enable_progress_bar": False,
        },
    }
    (folder / "tiny.yaml").write_text("# Tiny: a run of a second.\n" + yaml.safe_dump(config))
    return config


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run, whose teacher is gone."""
    write(tmp_path)
    assert lmkit("fit -c tiny.yaml") == 0
    (tmp_path / "teacher").rename(tmp_path / "gone")
    return tmp_path


def settings() -> Any:
    return checkpoint("runs/tiny")["hyper_parameters"]


def test_a_run_is_written_in_yaml(tmp_path: Path) -> None:
    write(tmp_path)
    assert lmkit("fit -c tiny.yaml") == 0
    losses = settings()["losses"]
    assert [each["class_path"].rsplit(".", 1)[-1] for each in losses] == ["LogitLoss", "HiddenLoss"]
    assert losses[0]["init_args"]["temperature"] == 4.0 and losses[1]["init_args"]["stop"] == 0.5
    assert settings()["student"]["init_args"]["dropout"] == 0.1
    state = checkpoint("runs/tiny")["state_dict"]
    assert not any("layer.2." in name for name in state)
    (rows,) = Path("runs/tiny/csv").glob("*/metrics.csv")
    header = rows.read_text().splitlines()[0]
    for name in ("val/agreement", "val/teacher_divergence", "distillation/loss_hidden"):
        assert name in header


def test_student_teacher_and_losses_are_flags_too(tmp_path: Path) -> None:
    config = write(tmp_path)
    del config["model"]
    (tmp_path / "tiny.yaml").write_text("# Tiny: a run of a second.\n" + yaml.safe_dump(config))
    line = (
        "fit -c tiny.yaml --model=DistillationModule --model.teacher=teacher "
        "--model.student=SequenceClassificationModule --model.student.model=teacher "
        "--model.student.learning_rate=0.002 --model.student_layers=2 --model.hard_weight=0.25 "
        "--model.losses+=LogitLoss --model.losses.temperature=3 --model.losses+=RelationLoss "
        "--model.losses.weight=0.5"
    )
    assert lmkit(line) == 0
    losses = settings()["losses"]
    assert losses[0]["init_args"]["temperature"] == 3.0 and losses[0]["init_args"]["weight"] == 0.5
    assert losses[1]["class_path"].endswith("RelationLoss")
    assert losses[1]["init_args"]["weight"] == 0.5
    assert settings()["student"]["init_args"]["learning_rate"] == 0.002
    assert settings()["hard_weight"] == 0.25 and settings()["student_layers"] == 2


def test_a_flag_changes_one_setting_of_the_yaml(tmp_path: Path) -> None:
    write(tmp_path)
    shutil.copytree("teacher", "other")
    line = "--model.teacher=other --model.student.learning_rate=0.01 --model.wrong_weight=0.5"
    assert lmkit(f"fit -c tiny.yaml {line}") == 0
    assert settings()["teacher"] == "other" and settings()["wrong_weight"] == 0.5
    assert settings()["student"]["init_args"]["learning_rate"] == 0.01
    assert settings()["learning_rate"] == 0.01


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("--model.hard_wait=1", "hard_weight"),
        ("--model.student.learning_rat=1", "learning_rate"),
        ("--model.losses+=LogitLoss --model.losses.temprature=1", "temperature"),
        ("--model.losses+=HidenLoss", "HiddenLoss"),
        ("--model.student=SequenceClasificationModule", "SequenceClassificationModule"),
    ],
)
def test_a_wrong_key_ends_with_the_nearest_valid_one(
    change: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path)
    assert lmkit(f"fit -c tiny.yaml {change}") == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "key", "says"),
    [
        (("losses", 0, "init_args"), "temprature", "temperature"),
        (("losses", 1, "init_args"), "distence", "distance"),
        (("student", "init_args"), "learning_rat", "learning_rate"),
        ((), "teachr", "teacher"),
    ],
)
def test_a_wrong_key_of_the_yaml_too(
    place: tuple[Any, ...],
    key: str,
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = write(tmp_path)
    inner: Any = config["model"]["init_args"]
    for step in place:
        inner = inner[step]
    inner[key] = 1
    (tmp_path / "tiny.yaml").write_text("# Tiny: a run of a second.\n" + yaml.safe_dump(config))
    assert lmkit("fit -c tiny.yaml") == 2
    assert f"{key!r}; did you mean {says!r}?" in capsys.readouterr().err


def test_a_missing_teacher_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, teacher="nowhere")
    assert lmkit("fit -c tiny.yaml") == 1
    assert "the teacher 'nowhere' cannot be loaded" in capsys.readouterr().err


def test_last_goes_on_as_if_uninterrupted(tmp_path: Path) -> None:
    write(tmp_path)
    line = "fit -c tiny.yaml --checkpoint.every_n_train_steps=2"
    assert lmkit(f"{line} --trainer.default_root_dir=whole") == 0
    callback = (
        "from lightning.pytorch import Callback\n\n\nclass Stop(Callback):\n"
        "    def on_train_batch_start(self, trainer, module, batch, batch_idx):\n"
        "        if trainer.global_step == 5:\n            raise OSError('died')\n"
    )
    (tmp_path / "stopping.py").write_text(callback)
    assert lmkit(f"{line} --trainer.callbacks+=stopping.Stop") == 1
    assert lmkit(f"{line} --ckpt_path last") == 0
    whole, resumed = checkpoint("whole"), checkpoint("runs/tiny")
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert same_state(whole[key], resumed[key]), key


def test_a_run_without_its_teacher_is_evaluated_and_used(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.warns(UserWarning, match="goes on without what compares"):
        assert lmkit(f"validate --ckpt_path {RUN}") == 0
    assert "val/accuracy" in capsys.readouterr().out
    (run / "ask.txt").write_text("the quick fox\nthe moons and stars\n")
    assert lmkit(f"predict --ckpt_path {RUN} --data.predict_file=ask.txt") == 0
    written = Path("runs/tiny/predictions.jsonl").read_text()
    rows = [json.loads(line) for line in written.splitlines()]
    assert len(rows) == 2 and set(rows[0]["probabilities"]) == {"fox", "moons", "trees"}
    assert lmkit(f"export --ckpt {RUN} --output exported") == 0
    note = json.loads(Path("exported/lmkit.json").read_text())
    assert note["module"] == "SequenceClassificationModule"
    plain = AutoModelForSequenceClassification.from_pretrained("exported")
    assert plain.config.num_hidden_layers == 2
    loaded: Any = package.load(RUN)
    assert loaded(["the quick fox"])[0]["label"] == rows[0]["label"]
    with torch.no_grad():
        ids = torch.randint(5, 150, (2, 9))
        assert torch.equal(plain(ids).logits, loaded.network(ids).logits)
    assert lmkit("fit -c tiny.yaml --ckpt_path last --trainer.max_steps=8") == 1
    assert "the teacher 'teacher' cannot be loaded" in capsys.readouterr().err


def test_a_test_writes_the_table_of_differences(tmp_path: Path) -> None:
    write(tmp_path)
    line = "fit -c tiny.yaml --trainer.max_steps=1 --trainer.callbacks+=FiguresCallback"
    assert lmkit(f"{line} --test_at_end=true --data.test_file={tmp_path / 'val-rows.csv'}") == 0
    (path,) = Path("runs/tiny").rglob("differences.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    columns = ("example", "text", "label", "student", "teacher", "divergence")
    assert rows and set(columns) <= set(rows[0])
