"""Texts that share a row get what each gets alone: outputs, losses and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from lmkit.modules import CausalLMModule, LMModule, MaskedLMModule
from lmkit.modules.network_inputs import check_packing, knows_types, network_inputs
from lmkit.types import Batch
from tests import tiny
from tests.modules.language_model import make

LENGTHS = (5, 9, 3, 7)
CASES = [(MaskedLMModule, name) for name in tiny.MASKED]
CASES += [(CausalLMModule, name) for name in tiny.CAUSAL]
EACH = pytest.mark.parametrize(("cls", "name"), CASES, ids=[name for _, name in CASES])
# Window of 4 tokens on either side: texts longer than that tell whether it is kept.
MISTRAL = {
    "model_type": "mistral",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 32,
    "sliding_window": 4,
}


def texts(lengths: tuple[int, ...] = LENGTHS) -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randint(5, 99, (n,), generator=draw) for n in lengths]


def alone(rows: list[Tensor], causal: bool) -> Batch:
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    labels = torch.full_like(ids, -100)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
        labels[place, 1 if causal else 0 : len(row)] = row[1 if causal else 0 :]
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels}


def packed(rows: list[list[Tensor]], width: int, causal: bool) -> Batch:
    shape = (len(rows), width)
    ids, segments, positions = (torch.zeros(shape, dtype=torch.int64) for _ in range(3))
    labels = torch.full(shape, -100)
    for place, row in enumerate(rows):
        at = 0
        for number, text in enumerate(row, 1):
            span = slice(at, at + len(text))
            ids[place, span], segments[place, span] = text, number
            positions[place, span] = torch.arange(len(text))
            first = at + 1 if causal else at
            labels[place, first : span.stop] = ids[place, first : span.stop]
            at = span.stop
    return {
        "input_ids": ids,
        "attention_mask": (segments > 0).long(),
        "segment_ids": segments,
        "position_ids": positions,
        "labels": labels,
    }


def gradients(module: LMModule, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    module.zero_grad()
    output = module.eval().step(batch)
    output.loss.backward()
    found = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    assert output.logits is not None
    return output.loss.detach(), output.logits.detach(), found


@EACH
def test_packed_is_unpacked(cls: type[LMModule], name: str) -> None:
    causal = cls is CausalLMModule
    module = make(cls, (tiny.MASKED | tiny.CAUSAL)[name])
    rows = texts()
    together = packed([[rows[0], rows[1]], [rows[2], rows[3]]], 16, causal)
    loss, logits, grads = gradients(module, together)
    expected_loss, expected_logits, expected = gradients(module, alone(rows, causal))
    assert (logits - expected_logits).abs().max() <= 2e-5
    assert (loss - expected_loss).abs() <= 2e-6
    for key in expected:
        assert torch.allclose(grads[key], expected[key], atol=1e-5), key


@EACH
def test_which_texts_share_a_row_does_not_matter(cls: type[LMModule], name: str) -> None:
    causal = cls is CausalLMModule
    module = make(cls, (tiny.MASKED | tiny.CAUSAL)[name])
    a, b, c, d = texts()
    first, _, _ = gradients(module, packed([[a, b], [c, d]], 16, causal))
    second, _, _ = gradients(module, packed([[d, c, a], [b]], 16, causal))
    assert (first - second).abs() <= 2e-6


@EACH
def test_the_architectures_pass_the_check_of_packing(cls: type[LMModule], name: str) -> None:
    module = make(cls, (tiny.MASKED | tiny.CAUSAL)[name])
    before = {n: m.training for n, m in module.network.named_modules()}
    check_packing(module.network, 64, causal=cls is CausalLMModule)
    assert {n: m.training for n, m in module.network.named_modules()} == before


def test_a_sliding_window_is_kept_inside_packed_texts() -> None:
    module = make(CausalLMModule, MISTRAL)
    check_packing(module.network, 64, causal=True)
    rows = texts((8, 8))
    _, logits, _ = gradients(module, packed([rows], 16, True))
    _, expected, _ = gradients(module, alone(rows, True))
    assert (logits - expected).abs().max() <= 2e-5


def test_an_architecture_that_cannot_pack_is_refused() -> None:
    network = make(MaskedLMModule, tiny.MASKED["bert"]).network
    forward = network.base_model.forward  # of one that ignores its mask
    network.base_model.forward = lambda **kwargs: forward(**{**kwargs, "attention_mask": None})
    with pytest.raises(ValueError, match="does not keep texts apart"):
        check_packing(network, 64, causal=False)


def test_rows_of_one_text_need_no_mask_of_four_dimensions() -> None:
    module = make(MaskedLMModule, tiny.MASKED["bert"])
    inputs = network_inputs(module.network, alone(texts(), False))
    assert set(inputs) == {"input_ids", "attention_mask"} and inputs["attention_mask"].dim() == 2


@pytest.mark.parametrize(
    ("config", "knows"),
    [
        (tiny.MASKED["bert"], True),
        ({**tiny.MASKED["bert"], "type_vocab_size": 1}, False),
        (tiny.MASKED["roberta"], True),
        (tiny.MASKED["distilbert"], False),
        (tiny.CAUSAL["gpt2"], False),
        ({"model_type": "xlnet", "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16}, True),
    ],
    ids=["bert", "of one type", "roberta", "distilbert", "gpt2", "xlnet"],
)
def test_types_are_for_those_that_tell_texts_apart_by_them(
    config: dict[str, object], knows: bool
) -> None:
    settings = {**config, "vocab_size": 99}
    network = AutoModel.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))
    assert knows_types(network) == knows
    ids = torch.tensor([[5, 6, 7, 8]])
    mask, types = torch.ones_like(ids), torch.tensor([[0, 0, 1, 1]])
    batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    network.eval()
    states = [
        network(**network_inputs(network, {**batch, "token_type_ids": each}))[0]
        for each in (types, torch.zeros_like(types))
    ]
    assert torch.equal(*states) != knows
