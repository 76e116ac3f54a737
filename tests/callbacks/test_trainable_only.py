"""Checkpoints hold what was trained, and serve for all that whole ones serve for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

import lmkit
from lmkit.callbacks import (
    BitFitCallback,
    CheckpointCallback,
    SelectiveTuningCallback,
    TrainableOnlyCheckpoint,
)
from lmkit.callbacks.adapter import AdapterCallback
from lmkit.callbacks.prompt_tuning import PromptTuningCallback
from lmkit.modules import SequenceClassificationModule as Classifier
from tests import task_files, tiny
from tests.callbacks.tuned import SaveAt, fit, learns, logits, make_data, make_module, save_encoder
from tests.cases import make_trainer, weights
from tests.tiny_run import lmkit as command

TECHNIQUES: dict[str, Callable[[], Callback]] = {
    "bitfit": BitFitCallback,
    "layers": lambda: SelectiveTuningCallback(layers=1),
    "adapter": lambda: AdapterCallback(size=4),
    "compacter": lambda: AdapterCallback(kind="compacter", size=4),
    "prompt": lambda: PromptTuningCallback(4),
}
EACH = pytest.mark.parametrize("make", TECHNIQUES.values(), ids=TECHNIQUES)


def tensors(path: Path) -> int:
    """Count the bytes of the weights and of the optimizer's state in a checkpoint."""
    checkpoint = torch.load(path, weights_only=True)
    states = checkpoint["optimizer_states"][0]["state"].values()
    moments = [t for state in states for t in state.values() if torch.is_tensor(t)]
    return sum(t.nbytes for t in [*checkpoint["state_dict"].values(), *moments])


@EACH
def test_it_holds_what_was_trained_and_loads_alone(make: Any, tmp_path: Path) -> None:
    module, trainer = fit(tmp_path, make(), TrainableOnlyCheckpoint())
    trainer.save_checkpoint(tmp_path / "small.ckpt")
    there = set(torch.load(tmp_path / "small.ckpt", weights_only=True)["state_dict"])
    assert set(learns(module)) <= there
    frozen = {n for n, p in module.named_parameters() if not p.requires_grad}
    assert not frozen & there
    loaded = lmkit.load(tmp_path / "small.ckpt")
    assert all(torch.equal(t, weights(loaded)[n]) for n, t in weights(module).items())
    assert set(learns(loaded)) == set(learns(module))
    # Saved by a fit that starts from it, it is small again.
    _, trainer = fit(tmp_path, TrainableOnlyCheckpoint(), module=loaded, max_steps=2)
    trainer.save_checkpoint(tmp_path / "again.ckpt")
    assert set(torch.load(tmp_path / "again.ckpt", weights_only=True)["state_dict"]) == there


@EACH
def test_interrupted_and_resumed_is_uninterrupted(make: Any, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"accumulate_grad_batches": 2, "data": {"batch_size": 4}}
    only = TrainableOnlyCheckpoint()
    whole, _ = fit(tmp_path, make(), only, SaveAt(5, tmp_path / "five.ckpt"), **settings)
    resumed, _ = fit(tmp_path, make(), only, ckpt_path=tmp_path / "five.ckpt", **settings)
    bare, trainer = fit(tmp_path, ckpt_path=tmp_path / "five.ckpt", **settings)
    for other in (resumed, bare):
        assert all(torch.equal(t, weights(other)[n]) for n, t in weights(whole).items())
    # Without the callback the checkpoints are whole again, and can do without the base.
    trainer.save_checkpoint(tmp_path / "whole.ckpt")
    for file in (tmp_path / "base").iterdir():
        file.unlink()
    loaded = lmkit.load(tmp_path / "whole.ckpt")
    assert torch.equal(logits(loaded.network), logits(whole.network))


def test_it_is_a_small_share_of_a_whole_one(tmp_path: Path) -> None:
    config = {**tiny.MASKED["bert"], "hidden_size": 64, "intermediate_size": 256}
    big = Classifier({**config, "vocab_size": len(tiny.tokenizer())})
    big.tokenizer = tiny.tokenizer()
    lmkit.export(big, tmp_path / "base")
    sizes, files = {}, {}
    for name, extra in {
        "full": [],
        "whole": [BitFitCallback()],
        "small": [BitFitCallback(), TrainableOnlyCheckpoint()],
    }.items():
        _, trainer = fit(tmp_path, *extra, max_steps=2)
        trainer.save_checkpoint(tmp_path / f"{name}.ckpt")
        sizes[name] = tensors(tmp_path / f"{name}.ckpt")
        files[name] = (tmp_path / f"{name}.ckpt").stat().st_size
    # Weights and two moments of each.
    assert sizes["small"] < 0.02 * sizes["full"] and sizes["small"] < 0.05 * sizes["whole"]
    assert files["small"] < files["whole"] < files["full"]


