"""Tensors of torchao compute what quantized layers do, and plain transformers loads them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from lmkit.surgery.quantization import FakeQuantize, Quantize
from lmkit.surgery.torchao_tensors import (
    prepare_for_saving,
    require_torchao,
    shares_table,
    use_torchao,
)
from tests.surgery.adapted import build, inputs

pytest.importorskip("torchao")


def network_of(**settings: Any) -> BertForSequenceClassification:
    """Make a network with weights large enough to say something."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(
        **sizes, intermediate_size=64, vocab_size=99, initializer_range=0.2, **settings
    )
    return BertForSequenceClassification(config).eval()


def said(network: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = network(**inputs(network)).logits
    return logits


@pytest.mark.parametrize("activations", [None, "per_token", "per_tensor"])
@pytest.mark.parametrize("more", [{}, {"exclude": ["ffn_output"]}, {"smooth": True}])
def test_they_compute_and_come_back_the_same(
    activations: str | None, more: dict[str, Any], tmp_path: Path
) -> None:
    network = network_of()
    FakeQuantize(activations=activations, **more)(network)
    if "smooth" in more:
        for module in network.modules():
            if getattr(module, "smooth", None) is not None:
                module.smooth.uniform_(0.5, 2)
    expected, rounded = said(network), copy.deepcopy(network)
    use_torchao(rounded)
    kinds = {type(p.data).__name__ for p in rounded.parameters()}
    assert "Int8Tensor" in kinds
    limit = 1e-5 * expected.abs().max()
    assert (said(rounded) - expected).abs().max() < limit
    prepare_for_saving(rounded)
    rounded.save_pretrained(tmp_path)
    back = BertForSequenceClassification.from_pretrained(tmp_path).eval()
    assert (said(back) - expected).abs().max() < limit


def test_what_torchao_does_not_know_is_refused() -> None:
    for name, settings, message in (
        ("bert", {"bits": 4}, "has weights of 4 bits"),
        ("bert", {"activations": "static"}, "has a static range"),
        ("masked", {}, "shares its weight"),
        ("gpt2", {"embeddings": False}, "stands for a Conv1D"),
    ):
        network: Any = build(name)
        Quantize(**settings)(network)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=rf"{message}.*leave it out \(exclude\)"):
            use_torchao(network)
    with pytest.raises(ValueError, match="has no quantized layers"):
        use_torchao(build("bert"))


def test_shared_tables_are_known() -> None:
    assert shares_table(build("masked")) and not shares_table(build("bert"))


def test_without_torchao_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchao", None)
    for function in (require_torchao, lambda: use_torchao(nn.Linear(2, 2))):
        with pytest.raises(ImportError, match=r"pip install 'lmkit\[compress\]'"):
            function()
