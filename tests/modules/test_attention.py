"""Each kernel computes the same attention, and is chosen by device and precision."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoModelForMaskedLM

from lmkit.functional.packing import segment_bounds
from lmkit.modules import CausalLMModule, MaskedLMModule
from lmkit.modules.attention import NAME, attend, use_fast_attention
from tests import tiny
from tests.cases import make_trainer
from tests.modules.language_model import make


def reference(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor, scale: float) -> Tensor:
    """Attention one query at a time, in float64."""
    out = torch.zeros_like(query, dtype=torch.float64)
    groups = query.shape[1] // key.shape[1]
    for b in range(query.shape[0]):
        for h in range(query.shape[1]):
            for i in range(query.shape[2]):
                seen = allowed[b, 0, i].nonzero().flatten()
                keys = key[b, h // groups, seen].double()
                weights = (keys @ query[b, h, i].double() * scale).softmax(0)
                out[b, h, i] = weights @ value[b, h // groups, seen].double()
    return out.transpose(1, 2)


def inputs(heads: int = 4, key_heads: int = 4) -> tuple[list[Tensor], Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = [(2, heads, 9, 8), (2, key_heads, 9, 8), (2, key_heads, 9, 8)]
    tensors = [torch.randn(shape, generator=draw) for shape in shapes]
    segments = torch.tensor([[1, 1, 1, 1, 2, 2, 3, 3, 3], [1, 1, 2, 2, 2, 2, 2, 0, 0]])
    allowed = (segments.unsqueeze(2) == segments.unsqueeze(1)).unsqueeze(1)
    return tensors, segments, allowed


class Layer(nn.Module):
    def __init__(self, groups: int = 1, is_causal: bool = False) -> None:
        super().__init__()
        self.num_key_value_groups, self.is_causal = groups, is_causal


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("additive", [False, True])
def test_every_kernel_agrees_with_the_reference(
    dtype: torch.dtype, key_heads: int, additive: bool
) -> None:
    tensors, _, allowed = inputs(key_heads=key_heads)
    expected = reference(*tensors, allowed, 0.3)
    mask = allowed
    if additive:
        mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
        mask = mask.to(dtype)
    ours, weights = attend(
        Layer(4 // key_heads), *(t.to(dtype) for t in tensors), mask, scaling=0.3
    )
    assert weights is None and ours.dtype == dtype
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    assert (ours.double() - expected).abs().max() < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_causal_layer_without_a_mask_sees_nothing_ahead(dtype: torch.dtype) -> None:
    tensors, _, _ = inputs()
    allowed = torch.ones(2, 1, 9, 9, dtype=torch.bool).tril()
    expected = reference(*tensors, allowed, 8**-0.5)
    ours, _ = attend(Layer(is_causal=True), *(t.to(dtype) for t in tensors), None)
    assert (ours.double() - expected).abs().max() < (1e-6 if dtype == torch.float32 else 2e-2)


def test_dropout_keeps_the_mean_and_drops_only_in_training() -> None:
    tensors, _, allowed = inputs()
    tensors[2] = torch.ones_like(tensors[2])
    layer = Layer()
    torch.manual_seed(0)
    draws = torch.stack([attend(layer, *tensors, allowed, dropout=0.5)[0] for _ in range(400)])
    assert (draws.mean() - 1).abs() < 0.02 and draws.std() > 0.1
    still, _ = attend(layer.eval(), *tensors, allowed, dropout=0.5)
    assert torch.allclose(still, torch.ones_like(still))


def test_texts_of_a_row_go_through_the_kernel_of_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, segments, allowed = inputs(key_heads=2)
    called: dict[str, Any] = {}

    def varlen(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> Tensor:
        # What the kernel of CUDA computes, by its documentation, one sequence at a time.
        bounds = rest[0].tolist()
        called.update(options, width=rest[2])
        pieces = []
        for low, high in pairwise(bounds):
            q, k, v = (
                t[low:high].float().transpose(0, 1).unsqueeze(0) for t in (query, key, value)
            )
            causal = options["window_size"][1] == 0
            part = nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=causal, scale=options["scale"], enable_gqa=options["enable_gqa"]
            )
            pieces.append(part[0].transpose(0, 1))
        return torch.cat(pieces).to(query.dtype)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen)
    half = [t.bfloat16() for t in tensors]
    extra = {"segment_bounds": segment_bounds(segments), "segment_width": 9}
    for causal in (False, True):
        seen = allowed & torch.ones(9, 9, dtype=torch.bool).tril() if causal else allowed
        ours, _ = attend(Layer(2, is_causal=causal), *half, None, scaling=0.3, **extra)
        expected = reference(*tensors, seen, 0.3)
        assert (ours.double() - expected).abs().max() < 3e-2
    assert called["width"] == 9 and called["enable_gqa"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_kernel_of_sequences_is_right_on_cuda() -> None:
    tensors, segments, allowed = inputs()
    extra = {"segment_bounds": segment_bounds(segments).cuda(), "segment_width": 9}
    ours, _ = attend(Layer(), *(t.cuda().bfloat16() for t in tensors), None, scaling=0.3, **extra)
    assert (ours.cpu().double() - reference(*tensors, allowed, 0.3)).abs().max() < 3e-2


@pytest.mark.parametrize("name", tiny.MASKED)
def test_a_network_computes_the_same_with_it(name: str) -> None:
    network = make(MaskedLMModule, tiny.MASKED[name]).network.eval()
    batch = {k: v for k, v in tiny.masked_batch().items() if k in ("input_ids", "attention_mask")}
    before = network(**batch).logits
    was = use_fast_attention(network)
    assert was == "sdpa"
    assert torch.allclose(network(**batch).logits, before, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert (network(**batch).logits - before).abs().max() < 0.05
    assert use_fast_attention(network, was) == NAME
    assert network.config._attn_implementation == "sdpa"


def test_the_choice_of_the_user_stays(tmp_path: Any) -> None:
    module = make(MaskedLMModule, {**tiny.MASKED["bert"], "attn_implementation": "eager"})
    assert use_fast_attention(module.network) is None
    assert module.network.config._attn_implementation == "eager"


def test_it_leaves_no_trace_in_the_config_or_after_the_fit(tmp_path: Any) -> None:
    module = make(CausalLMModule, tiny.CAUSAL["gpt2"])
    seen = []

    class Note(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            seen.append(pl_module.network.config._attn_implementation)

    rows = [{k: v[0] for k, v in tiny.causal_batch().items()}]
    make_trainer(Note(), max_steps=1).fit(module, DataLoader(rows))
    assert seen == [NAME]
    assert module.network.config._attn_implementation == "sdpa"
    use_fast_attention(module.network)
    module.network.save_pretrained(tmp_path / "saved")
    text = (tmp_path / "saved" / "config.json").read_text()
    assert NAME not in text


def test_loading_is_not_changed_by_it(tmp_path: Any) -> None:
    module = make(MaskedLMModule, tiny.MASKED["bert"])
    use_fast_attention(module.network)
    module.network.save_pretrained(tmp_path)
    plain = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert plain.config._attn_implementation == "sdpa"
