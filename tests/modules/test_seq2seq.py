"""Sequence-to-sequence tuning."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForSeq2SeqLM

import lmkit
from lmkit.datamodules.seq2seq import Seq2SeqDataModule
from lmkit.functional import token_cross_entropy
from lmkit.modules.seq2seq import Seq2SeqModule
from lmkit.modules.text_metrics import Bleu, Chrf, Rouge
from tests import tiny
from tests.cases import make_trainer
from tests.modules.language_model import (
    check_loss_is_that_of_transformers,
    check_metrics_are_over_tokens,
    make,
)
from tests.modules.test_denoising import MODELS as SINGLE
from tests.modules.test_denoising import denoising_batch

_HALF = {**tiny.MASKED["bert"], "vocab_size": 99}
_TWO = {"model_type": "encoder-decoder", "encoder": _HALF, "decoder": _HALF}
_IDS = {"decoder_start_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
MODELS: dict[str, dict[str, Any]] = {
    **SINGLE,
    "two_berts": {**_TWO, **_IDS},
    "tied_berts": {**_TWO, **_IDS, "tie_encoder_decoder": True},
}
WORDS = {"one": "eins", "two": "zwei", "three": "drei", "four": "vier", "five": "fünf"}


def write_pairs(folder: Path, count: int = 24) -> tuple[str, str]:
    """Write numbers in two languages, the second backwards."""
    names = list(WORDS)
    rows = [[names[(i * k + k) % 5] for k in range(1, 3 + i % 3)] for i in range(count)]
    (folder / "all.en").write_text("".join(" ".join(row) + "\n" for row in rows))
    (folder / "all.de").write_text(
        "".join(" ".join(WORDS[word] for word in row[::-1]) + "\n" for row in rows)
    )
    return str(folder / "all.en"), str(folder / "all.de")


def make_data(folder: Path, **kwargs: Any) -> Seq2SeqDataModule:
    """Make a data module whose validation pairs are those it trains on."""
    files = list(write_pairs(folder))
    settings: dict[str, Any] = {
        "train_file": files,
        "val_file": files,
        "vocab_size": 300,
        "max_length": 32,
        "max_target_length": 24,
        "batch_size": 8,
        "seed": 1,
    }
    return Seq2SeqDataModule(**{**settings, **kwargs})


def without_vocabulary(name: str) -> dict[str, Any]:
    """Return a config whose vocabulary and ids are the tokenizer's."""
    if "encoder" not in MODELS[name]:
        return MODELS[name]
    half = {k: v for k, v in _HALF.items() if k != "vocab_size"}
    rest = {k: v for k, v in MODELS[name].items() if k not in _IDS}
    return {**rest, "encoder": half, "decoder": half}


def fit(name: str, folder: Path, steps: int = 2, **kwargs: Any) -> tuple[Any, Any, Any]:
    torch.manual_seed(0)
    data = make_data(folder, **kwargs.pop("data", {}))
    settings: dict[str, Any] = {"learning_rate": 5e-3, "warmup": 0, "max_new_tokens": 12}
    module = Seq2SeqModule(without_vocabulary(name), **{**settings, **kwargs})
    # Texts take longer to write than to learn from.
    trainer = make_trainer(max_steps=steps, check_val_every_n_epoch=1000)
    trainer.fit(module, data)
    return module, trainer, data


def ask(module: Seq2SeqModule, *texts: str) -> dict[str, Any]:
    assert module.tokenizer is not None
    encoded = module.tokenizer(list(texts), padding=True, return_tensors="pt")
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradient_equal_those_of_transformers(name: str) -> None:
    batch = denoising_batch()
    items = int((batch["labels"] != -100).sum())
    check_loss_is_that_of_transformers(make(Seq2SeqModule, MODELS[name]), batch, items)


@pytest.mark.parametrize("name", ["t5", "bart", "two_berts"])
def test_metrics_are_the_same_for_any_batch_size_and_order(name: str) -> None:
    check_metrics_are_over_tokens(make(Seq2SeqModule, MODELS[name]), denoising_batch(rows=11))


