"""The two networks of replaced-token detection: which head, how wide, and what they share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

from ..surgery.structure_folder import has_structure
from .network import build_network

__all__ = [
    "build_generator",
    "check_labels",
    "discriminator_class",
    "narrow_config",
    "share_embeddings",
]


def discriminator_class(model: str | Mapping[str, Any]) -> type[_BaseAutoModelClass]:
    """Choose the head of a discriminator: ELECTRA's own, else a token classifier's.

    Args:
        model: hub name, folder, or config with a `model_type`.

    Raises:
        ValueError: the architecture is no encoder with such a head.
    """
    if isinstance(model, str):
        try:
            kind = AutoConfig.from_pretrained(model).model_type
        except (OSError, ValueError, KeyError):
            return AutoModelForPreTraining  # of what cannot be loaded `build_network` says why
    else:
        kind = str(model.get("model_type"))
    if kind == "electra" or kind not in CONFIG_MAPPING:
        return AutoModelForPreTraining
    encoders = MODEL_FOR_MASKED_LM_MAPPING_NAMES.keys()
    if kind not in encoders & MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES.keys():
        raise ValueError(
            f"the architecture {kind!r} cannot tell of each token whether it was replaced, which "
            "needs an encoder with a token classifier; take electra, or another encoder such as "
            "bert, roberta or modernbert"
        )
    return AutoModelForTokenClassification


def check_labels(network: PreTrainedModel) -> None:
    """Check that a discriminator tells two things apart, and name these in its config.

    Raises:
        ValueError: it has another number of labels.
    """
    config = network.config
    if config.model_type == "electra":
        return
    if config.num_labels != 2:
        raise ValueError(
            f"the model has {config.num_labels} labels, and a token is either original or "
            "replaced; take a model without a head, or whose token classifier has two labels"
        )
    config.id2label, config.label2id = (
        {0: "original", 1: "replaced"},
        {"original": 0, "replaced": 1},
    )


def build_generator(
    network: PreTrainedModel,
    generator: str | Mapping[str, Any] | None,
    size: float,
    pretrained: bool,
    tokenizer: PreTrainedTokenizerBase | None,
) -> PreTrainedModel:
    """Build a masked language model over the vocabulary of a discriminator.

    Args:
        network: the discriminator.
        generator: hub name, folder, or config with a `model_type`, whose vocabulary is the
            discriminator's unless it says; `None` for the one of `narrow_config`.
        size: of `narrow_config`.
        pretrained: whether a name or folder brings its weights.
        tokenizer: gives a config from scratch its special ids.

    Raises:
        ValueError: there is no such model or it has no masked language-model head, or its
            vocabulary is of another size than the discriminator's.
    """
    rows = _embedding(network).num_embeddings
    if generator is None:
        generator = narrow_config(network.config, size)
    elif pretrained and has_structure(generator):
        raise ValueError(
            f"the generator in {generator} has layers that its config does not say, and a "
            "checkpoint names those of the discriminator alone; export it with merge=True"
        )
    elif not isinstance(generator, str):
        generator = {"vocab_size": rows, **generator}
    built, _ = build_network(AutoModelForMaskedLM, generator, pretrained, tokenizer)
    if (own := _embedding(built).num_embeddings) != rows:
        raise ValueError(
            f"the generator has a vocabulary of {own} tokens and the discriminator of {rows}; both "
            "must speak the ids of one tokenizer: give a generator of the same vocabulary, or "
            "leave generator out"
        )
    return built


def narrow_config(config: PretrainedConfig, size: float) -> dict[str, Any]:
    """Make the config of an ELECTRA generator: as deep as the discriminator, and less wide.

    The heads are as wide as the discriminator's and there are fewer of them, the rest is in
    proportion; the embeddings are of the discriminator's size, so that they can be shared.

    Args:
        config: of the discriminator, of any architecture.
        size: share of the width, in `(0, 1]`, rounded to whole heads, at least one.

    Returns:
        A config as plain data with the `model_type` electra.

    Raises:
        ValueError: `size` lies outside its range.

    Example:
        >>> from transformers import ElectraConfig
        >>> small = narrow_config(ElectraConfig(), 0.25)
        >>> small["hidden_size"], small["num_attention_heads"], small["intermediate_size"]
        (64, 1, 256)
    """
    if not 0.0 < size <= 1.0:
        raise ValueError(f"generator_size must lie in (0, 1], got {size}")
    heads = max(1, round(config.num_attention_heads * size))
    hidden = heads * (config.hidden_size // config.num_attention_heads)
    inner = getattr(config, "intermediate_size", 4 * config.hidden_size)
    same = config.to_dict() if config.model_type == "electra" else {}
    return {
        **same,
        "model_type": "electra",
        "vocab_size": config.vocab_size,
        "embedding_size": getattr(config, "embedding_size", config.hidden_size),
        "hidden_size": hidden,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": heads,
        "intermediate_size": max(1, round(inner * hidden / config.hidden_size)),
        "max_position_embeddings": config.max_position_embeddings,
        "pad_token_id": config.pad_token_id,
        "tie_word_embeddings": True,
    }


def share_embeddings(generator: PreTrainedModel, network: PreTrainedModel) -> None:
    """Let a generator read, and its head write, with the embeddings of the discriminator.

    Where both have the same layer of embeddings, as two ELECTRAs have, it is shared whole: tokens,
    positions, types and their normalization, as in ELECTRA's released code. Otherwise the table of
    tokens is shared.

    Args:
        generator: its embeddings are replaced by the discriminator's; those are left as they are.
        network: the discriminator.

    Raises:
        ValueError: the embeddings are not of one width.
    """
    ours, theirs = _embedding(network), _embedding(generator)
    if ours.embedding_dim != theirs.embedding_dim:
        raise ValueError(
            f"the generator's embeddings are {theirs.embedding_dim} wide and the discriminator's "
            f"{ours.embedding_dim}, so they cannot be shared; give the generator the "
            f"discriminator's width of embeddings, or set share_embeddings=False"
        )
    whole, other = (getattr(m.base_model, "embeddings", None) for m in (network, generator))
    if isinstance(whole, nn.Module) and isinstance(other, nn.Module) and _alike(whole, other):
        cast(Any, generator.base_model).embeddings = whole
    else:
        generator.set_input_embeddings(ours)
    generator.tie_weights()


def _embedding(network: PreTrainedModel) -> nn.Embedding:
    return cast(nn.Embedding, network.get_input_embeddings())


def _alike(one: nn.Module, other: nn.Module) -> bool:
    shapes = [{name: p.shape for name, p in m.named_parameters()} for m in (one, other)]
    return type(one) is type(other) and shapes[0] == shapes[1]
