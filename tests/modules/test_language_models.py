"""Masked and causal language modelling against the code path of transformers itself."""

from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from lmkit.modules import CausalLMModule, LMModule, MaskedLMModule
from lmkit.types import Batch
from tests import tiny

CASES = [(MaskedLMModule, name, config) for name, config in tiny.MASKED.items()]
CASES += [(CausalLMModule, name, config) for name, config in tiny.CAUSAL.items()]


def make(cls: type[LMModule], config: dict[str, object], **kwargs: object) -> LMModule:
    torch.manual_seed(0)
    module = cls(model={**config, "vocab_size": 99}, **kwargs)
    module.configure_model()
    return module


def batch_for(cls: type[LMModule], seed: int = 0, rows: int = 4) -> Batch:
    maker = tiny.masked_batch if cls is MaskedLMModule else tiny.causal_batch
    return maker(rows=rows, seed=seed)


@pytest.mark.parametrize(("cls", "name", "config"), CASES, ids=[c[1] for c in CASES])
def test_loss_equals_that_of_transformers(
    cls: type[LMModule], name: str, config: dict[str, object]
) -> None:
    module = make(cls, config).eval()
    batch = batch_for(cls)
    ours = module.step(batch)
    theirs = module.network(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        labels=batch["labels"],
    ).loss
    assert abs(ours.loss.item() - theirs.item()) <= 1e-6
    labels = batch["labels"] if cls is MaskedLMModule else batch["labels"][:, 1:]
    assert ours.items.item() == (labels != -100).sum().item()


@pytest.mark.parametrize("cls", [MaskedLMModule, CausalLMModule])
def test_gradient_equals_that_of_transformers(cls: type[LMModule]) -> None:
    config = tiny.MASKED["bert"] if cls is MaskedLMModule else tiny.CAUSAL["gpt2"]
    module = make(cls, config).eval()
    batch = batch_for(cls)
    module.step(batch).loss.backward()
    ours = {n: p.grad.clone() for n, p in module.network.named_parameters() if p.grad is not None}
    module.network.zero_grad()
    index = batch.pop("index")
    module.network(**batch).loss.backward()
    assert index.numel()
    for name, parameter in module.network.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(ours[name], parameter.grad, atol=1e-6), name


def validate(module: LMModule, rows: list[Batch], batch_size: int) -> dict[str, float]:
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    (metrics,) = trainer.validate(module, DataLoader(rows, batch_size), verbose=False)
    return metrics


@pytest.mark.parametrize("cls", [MaskedLMModule, CausalLMModule])
def test_metrics_are_the_same_for_any_batch_size_and_order(cls: type[LMModule]) -> None:
    config = tiny.MASKED["bert"] if cls is MaskedLMModule else tiny.CAUSAL["gpt2"]
    module = make(cls, config).eval()
    whole = batch_for(cls, rows=11)
    rows = [{name: tensor[i] for name, tensor in whole.items()} for i in range(11)]
    wanted = module.step(whole)
    total = wanted.loss.item()
    results = [validate(module, rows, size) for size in (1, 3, 11)]
    results.append(validate(module, rows[::-1], 4))
    for result in results:
        assert result["val/loss"] == pytest.approx(total, rel=1e-6)
        assert result["val/perplexity"] == pytest.approx(math.exp(total), rel=1e-6)
        assert result["val/accuracy"] == pytest.approx(results[0]["val/accuracy"], rel=1e-6)


@pytest.mark.parametrize("cls", [MaskedLMModule, CausalLMModule])
def test_a_batch_without_labels_changes_no_metric(cls: type[LMModule]) -> None:
    config = tiny.MASKED["bert"] if cls is MaskedLMModule else tiny.CAUSAL["gpt2"]
    module = make(cls, config).eval()
    batch = batch_for(cls, rows=4)
    rows = [{name: tensor[i] for name, tensor in batch.items()} for i in range(4)]
    filler = {**rows[0], "labels": torch.full_like(rows[0]["labels"], -100)}
    assert validate(module, [*rows, filler], 1) == validate(module, rows, 1)


def test_predict_fills_each_mask_with_its_most_probable_tokens() -> None:
    module = make(MaskedLMModule, tiny.MASKED["bert"], fill_count=3).eval()
    module.tokenizer = tiny.tokenizer()
    mask = module.tokenizer.mask_token_id
    ids = torch.tensor([[2, 40, mask, 50, mask, 3], [2, mask, 41, 3, 0, 0]])
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    with torch.no_grad():
        rows = module.predict_step(batch, 0)
        scores = module.network(**batch).logits.softmax(-1)
    assert [len(row["fills"]) for row in rows] == [2, 1]
    best = scores[0, 4].max().item()
    assert rows[0]["fills"][1][0]["probability"] == pytest.approx(best, rel=1e-6)
    probabilities = [fill["probability"] for fill in rows[1]["fills"][0]]
    assert len(probabilities) == 3 and probabilities == sorted(probabilities, reverse=True)


def test_sample_shows_masked_filled_and_original_text_and_keeps_the_mode() -> None:
    module = make(MaskedLMModule, tiny.MASKED["bert"])
    module.tokenizer = tiny.tokenizer()
    rows = module.sample(tiny.masked_batch(), 2)
    assert len(rows) == 2 and "[MASK]" in rows[0]["masked"]
    assert "[MASK]" not in rows[0]["original"]
    assert all(m.training for m in module.network.modules())


def test_generation_with_temperature_zero_takes_the_most_probable_token() -> None:
    module = make(CausalLMModule, tiny.CAUSAL["gpt2"], max_new_tokens=4, temperature=0.0)
    module.tokenizer = tiny.tokenizer("bpe")
    ids = torch.tensor([[11, 12, 13]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        (row,) = module.predict_step(batch, 0)
        module.eval()
        for _ in range(4):
            nearest = module.network(input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, nearest], 1)
    assert row["text"] == module.tokenizer.decode(ids[0, 3:], skip_special_tokens=True)
    assert row["prompt"] == module.tokenizer.decode(ids[0, :3], skip_special_tokens=True)


def test_drawn_text_is_the_same_for_the_same_seed_and_batch() -> None:
    module = make(CausalLMModule, tiny.CAUSAL["gpt2"], max_new_tokens=12)
    module.tokenizer = tiny.tokenizer("bpe")
    batch = tiny.causal_batch(rows=2, length=4)
    with torch.no_grad():
        first = module.predict_step(batch, 0)
        torch.rand(5)
        assert module.predict_step(batch, 0) == first
        assert module.predict_step(batch, 1) != first