def test_the_head_of_two_networks_sees_only_labelled_positions() -> None:
    module, batch = make(Seq2SeqModule, MODELS["two_berts"]), denoising_batch()
    seen: list[int] = []
    module.network.decoder.cls.register_forward_hook(
        lambda head, arguments, output: seen.append(output.numel() // output.shape[-1])
    )
    module.step(batch)
    assert seen == [int((batch["labels"] != -100).sum())]


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_smoothed_loss_equals_its_formula_in_float64(smoothing: float) -> None:
    torch.manual_seed(1)
    logits, labels = 3 * torch.randn(50, 99), torch.randint(0, 99, (50,))
    labels[::7] = -100
    loss, count = token_cross_entropy(logits, labels, smoothing)
    probable = logits.double().log_softmax(-1)[labels != -100]
    right = probable.gather(1, labels[labels != -100].unsqueeze(1)).squeeze(1)
    expected = -((1 - smoothing) * right + smoothing * probable.mean(-1)).mean()
    assert abs(loss.item() - expected.item()) <= 1e-6
    assert count.item() == int((labels != -100).sum())


def test_smoothing_is_of_the_training_alone() -> None:
    module = make(Seq2SeqModule, MODELS["t5"], label_smoothing=0.2, dropout=0.0)
    batch = denoising_batch()
    training, evaluated = module.step(batch), module.eval().step(batch)
    logits, labels = training.logits, batch["labels"][batch["labels"] != -100]
    assert logits is not None
    smoothed = F.cross_entropy(logits, labels, label_smoothing=0.2)
    assert training.loss.item() == pytest.approx(smoothed.item(), abs=1e-6)
    assert evaluated.loss.item() == pytest.approx(F.cross_entropy(logits, labels).item(), abs=1e-6)


def test_a_batch_without_a_label_has_no_loss_and_no_gradient() -> None:
    module, batch = make(Seq2SeqModule, MODELS["bart"], label_smoothing=0.1), denoising_batch()
    output = module.step({**batch, "labels": torch.full_like(batch["labels"], -100)})
    output.loss.backward()
    assert output.loss.item() == 0 and output.items.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in module.parameters())


