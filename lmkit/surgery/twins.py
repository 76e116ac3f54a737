"""What follows a setting of a config: found by building the network twice, without weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from .base import NothingMatchedError
from .blocks import Block

__all__ = [
    "Places",
    "block_places",
    "check_blocks",
    "ffn_settings",
    "following",
    "head_settings",
    "plain_twin",
    "tensor_shapes",
]

#: Dimensions of parameters: by name and number.
Places = set[tuple[str, int]]

_FFN_SETTINGS = ("intermediate_size", "hidden_dim", "n_inner", "d_ff")


def plain_twin(network: Any, settings: Mapping[str, Any] | None = None) -> nn.Module:
    """Build the plain architecture of a network anew, on the device that holds no numbers.

    Args:
        network: of transformers; it gives class and config.
        settings: of the config, in place of what it says.

    Raises:
        ValueError: such a config is not possible.
    """
    config = copy.deepcopy(network.config)
    config._attn_implementation = "eager"  # the others may ask for a library
    for name, value in (settings or {}).items():
        setattr(config, name, value)
    with torch.device("meta"):
        twin: nn.Module = type(network)(config)
    return twin


def tensor_shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all parameters and buffers of a state dict by name."""
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def following(
    network: Any, settings: Mapping[str, Any], pinned: Mapping[str, Any] | None = None
) -> dict[tuple[str, int], tuple[int, int]]:
    """Find which dimensions of which parameters follow settings of a network's config.

    Args:
        network: of transformers.
        settings: other values than those that the config has.
        pinned: settings that would follow these by themselves, and shall not.

    Returns:
        By name and dimension the sizes with and without the other values.

    Raises:
        ValueError: not only sizes change.
    """
    before = tensor_shapes(plain_twin(network, pinned))
    after = tensor_shapes(plain_twin(network, {**(pinned or {}), **settings}))
    if before.keys() != after.keys() or any(len(before[n]) != len(after[n]) for n in before):
        raise ValueError(
            f"{', '.join(settings)} of {network.config.model_type!r} decides more than sizes: "
            f"{sorted(before.keys() ^ after.keys())[:3]} come or go"
        )
    return {
        (name, dim): (was, now)
        for name, shape in before.items()
        for dim, (was, now) in enumerate(zip(shape, after[name], strict=True))
        if was != now
    }


def ffn_settings(config: Any, stack: str) -> list[str]:
    """Return the settings of a config that say how wide the feed-forward blocks of a stack are."""
    own = f"{stack}_ffn_dim"
    if stack and hasattr(config, own):
        return [own]
    return [name for name in _FFN_SETTINGS if hasattr(config, name)][:1]


def head_settings(config: Any, stack: str) -> list[str]:
    """Return the settings of a config that say how many heads there are, then key-value heads."""
    own = f"{stack}_attention_heads"
    first = own if stack and hasattr(config, own) else "num_attention_heads"
    has_groups = getattr(config, "num_key_value_heads", None) is not None
    found = [first, *(["num_key_value_heads"] if has_groups else [])]
    return found if hasattr(config, first) else []


def block_places(network: nn.Module, block: Block) -> Places:
    """Return where a block's own parameters have a dimension of its units.

    Args:
        network: with plain layers, such as a twin.
        block: of it, or of a network that it is the twin of.
    """
    found: Places = set()
    for writer in block.writers:
        layer: Any = network.get_submodule(writer.name)
        found.add((f"{writer.name}.weight", 1 if isinstance(layer, Conv1D) else 0))
        if layer.bias is not None:
            found.add((f"{writer.name}.bias", 0))
    turned = isinstance(network.get_submodule(block.reader), Conv1D)
    found.add((f"{block.reader}.weight", 0 if turned else 1))
    if hasattr(network.get_submodule(block.holder), "relative_attention_bias"):
        found.add((f"{block.holder}.relative_attention_bias.weight", 1))
    return found


def check_blocks(network: Any, blocks: Sequence[Block]) -> None:
    """Check that all is known that depends on the number of units.

    Args:
        network: of transformers.
        blocks: of `find_blocks`.

    Raises:
        NothingMatchedError: it is not known how its config counts them.
        ValueError: other parameters depend on it than those of the blocks; names them.
    """
    twin = plain_twin(network)
    for kind in sorted({block.kind for block in blocks}):
        own = [block for block in blocks if block.kind == kind]
        known = {place for block in own for place in block_places(twin, block)}
        settings = _others(network.config, kind, {block.stack for block in own})
        if settings is None:
            continue
        moved = set(following(network, settings))
        strange = moved - known if kind == "heads" else moved ^ known
        if strange:
            raise ValueError(
                f"{', '.join(settings)} of {network.config.model_type!r} and the {kind} that are "
                f"known do not go together: {', '.join(sorted(n for n, _ in strange)[:3])}. Units "
                "of this architecture cannot be removed"
            )


def _others(config: Any, kind: str, stacks: set[str]) -> dict[str, int] | None:
    """Return other numbers of units than a config has; `None` if there can be none."""
    find = head_settings if kind == "heads" else ffn_settings
    names = [name for stack in sorted(stacks) for name in find(config, stack)]
    if not names:
        raise NothingMatchedError(
            f"it is not known how the config of {config.model_type!r} says the number of {kind}"
        )
    if kind == "ffn":
        # GPT-2 says nothing where it is four times the hidden size.
        return {name: 2 * (getattr(config, name) or 4 * config.hidden_size) for name in names}
    # One head goes with every hidden size.
    return None if config.num_attention_heads == 1 else dict.fromkeys(names, 1)
