"""An encoder-decoder made of two networks that were trained apart, e.g. of two BERTs."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .fresh_weights import say_fresh
from .network import build_network, named_config

__all__ = ["build_encoder_decoder", "is_two_networks", "settle"]

_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
_OWN = ("model_type", "encoder", "decoder")
#: Settings of the whole beside those of transformers' own config.
_SETTINGS = ("tie_encoder_decoder", "vocab_size")


def is_two_networks(model: str | Mapping[str, Any]) -> TypeGuard[Mapping[str, Any]]:
    """Return whether a `model` argument names an encoder and a decoder to be joined."""
    return isinstance(model, Mapping) and model.get("model_type") == "encoder-decoder"


def build_encoder_decoder(
    model: Mapping[str, Any],
    pretrained: bool = True,
    tokenizer: PreTrainedTokenizerBase | None = None,
    settings: Mapping[str, Any] | None = None,
) -> tuple[PreTrainedModel, set[str]]:
    """Join an encoder and a decoder (arXiv:1907.12461) as transformers' `EncoderDecoderModel`.

    The decoder sees only what is before it, and gets a layer that attends to the encoder in each of
    its layers; those are new, and start at random. It starts from the tokenizer's first token
    (`bos`, or `[CLS]`) and ends with its last (`eos`, or `[SEP]`).

    Args:
        model: `{"model_type": "encoder-decoder", "encoder": ..., "decoder": ...}`, each a hub name,
            a folder, or a config with a `model_type`; and perhaps `"tie_encoder_decoder": True`,
            see `settle`.
        pretrained: whether names and folders bring their weights, or only their configs.
        tokenizer: gives configs from scratch the size of the vocabulary, and the special ids.
        settings: entries of the config that the data decide.

    Returns:
        The network in float32 and train mode, and the names of those weights that were loaded.

    Raises:
        ValueError: a half is missing, unknown, or of an architecture that cannot be that half.

    Example:
        >>> half = {"model_type": "bert", "vocab_size": 99, "hidden_size": 8,
        ...     "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        >>> network, _ = build_encoder_decoder({"model_type": "encoder-decoder", "encoder": half,
        ...     "decoder": half, "decoder_start_token_id": 2, "pad_token_id": 0})
        >>> network.config.decoder.add_cross_attention
        True
    """
    _check_settings(model)
    halves = {half: _with_version(model, half) for half in ("encoder", "decoder")}
    encoder, of_encoder = _encoder(halves["encoder"], pretrained, tokenizer)
    decoder, of_decoder = _decoder(halves["decoder"], pretrained, tokenizer)
    # The token ids of the halves are those of their own vocabularies; the whole has the data's.
    ids = {**_token_ids(decoder.config, tokenizer), **_given(model, _IDS)}
    rest = {
        "vocab_size": decoder.config.vocab_size,  # of what it writes: a config of two has none
        **{name: value for name, value in model.items() if name not in (*_OWN, *_IDS)},
        **(settings or {}),
    }
    config = EncoderDecoderConfig.from_encoder_decoder_configs(
        encoder.config, decoder.config, **ids, **rest
    )
    network = EncoderDecoderModel(config=config, encoder=encoder, decoder=decoder)
    loaded = {f"encoder.{name}" for name in of_encoder} | {f"decoder.{name}" for name in of_decoder}
    return network.train(), loaded


def settle(network: PreTrainedModel) -> None:
    """Share and freeze what the config of an encoder-decoder does not make transformers share.

    With `tie_encoder_decoder` in its config the halves of one that was made of two share all
    weights that both have, and only the cross-attention is the decoder's own. What no loss reaches
    is frozen, since training on several devices would stumble on it: the pooler of an encoder,
    which summarises a text for a classifier.

    Args:
        network: changed in place; any encoder-decoder.
    """
    if isinstance(network, EncoderDecoderModel) and getattr(
        network.config, "tie_encoder_decoder", False
    ):
        _share(network)
    pooler = getattr(network.get_encoder(), "pooler", None)
    if isinstance(pooler, nn.Module):
        pooler.requires_grad_(False)


def _check_settings(model: Mapping[str, Any]) -> None:
    known = [*_OWN, *_IDS, *_SETTINGS]
    for name in model:
        # A config that was once saved carries more keys; one typed by hand may not.
        if name not in known and "transformers_version" not in model:
            near = difflib.get_close_matches(name, known, n=1)
            raise ValueError(
                f"encoder-decoder has no setting {name!r}"
                + (f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(known)}")
            )
    for half in ("encoder", "decoder"):
        if not isinstance(model.get(half), str | Mapping):
            raise ValueError(
                f"a model of the type encoder-decoder needs {half!r}: a hub name, a folder, or a "
                f"config with a model_type; got {model.get(half)!r}"
            )


def _with_version(model: Mapping[str, Any], half: str) -> str | dict[str, Any]:
    """Return a half; of a config that was once saved, marked as such as the whole is."""
    if isinstance(model[half], str):
        return str(model[half])
    version = {k: model[k] for k in ("transformers_version",) if k in model}
    return {**version, **model[half]}


def _encoder(
    half: str | Mapping[str, Any], pretrained: bool, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[PreTrainedModel, set[str]]:
    network, loaded = build_network(AutoModel, half, pretrained, tokenizer)
    config = network.config
    if config.is_encoder_decoder or getattr(config, "is_decoder", False):
        raise ValueError(
            f"the encoder is of the architecture {config.model_type!r}, which is no encoder; take "
            "one such as bert, roberta or modernbert"
        )
    return network, loaded


def _decoder(
    half: str | Mapping[str, Any], pretrained: bool, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[PreTrainedModel, set[str]]:
    if isinstance(half, str):
        config = named_config(half)
        kind = config.model_type
    else:
        kind = str(half.get("model_type"))
    _check_attends(kind)
    as_decoder = {"is_decoder": True, "add_cross_attention": True}
    if not isinstance(half, str):
        return build_network(AutoModelForCausalLM, {**half, **as_decoder}, pretrained, tokenizer)
    for name, value in as_decoder.items():
        setattr(config, name, value)
    if not pretrained:
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32), set()
    network, loading = cast(Any, AutoModelForCausalLM).from_pretrained(
        half, config=config, dtype=torch.float32, output_loading_info=True
    )
    loaded = set(network.state_dict()) - set(loading["missing_keys"])
    new = {name for name in loading["missing_keys"] if "crossattention" not in name}
    say_fresh(
        f"the decoder {half} attends to the encoder by new layers, which start at random"
        + (f", and so do {', '.join(sorted(new))}" if new else "")
    )
    return network, loaded


def _check_attends(kind: str) -> None:
    """Check that an architecture can be told to attend to an encoder."""
    if kind not in CONFIG_MAPPING:
        return  # `build_network` says what there is
    classes = cast(Any, AutoModelForCausalLM)._model_mapping
    config = CONFIG_MAPPING[kind]
    if config not in classes or "encoder_hidden_states" not in (
        inspect.signature(classes[config].forward).parameters
    ):
        raise ValueError(
            f"the decoder is of the architecture {kind!r}, which cannot attend to an encoder; take "
            "one such as bert, roberta, electra or gpt2"
        )


def _token_ids(
    config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase | None
) -> dict[str, int | None]:
    source: Any = tokenizer or config
    first = (getattr(source, f"{role}_token_id", None) for role in ("bos", "cls"))
    last = (getattr(source, f"{role}_token_id", None) for role in ("eos", "sep"))
    pad = getattr(source, "pad_token_id", None)
    end = next((i for i in last if i is not None), None)
    start = next((i for i in first if i is not None), pad if end is None else end)
    return {"pad_token_id": pad, "eos_token_id": end, "decoder_start_token_id": start}


def _given(model: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: model[name] for name in names if model.get(name) is not None}


def _share(network: EncoderDecoderModel) -> None:
    """Let the decoder have the weights of the encoder wherever name and shape agree."""
    ours, theirs = network.encoder, cast(PreTrainedModel, network.decoder).base_model
    for name, parameter in ours.named_parameters():
        path, _, leaf = name.rpartition(".")
        try:
            place = theirs.get_submodule(path)
        except AttributeError:
            continue
        own = getattr(place, leaf, None)
        if isinstance(own, nn.Parameter) and own.shape == parameter.shape:
            setattr(place, leaf, parameter)
    network.decoder.tie_weights()
    # transformers knows of no such sharing, and would refuse to save it: a saved network has both
    # halves in full, which load as two that are equal.
    network.register_state_dict_post_hook(_unshared)


def _unshared(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    seen: set[int] = set()
    for name in [name for name in state if name.startswith(f"{prefix}encoder.")]:
        seen.add(state[name].data_ptr())
    for name in [name for name in state if name.startswith(f"{prefix}decoder.")]:
        if state[name].data_ptr() in seen:
            state[name] = state[name].clone()
