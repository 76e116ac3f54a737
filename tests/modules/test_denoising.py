"""Denoising with an encoder-decoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

import lmkit
from lmkit.datamodules import DenoisingDataModule
from lmkit.modules import DenoisingModule
from lmkit.modules.sparse_head import labelled, logits_at
from lmkit.tokenization import train_tokenizer
from lmkit.types import Batch
from tests import tiny
from tests.cases import make_trainer
from tests.modules.language_model import (
    check_loss_is_that_of_transformers,
    check_metrics_are_over_tokens,
    make,
)

_T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
MODELS: dict[str, dict[str, Any]] = {
    "t5": {"model_type": "t5", **_T5},
    "mt5": {"model_type": "mt5", **_T5},
    "untied": {"model_type": "t5", **_T5, "tie_word_embeddings": False},
    "bart": {
        "model_type": "bart",
        "d_model": 16,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "max_position_embeddings": 64,
    },
}


def denoising_batch(rows: int = 4, length: int = 12, width: int = 6) -> Batch:
    """Make a batch with padding at the ends of inputs and targets."""
    batch = tiny.causal_batch(rows, length)
    del batch["labels"]
    labels = torch.randint(5, 99, (rows, width), generator=torch.Generator().manual_seed(1))
    for row in range(1, rows):
        labels[row, width - row % width :] = -100
    return {**batch, "labels": labels}


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradient_equal_those_of_transformers(name: str) -> None:
    batch = denoising_batch()
    items = int((batch["labels"] != -100).sum())
    check_loss_is_that_of_transformers(make(DenoisingModule, MODELS[name]), batch, items)


@pytest.mark.parametrize("name", MODELS)
def test_logits_at_the_labels_are_those_of_the_whole_network(name: str) -> None:
    module, batch = make(DenoisingModule, MODELS[name]).eval(), denoising_batch()
    with torch.no_grad():
        ours = module.step(batch).logits
        whole = module.network(
            **{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        ).logits
    assert ours is not None and ours.shape == (int((batch["labels"] != -100).sum()), 99)
    assert torch.allclose(ours, whole[batch["labels"] != -100], atol=2e-6)


def test_fixed_label_positions_change_neither_loss_nor_metrics() -> None:
    module, batch = make(DenoisingModule, MODELS["t5"]).eval(), denoising_batch()
    fixed = {**batch, "label_positions": torch.arange(6).repeat(4, 1)}
    with torch.no_grad():
        one, other = module.step(batch), module.step(fixed)
    assert one.items == other.items and torch.allclose(one.loss, other.loss, atol=1e-6)


def test_metrics_are_the_same_for_any_batch_size_and_order() -> None:
    module = make(DenoisingModule, MODELS["t5"])
    check_metrics_are_over_tokens(module, denoising_batch(rows=11))


def test_a_batch_without_a_label_has_no_loss_and_no_gradient() -> None:
    module, batch = make(DenoisingModule, MODELS["t5"]), denoising_batch()
    output = module.step({**batch, "labels": torch.full_like(batch["labels"], -100)})
    output.loss.backward()
    assert output.loss.item() == 0 and output.items.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in module.parameters())


def test_the_head_sees_only_labelled_positions_of_the_decoder() -> None:
    module, batch = make(DenoisingModule, MODELS["t5"]), denoising_batch()
    seen: list[int] = []
    module.network.lm_head.register_forward_hook(
        lambda head, arguments, output: seen.append(output.numel() // output.shape[-1])
    )
    module.step(batch)
    assert seen == [int((batch["labels"] != -100).sum())]
    positions, _ = labelled(batch)
    ids = torch.zeros_like(batch["labels"])
    logits_at(module.network, positions[:2], input_ids=batch["input_ids"], decoder_input_ids=ids)
    assert seen[1:] == [2]


def tokenizer() -> Any:
    return train_tokenizer(tiny.sentences(100), "bpe", vocab_size=320, sentinels=8)


def module_with_tokenizer(model: dict[str, Any] = MODELS["t5"], **kwargs: Any) -> DenoisingModule:
    torch.manual_seed(0)
    module = DenoisingModule(model, **kwargs)
    module.tokenizer = tokenizer()
    module.configure_model()
    return module


@pytest.mark.parametrize(("name", "start"), [("t5", "pad"), ("mt5", "pad"), ("bart", "eos")])
def test_a_model_from_scratch_takes_its_ids_from_the_tokenizer(name: str, start: str) -> None:
    module = module_with_tokenizer(MODELS[name])
    config, words = module.network.config, module.tokenizer
    assert config.vocab_size == len(words)
    assert (config.pad_token_id, config.eos_token_id) == (words.pad_token_id, words.eos_token_id)
    assert config.decoder_start_token_id == getattr(words, f"{start}_token_id")
    generation = module.network.generation_config
    assert generation.decoder_start_token_id == config.decoder_start_token_id


def ask(module: DenoisingModule, *texts: str) -> Batch:
    rows = [module.tokenizer(text).input_ids for text in texts]
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), module.tokenizer.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
    return {"input_ids": ids, "attention_mask": mask, "index": torch.arange(len(rows))}


def dictate(module: DenoisingModule, *targets: str) -> None:
    """Let the network write these targets."""
    width = 12
    rows = [module.tokenizer(target).input_ids for target in targets]
    padded = [[0, *row, *[module.tokenizer.pad_token_id] * width][:width] for row in rows]
    module.network.generate = lambda **_: torch.tensor(padded)


def test_predict_fills_each_gap_with_what_was_written_for_it() -> None:
    module = module_with_tokenizer()
    batch = ask(module, "the <extra_id_0> fox <extra_id_1> dog", "a <extra_id_0>")
    dictate(module, "<extra_id_0> quick<extra_id_1> jumps over", "<extra_id_1> bird")
    first, second = module.predict_step(batch, 0)
    assert first == {
        "text": "the <extra_id_0> fox <extra_id_1> dog",
        "filled": "the quick fox jumps over dog",
        "fills": ["quick", "jumps over"],
    }
    assert (second["filled"], second["fills"]) == ("a", [""])


def test_predict_writes_the_most_probable_tokens() -> None:
    module = module_with_tokenizer(max_new_tokens=5).eval()
    batch = ask(module, "the <extra_id_0> fox")
    ids = torch.tensor([[module.network.config.decoder_start_token_id]])
    with torch.no_grad():
        (written,) = module._write(batch, 5)
        for _ in range(5):
            logits = module.network(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                decoder_input_ids=ids,
            ).logits
            ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert written and written == ids[0, 1 : len(written) + 1].tolist()


def test_predict_leaves_filler_rows_out() -> None:
    module = module_with_tokenizer(max_new_tokens=2)
    batch = ask(module, "a <extra_id_0>", "the <extra_id_0>", "the fox <extra_id_0>")
    batch["index"] = torch.tensor([7, -1, 8])
    with torch.no_grad():
        assert len(module.predict_step(batch, 0)) == 2


def test_sample_shows_corrupted_filled_and_original_text_and_keeps_the_mode() -> None:
    module = module_with_tokenizer()
    batch = ask(module, "the <extra_id_0> fox <extra_id_1> dog", "a", "the <extra_id_0>")
    targets = ["<extra_id_0> quick<extra_id_1> jumps over", None, "<extra_id_0> old trees"]
    labels = torch.full((3, 12), -100)
    for row, target in enumerate(targets):
        ids = module.tokenizer(target).input_ids if target else []
        labels[row, : len(ids)] = torch.tensor(ids, dtype=torch.long)
    shown = module.sample({**batch, "labels": labels}, 3)
    assert [row["original"] for row in shown] == ["the quick fox jumps over dog", "the old trees"]
    assert shown[0]["corrupted"] == "the <extra_id_0> fox <extra_id_1> dog"
    assert set(shown[0]) == {"corrupted", "filled", "original"}
    assert all(m.training for m in module.network.modules())


def test_an_export_is_plain_transformers_and_comes_back(tmp_path: Any) -> None:
    module = module_with_tokenizer().eval()
    folder = lmkit.export(module, tmp_path / "out")
    plain = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    batch = ask(module, "the <extra_id_0> fox")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    labels = torch.tensor([[319, 20, 2]])
    with torch.no_grad():
        ours, theirs = (n(**inputs, labels=labels).logits for n in (module.network, plain))
        assert torch.allclose(ours, theirs, atol=1e-5)
        back = lmkit.load(folder)
        assert isinstance(back, DenoisingModule)
        assert back.predict_step(batch, 0) == module.predict_step(batch, 0)


def test_a_model_that_is_no_encoder_decoder_is_refused() -> None:
    module = DenoisingModule({**tiny.MASKED["bert"], "vocab_size": 99})
    with pytest.raises(ValueError, match=r"'bert' has no Seq2SeqLM head; take an encoder-decoder"):
        module.configure_model()


def test_predicting_without_sentinels_says_what_to_do() -> None:
    module = make(DenoisingModule, MODELS["t5"])
    module.tokenizer = tiny.tokenizer("bpe")
    with pytest.raises(ValueError, match=r"needs 1 sentinel tokens.*has none.*Choose a tokenizer"):
        module.predict_step(denoising_batch(), 0)


def test_a_number_of_tokens_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, got 0"):
        DenoisingModule(MODELS["t5"], max_new_tokens=0)


def test_targets_longer_than_the_decoders_positions_are_refused(tmp_path: Any) -> None:
    """A run with T5 goes on, whose positions are relative."""
    options = {"max_length": 16, "noise_density": 0.6, "batch_size": 2, "val_fraction": 0.0}
    path = str(tiny.write_text(tmp_path / "train.txt", 20))
    data = DenoisingDataModule(train_file=path, vocab_size=300, cache_dir=str(tmp_path), **options)
    assert data.target_length > 16
    bart = DenoisingModule({**MODELS["bart"], "max_position_embeddings": 16})
    message = f"the targets have {data.target_length} tokens, but the decoder has 16 positions"
    with pytest.raises(ValueError, match=message):
        make_trainer(max_steps=1).fit(bart, data)
    make_trainer(max_steps=1).fit(DenoisingModule(tiny.SEQ2SEQ["t5"]), data)