@pytest.mark.parametrize("name", ["t5", "bart", "two_berts", "tied_berts"])
def test_every_trainable_weight_gets_a_gradient(name: str) -> None:
    module = make(Seq2SeqModule, MODELS[name])
    module.step(denoising_batch()).loss.backward()
    assert not [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize(("name", "beams"), [("t5", 1), ("bart", 3), ("two_berts", 2)])
def test_it_writes_what_generate_of_transformers_does(
    name: str, beams: int, tmp_path: Path
) -> None:
    module, _, _ = fit(name, tmp_path, beams=beams, generation={"length_penalty": 0.5})
    batch = ask(module, "one two", "three four five one", "two")
    ids = module.network.eval().generate(
        **batch, num_beams=beams, max_new_tokens=12, length_penalty=0.5, do_sample=False
    )
    expected = [module.tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids]
    module.network.train()
    written = module(["one two", "three four five one", "two"])
    assert [row["generated"] for row in written] == expected
    assert all(part.training for part in module.network.modules())


def test_what_is_written_for_a_row_does_not_depend_on_its_batch(tmp_path: Path) -> None:
    module, _, _ = fit("t5", tmp_path, steps=20, beams=3)
    texts = ["one two", "three four five one", "two"]
    assert module(texts) == [module(text) for text in texts]


def test_a_small_set_is_learnt_and_written_exactly(tmp_path: Path) -> None:
    module, trainer, data = fit(
        "t5",
        tmp_path,
        steps=400,
        learning_rate=7e-3,
        metrics=["bleu", "chrf", "rouge"],
        dropout=0.0,
    )
    (figures,) = trainer.validate(module, data, verbose=False)
    assert figures["val/accuracy"] == 1.0
    for name in ("bleu", "chrf", "rouge1", "rougeL"):
        assert figures[f"val/{name}"] > 99.9 or (name, figures[f"val/{name}"]) == ("bleu", 0.0)
    sources = (tmp_path / "all.en").read_text().splitlines()
    targets = (tmp_path / "all.de").read_text().splitlines()
    assert [row["generated"] for row in module(sources)] == targets


def test_a_decoder_does_not_write_again_what_it_starts_from(tmp_path: Path) -> None:
    module, _, data = fit("two_berts", tmp_path, data={"tokenizer_kind": "wordpiece"})
    start = module.network.config.decoder_start_token_id
    assert start == module.tokenizer.cls_token_id
    batch = next(iter(data.val_dataloader()))
    labels = module.prepare(batch)["labels"]
    assert (batch["labels"][:, 0] == start).all() and not (labels == start).any()
    assert torch.equal(labels, batch["labels"][:, 1:])


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
@pytest.mark.parametrize("name", ["t5", "bart", "two_berts"])
def test_a_model_from_scratch_ends_where_its_tokenizer_does(
    name: str, kind: str, tmp_path: Path
) -> None:
    module, _, _ = fit(name, tmp_path, data={"tokenizer_kind": kind})
    words, config = module.tokenizer, module.network.config
    end = words.eos_token_id if kind == "bpe" else words.sep_token_id
    assert module.network.generation_config.eos_token_id == config.eos_token_id == end
    assert module.network.generation_config.forced_eos_token_id in (None, end)
    assert config.pad_token_id == words.pad_token_id
    assert config.decoder_start_token_id == words("one").input_ids[0]


def test_validation_writes_some_examples_and_a_test_all(tmp_path: Path) -> None:
    module, _, data = fit("t5", tmp_path, metrics=["chrf"], generate_examples=5)
    seen: list[str] = []
    write = module._write

    def count(batch: Any) -> list[str]:
        written = write(batch)
        seen.extend(written)
        return written

    module._write = count  # type: ignore[method-assign]
    trainer = make_trainer()
    (figures,) = trainer.validate(module, data, verbose=False)
    assert len(seen) == 5
    targets = [data.target("val", i) for i in range(5)]
    assert figures["val/chrf"] == pytest.approx(chrf(seen, targets), abs=1e-4)
    seen.clear()
    trainer.test(module, data, verbose=False)
    assert len(seen) == 24


def chrf(written: list[str], targets: list[str]) -> float:
    # In the order in which they were written: the longest first.
    data = sorted(range(len(targets)), key=lambda i: -len(targets[i].split()))
    metric = Chrf()
    metric.update(written, [targets[i] for i in data])
    return metric.compute().item()


def test_metrics_of_texts_do_not_depend_on_the_batches(tmp_path: Path) -> None:
    module, _, _ = fit("t5", tmp_path, steps=30, metrics=["bleu", "chrf", "rouge"], beams=1)
    figures = []
    for size in (3, 8, 24):
        data = make_data(tmp_path, batch_size=size)
        (found,) = make_trainer().validate(module, data, verbose=False)
        figures.append(found)
    assert set(figures[0]) >= {"val/bleu", "val/chrf", "val/rouge1", "val/rouge2", "val/rougeL"}
    assert figures[0]["val/chrf"] > 0
    for other in figures[1:]:
        assert other == pytest.approx(figures[0], rel=1e-5)


def test_references_are_the_texts_of_the_file_and_not_of_their_tokens(tmp_path: Path) -> None:
    data = {"tokenizer_kind": "wordpiece", "max_target_length": 4}
    module, trainer, made = fit("t5", tmp_path, metrics=["chrf"], data=data)
    batch = next(iter(made.val_dataloader()))
    targets = (tmp_path / "all.de").read_text().splitlines()
    module.trainer = trainer
    assert module._targets(batch, [0, 1], "val") == [targets[int(i)] for i in batch["index"][:2]]


def test_a_validation_before_the_fit_leaves_the_metrics_usable(tmp_path: Path) -> None:
    module = Seq2SeqModule(MODELS["t5"], metrics=["bleu", "chrf"], max_new_tokens=4, beams=1)
    data = make_data(tmp_path)
    make_trainer().validate(module, data, verbose=False)
    trainer = make_trainer(max_steps=3)
    trainer.fit(module, data)
    assert math.isfinite(trainer.callback_metrics["val/bleu"])


@pytest.mark.parametrize("name", ["t5", "two_berts", "tied_berts"])
def test_a_checkpoint_loads_alone_and_writes_the_same(name: str, tmp_path: Path) -> None:
    module, trainer, _ = fit(name, tmp_path, steps=8, beams=2, data={"prefix": "count: "})
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = lmkit.load(tmp_path / "last.ckpt")
    assert type(loaded) is Seq2SeqModule
    ours, theirs = module.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert loaded(["one two", "three"]) == module(["one two", "three"])
    assert loaded.network.config.seq2seq["prefix"] == "count: "


@pytest.mark.parametrize("name", ["t5", "bart", "two_berts", "tied_berts"])
def test_an_export_is_plain_transformers_and_writes_the_same(name: str, tmp_path: Path) -> None:
    module, _, _ = fit(name, tmp_path, steps=8, beams=2)
    folder = lmkit.export(module, tmp_path / "out")
    plain, info = AutoModelForSeq2SeqLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    batch = ask(module, "one two", "three four five")
    ids = plain.generate(**batch)
    texts = [module.tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids]
    assert [row["generated"] for row in module(["one two", "three four five"])] == texts
    labels = torch.tensor([[20, 21, 2], [22, 2, -100]])
    with torch.no_grad():
        ours, theirs = (n(**batch, labels=labels).logits for n in (module.network.eval(), plain))
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("name", ["bart", "tied_berts"])
def test_an_export_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    module, _, _ = fit(name, tmp_path, steps=8, beams=3, data={"prefix": "count: "})
    back = lmkit.load(lmkit.export(module, tmp_path / "out"))
    assert type(back) is Seq2SeqModule
    assert back.network.generation_config.num_beams == 3
    assert back.network.generation_config.max_new_tokens == 12
    assert back(["one two", "three four"]) == module(["one two", "three four"])
    trained = sum(p.numel() for p in module.parameters())
    assert sum(p.numel() for p in back.parameters()) == trained


def test_two_encoders_of_a_folder_keep_their_weights(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    encoder = BertModel(BertConfig(**{k: v for k, v in _HALF.items() if k != "model_type"}))
    encoder.save_pretrained(tmp_path / "encoder")
    folder = str(tmp_path / "encoder")
    model = {"model_type": "encoder-decoder", "encoder": folder, "decoder": folder, **_IDS}
    module = Seq2SeqModule(model)
    module.configure_model()
    network: Any = module.network
    assert torch.equal(network.encoder.pooler.dense.weight, encoder.pooler.dense.weight)
    for name, parameter in encoder.encoder.named_parameters():
        assert torch.equal(network.decoder.bert.encoder.get_parameter(name), parameter)
    assert network.config.decoder.is_decoder and not network.config.encoder.is_decoder
    assert "fingerprint" in module.base
    assert not network.encoder.pooler.dense.weight.requires_grad


def test_tied_halves_are_one_set_of_weights() -> None:
    apart, tied = (make(Seq2SeqModule, MODELS[n]).network for n in ("two_berts", "tied_berts"))
    counts = [sum(p.numel() for p in network.parameters()) for network in (apart, tied)]
    assert counts[1] < 0.65 * counts[0]
    layer = "encoder.layer.0.attention.self.query.weight"
    assert tied.encoder.get_parameter(layer) is tied.decoder.bert.get_parameter(layer)
    assert tied.encoder.get_input_embeddings().weight is tied.get_output_embeddings().weight
    assert isinstance(tied.decoder.bert.encoder.layer[0].crossattention, nn.Module)


def test_predict_and_sample_give_texts(tmp_path: Path) -> None:
    module, trainer, data = fit("t5", tmp_path)
    (tmp_path / "ask.txt").write_text("one two\n\nthree\n")
    data = Seq2SeqDataModule(predict_file=str(tmp_path / "ask.txt"), batch_size=4)
    (rows,) = trainer.predict(module, data)
    assert len(rows) == 4 and all(set(row) == {"generated"} for row in rows)
    assert [data.inputs(i) for i in range(2)] == [{"source": "one two"}, {"source": "three"}]
    shown = module.sample(next(iter(trainer_batches(module, tmp_path))), 3)
    assert len(shown) == 3 and set(shown[0]) == {"source", "target", "generated"}


def trainer_batches(module: Seq2SeqModule, folder: Path) -> Any:
    data = make_data(folder)
    data.use_tokenizer(module.tokenizer)
    return data.val_dataloader()


def test_metrics_of_texts_equal_those_of_torchmetrics() -> None:
    from torchmetrics.functional.text import chrf_score, rouge_score, sacre_bleu_score

    texts = ["Ein Hund läuft schnell über die Wiese .", "Zwei Männer stehen dort .", "Ja ."]
    targets = ["Ein Hund läuft über eine Wiese .", "Zwei Männer stehen im Regen .", "Nein ."]
    references = [[text] for text in targets]
    bleu, chrf, rouge = Bleu(), Chrf(), Rouge("rougeL")
    for place in range(3):
        for metric in (bleu, chrf, rouge):
            metric.update(texts[place : place + 1], targets[place : place + 1])
    assert bleu.compute().item() == pytest.approx(
        100 * sacre_bleu_score(texts, references).item(), rel=1e-6
    )
    assert chrf.compute().item() == pytest.approx(
        100 * chrf_score(texts, references, n_word_order=0).item(), rel=1e-6
    )
    expected = rouge_score(texts, targets, rouge_keys="rougeL")["rougeL_fmeasure"]
    assert rouge.compute().item() == pytest.approx(100 * expected.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_smoothing": 1.0}, r"label_smoothing must lie in \[0, 1\), got 1.0"),
        ({"beams": 0}, "beams must be at least 1, got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"generate_examples": -1}, "generate_examples must be 0 or more, got -1"),
        ({"metrics": ["blue"]}, "metrics must be some of bleu, chrf, rouge.*got 'blue'"),
    ],
)
def test_bad_arguments_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Seq2SeqModule(MODELS["t5"], **settings)


def build(model: dict[str, Any], **kwargs: Any) -> None:
    Seq2SeqModule(model, **kwargs).configure_model()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"model_type": "encoder-decoder", "encoder": _HALF}, "needs 'decoder': a hub name"),
        ({**_TWO, "encodr": 1}, "no setting 'encodr'; did you mean 'encoder'"),
        ({**_TWO, "decoder": tiny.MASKED["distilbert"]}, "'distilbert'.*cannot attend to an enc"),
        ({**_TWO, "encoder": MODELS["t5"]}, "'t5', which is no encoder"),
        ({**_TWO, "decoder": {**_HALF, "hiden_size": 2}}, "no setting 'hiden_size'"),
        (tiny.MASKED["bert"], "no Seq2SeqLM head"),
    ],
)
def test_halves_that_do_not_go_together_are_refused(model: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(model)


def test_an_unknown_argument_of_generation_is_refused() -> None:
    with pytest.raises(ValueError, match="generation has 'lenght_penalty'"):
        build({**MODELS["t5"], "vocab_size": 99}, generation={"lenght_penalty": 1.0})


def test_a_target_longer_than_the_decoder_is_refused(tmp_path: Path) -> None:
    data = make_data(tmp_path, max_target_length=100)
    module = Seq2SeqModule(MODELS["bart"])
    with pytest.raises(ValueError, match=r"max_target_length is 100, but the decoder has 64 pos"):
        make_trainer(max_steps=1).fit(module, data)
