"""The widths of a network in its config, as far as plain transformers can say them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel

from .blocks import Block, find_blocks
from .bottleneck import layer_width
from .hidden_width import hidden_settings
from .twins import block_places, ffn_settings, head_settings, plain_twin, tensor_shapes

__all__ = ["say_in_config", "unsaid"]


def say_in_config(network: Any) -> None:
    """Set what the config says of the widths of a network, where it can say it.

    Widths of feed-forward blocks can be said where they are the same in all layers; the numbers of
    heads and the hidden size where they are, and the architecture comes to the heads' own width
    with them. What cannot be said stays as it is.

    Args:
        network: of transformers; its config and those of its parts are changed.
    """
    blocks = find_blocks(network)
    ffn, heads = _ffn(network.config, blocks), _heads(network, blocks)
    # All together, for one may follow from the other; then each on its own.
    whole = [*heads, *([ffn | each for each in heads] if ffn is not None else [])]
    if any(_adopt(network, blocks, settings, "fh") for settings in whole):
        return
    if ffn is not None and not _adopt(network, blocks, {}, "f"):
        _adopt(network, blocks, ffn, "f")
    any(_adopt(network, blocks, settings, "h") for settings in heads)


def unsaid(network: Any) -> list[str]:
    """Say what of a network's widths its config does not say.

    Returns:
        Reasons in words, none if the config says all, or if the layers are not known.
    """
    try:
        blocks = find_blocks(network)
    except ValueError:
        return []
    reasons = []
    for kind, word in (("ffn", "neurons in a feed-forward block"), ("heads", "heads")):
        counts = sorted({b.count * b.queries for b in blocks if b.kind == kind})
        if len(counts) > 1:
            reasons.append(f"its layers have {' or '.join(map(str, counts))} {word}")
    if reasons:
        return reasons
    config, one = network.config, next(block for block in blocks if block.kind == "heads")
    hidden, width = _hidden(network, one), one.width // one.queries
    twin = find_blocks(plain_twin(network), ("heads",))
    if hidden != config.hidden_size or _sizes(one) != _sizes(twin[0]):
        heads = one.count * one.queries
        reasons.append(
            f"{heads} heads of {width} and a hidden size of {hidden} do not go together in the "
            f"config of {config.model_type!r}, which for these heads needs {heads * width}"
        )
    return reasons


def _hidden(network: Any, block: Block) -> int:
    return layer_width(network.get_submodule(block.reader))[1]


def _sizes(block: Block) -> tuple[int, int, int]:
    return block.count, block.queries, block.width


def _ffn(config: Any, blocks: Sequence[Block]) -> dict[str, int] | None:
    """Return settings for the widths of feed-forward blocks; `None` if layers differ."""
    return _uniform(
        config, [b for b in blocks if b.kind == "ffn"], ffn_settings, lambda b: (b.count,)
    )


def _heads(network: Any, blocks: Sequence[Block]) -> list[dict[str, int]]:
    """Return settings for heads and hidden size that may be right."""
    config, own = network.config, [block for block in blocks if block.kind == "heads"]
    found = _uniform(config, own, head_settings, lambda b: (b.count * b.queries, b.count))
    if found is None:
        return []
    hidden = _hidden(network, own[0])
    found |= hidden_settings(config, hidden) if hidden != config.hidden_size else {}
    # Some architectures take the width of a head if it is said.
    return [found, found | {"head_dim": own[0].width // own[0].queries}]


def _uniform(
    config: Any, blocks: Sequence[Block], settings: Any, sizes: Any
) -> dict[str, int] | None:
    found: dict[str, int] = {}
    for block in blocks:
        for name, size in zip(settings(config, block.stack), sizes(block), strict=False):
            if found.setdefault(name, size) != size:
                return None
    return found


def _adopt(network: Any, blocks: Sequence[Block], settings: Mapping[str, int], parts: str) -> bool:
    """Change the configs of a network if plain transformers makes of them what it is.

    Args:
        network: as it is.
        blocks: of it.
        settings: to be tried.
        parts: what has to be right: `"f"` for the feed-forward blocks, `"h"` for all else.
    """
    changed = {k: v for k, v in settings.items() if getattr(network.config, k, None) != v}
    try:
        config = copy.deepcopy(network.config)
        for name, value in changed.items():
            setattr(config, name, value)
        type(config).from_dict(config.to_dict())  # as when it is loaded
        twin = plain_twin(network, changed)
        theirs = find_blocks(twin)
    except Exception:  # transformers says in many ways that a config is not possible
        return False
    if tensor_shapes(twin).keys() != tensor_shapes(plain_twin(network)).keys():
        return False  # ELECTRA does without a layer where hidden size and embedding size are one
    inner = {p for b in theirs if b.kind == "ffn" for p in block_places(twin, b)}
    ours, made = _dimensions(network), _dimensions(twin)
    governed = [
        place for place in ours.keys() & made.keys() if ("f" if place in inner else "h") in parts
    ]
    known = {block.reader: _sizes(block) for block in theirs}
    if any(ours[place] != made[place] for place in governed) or (
        "h" in parts and any(_sizes(b) != known[b.reader] for b in blocks if b.kind == "heads")
    ):
        return False
    for config in _configs(network):
        for name, value in changed.items():
            if config is network.config or hasattr(config, name):
                setattr(config, name, value)
    return True


def _dimensions(network: Any) -> dict[tuple[str, int], int]:
    shapes = tensor_shapes(network).items()
    return {(name, dim): size for name, shape in shapes for dim, size in enumerate(shape)}


def _configs(network: Any) -> Iterator[Any]:
    found = {id(m.config): m.config for m in network.modules() if isinstance(m, PreTrainedModel)}
    yield from found.values()
