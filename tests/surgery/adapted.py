"""Small networks that the tests of adapters share, and weights that do something."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    DistilBertConfig,
    DistilBertForQuestionAnswering,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

_SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 99,
    "max_position_embeddings": 66,
}
_T5 = {
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 2,
    "num_heads": 2,
    "vocab_size": 99,
    "decoder_start_token_id": 0,
}
_BART = {
    **{f"{side}_layers": 2 for side in ("encoder", "decoder")},
    **{f"{side}_attention_heads": 2 for side in ("encoder", "decoder")},
    **{f"{side}_ffn_dim": 32 for side in ("encoder", "decoder")},
    "d_model": 16,
    "vocab_size": 99,
    "max_position_embeddings": 64,
}

#: A network by name: its class, its config, and how many feed-forward blocks and attentions it has.
NETWORKS: dict[str, tuple[type[PreTrainedModel], Any, int, int]] = {
    "bert": (BertForSequenceClassification, BertConfig(**_SIZES), 2, 2),
    "tagging": (BertForTokenClassification, BertConfig(**_SIZES), 2, 2),
    "choices": (BertForMultipleChoice, BertConfig(**_SIZES), 2, 2),
    "questions": (BertForQuestionAnswering, BertConfig(**_SIZES), 2, 2),
    "masked": (BertForMaskedLM, BertConfig(**_SIZES), 2, 2),
    "roberta": (
        RobertaForSequenceClassification,
        RobertaConfig(**_SIZES, pad_token_id=0, eos_token_id=None),
        2,
        2,
    ),
    "distilbert": (
        DistilBertForQuestionAnswering,
        DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=32, vocab_size=99),
        2,
        2,
    ),
    "modernbert": (
        ModernBertForSequenceClassification,
        ModernBertConfig(**_SIZES, local_attention=8, pad_token_id=0),
        2,
        2,
    ),
    "gpt2": (
        GPT2LMHeadModel,
        GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, vocab_size=99),
        2,
        2,
    ),
    "llama": (LlamaForCausalLM, LlamaConfig(**_SIZES, num_key_value_heads=2), 2, 2),
    "t5": (T5ForConditionalGeneration, T5Config(**_T5), 4, 6),
    "gated_t5": (
        T5ForConditionalGeneration,
        T5Config(**_T5, feed_forward_proj="gated-gelu"),
        4,
        6,
    ),
    "bart": (BartForConditionalGeneration, BartConfig(**_BART), 4, 6),
}


def build(name: str) -> PreTrainedModel:
    """Make a network in eval mode, always the same."""
    torch.manual_seed(1)
    cls, config, *_ = NETWORKS[name]
    return cls(config).eval()


def bert(**settings: Any) -> PreTrainedModel:
    """Make a BERT with a head of three classes."""
    torch.manual_seed(1)
    config = BertConfig(**{**_SIZES, **settings}, num_labels=3)
    return BertForSequenceClassification(config).eval()


def inputs(network: nn.Module) -> dict[str, Tensor]:
    """Make ids with padding that the network takes."""
    ids = torch.randint(5, 99, (2, 7), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    made = {"input_ids": ids, "attention_mask": mask}
    if network.config.is_encoder_decoder:
        made["decoder_input_ids"] = ids.flip(0)
    if isinstance(network, BertForMultipleChoice):
        made = {name: tensor.unsqueeze(1).repeat(1, 2, 1) for name, tensor in made.items()}
    return made


def logits(network: nn.Module) -> Tensor:
    """Return what the network says of `inputs`, differentiable."""
    scores: Tensor = network(**inputs(network))[0]
    return scores


def stir(network: nn.Module, *parts: str) -> None:
    """Give weights other values whose name has one of these parts; by default all adapters'."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if any(part in name for part in parts or (".adapters.",)):
                noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
                parameter.copy_(0.5 * noise)
