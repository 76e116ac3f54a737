"""A checkpoint that leaves the base out is completed from that base, and from no other."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything

import lmkit
from lmkit.callbacks import (
    BitFitCallback,
    GradualUnfreezingCallback,
    SurgeryCallback,
    TrainableOnlyCheckpoint,
)
from lmkit.modules import LMModule, Seq2SeqModule
from lmkit.modules import SequenceClassificationModule as Classifier
from lmkit.modules.frozen_base import decided_settings, describe_base, fingerprint, left_out
from lmkit.surgery.lora import LoRA
from lmkit.surgery.selection import Selection
from tests import task_files, tiny
from tests.callbacks.tuned import SaveAt, fit, learns, logits, make_data, make_module, save_encoder
from tests.cases import make_trainer, weights


def small(folder: Path, *more: Callback, **settings: Any) -> tuple[Classifier, Path]:
    """Fit the biases, and save a small checkpoint; the name of the file is `small.ckpt`."""
    callbacks = BitFitCallback(), TrainableOnlyCheckpoint(), *more
    module, trainer = fit(folder, *callbacks, **{"max_steps": 3, **settings})
    trainer.save_checkpoint(folder / "small.ckpt")
    return module, folder / "small.ckpt"


def change(path: Path, edit: Any) -> None:
    checkpoint = torch.load(path, weights_only=True)
    edit(checkpoint)
    torch.save(checkpoint, path)


def test_what_is_left_out_is_what_is_frozen_and_of_the_base(tmp_path: Path) -> None:
    module, path = small(tmp_path)
    checkpoint = torch.load(path, weights_only=True)
    there = {name for name in checkpoint["state_dict"] if name.startswith("network.")}
    assert there == set(learns(module))
    assert set(checkpoint["lmkit"]["left_out"]) == set(module.state_dict()) - set(
        checkpoint["state_dict"]
    )
    assert checkpoint["lmkit"]["base"]["name"] == str(tmp_path / "base")
    assert checkpoint["lmkit"]["base"]["fingerprint"]
    assert len(checkpoint["optimizer_states"][0]["state"]) == len(there)


def test_what_is_to_be_trained_is_kept_before_there_is_an_optimizer(tmp_path: Path) -> None:
    module = Classifier(save_encoder(tmp_path / "base"))
    module.operate(Selection(biases=True))
    names = dict(module.named_parameters())
    assert left_out(module)
    assert not any(names[name].requires_grad for name in left_out(module))


def test_a_network_from_scratch_has_no_base_to_leave_out() -> None:
    module = Classifier({**tiny.MASKED["bert"], "vocab_size": 99})
    module.operate(Selection(biases=True))
    assert left_out(module) == set()
    assert describe_base(module.network, ()) == {}


def test_what_is_frozen_but_differs_from_the_base_is_kept(tmp_path: Path) -> None:
    whole, trainer = fit(tmp_path, max_steps=2)
    trainer.save_checkpoint(tmp_path / "whole.ckpt")
    # Biases are tuned on top of what was tuned as a whole: no base has those weights.
    for start in (whole, lmkit.load(tmp_path / "whole.ckpt")):
        with pytest.warns(UserWarning, match=r"no frozen weight is as in the base .* export of it"):
            module, path = small(tmp_path, module=start)
        loaded = lmkit.load(path)
        assert all(torch.equal(t, weights(loaded)[n]) for n, t in weights(module).items())
        assert not left_out(module)


@pytest.mark.parametrize("variant", ["lora", "pissa", "olora"])
def test_what_a_surgery_makes_of_the_base_is_made_again(variant: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    callback = SurgeryCallback(LoRA(rank=2, variant=variant))
    module, trainer = fit(tmp_path, callback, TrainableOnlyCheckpoint(), max_steps=3)
    trainer.save_checkpoint(tmp_path / "small.ckpt")
    # The residual of the principal part is the same wherever the base is the same.
    noted = torch.load(tmp_path / "small.ckpt", weights_only=True)["lmkit"]["left_out"]
    assert any("query" in name for name in noted)
    loaded = weights(lmkit.load(tmp_path / "small.ckpt"))
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in weights(module).items())


def test_what_an_optimizer_holds_is_kept_even_while_it_is_frozen(tmp_path: Path) -> None:
    gradual, save = GradualUnfreezingCallback(0, 2), SaveAt(1, tmp_path / "one.ckpt")
    seen: dict[str, torch.Tensor] = {}

    class Look(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            if trainer.global_step == 1:
                assert not any(".layer.0." in name for name in learns(pl_module))
                seen.update(weights(pl_module))

    small(tmp_path, gradual, Look(), save, max_steps=6)
    loaded = weights(lmkit.load(tmp_path / "one.ckpt"))
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in seen.items())
    # Into a module that has trained those weights since.
    module, _ = small(tmp_path, gradual, max_steps=6)
    make_trainer().test(module, make_data(tmp_path), ckpt_path=tmp_path / "one.ckpt", verbose=False)
    assert all(torch.equal(tensor, weights(module)[name]) for name, tensor in seen.items())


def test_a_frozen_weight_that_was_changed_since_is_no_weight_of_the_base(tmp_path: Path) -> None:
    module, path = small(tmp_path)
    with torch.no_grad():
        module.network.get_input_embeddings().weight.add_(1)
    with pytest.raises(ValueError, match=r"has other weights by now .*word_embeddings.*new module"):
        make_trainer().validate(module, make_data(tmp_path), ckpt_path=path, verbose=False)


@pytest.mark.parametrize("alone", [True, False])
def test_another_base_is_refused(alone: bool, tmp_path: Path) -> None:
    _, path = small(tmp_path)
    shutil.rmtree(tmp_path / "base")
    save_encoder(tmp_path / "base", seed=1)
    with pytest.raises(ValueError, match=r"started from the base '.*base' with the weights \w{32}"):
        if alone:
            lmkit.load(path)
        else:
            fit(tmp_path, BitFitCallback(), ckpt_path=path)


@pytest.mark.parametrize(
    "key", ["network.classifier.weight", "network.bert.encoder.layer.0.output.dense.bias"]
)
def test_a_further_weight_that_is_missing_is_noticed(key: str, tmp_path: Path) -> None:
    _, path = small(tmp_path)
    change(path, lambda checkpoint: checkpoint["state_dict"].pop(key))
    message = rf"not what is missing: {key} is missing \(1 differ\)"
    with pytest.raises(ValueError, match=message):
        lmkit.load(path)
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, BitFitCallback(), ckpt_path=path)


def test_a_note_that_does_not_fit_is_noticed(tmp_path: Path) -> None:
    _, path = small(tmp_path)
    change(path, lambda c: c["lmkit"]["left_out"].append("network.classifier.weight"))
    with pytest.raises(ValueError, match=r"classifier\.weight is there, or unknown"):
        lmkit.load(path)
    change(path, lambda c: c["lmkit"].pop("left_out"))
    with pytest.raises(ValueError, match="needs the weights of its base"):
        module = make_module(tmp_path, pretrained=False)
        fit(tmp_path, module=module, ckpt_path=path)


def test_a_fit_from_scratch_cannot_take_it(tmp_path: Path) -> None:
    _, path = small(tmp_path)
    with pytest.raises(ValueError, match=r"needs the weights of its base .*pretrained=True"):
        fit(tmp_path, BitFitCallback(), ckpt_path=path, module={"pretrained": False})
    with pytest.raises(ValueError, match=r"needs the weights of its base .*pretrained=True"):
        Classifier.load_from_checkpoint(path, pretrained=False)


def test_a_base_that_was_moved_is_named_with_the_remedy(tmp_path: Path) -> None:
    module, path = small(tmp_path)
    (tmp_path / "base").rename(tmp_path / "moved")
    moved = str(tmp_path / "moved")
    with pytest.raises(
        ValueError,
        match=r"small\.ckpt holds only what was trained, and its base '.*base' could not be loaded "
        r"\(there is no model folder.*lmkit\.load\(path, base=.*lmkit export --base.*--model",
    ):
        lmkit.load(path)
    for cls in (LMModule, Classifier):
        loaded = cls.load_from_checkpoint(path, model=moved)
        assert torch.equal(logits(loaded.network), logits(module.network))
        assert loaded.hparams["model"] == loaded.base["name"] == moved
    loaded = lmkit.load(path, base=tmp_path / "moved")
    assert torch.equal(logits(loaded.network), logits(module.network))
    with pytest.raises(ValueError, match=r"base is for a checkpoint .*moved is none"):
        lmkit.load(tmp_path / "moved", base=moved)
    with pytest.raises(ValueError, match="this module has its weights"):
        lmkit.export(loaded, tmp_path / "exported", base=moved)
    # The weights may be gone, and the config still there.
    (tmp_path / "moved" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"its base '.*moved' could not be loaded"):
        LMModule.load_from_checkpoint(path, model=moved)


def test_a_run_goes_on_after_its_base_was_moved(tmp_path: Path) -> None:
    callbacks = BitFitCallback(), TrainableOnlyCheckpoint()
    whole, _ = fit(tmp_path, *callbacks, SaveAt(3, tmp_path / "three.ckpt"))
    (tmp_path / "base").rename(tmp_path / "moved")
    module = make_module(tmp_path, model=str(tmp_path / "moved"))
    resumed, trainer = fit(tmp_path, *callbacks, module=module, ckpt_path=tmp_path / "three.ckpt")
    assert all(torch.equal(t, weights(resumed)[n]) for n, t in weights(whole).items())
    # What it writes names the new place.
    trainer.save_checkpoint(tmp_path / "six.ckpt")
    assert torch.equal(logits(lmkit.load(tmp_path / "six.ckpt").network), logits(whole.network))


def test_a_base_of_a_relative_path_is_found_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_encoder(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    module, path = small(tmp_path, module={"model": "base"})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    loaded = lmkit.load(path)
    assert loaded.hparams["model"] == "base"
    assert torch.equal(logits(loaded.network), logits(module.network))


def test_a_base_with_a_head_for_other_classes_gets_the_head_that_was_trained(
    tmp_path: Path,
) -> None:
    named = {"id2label": {0: "good", 1: "bad"}, "label2id": {"good": 0, "bad": 1}}
    first = Classifier({**tiny.MASKED["bert"], "vocab_size": len(tiny.tokenizer()), **named})
    first.tokenizer = tiny.tokenizer()
    lmkit.export(first, tmp_path / "base")
    module, path = small(tmp_path)
    loaded = lmkit.load(path)
    assert list(loaded.network.config.id2label.values()) == ["fox", "moons", "trees"]
    assert torch.equal(logits(loaded.network), logits(module.network))


def test_settings_of_a_checkpoint_hold_while_it_is_loaded(tmp_path: Path) -> None:
    _, path = small(tmp_path)
    lmkit.load(path)
    assert decided_settings(None) == {}
    assert (
        make_module(tmp_path).build(Classifier.auto_class, str(tmp_path / "base"))[0].num_labels
        == 2
    )


def test_an_encoder_decoder_of_two_bases_comes_back(tmp_path: Path) -> None:
    half = save_encoder(tmp_path / "base")
    seed_everything(3)
    module = Seq2SeqModule(
        {"model_type": "encoder-decoder", "encoder": half, "decoder": half}, max_new_tokens=4
    )
    data = lmkit.datamodules.Seq2SeqDataModule(
        **task_files.text_pairs(tmp_path / "data"),
        tokenizer=half,
        max_length=16,
        max_target_length=16,
        batch_size=8,
    )
    trainer = make_trainer(BitFitCallback(), TrainableOnlyCheckpoint(), max_steps=2)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "small.ckpt")
    assert torch.load(tmp_path / "small.ckpt", weights_only=True)["lmkit"]["left_out"]
    loaded = lmkit.load(tmp_path / "small.ckpt")
    assert all(torch.equal(t, weights(loaded)[n]) for n, t in weights(module).items())
    assert module.network.config.seq2seq.items() <= loaded.network.config.seq2seq.items()


def test_the_fingerprint_is_that_of_the_loaded_weights_alone(tmp_path: Path) -> None:
    module = make_module(tmp_path)
    module.configure_model()
    base = dict(module.base)
    module.operate(Selection(norms=True))
    assert module.base == base
    assert set(base["fresh"]) == {"classifier.weight", "classifier.bias"}
    names = set(module.network.state_dict()) - set(base["fresh"])
    assert base["fingerprint"] == fingerprint(module.network, names)
