"""Which dimensions of a network's parameters are those of its hidden states; and masks on these."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .blocks import Block, find_blocks
from .cuts import Cutting
from .twins import Places, block_places, ffn_settings, following, plain_twin, tensor_shapes

__all__ = ["HiddenWidth", "cut_hidden", "find_hidden", "hidden_settings", "masked_hidden"]

# Those whose forward pass has been looked through for what else depends on the hidden size.
_KNOWN = (
    "bert",
    "camembert",
    "distilbert",
    "electra",
    "gpt2",
    "llama",
    "modernbert",
    "roberta",
    "t5",
    "vit",
    "xlm-roberta",
)
# What modules of transformers call their number. T5 divides by the root of its `model_dim`.
_SIZES = ("hidden_size", "embed_dim", "dim", "d_model", "model_dim")
_ROOT_NORMS = ("T5LayerNorm", "LlamaRMSNorm", "RMSNorm")


class HiddenWidth(NamedTuple):
    """The hidden dimensions of a network.

    Attributes:
        width: how many there are.
        places: where parameters have them.
    """

    width: int
    places: Places


def hidden_settings(config: Any, width: int) -> dict[str, int]:
    """Return the settings of a config for a hidden size."""
    same = getattr(config, "embedding_size", None) == config.hidden_size  # then ELECTRA has one
    return {"hidden_size": width} | ({"embedding_size": width} if same else {})


def find_hidden(network: Any, blocks: Sequence[Block] | None = None) -> HiddenWidth:
    """Find all parameters that have the hidden dimensions, of embeddings, norms and heads too.

    Args:
        network: of transformers, with plain layers.
        blocks: of `find_blocks`; found by default.

    Raises:
        ValueError: this is not known of the architecture, or the network has parameters that the
            plain architecture has not.
    """
    config = network.config
    if config.model_type not in _KNOWN:
        raise ValueError(
            f"hidden dimensions cannot be removed from {config.model_type!r}: it is only known "
            f"how to for {', '.join(_KNOWN)}. Leave hidden out"
        )
    blocks = find_blocks(network) if blocks is None else blocks
    twin = plain_twin(network)
    shapes = tensor_shapes(network)
    if strange := [name for name in shapes if name not in tensor_shapes(twin)]:
        raise ValueError(
            f"hidden dimensions cannot be removed from a network with {strange[0]}, which the "
            "plain architecture has not: merge adapters and low-rank layers first, or remove "
            "dimensions before they are put in"
        )
    pinned = {
        name: 4 * config.hidden_size
        for block in blocks
        for name in (ffn_settings(config, block.stack) if block.kind == "ffn" else ())
        if getattr(config, name) is None
    }
    size = int(config.hidden_size)
    moved = following(network, hidden_settings(config, 2 * size), pinned)
    inner = {place for block in blocks for place in block_places(twin, block)}
    # A network may have been built without a part that its class has, such as a pooler.
    places = {place for place in moved.keys() - inner if place[0] in shapes}
    widths = {shapes[name][dim] for name, dim in places}
    if any(moved[place] != (size, 2 * size) for place in places) or len(widths) != 1:
        raise ValueError(
            f"the parameters of {config.model_type!r} do not all have its hidden size: "
            f"{sorted(widths)}"
        )
    return HiddenWidth(widths.pop(), places)


def cut_hidden(cutting: Cutting, hidden: HiddenWidth, kept: Sequence[int]) -> None:
    """Gather the cuts that leave some hidden dimensions."""
    index = torch.tensor(list(kept))
    modules = dict(cutting.network.named_modules())
    for name, dim in sorted(hidden.places):
        owner, _, word = name.rpartition(".")
        module: Any = modules[owner]
        cutting.parameter(getattr(module, word), dim, index)
        for attribute, value in _sizes(module, word, dim, len(index)).items():
            cutting.size(module, attribute, value)
    for module, word in _holders(cutting.network, hidden.width):
        cutting.size(module, word, len(index))


@contextmanager
def masked_hidden(network: Any, kept: Sequence[int]) -> Iterator[None]:
    r"""Let a network compute inside the block as if it had only some of its hidden dimensions.

    All that writes hidden states writes zeros to the others, and normalizations take their
    statistics over those that are kept, as in CoFi (arXiv:2204.00408). Without the latter a mask
    gives something else than a network from which the dimensions are gone.

    Args:
        network: of an architecture of which hidden dimensions are known.
        kept: numbers of the dimensions that stay.

    Raises:
        ValueError: the architecture is not known, or there is no such dimension.
    """
    hidden = find_hidden(network)
    check_dimensions(kept, hidden.width)
    mask = torch.zeros(hidden.width, dtype=torch.bool)
    mask[list(kept)] = True
    modules = dict(network.named_modules())
    with ExitStack() as stack:
        for owner in sorted({name.rpartition(".")[0] for name, _ in hidden.places}):
            for remove in _mask(modules[owner], owner, hidden, mask):
                stack.callback(remove)
        for module, word in _holders(network, hidden.width):
            stack.callback(setattr, module, word, hidden.width)
            setattr(module, word, len(kept))
        yield


def check_dimensions(kept: Sequence[int], width: int) -> None:
    """Check that numbers are those of dimensions.

    Raises:
        ValueError: one is not there.
    """
    if wrong := [number for number in kept if not 0 <= number < width]:
        raise ValueError(f"hidden must be numbers from 0 to {width - 1}, got {wrong[0]}")


def _sizes(module: Any, word: str, dim: int, size: int) -> Mapping[str, Any]:
    if isinstance(module, nn.LayerNorm):
        return {"normalized_shape": (size,)}
    if word != "weight":
        return {}
    names = {
        nn.Linear: ("out_features", "in_features"),
        Conv1D: ("nx", "nf"),
        nn.Embedding: ("num_embeddings", "embedding_dim"),
        nn.Conv2d: ("out_channels", "in_channels"),
    }
    return {names[type(module)][dim]: size} if type(module) in names else {}


def _holders(network: nn.Module, width: int) -> Iterator[tuple[nn.Module, str]]:
    for module in network.modules():
        for word in _SIZES:
            if vars(module).get(word) == width:
                yield module, word


def _mask(
    module: Any, owner: str, hidden: HiddenWidth, mask: Tensor
) -> Iterator[Callable[[], None]]:
    """Put hooks on one owner of parameters, and return what takes them away."""
    is_root = type(module).__name__ in _ROOT_NORMS
    if isinstance(module, nn.LayerNorm) or is_root:
        norm = _MaskedNorm(mask, centred=not is_root)
        yield module.register_forward_pre_hook(norm.before).remove
        yield module.register_forward_hook(norm.after).remove
        return
    outward = {nn.Linear: 0, Conv1D: 1, nn.Embedding: 1}.get(type(module))
    if isinstance(module, nn.Conv2d):
        return  # of patches: what they are added to is masked
    if outward is None or (f"{owner}.weight", outward) in hidden.places:
        yield module.register_forward_hook(lambda m, x, y: y * mask.to(y.device, y.dtype)).remove


class _MaskedNorm:
    r"""A normalization over some dimensions, computed by one over all.

    Of $x$, whose other dimensions are set to zero behind its mean is subtracted, the variance over
    all $D$ dimensions is $k / D$ of that over the $k$ that are kept. So the norm gets
    $x \sqrt{D/k}$, and what it gives is divided by as much.
    """

    def __init__(self, mask: Tensor, centred: bool) -> None:
        self.mask, self.centred = mask, centred
        self.factor = (len(mask) / int(mask.sum())) ** 0.5

    def before(self, module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        x = args[0]
        mask = self.mask.to(x.device, x.dtype)
        if self.centred:
            x = x - (x * mask).sum(-1, keepdim=True) / mask.sum()
        return (x * mask * self.factor,)

    def after(self, module: Any, args: tuple[Tensor], output: Tensor) -> Tensor:
        mask = self.mask.to(output.device, output.dtype)
        bias: Tensor | None = getattr(module, "bias", None)
        shift = torch.zeros_like(mask) if bias is None else bias
        masked: Tensor = ((output - shift) / self.factor + shift) * mask
        return masked
