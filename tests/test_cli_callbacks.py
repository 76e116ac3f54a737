"""Callbacks and losses on the command line: one more, two of a kind, the options of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import task_files
from tests.callbacks.tuned import save_encoder
from tests.tiny_run import checkpoint, lmkit, write_config


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


def options_of(name: str) -> dict[str, Any]:
    """Return the options that the saved config of the run has for a callback."""
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    (found,) = (
        callback["init_args"]
        for callback in config["trainer"]["callbacks"]
        if callback["class_path"].rsplit(".", 1)[-1] == name
    )
    return dict(found)


def test_an_option_of_a_callback_of_the_config_is_changed_by_its_class(tuned: Path) -> None:
    changes = "--trainer.callbacks.LoRACallback.rank=3 --trainer.callbacks.LoRACallback.alpha 1e1"
    more = "--trainer.callbacks+=LossPlotCallback --trainer.callbacks.LoRACallback.targets=[key]"
    assert lmkit(f"fit -c {tuned} {changes} {more}") == 0
    options = options_of("LoRACallback")
    assert (options["rank"], options["alpha"], options["targets"]) == (3, 10.0, ["key"])
    weights = checkpoint("run")["state_dict"]
    added = {len(w) for name, w in weights.items() if "key.lora_A" in name}
    assert added == {3} and not any("query.lora_A" in name for name in weights)
    # The saved config has it, and it can be changed again there.
    assert lmkit("fit -c run/config.yaml --trainer.callbacks.LoRACallback.rank=2") == 0
    assert options_of("LoRACallback")["rank"] == 2
    assert options_of("LoRACallback")["targets"] == ["key"]
    assert lmkit(f"validate --ckpt_path {Path('run/checkpoints/last.ckpt')}") == 0


def test_an_option_of_a_callback_that_is_added_is_told_by_its_class(tmp_path: Path) -> None:
    write_config(tmp_path, max_steps=1, default_root_dir="run")
    line = "--trainer.callbacks+=LoRACallback --trainer.callbacks+=LossPlotCallback"
    assert lmkit(f"fit -c tiny.yaml {line} --trainer.callbacks.LoRACallback.rank=3") == 0
    assert options_of("LoRACallback")["rank"] == 3


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("LoraCallback.rank=4", "no callback LoraCallback, did you mean LoRACallback?"),
        ("BitFitCallback.head=false", "there are LoRACallback, TrainableOnlyCheckpoint; --trainer"),
        ("BitFitCallback.head=false", "callbacks+=BitFitCallback adds one"),
        ("LoRACallback.rnk=4", "'rnk'"),
        ("LoRACallback.rank=many", "a whole number, got 'many'"),
        ("LoRACallback.rank", "LoRACallback.rank needs a value"),
    ],
)
def test_a_wrong_option_of_a_callback_is_named(
    option: str, message: str, tuned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lmkit(f"fit -c {tuned} --trainer.callbacks.{option}") == 2
    assert message in capsys.readouterr().err


def test_an_option_that_could_be_of_two_callbacks_is_refused(
    tuned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = "--trainer.callbacks+=LoRACallback --trainer.callbacks.LoRACallback.rank=4"
    assert lmkit(f"fit -c {tuned} {more}") == 2
    assert "there is more than one LoRACallback" in capsys.readouterr().err


def losses_of(line: str, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    """Return the options of the losses of a distillation, as the parser has them."""
    assert lmkit(f"fit -c distillation {line} --print_config") == 0
    config = yaml.safe_load(capsys.readouterr().out)
    losses = config["model"]["init_args"]["losses"]
    return {loss["class_path"].rsplit(".", 1)[-1]: loss["init_args"] for loss in losses}


def test_a_loss_of_the_config_is_changed_by_its_class_and_the_others_stay(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = losses_of("", capsys)
    line = "--model.losses.LogitLoss.temperature=4 --model.losses.HiddenLoss.layers=[[0,0],[3,6]]"
    after = losses_of(line, capsys)
    assert after.pop("LogitLoss") == before.pop("LogitLoss") | {"temperature": 4.0}
    assert after.pop("HiddenLoss") == before.pop("HiddenLoss") | {"layers": [[0, 0], [3, 6]]}
    assert after == before


def test_a_loss_that_is_added_is_told_by_its_class(capsys: pytest.CaptureFixture[str]) -> None:
    added = "--model.losses+=FlowLoss --model.losses+=AttentionLoss"
    after = losses_of(f"{added} --model.losses.FlowLoss.weight=0.1", capsys)
    assert (after["FlowLoss"]["weight"], after["AttentionLoss"]["weight"]) == (0.1, 1.0)
