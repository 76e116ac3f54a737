"""Small networks of all architectures that units are removed from, and what they say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForPreTraining,
    ElectraForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from lmkit.surgery.units import Units, find_units

_WIDTHS = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 24,
}
_SIZES = {**_WIDTHS, "vocab_size": 99, "max_position_embeddings": 66}
_T5 = {
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 3,
    "num_heads": 4,
    "vocab_size": 99,
    "decoder_start_token_id": 0,
}
_GPT2 = {"n_embd": 16, "n_layer": 3, "n_head": 4, "n_positions": 64, "vocab_size": 99}
_SPECIAL = {f"{word}_token_id": 0 for word in ("pad", "bos", "eos", "cls", "sep")}

#: A network by name: its class, and its config.
NETWORKS: dict[str, tuple[type[PreTrainedModel], Any]] = {
    "bert": (BertForSequenceClassification, BertConfig(**_SIZES, num_labels=3)),
    "masked": (BertForMaskedLM, BertConfig(**_SIZES)),
    "roberta": (
        RobertaForSequenceClassification,
        RobertaConfig(**_SIZES, pad_token_id=0, eos_token_id=None),
    ),
    "distilbert": (
        DistilBertForMaskedLM,
        DistilBertConfig(dim=16, n_layers=3, n_heads=4, hidden_dim=24, vocab_size=99),
    ),
    "electra": (ElectraForSequenceClassification, ElectraConfig(**_SIZES, embedding_size=8)),
    "wide_electra": (ElectraForPreTraining, ElectraConfig(**_SIZES, embedding_size=16)),
    "modernbert": (
        ModernBertForMaskedLM,
        ModernBertConfig(**_SIZES, **_SPECIAL, local_attention=8, global_attn_every_n_layers=2),
    ),
    "gpt2": (GPT2LMHeadModel, GPT2Config(**_GPT2, bos_token_id=0, eos_token_id=0)),
    "llama": (LlamaForCausalLM, LlamaConfig(**_SIZES, num_key_value_heads=2)),
    "t5": (T5ForConditionalGeneration, T5Config(**_T5)),
    "gated_t5": (T5ForConditionalGeneration, T5Config(**_T5, feed_forward_proj="gated-gelu")),
    "vit": (ViTForImageClassification, ViTConfig(**_WIDTHS, image_size=8, patch_size=4)),
    "bart": (
        BartForConditionalGeneration,
        BartConfig(
            **{f"{side}_layers": 3 for side in ("encoder", "decoder")},
            **{f"{side}_attention_heads": 4 for side in ("encoder", "decoder")},
            **{f"{side}_ffn_dim": 24 for side in ("encoder", "decoder")},
            d_model=16,
            vocab_size=99,
            max_position_embeddings=64,
        ),
    ),
}
#: Those whose hidden dimensions can be removed.
HIDDEN = [name for name in NETWORKS if name != "bart"]


def build(name: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """Make a network in evaluation mode, all of whose weights, biases too, do something."""
    torch.manual_seed(1)
    cls, config = NETWORKS[name]
    network = cls(type(config).from_dict(config.to_dict())).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return network.to(dtype)


def inputs(network: Any) -> dict[str, Tensor]:
    """Make texts, one of them padded, or images."""
    generator = torch.Generator().manual_seed(5)
    if network.config.model_type == "vit":
        images = torch.randn((2, 3, 8, 8), generator=generator, dtype=torch.float64)
        return {"pixel_values": images.to(network.dtype)}
    ids = torch.randint(5, 99, (2, 7), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    made = {"input_ids": ids, "attention_mask": mask}
    if network.config.is_encoder_decoder:
        made["decoder_input_ids"] = ids.flip(0)
    return made


def scores(network: Any) -> Tensor:
    """Return what a network says of `inputs`, differentiable."""
    said: Tensor = network(**inputs(network)).logits
    return said


def said(network: Any) -> Tensor:
    """Return what a network says of `inputs`."""
    with torch.no_grad():
        return scores(network)


def some(units: list[Units], kinds: tuple[str, ...] = ("heads", "ffn")) -> dict[str, list[int]]:
    """Choose units to keep: other ones, and another number of them, in each layer."""
    generator = torch.Generator().manual_seed(7)
    kept = {}
    for place, each in enumerate(units):
        if each.kind in kinds:
            count = max(1, each.count // 2 - place % 2 if each.kind == "heads" else 5 + place)
            kept[each.name] = sorted(
                torch.randperm(each.count, generator=generator)[:count].tolist()
            )
    return kept


def same(units: list[Units], heads: int, ffn: int) -> dict[str, list[int]]:
    """Choose the last units of each block."""
    counts = {"heads": heads, "ffn": ffn}
    return {u.name: list(range(u.count - counts[u.kind], u.count)) for u in units}


def masks(network: Any, kept: dict[str, list[int]]) -> dict[str, Tensor]:
    """Return gates that are 1 for what is kept, and 0 for the rest."""
    counts = {each.name: each.count for each in find_units(network)}
    gates = {}
    for name, indices in kept.items():
        gates[name] = torch.zeros(counts[name], dtype=network.dtype)
        gates[name][indices] = 1
    return gates


def attentions(network: Any) -> Iterator[str]:
    """Let a network attend in each of the ways that it knows."""
    import lmkit.modules.attention  # noqa: F401, makes its own known

    for name in ("eager", "sdpa", "lmkit"):
        network.set_attn_implementation(name)
        yield name


@contextmanager
def precise_norms() -> Iterator[None]:
    """Let the root norms of Llama and T5 compute in the precision of what they get.

    They compute in float32 whatever they get, so that two ways of computing the same norm in
    float64 differ by the rounding of float32.
    """

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.weight * x * (x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()

    with pytest.MonkeyPatch.context() as patch:
        for norm in (LlamaRMSNorm, T5LayerNorm):
            patch.setattr(norm, "forward", forward)
        yield
