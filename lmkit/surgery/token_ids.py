"""What the configs of a network say of tokens: sizes of the vocabulary, and ids."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from transformers import GenerationConfig, PretrainedConfig

__all__ = ["configs_of", "named_ids", "nested_configs", "rewrite_ids"]

_IDS = re.compile(r"\w*_token_ids?")
_SIZES = ("vocab_size", "decoder_vocab_size")
# Lists of what is not to be written; and what could not be rewritten without another meaning.
_UNWANTED = ("suppress_tokens", "begin_suppress_tokens")
_UNKNOWN = ("force_words_ids", "forced_decoder_ids", "sequence_bias", "constraints")


def configs_of(network: nn.Module) -> list[Any]:
    """Return the configs that a network and its parts hold, each once, and how it generates."""
    generation = getattr(network, "generation_config", None)
    held = [getattr(module, "config", None) for module in network.modules()]
    return [*nested_configs(held), *([] if generation is None else [generation])]


def nested_configs(configs: list[Any]) -> list[PretrainedConfig]:
    """Return configs and those inside them, each once; what is no config is left out.

    Example:
        >>> from transformers import BertConfig, EncoderDecoderConfig
        >>> both = EncoderDecoderConfig(encoder=BertConfig().to_dict(),
        ...     decoder=BertConfig().to_dict())
        >>> len(nested_configs([both, both.encoder, None]))
        3
    """
    waiting, found = list(configs), dict[int, PretrainedConfig]()
    while waiting:
        config = waiting.pop(0)
        if isinstance(config, PretrainedConfig) and id(config) not in found:
            found[id(config)] = config
            waiting += list(vars(config).values())
    return list(found.values())


def named_ids(config: PretrainedConfig | GenerationConfig) -> Iterator[tuple[str, list[int]]]:
    """Yield what names tokens, such as `pad_token_id`, with its ids.

    Example:
        >>> from transformers import T5Config
        >>> sorted(named_ids(T5Config()))
        [('eos_token_id', [1]), ('pad_token_id', [0])]
    """
    for name, value in list(vars(config).items()):
        if _IDS.fullmatch(name) and value is not None:
            yield name, list(value) if isinstance(value, list | tuple) else [value]


def rewrite_ids(
    config: PretrainedConfig | GenerationConfig, new: Mapping[int, int], rows: int
) -> None:
    """Put new ids and sizes into a config.

    Sequences of `bad_words_ids` with a token that is gone are left out, as they can be written no
    more. Ids that there never were, which some configs name by default, stay as they are.

    Args:
        config: changed in place.
        new: the new id of each token that is kept.
        rows: size of the old vocabulary.

    Raises:
        ValueError: an id is not kept, or what names tokens is not understood.
    """
    for word, ids in named_ids(config):
        if lost := [number for number in ids if 0 <= number < rows and number not in new]:
            raise ValueError(
                f"{word} of the config is {lost[0]}, and kept is without it: keep it, see "
                "needed_ids"
            )
        renumbered = [new.get(number, number) for number in ids]
        is_list = isinstance(getattr(config, word), list | tuple)
        setattr(config, word, renumbered if is_list else renumbered[0])
    for word in _UNWANTED:
        if unwanted := getattr(config, word, None):
            setattr(config, word, [new[number] for number in unwanted if number in new])
    if words := getattr(config, "bad_words_ids", None):
        left = [[new[i] for i in word] for word in words if new.keys() >= set(word)]
        config.bad_words_ids = left or None
    if known := [word for word in _UNKNOWN if getattr(config, word, None)]:
        raise ValueError(
            f"the config has {', '.join(known)}, which name tokens of the old vocabulary: set them "
            "to None before, and anew afterwards"
        )
    for word in _SIZES:
        if getattr(config, word, None) == rows:
            setattr(config, word, len(new))