def test_it_works_with_averaged_weights(tmp_path: Path) -> None:
    callbacks = BitFitCallback(), TrainableOnlyCheckpoint()
    save = SaveAt(3, tmp_path / "three.ckpt")
    whole, trainer = fit(tmp_path, *callbacks, EMAWeightAveraging(decay=0.5), save)
    trainer.save_checkpoint(tmp_path / "six.ckpt")
    checkpoint = torch.load(tmp_path / "three.ckpt", weights_only=True)
    names = set(learns(whole))
    for part in ("state_dict", "current_model_state"):
        assert {n for n in checkpoint[part] if n.startswith("network.")} == names
    lmkit.load(tmp_path / "three.ckpt")
    resumed, _ = fit(
        tmp_path, *callbacks, EMAWeightAveraging(decay=0.5), ckpt_path=tmp_path / "three.ckpt"
    )
    assert all(torch.equal(t, weights(resumed)[n]) for n, t in weights(whole).items())


@pytest.mark.parametrize("weights_only", [True, False])
def test_checkpoints_of_lightnings_own_are_small_too(weights_only: bool, tmp_path: Path) -> None:
    saver = ModelCheckpoint(
        tmp_path / "kept", monitor="val/loss", save_last=True, save_weights_only=weights_only
    )
    module, trainer = fit(
        tmp_path,
        BitFitCallback(),
        TrainableOnlyCheckpoint(),
        saver,
        enable_checkpointing=True,
        val_check_interval=3,
    )
    for path in (Path(saver.best_model_path), tmp_path / "kept" / "last.ckpt"):
        there = torch.load(path, weights_only=True)["state_dict"]
        assert {n for n in there if n.startswith("network.")} == set(learns(module))
        loaded = lmkit.load(path)
        assert set(learns(loaded)) == set(learns(module))
    tested = trainer.test(datamodule=make_data(tmp_path), ckpt_path="best", verbose=False)
    assert tested


def test_best_and_last_are_small_and_a_new_process_goes_on_from_the_last(tmp_path: Path) -> None:
    def callbacks() -> list[Callback]:
        saver = CheckpointCallback(2, dirpath=str(tmp_path / "kept"))
        return [BitFitCallback(), TrainableOnlyCheckpoint(), saver]

    whole, _ = fit(tmp_path, *callbacks(), max_steps=8, val_check_interval=4)
    fit(tmp_path, *callbacks(), max_steps=6, val_check_interval=4)
    paths = sorted((tmp_path / "kept").glob("*.ckpt"))
    assert {path.name.split("-")[0].split(".")[0] for path in paths} == {"best", "last"}
    for path in paths:
        there = torch.load(path, weights_only=True)["state_dict"]
        assert {n for n in there if n.startswith("network.")} == set(learns(whole))
    resumed, _ = fit(
        tmp_path,
        *callbacks(),
        max_steps=8,
        val_check_interval=4,
        ckpt_path=tmp_path / "kept" / "last.ckpt",
    )
    assert all(torch.equal(t, weights(resumed)[n]) for n, t in weights(whole).items())


def test_a_later_fit_without_the_callback_saves_all(tmp_path: Path) -> None:
    module, _ = fit(tmp_path, BitFitCallback(), TrainableOnlyCheckpoint(), max_steps=1)
    _, trainer = fit(tmp_path, module=module, max_steps=1)
    trainer.save_checkpoint(tmp_path / "whole.ckpt")
    there = torch.load(tmp_path / "whole.ckpt", weights_only=True)["state_dict"]
    assert set(there) == set(module.state_dict())


def test_weights_in_half_precision_are_kept_for_no_base_has_them(tmp_path: Path) -> None:
    callbacks = BitFitCallback(), TrainableOnlyCheckpoint()
    module, trainer = fit(tmp_path, *callbacks, max_steps=2, precision="bf16-true")
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    loaded = weights(lmkit.load(tmp_path / "half.ckpt"))
    assert all(torch.equal(t.float(), loaded[n].float()) for n, t in weights(module).items())


def test_a_module_of_its_own_is_validated_from_it(tmp_path: Path) -> None:
    module, trainer = fit(tmp_path, BitFitCallback(), TrainableOnlyCheckpoint())
    trainer.save_checkpoint(tmp_path / "small.ckpt")
    data = make_data(tmp_path)
    expected = make_trainer().validate(module, data, verbose=False)
    fresh = make_module(tmp_path)
    path = tmp_path / "small.ckpt"
    assert make_trainer().validate(fresh, data, ckpt_path=path, verbose=False) == expected


