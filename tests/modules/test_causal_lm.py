"""Causal language modelling."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lmkit.modules import CausalLMModule
from tests import tiny
from tests.modules.language_model import (
    check_loss_is_that_of_transformers,
    check_metrics_are_over_tokens,
    make,
)


@pytest.mark.parametrize("name", tiny.CAUSAL)
def test_loss_and_gradient_equal_those_of_transformers(name: str) -> None:
    batch = tiny.causal_batch()
    items = int((batch["labels"][:, 1:] != -100).sum())
    check_loss_is_that_of_transformers(make(CausalLMModule, tiny.CAUSAL[name]), batch, items)


def test_metrics_are_the_same_for_any_batch_size_and_order() -> None:
    module = make(CausalLMModule, tiny.CAUSAL["gpt2"])
    check_metrics_are_over_tokens(module, tiny.causal_batch(rows=11))


def module_with_tokenizer(**kwargs: Any) -> CausalLMModule:
    module = make(CausalLMModule, tiny.CAUSAL["gpt2"], **kwargs)
    module.tokenizer = tiny.tokenizer("bpe")
    assert isinstance(module, CausalLMModule)
    return module


def test_generation_with_temperature_zero_takes_the_most_probable_token() -> None:
    module = module_with_tokenizer(max_new_tokens=4, temperature=0.0)
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


def test_a_prompt_is_continued_alike_alone_and_padded_on_the_left() -> None:
    module = module_with_tokenizer(max_new_tokens=5, temperature=0.0)
    alone = torch.tensor([[11, 12, 13]])
    beside = torch.tensor([[0, 0, 11, 12, 13], [21, 22, 23, 24, 25]])
    with torch.no_grad():
        (row,) = module.predict_step(
            {"input_ids": alone, "attention_mask": torch.ones_like(alone)}, 0
        )
        first, _ = module.predict_step(
            {"input_ids": beside, "attention_mask": (beside != 0).long()}, 0
        )
    assert first["text"] == row["text"]


def test_drawn_text_is_the_same_for_the_same_seed_and_batch() -> None:
    module = module_with_tokenizer(max_new_tokens=12)
    batch = tiny.causal_batch(rows=2, length=4)
    with torch.no_grad():
        first = module.predict_step(batch, 0)
        torch.rand(5)
        assert module.predict_step(batch, 0) == first
        assert module.predict_step(batch, 1) != first


def test_predict_leaves_filler_rows_out() -> None:
    module = module_with_tokenizer(max_new_tokens=2)
    batch = tiny.causal_batch(rows=3, length=4)
    batch["index"] = torch.tensor([7, -1, 8])
    with torch.no_grad():
        assert len(module.predict_step(batch, 0)) == 2


def test_sample_continues_the_first_half_and_keeps_the_mode() -> None:
    module = module_with_tokenizer()
    rows = module.sample(tiny.causal_batch(), 2)
    assert len(rows) == 2 and set(rows[0]) == {"prompt", "text"}
    assert all(m.training for m in module.network.modules())


def test_the_sample_of_a_row_does_not_depend_on_its_padding() -> None:
    module = module_with_tokenizer()
    ids = torch.randint(5, 99, (2, 12), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    both = module.sample({"input_ids": ids, "attention_mask": mask}, 2)
    alone = module.sample({"input_ids": ids[1:, :6], "attention_mask": mask[1:, :6]}, 1)
    assert both[1]["prompt"] == alone[0]["prompt"]
    assert both[1]["text"].startswith(alone[0]["text"])
    assert module.tokenizer is not None
    assert both[1]["prompt"] == module.tokenizer.decode(ids[1, :3], skip_special_tokens=True)
