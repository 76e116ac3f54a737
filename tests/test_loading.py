"""`lmkit.load` finds the module of a checkpoint, a folder or a name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForNextSentencePrediction

import lmkit
from lmkit.callbacks import LoRACallback, TrainableOnlyCheckpoint
from lmkit.modules import (
    CausalLMModule,
    LMModule,
    MaskedLMModule,
    ReplacedTokenModule,
    SequenceClassificationModule,
)
from lmkit.surgery.low_rank import LowRank, low_rank_layers
from lmkit.tokenization import train_tokenizer
from tests import tiny
from tests.callbacks.tuned import SaveAt, fit, make_data, make_module
from tests.cases import CASES, make_trainer, weights


@pytest.mark.parametrize(
    ("cls", "config"),
    [
        (MaskedLMModule, tiny.MASKED["bert"]),
        (MaskedLMModule, tiny.MASKED["roberta"]),
        (CausalLMModule, tiny.CAUSAL["gpt2"]),
        (CausalLMModule, tiny.CAUSAL["llama"]),
    ],
)
def test_an_export_comes_back_as_its_module(
    cls: type[LMModule], config: dict[str, object], tmp_path: Path
) -> None:
    module = cls(model=dict(config))
    module.tokenizer = tiny.tokenizer("wordpiece" if cls is MaskedLMModule else "bpe")
    loaded = lmkit.load(lmkit.export(module, tmp_path / "out"))
    assert type(loaded) is cls and not loaded.network.training
    ids = torch.randint(5, 90, (2, 8))
    with torch.no_grad():
        expected = module.eval().network(input_ids=ids).logits
        assert torch.equal(loaded.network(input_ids=ids).logits, expected)
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.get_vocab() == module.tokenizer.get_vocab()


def test_a_checkpoint_that_is_loaded_is_not_said_to_start_at_random(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    _, trainer = fit(tmp_path, LoRACallback(rank=2), TrainableOnlyCheckpoint())
    assert "has no weights for" in caplog.text and "these start at random" in caplog.text
    trainer.save_checkpoint(tmp_path / "small.ckpt")
    caplog.clear()
    lmkit.load(tmp_path / "small.ckpt")
    lmkit.export(tmp_path / "small.ckpt", tmp_path / "out", merge=True)
    assert "at random" not in caplog.text
    # What is built afterwards is said again.
    make_module(tmp_path).configure_model()
    assert "these start at random" in caplog.text


def test_a_head_without_a_module_is_named(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    BertForNextSentencePrediction(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a BertForNextSentencePrediction, for which"):
        lmkit.load(tmp_path)


def test_a_folder_of_a_run_names_the_checkpoints_in_it(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"checkpoint in it: .*last\.ckpt"):
        lmkit.load(tmp_path)


def test_a_name_that_is_nothing_is_named() -> None:
    with pytest.raises(ValueError, match="neither a checkpoint, nor a folder, nor a model"):
        lmkit.load("no/such-model")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at gone\.ckpt"):
        lmkit.load("gone.ckpt")


def test_a_checkpoint_of_plain_lightning_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "hyper_parameters": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="no checkpoint of an lmkit module"):
        lmkit.load(tmp_path / "other.ckpt")


def test_data_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    case = CASES[0]
    module = case.make_module()
    trainer = make_trainer(max_steps=1)
    trainer.fit(module, case.make_data(tmp_path))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    other = train_tokenizer(["zebra quilt " + text for text in tiny.sentences(50)], vocab_size=280)
    other.save_pretrained(tmp_path / "other")
    data = case.make_data(tmp_path, tokenizer=str(tmp_path / "other"))
    for module, ckpt_path in (
        (lmkit.load(tmp_path / "a.ckpt"), None),
        (case.make_module(), tmp_path / "a.ckpt"),
    ):
        with pytest.raises(ValueError, match="another tokenizer than the model was trained with"):
            make_trainer().validate(module, data, ckpt_path=ckpt_path)


def narrow_folder(folder: Path) -> tuple[LMModule, str]:
    """Export a masked language model with low-rank layers."""
    torch.manual_seed(0)
    module = MaskedLMModule(model=dict(tiny.MASKED["bert"]))
    module.tokenizer = tiny.tokenizer()
    module.operate(LowRank({"all": 3}))
    return module, str(lmkit.export(module, folder))


def test_a_folder_of_low_rank_layers_is_a_base_to_train_on(tmp_path: Path) -> None:
    module, folder = narrow_folder(tmp_path / "base")
    # Another head, whose number of classes the data say.
    tuned = SequenceClassificationModule(folder, learning_rate=1e-2, warmup=0)
    trainer = make_trainer(max_steps=3)
    data = make_data(tmp_path, tokenizer=folder)
    trainer.fit(tuned, data)
    assert tuned.ledger == module.ledger and tuned.network.config.num_labels == 3
    assert set(low_rank_layers(tuned.network)) == set(low_rank_layers(module.network))
    assert set(tuned.base["fresh"]) == {
        f"{name}.{word}"
        for name in ("bert.pooler.dense", "classifier")
        for word in ("weight", "bias")
    }
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    exported = lmkit.load(lmkit.export(tuned, tmp_path / "tuned"))
    # A checkpoint stands alone.
    (tmp_path / "base").rename(tmp_path / "gone")
    for loaded in (lmkit.load(tmp_path / "last.ckpt"), exported):
        ours, theirs = weights(tuned), weights(loaded)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert exported("the quick fox") == tuned.eval()("the quick fox")


def test_a_fit_on_a_folder_of_low_rank_layers_resumes_and_keeps_what_it_trains_alone(
    tmp_path: Path,
) -> None:
    _, folder = narrow_folder(tmp_path / "base")
    callbacks = LoRACallback(rank=2, targets=["all"]), TrainableOnlyCheckpoint()
    how = {"module": {"model": folder}, "data": {"tokenizer": folder}, "max_steps": 4}
    small = tmp_path / "small.ckpt"
    whole, _ = fit(tmp_path, *callbacks, SaveAt(2, small), **how)
    kept = torch.load(small, weights_only=True)["state_dict"]
    assert not any(key.endswith((".up", ".down")) for key in kept)
    assert len(lmkit.load(small).ledger) == 2
    resumed, _ = fit(tmp_path, *callbacks, ckpt_path=small, **how)
    assert resumed.ledger == whole.ledger and low_rank_layers(whole.network)
    assert all(torch.equal(t, weights(resumed)[name]) for name, t in weights(whole).items())


def test_a_generator_has_no_low_rank_layers(tmp_path: Path) -> None:
    _, folder = narrow_folder(tmp_path / "base")
    module = ReplacedTokenModule(dict(tiny.MASKED["electra"]), generator=folder)
    module.tokenizer = tiny.tokenizer()
    with pytest.raises(ValueError, match=r"the generator in .* export it with merge=True"):
        module.configure_model()


def test_a_structure_that_is_not_of_its_weights_is_refused(tmp_path: Path) -> None:
    _, folder = narrow_folder(tmp_path / "base")
    path = Path(folder) / "structure.json"
    path.write_text(path.read_text().replace('"all": 3', '"all": 4'))
    with pytest.raises(ValueError, match=r"not of the structure that structure\.json"):
        lmkit.load(folder)
    path.write_text(path.read_text().replace("lmkit.surgery.low_rank", "somebody.surgery"))
    with pytest.raises(ValueError, match=r"somebody\.surgery\.LowRank.*not to be had"):
        lmkit.load(folder)
