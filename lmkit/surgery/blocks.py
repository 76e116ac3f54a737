"""The attentions and feed-forward blocks of a transformer, and which layers write and read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn
from transformers.pytorch_utils import Conv1D

from .base import NothingMatchedError
from .bottleneck import layer_width
from .depth import layer_stacks

__all__ = ["KINDS", "Block", "Writer", "find_blocks", "group_blocks", "stack_paths"]

#: What a transformer layer is made of.
KINDS = ("heads", "ffn")


class Writer(NamedTuple):
    """A linear layer that computes units.

    Attributes:
        name: dotted.
        width: how many of its outputs belong to one unit, in each part.
        parts: how many times it holds all units, one after another: 3 for a layer that computes
            query, key and value at once.
    """

    name: str
    width: int
    parts: int


@dataclass(frozen=True)
class Block:
    """One attention or one feed-forward block.

    Attributes:
        kind: of `KINDS`.
        layer: number of its layer in the stack, from 0.
        stack: `"encoder"` or `"decoder"` of an encoder-decoder, else `""`.
        place: name of the block within its layer, which is `""` if the layer itself is the block.
        writers: the layers that compute the units.
        reader: dotted name of the layer whose input the units are.
        width: how many inputs of the reader belong to one unit.
        count: how many units there are.
        holder: dotted name of the module that holds the sizes as its attributes.
        queries: how many heads of queries a unit has; 1 without groups.
        shared: whether all blocks of this place in the stack must have the same units.
    """

    kind: str
    layer: int
    stack: str
    place: str
    writers: tuple[Writer, ...]
    reader: str
    width: int
    count: int
    holder: str
    queries: int = 1
    shared: bool = False


class _Layout(NamedTuple):
    """How the layers of a block are called within it; `holder` knows the size of a head."""

    writers: tuple[str, ...]
    reader: str
    holder: str = ""


_LAYOUTS: dict[str, tuple[_Layout, ...]] = {
    "heads": (
        _Layout(("self.query", "self.key", "self.value"), "output.dense", "self"),  # BERT and kin
        _Layout(  # YOLOS and kin
            ("attention.query", "attention.key", "attention.value"), "output.dense", "attention"
        ),
        _Layout(("q_lin", "k_lin", "v_lin"), "out_lin"),  # DistilBERT
        _Layout(("q_proj", "k_proj", "v_proj"), "o_proj"),  # Llama and kin, ViT
        _Layout(("q_proj", "k_proj", "v_proj"), "out_proj"),  # BART
        _Layout(("q", "k", "v"), "o"),  # T5
        _Layout(("Wqkv",), "Wo"),  # ModernBERT
        _Layout(("q_attn", "c_attn"), "c_proj"),  # GPT-2 across to an encoder
        _Layout(("c_attn",), "c_proj"),
    ),
    "ffn": (
        _Layout(("intermediate.dense",), "output.dense"),
        _Layout(("lin1",), "lin2"),
        _Layout(("Wi",), "Wo"),
        _Layout(("c_fc",), "c_proj"),
        _Layout(("gate_proj", "up_proj"), "down_proj"),
        _Layout(("wi_0", "wi_1"), "wo"),
        _Layout(("wi",), "wo"),
        _Layout(("fc1",), "fc2"),
    ),
}
_HEAD_WIDTHS = ("attention_head_size", "head_dim", "key_value_proj_dim")
_MISSING = {"heads": "no query, key and value", "ffn": "no two layers of a feed-forward block"}


def find_blocks(network: Any, kinds: Sequence[str] = KINDS) -> list[Block]:
    """Find all attentions and feed-forward blocks, those across to an encoder too.

    Args:
        network: of transformers. Its layers may be wrapped.
        kinds: of `KINDS`.

    Returns:
        Blocks layer by layer, attentions before the feed-forward block.

    Raises:
        NothingMatchedError: a layer has no block of a kind that is known; says which linear layers
            it has.
        ValueError: the widths of its layers do not go together.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"kinds must be of {', '.join(KINDS)}, got {unknown[0]!r}")
    found = []
    for stack, path in stack_paths(network).items():
        for number, layer in enumerate(network.get_submodule(path)):
            blocks = list(_blocks_of(layer, f"{path}.{number}", number, stack, kinds))
            for kind in kinds:
                if not any(block.kind == kind for block in blocks):
                    raise NothingMatchedError(_unknown(network, kind, f"{path}.{number}", layer))
            found += sorted(blocks, key=lambda block: KINDS.index(block.kind))
    return found