def test_a_fresh_module_predicts_from_it_with_data_that_name_no_classes(tmp_path: Path) -> None:
    module, trainer = fit(tmp_path, BitFitCallback(), TrainableOnlyCheckpoint())
    trainer.save_checkpoint(tmp_path / "small.ckpt")
    (tmp_path / "ask.txt").write_text("the quick fox\nthe old trees\n")
    files = {"train_file": None, "val_file": None, "predict_file": str(tmp_path / "ask.txt")}
    asked = make_data(tmp_path, **files)
    expected = make_trainer().predict(module, asked)
    for extra in ([], [BitFitCallback()]):
        fresh = make_module(tmp_path)
        told = make_trainer(*extra).predict(fresh, asked, ckpt_path=tmp_path / "small.ckpt")
        assert told == expected and fresh.network.config.num_labels == 3


def test_data_with_other_classes_are_refused(tmp_path: Path) -> None:
    _, trainer = fit(tmp_path, BitFitCallback(), TrainableOnlyCheckpoint())
    trainer.save_checkpoint(tmp_path / "small.ckpt")
    (tmp_path / "two.csv").write_text("text,label\na fox,fox\na tree,trees\n")
    data = make_data(tmp_path, test_file=str(tmp_path / "two.csv"), train_file=None, val_file=None)
    with pytest.raises(ValueError, match=r"was built with 3 classes .* and the data have 2"):
        make_trainer().test(make_module(tmp_path), data, ckpt_path=tmp_path / "small.ckpt")


def test_an_export_of_it_stands_without_the_base(tmp_path: Path) -> None:
    module, trainer = fit(tmp_path, BitFitCallback(), TrainableOnlyCheckpoint())
    trainer.save_checkpoint(tmp_path / "small.ckpt")
    lmkit.export(tmp_path / "small.ckpt", tmp_path / "out")
    for file in (tmp_path / "base").iterdir():
        file.unlink()
    loaded = lmkit.load(tmp_path / "out")
    assert torch.equal(logits(loaded.network), logits(module.network))


def test_a_network_from_scratch_is_saved_whole_and_warned_of(tmp_path: Path) -> None:
    module = Classifier(dict(tiny.MASKED["bert"]), learning_rate=1e-2)
    with pytest.warns(UserWarning, match="made from scratch, so the checkpoints have to hold"):
        _, trainer = fit(tmp_path, BitFitCallback(), TrainableOnlyCheckpoint(), module=module)
    trainer.save_checkpoint(tmp_path / "whole.ckpt")
    there = torch.load(tmp_path / "whole.ckpt", weights_only=True)["state_dict"]
    assert set(there) == set(module.state_dict())
    lmkit.load(tmp_path / "whole.ckpt")


def test_a_network_without_anything_frozen_is_warned_of(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="nothing is frozen, so the checkpoints hold all weights"):
        fit(tmp_path, TrainableOnlyCheckpoint(), max_steps=1)


def test_a_module_that_is_not_ours_is_refused() -> None:
    with pytest.raises(TypeError, match="needs a module of lmkit, got LightningModule"):
        TrainableOnlyCheckpoint().setup(make_trainer(), LightningModule(), "fit")


def test_the_command_fits_goes_on_tests_and_predicts_from_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = task_files.labelled_texts(tmp_path / "data")
    base = save_encoder(tmp_path / "base")
    config = {
        "model": {"class_path": "SequenceClassificationModule", "init_args": {"model": base}},
        "data": {
            "class_path": "SequenceClassificationDataModule",
            "init_args": {**files, "test_file": files["val_file"], "max_length": 16},
        },
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 3,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [
                {"class_path": "BitFitCallback"},
                {"class_path": "TrainableOnlyCheckpoint"},
            ],
        },
    }
    (tmp_path / "tiny.yaml").write_text("# Tiny.\n" + yaml.safe_dump(config))
    assert command("fit -c tiny.yaml") == 0
    assert command("fit -c tiny.yaml --trainer.max_steps=5 --ckpt_path last") == 0
    (last,) = tmp_path.glob("runs/*/checkpoints/last.ckpt")
    checkpoint = torch.load(last, weights_only=True)
    assert checkpoint["global_step"] == 5 and checkpoint["lmkit"]["left_out"]
    assert command(f"test --ckpt_path {last}") == 0
    (tmp_path / "ask.txt").write_text("the quick fox\n")
    assert command(f"predict --ckpt_path {last} --data.predict_file=ask.txt") == 0
    (told,) = tmp_path.glob("runs/*/predictions.jsonl")
    assert json.loads(told.read_text())["label"] in ("fox", "moons", "trees")
    assert command(f"export --ckpt {last} --output exported") == 0
    (tmp_path / "base").rename(tmp_path / "moved")
    capsys.readouterr()
    assert command(f"test --ckpt_path {last}") != 0
    assert "there is no model folder at" in capsys.readouterr().err
