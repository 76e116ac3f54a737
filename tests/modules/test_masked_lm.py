"""Masked language modelling."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lmkit.modules import MaskedLMModule
from tests import tiny
from tests.modules.language_model import (
    check_loss_is_that_of_transformers,
    check_metrics_are_over_tokens,
    make,
)


@pytest.mark.parametrize("name", tiny.MASKED)
def test_loss_and_gradient_equal_those_of_transformers(name: str) -> None:
    batch = tiny.masked_batch()
    items = int((batch["labels"] != -100).sum())
    check_loss_is_that_of_transformers(make(MaskedLMModule, tiny.MASKED[name]), batch, items)


def test_metrics_are_the_same_for_any_batch_size_and_order() -> None:
    module = make(MaskedLMModule, tiny.MASKED["bert"])
    check_metrics_are_over_tokens(module, tiny.masked_batch(rows=11))


def module_with_tokenizer(**kwargs: Any) -> MaskedLMModule:
    module = make(MaskedLMModule, tiny.MASKED["bert"], **kwargs)
    module.tokenizer = tiny.tokenizer()
    assert isinstance(module, MaskedLMModule)
    return module


def test_predict_fills_each_mask_with_its_most_probable_tokens() -> None:
    module = module_with_tokenizer(fill_count=3).eval()
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


def test_predict_leaves_filler_rows_out() -> None:
    module = module_with_tokenizer().eval()
    batch = tiny.masked_batch(rows=3)
    batch["index"] = torch.tensor([7, -1, 8])
    with torch.no_grad():
        assert len(module.predict_step(batch, 0)) == 2


def test_sample_shows_masked_filled_and_original_text_and_keeps_the_mode() -> None:
    module = module_with_tokenizer()
    rows = module.sample(tiny.masked_batch(), 2)
    assert len(rows) == 2 and "[MASK]" in rows[0]["masked"]
    assert "[MASK]" not in rows[0]["original"]
    assert all(m.training for m in module.network.modules())
