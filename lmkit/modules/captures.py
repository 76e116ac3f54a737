"""What passes inside a network while it runs: hidden states, projections, attention maps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..surgery.base import NothingMatchedError
from ..surgery.depth import layer_stacks
from ..surgery.sites import find_sites
from .attention import MAPS, keeping_maps, use_fast_attention

__all__ = [
    "Captures",
    "Place",
    "Taps",
    "capturing",
    "depth_of",
    "freeze_unreached",
    "show_maps",
    "stack_of",
    "width_of",
]

Kind = Literal["hidden", "query", "key", "value", "attention"]
_PROJECTIONS = ("query", "key", "value")


class Place(NamedTuple):
    """A tensor inside a network.

    Attributes:
        kind: hidden states `[R, L, D]`; a projection `[R, L, D]`, its heads side by side and before
            any rotation; or attention maps `[R, H, L, L]`, probabilities without dropout.
        layer: of hidden states 0 for what enters the first layer, and `i` for what leaves the i-th;
            of the others the layer itself, from 1.
        stack: `"encoder"` or `"decoder"` of a network that has both, else "".
    """

    kind: Kind
    layer: int
    stack: str = ""

    def __str__(self) -> str:
        return "_".join(filter(None, (self.stack, self.kind, str(self.layer))))


#: What was captured, by place.
Captures = dict[Place, Tensor]


def stack_of(network: PreTrainedModel, stack: str = "") -> tuple[str, list[nn.Module]]:
    """Return the dotted name of a network's layers, and these from the first.

    Args:
        network: any of transformers.
        stack: `"encoder"` or `"decoder"` of one that has both.

    Raises:
        ValueError: there is no such stack, or it is not said which of two.
    """
    part = _part(network, stack)
    stacks = layer_stacks(part)
    if len(stacks) != 1:
        raise ValueError(
            f"the architecture {network.config.model_type!r} does not say where its layers are: "
            f"found {', '.join(stacks) or 'none'}"
        )
    inner, layers = next(iter(stacks.items()))
    outer = next(name for name, module in network.named_modules() if module is part)
    return ".".join(filter(None, (outer, inner))), layers


def depth_of(network: PreTrainedModel, stack: str = "") -> int:
    """Return how many layers a stack of a network has."""
    return len(stack_of(network, stack)[1])


def width_of(network: PreTrainedModel, stack: str = "") -> int:
    """Return the width of the hidden states of a stack."""
    return int(_part(network, stack).config.hidden_size)


def show_maps(network: PreTrainedModel, places: Iterable[Place]) -> None:
    """Let a network attend by plain products, if attention maps are among the places."""
    if any(place.kind == "attention" for place in places):
        use_fast_attention(network, MAPS)


def freeze_unreached(network: PreTrainedModel, places: Iterable[Place]) -> list[str]:
    """Freeze the weights that have no part in what passes at some places.

    They would get no gradient, which several devices take for a fault, and weight decay would
    still move them.

    Args:
        network: changed in place.
        places: what a loss depends on.

    Returns:
        The names of what was frozen.
    """
    ids = torch.ones(1, 8, dtype=torch.int64, device=network.device)
    inputs = {"input_ids": ids, "attention_mask": ids}
    if network.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    trainable = {name: p for name, p in network.named_parameters() if p.requires_grad}
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    with capturing(network, places) as kept, torch.enable_grad():
        network.base_model(**inputs)
    for module, mode in modes:
        module.training = mode
    total = torch.stack([each.float().sum() for each in kept.values()]).sum()
    gradients = torch.autograd.grad(total, list(trainable.values()), allow_unused=True)
    behind = [name for name, g in zip(trainable, gradients, strict=True) if g is None]
    for name in behind:
        trainable[name].requires_grad_(False)
    if behind:
        rank_zero_info(
            f"no loss reaches these weights, which stay as they are: {', '.join(behind)}"
        )
    return behind


def _part(network: PreTrainedModel, stack: str) -> PreTrainedModel:
    if not network.config.is_encoder_decoder:
        if stack:
            raise ValueError(
                f"stack={stack!r} is for an encoder-decoder, and {network.config.model_type!r} "
                "has one stack of layers: leave stack out"
            )
        return network
    if stack not in ("encoder", "decoder"):
        raise ValueError(
            "an encoder-decoder has two stacks of layers: set stack to 'encoder' or 'decoder', "
            f"got {stack!r}"
        )
    model: Any = network
    part: PreTrainedModel = model.get_encoder() if stack == "encoder" else model.get_decoder()
    return part


class Taps:
    """Where tensors are kept that pass inside a network, found once for all of its runs.

    Attention stays as it is, but for maps: these need `show_maps` first.

    Args:
        network: any of transformers whose layers stand in a list; its structure stays as it is.
        places: which tensors to keep, with their graph.

    Raises:
        ValueError: a place is not in the network.
    """

    def __init__(self, network: PreTrainedModel, places: Iterable[Place]) -> None:
        self._kind = network.config.model_type
        self.places = list(dict.fromkeys(places))
        self._taps = [_tap(network, place) for place in self.places if place.kind != "attention"]
        #: The attention layers that may show the maps of a place.
        self._attending = {
            place: _own_attention(_layer_of(network, place))
            for place in self.places
            if place.kind == "attention"
        }

    @contextmanager
    def open(self) -> Iterator[Captures]:
        """Keep what passes while the network runs inside the block.

        Yields:
            The tensors by place, filled when the network runs; complete behind the block.

        Raises:
            ValueError: at the end, one of them stayed empty.
        """
        kept: Captures = {}
        handles = [tap(kept) for tap in self._taps]
        try:
            with keeping_maps() as maps:
                yield kept
        finally:
            for handle in handles:
                handle.remove()
        for place, layers in self._attending.items():
            found = [maps[layer] for layer in layers if layer in maps]
            kept |= {place: found[0]} if found else {}
        if empty := [str(place) for place in self.places if place not in kept]:
            raise ValueError(
                f"the architecture {self._kind!r} gave nothing for {', '.join(empty)}: leave the "
                "losses out that need it"
            )


def capturing(
    network: PreTrainedModel, places: Iterable[Place]
) -> AbstractContextManager[Captures]:
    """Keep what passes at some places in one run of a network; see `Taps`."""
    return Taps(network, places).open()


#: Begins to keep a tensor where it is told to, and returns what ends it.
Tap = Callable[[Captures], RemovableHandle]


def _layer_of(network: PreTrainedModel, place: Place) -> nn.Module:
    layers = stack_of(network, place.stack)[1]
    least = 0 if place.kind == "hidden" else 1
    if not least <= place.layer <= len(layers):
        raise ValueError(
            f"there is no {place.kind} {place.layer}: the network has {len(layers)} layers, "
            f"counted from {least}"
        )
    return layers[max(0, place.layer - 1)]


def _own_attention(layer: nn.Module) -> list[nn.Module]:
    return [module for name, module in layer.named_modules() if not _is_cross(name)]


def _tap(network: PreTrainedModel, place: Place) -> Tap:
    layer = _layer_of(network, place)
    if place.kind == "hidden":
        return partial(_tap_input if place.layer == 0 else _tap_output, layer, place)
    prefix = f"{stack_of(network, place.stack)[0]}.{place.layer - 1}."
    inside = [
        module
        for site, module in find_sites(network, [place.kind]).items()
        # A decoder's attention to the encoder has projections of its own.
        if site.startswith(prefix) and not _is_cross(site)
    ]
    if not inside:
        raise NothingMatchedError(f"there is no projection {place.kind} in {prefix[:-1]}")
    thirds = _fused_order(network, inside[0])
    third = None if thirds is None else thirds[place.kind]
    return partial(_tap_output, inside[0], place, third=third)


def _tap_input(layer: nn.Module, place: Place, kept: Captures) -> RemovableHandle:
    def keep(module: nn.Module, arguments: Any, named: Mapping[str, Any]) -> None:
        kept[place] = arguments[0] if arguments else named["hidden_states"]

    return layer.register_forward_pre_hook(keep, with_kwargs=True)


def _tap_output(
    module: nn.Module, place: Place, kept: Captures, third: int | None = None
) -> RemovableHandle:
    def keep(module: nn.Module, arguments: Any, output: Any) -> None:
        found = output if isinstance(output, Tensor) else output[0]
        kept[place] = found if third is None else found.chunk(3, -1)[third]

    return module.register_forward_hook(keep)


def _is_cross(site: str) -> bool:
    return any(part in site for part in ("crossattention", "encoder_attn", "EncDecAttention"))


def _fused_order(network: PreTrainedModel, module: nn.Module) -> dict[str, int] | None:
    """Return where query, key and value stand in a projection that computes all three."""
    weight = getattr(getattr(module, "base_layer", module), "weight", None)
    if weight is None:
        return None
    out, into = (weight.shape[1], weight.shape[0]) if isinstance(module, Conv1D) else weight.shape
    if out != 3 * into:
        return None
    if network.config.model_type in ("gpt_neox", "bloom", "falcon"):
        raise ValueError(
            f"{network.config.model_type} keeps query, key and value of each head side by side, "
            "which is not known how to take apart: use hidden states instead of relations"
        )
    return {name: number for number, name in enumerate(_PROJECTIONS)}
