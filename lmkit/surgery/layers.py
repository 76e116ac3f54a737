"""Fewer layers: a network cut down to some of those that it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from .depth import layer_stacks
from .twins import plain_twin, tensor_shapes

__all__ = ["check_layers", "keep_layers"]

# How a config counts the layers of both stacks of an encoder-decoder, by what counts the encoder's.
_DECODER_COUNTS = {"num_layers": "num_decoder_layers", "encoder_layers": "decoder_layers"}


def keep_layers(network: PreTrainedModel, layers: Sequence[int] | Mapping[str, Any]) -> None:
    """Leave a network only some of its layers, in place; its config says so.

    The rest, embeddings, head and norms, stays as it is, and so plain transformers loads what is
    saved. This is how DistilBERT begins (arXiv:1910.01108, section 3).

    Args:
        network: of an architecture whose layers stand in a list and are counted in its config.
        layers: which to keep, from 0, in increasing order; of an encoder-decoder those of both
            stacks, or a dictionary by `"encoder"` and `"decoder"`, one that is not named being left
            alone.

    Raises:
        ValueError: a number is not there, twice or out of order; or the network's layers are not
            known to be kept so.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> network = BertModel(BertConfig(vocab_size=99, hidden_size=8, num_hidden_layers=4,
        ...     num_attention_heads=2, intermediate_size=8))
        >>> keep_layers(network, [0, 3])
        >>> len(network.encoder.layer), network.config.num_hidden_layers
        (2, 2)
    """
    check_layers(network, layers)
    _keep(network, layers)


def check_layers(network: PreTrainedModel, layers: Sequence[int] | Mapping[str, Any]) -> None:
    """Check that a network can go on with some of its layers, without changing anything.

    What other surgeries have made of the widths of the layers does not matter.

    Args:
        network: as `keep_layers` takes it.
        layers: which to keep.

    Raises:
        ValueError: it cannot, see `keep_layers`.
    """
    twin = plain_twin(network)
    _keep(twin, layers)
    if tensor_shapes(plain_twin(twin)) != tensor_shapes(twin):
        raise ValueError(
            f"the architecture {network.config.model_type!r} is not known to go on with fewer of "
            "its layers"
        )


def _keep(network: Any, layers: Sequence[int] | Mapping[str, Any]) -> None:
    if network.config.is_encoder_decoder:
        parts: dict[str, Any] = {
            "encoder": network.get_encoder(),
            "decoder": network.get_decoder(),
        }
        chosen = dict(layers) if isinstance(layers, Mapping) else dict.fromkeys(parts, layers)
        if unknown := sorted(set(chosen) - set(parts)):
            raise ValueError(f"layers names {unknown[0]!r}; there are encoder and decoder")
    else:
        if isinstance(layers, Mapping):
            raise ValueError("layers by stack are for an encoder-decoder; give a list of numbers")
        parts, chosen = {"": network}, {"": layers}
    for name, numbers in chosen.items():
        _cut(network, parts[name], name, list(numbers))


def _cut(network: PreTrainedModel, part: nn.Module, name: str, numbers: list[int]) -> None:
    stacks = layer_stacks(part)
    if len(stacks) != 1:
        raise ValueError(
            f"the architecture {network.config.model_type!r} does not say where its layers are: "
            f"found {', '.join(stacks) or 'none'}"
        )
    path, stack = next(iter(stacks.items()))
    total = len(stack)
    wrong = [number for number in numbers if not 0 <= number < total]
    if wrong or not numbers or sorted(set(numbers)) != numbers:
        of = f" of the {name}" if name else ""
        raise ValueError(
            f"layers{of} must be numbers from 0 to {total - 1} in increasing order, got {numbers}"
        )
    kept = [stack[number] for number in numbers]
    _move_position_bias(stack[0], kept[0])
    for place, layer in enumerate(kept):
        for module in layer.modules():
            # By it a decoder finds its keys and values of before.
            if isinstance(getattr(module, "layer_idx", None), int):
                setattr(module, "layer_idx", place)  # noqa: B010, a plain number for mypy too
    owner, _, last = path.rpartition(".")
    setattr(part.get_submodule(owner), last, nn.ModuleList(kept))
    for config in _configs(network, part):
        _count(config, network.config, name, numbers, total)


def _configs(network: PreTrainedModel, part: nn.Module) -> list[Any]:
    """Return the configs that count the layers: the network's, and the part's own if it has one."""
    found: dict[int, Any] = {id(network.config): network.config}
    for module in (part, *part.modules()):
        if isinstance(module, PreTrainedModel):
            found[id(module.config)] = module.config
    return list(found.values())


def _count(config: Any, whole: Any, name: str, numbers: list[int], total: int) -> None:
    count = "num_hidden_layers"
    if name and config is whole:
        for encoder, decoder in _DECODER_COUNTS.items():
            if hasattr(config, encoder) and hasattr(config, decoder):
                count = encoder if name == "encoder" else decoder
                break
        else:
            config = getattr(config, name, None)  # of two networks that were joined
    if config is None or getattr(config, count, None) not in (total, len(numbers)):
        return
    setattr(config, count, len(numbers))
    kinds = getattr(config, "layer_types", None)
    if kinds and len(kinds) == total:
        config.layer_types = [kinds[number] for number in numbers]


def _move_position_bias(first: nn.Module, new: nn.Module) -> None:
    """Hand on the table of T5's relative positions, which the first layer holds for all."""
    if first is new:
        return
    old = {n: m for n, m in first.named_modules() if hasattr(m, "relative_attention_bias")}
    for name, module in new.named_modules():
        if name in old and getattr(module, "has_relative_attention_bias", None) is False:
            module.relative_attention_bias = old[name].relative_attention_bias
            module.has_relative_attention_bias = True
