"""Vocabulary logits only where there is a label."""

from __future__ import annotations

import pytest
import torch

from lmkit.modules import CausalLMModule, MaskedLMModule
from lmkit.modules.sparse_head import logits_at
from tests import tiny
from tests.modules.language_model import make

CASES = [(MaskedLMModule, name) for name in tiny.MASKED]
CASES += [(CausalLMModule, name) for name in tiny.CAUSAL]


@pytest.mark.parametrize(("cls", "name"), CASES, ids=[name for _, name in CASES])
def test_logits_at_positions_are_those_of_the_whole(cls: type, name: str) -> None:
    network = make(cls, (tiny.MASKED | tiny.CAUSAL)[name]).network.eval()
    batch = tiny.masked_batch()
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    where = torch.rand(batch["input_ids"].shape) < 0.3
    positions = where.flatten().nonzero().flatten()
    whole = network(**inputs).logits
    assert torch.allclose(logits_at(network, positions, **inputs), whole[where], atol=1e-6)
    assert torch.equal(network(**inputs).logits, whole), "the hook is gone"


def test_no_position_gives_no_logits_and_no_gradient() -> None:
    module = make(MaskedLMModule, tiny.MASKED["bert"])
    batch = tiny.masked_batch()
    batch["labels"] = torch.full_like(batch["labels"], -100)
    output = module.step(batch)
    output.loss.backward()
    assert output.loss.item() == 0 and output.items.item() == 0
    assert output.logits is not None and output.logits.shape == (0, 99)
    assert not any(p.grad is not None and p.grad.any() for p in module.parameters())


def test_slots_without_a_label_change_nothing() -> None:
    module = make(MaskedLMModule, tiny.MASKED["bert"])
    batch = tiny.masked_batch()
    plain = module.step(batch)
    plain.loss.backward()
    expected = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    labels = batch["labels"] != -100
    slots = int(labels.sum(1).max()) + 2
    # The columns of the labels first, and then any others.
    batch["label_positions"] = labels.int().argsort(dim=1, descending=True, stable=True)[:, :slots]
    output = module.step(batch)
    output.loss.backward()
    assert output.items == plain.items and output.logits is not None
    assert output.logits.shape[0] == 4 * slots
    assert torch.allclose(output.loss, plain.loss, atol=1e-6)
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(parameter.grad, expected[name], atol=1e-6), name


def test_the_hook_is_gone_after_an_error() -> None:
    network = make(MaskedLMModule, tiny.MASKED["bert"]).network
    with pytest.raises(IndexError):
        logits_at(network, torch.tensor([9]), input_ids=torch.tensor([[5, 6]]))
    assert network(input_ids=torch.tensor([[5, 6]])).logits.shape == (1, 2, 99)