def stack_paths(network: Any) -> dict[str, str]:
    """Return the dotted name of each list of layers by stack: `""`, or `"encoder"`, `"decoder"`.

    Raises:
        NothingMatchedError: it is not known where the layers are.
    """
    if not hasattr(network, "config"):
        raise NothingMatchedError(
            f"{type(network).__name__} is no network of transformers, and its layers are not known"
        )
    parts: dict[str, Any] = {"": network}
    if network.config.is_encoder_decoder:
        parts = {"encoder": network.get_encoder(), "decoder": network.get_decoder()}
    paths = {}
    for stack, part in parts.items():
        lists = list(layer_stacks(part).values())
        names = [
            name
            for name, module in network.named_modules()
            if isinstance(module, nn.ModuleList) and any(list(module) == layers for layers in lists)
        ]
        if len(names) != 1:
            raise NothingMatchedError(
                f"the architecture {network.config.model_type!r} does not say where its layers "
                f"are: found {', '.join(names) or 'none'}"
            )
        paths[stack] = names[0]
    return paths


def group_blocks(blocks: Sequence[Block]) -> list[list[Block]]:
    """Put blocks together that must keep the same units."""
    groups: dict[Any, list[Block]] = {}
    for block in blocks:
        key = (block.stack, block.place) if block.shared else block.reader
        groups.setdefault(key, []).append(block)
    return list(groups.values())


def _blocks_of(
    layer: nn.Module, path: str, number: int, stack: str, kinds: Sequence[str]
) -> Iterator[Block]:
    inside = dict(layer.named_modules())
    for place in inside:
        for kind in kinds:
            layout = next((a for a in _LAYOUTS[kind] if _has(inside, place, a)), None)
            if layout is not None:
                make = _attention if kind == "heads" else _feed_forward
                yield make(inside, path, place, layout, number, stack)


def _has(inside: dict[str, nn.Module], place: str, layout: _Layout) -> bool:
    names = [_join(place, name) for name in (*layout.writers, layout.reader)]
    return all(name in inside and _is_linear(inside[name]) for name in names)


def _attention(
    inside: dict[str, Any], path: str, place: str, layout: _Layout, number: int, stack: str
) -> Block:
    place_of_holder = _join(place, layout.holder)
    holder = inside[place_of_holder]
    width = next((int(getattr(holder, w)) for w in _HEAD_WIDTHS if hasattr(holder, w)), 0)
    sizes = {name: layer_width(inside[_join(place, name)])[1] for name in layout.writers}
    read = layer_width(inside[_join(place, layout.reader)])[0]
    if len(layout.writers) == 3:  # query, key, value; each key may serve a group of queries
        query, key, value = layout.writers
        groups = sizes[query] // max(1, sizes[key])
        widths, parts = {query: groups * width, key: width, value: width}, {}
    else:
        fused = layout.writers[-1]
        groups, parts = 1, {fused: 4 - len(layout.writers)}
        widths = dict.fromkeys(layout.writers, width)
    count = read // max(1, groups * width)
    whole = f"{path}.{place}" if place else path
    wrong = width < 1 or count * groups * width != read
    if wrong or any(sizes[n] != parts.get(n, 1) * count * widths[n] for n in sizes):
        raise ValueError(
            f"the widths in {whole} do not go together: heads of {width or 'unknown width'}, "
            f"outputs {sizes}, and {read} inputs of {layout.reader}"
        )
    return Block(
        kind="heads",
        layer=number,
        stack=stack,
        place=place,
        writers=tuple(Writer(f"{whole}.{n}", widths[n], parts.get(n, 1)) for n in sizes),
        reader=f"{whole}.{layout.reader}",
        width=groups * width,
        count=count,
        holder=_join(path, place_of_holder),
        queries=groups,
        # They add one table of relative positions, with a column for each head.
        shared=hasattr(holder, "has_relative_attention_bias"),
    )


def _feed_forward(
    inside: dict[str, Any], path: str, place: str, layout: _Layout, number: int, stack: str
) -> Block:
    count = layer_width(inside[_join(place, layout.reader)])[0]
    sizes = {name: layer_width(inside[_join(place, name)])[1] for name in layout.writers}
    whole = _join(path, place)
    if any(size not in (count, 2 * count) for size in sizes.values()):
        raise ValueError(
            f"the widths in {whole} do not go together: outputs {sizes}, and {count} inputs of "
            f"{layout.reader}"
        )
    return Block(
        kind="ffn",
        layer=number,
        stack=stack,
        place=place,
        writers=tuple(Writer(f"{whole}.{n}", 1, size // count) for n, size in sizes.items()),
        reader=f"{whole}.{layout.reader}",
        width=1,
        count=count,
        holder=whole,
    )


def _is_linear(module: nn.Module) -> bool:
    # Whatever wraps a layer, or stands for it, still says how wide it is.
    return isinstance(module, nn.Linear | Conv1D) or (
        hasattr(module, "base_layer") or hasattr(module, "in_features")
    )


def _join(*names: str) -> str:
    return ".".join(name for name in names if name)


def _unknown(network: Any, kind: str, path: str, layer: nn.Module) -> str:
    linear = [name for name, module in layer.named_modules() if name and _is_linear(module)]
    return (
        f"{_MISSING[kind]} known for {network.config.model_type!r}: {path} has the linear layers "
        f"{', '.join(linear) or '(none)'}. Leave {kind!r} out, or take an architecture that is "
        "known, such as bert, gpt2, llama or t5"
    )
