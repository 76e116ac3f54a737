"""Linear layers and tables that compute with rounded numbers, to train so or to be used so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import nn
from transformers.pytorch_utils import Conv1D

from .base import replace_module
from .fake_quantized_layers import (
    FakeQuantizedConv1D,
    FakeQuantizedEmbedding,
    FakeQuantizedLinear,
)
from .quantizable import quantizable_layers
from .quantization_scheme import Scheme, check_groups
from .quantized_layers import (
    QuantizedEmbedding,
    QuantizedLinear,
    SmoothedLinear,
    make_dense_layer,
)

__all__ = [
    "FakeQuantize",
    "Quantize",
    "convert",
    "converted",
    "fake_quantized_layers",
    "make_float",
    "quantized_layers",
]

_FAKE = FakeQuantizedLinear | FakeQuantizedConv1D | FakeQuantizedEmbedding
_WHOLE = QuantizedLinear | QuantizedEmbedding


@dataclass(frozen=True)
class FakeQuantize:
    r"""Let layers round their weights and inputs while they learn: quantization-aware training.

    $\hat x \hat W^\top + b$ with the gradients of $x$ and $W$, straight through the rounding
    (arXiv:1712.05877). The weights keep their names, and `convert` makes whole numbers of them that
    compute the same. What wraps a layer (LoRA, adapters) stays, and the layer inside is replaced.
    What shares its weight with a chosen layer is chosen too.

    Attributes:
        targets: roles (`query`, `key`, `value`, `attention_output`, `ffn_input`, `ffn_output`),
            `all` of them, or patterns of names of linear layers.
        exclude: names or patterns of what is left out, layers or whole parts.
        embeddings: whether the tables of the tokens are rounded too, and heads that share them.
        bits: of a weight, 8 or 4.
        group_size: how many inputs of an output share a step; 0 for all of them.
        activations: how what a layer reads is rounded to 8 bits, with a range of each token
            (`per_token`) or of the whole tensor (`per_tensor`); `None` leaves it.
        smooth: whether each layer gets factors of its inputs, see `quantization_ranges`.
        chosen: how this came about, as plain data; nothing is computed from it.

    Raises:
        ValueError: an attribute lies outside its range; when called, a layer cannot be rounded or
            is quantized already.
        NothingMatchedError: when called, a target or what is excluded matches nothing.

    Example:
        >>> network = nn.ModuleDict({"q_proj": nn.Linear(4, 2)})
        >>> FakeQuantize(activations=None, targets=["query"])(network)
        >>> network
        ModuleDict(
          (q_proj): FakeQuantizedLinear(in_features=4, out_features=2, bias=True, 8 bits)
        )
    """

    targets: Sequence[str] = ("all",)
    exclude: Sequence[str] = ()
    embeddings: bool = True
    bits: int = 8
    group_size: int = 0
    activations: str | None = "per_token"
    smooth: bool = False
    chosen: Mapping[str, Any] = field(default_factory=dict)

    #: How inputs may be rounded.
    granularities: ClassVar[tuple[str | None, ...]] = (None, "per_token", "per_tensor")

    def __post_init__(self) -> None:
        """Check the attributes."""
        for word in ("targets", "exclude"):
            given = getattr(self, word)
            object.__setattr__(self, word, (given,) if isinstance(given, str) else tuple(given))
        if self.activations not in self.granularities:
            known = ", ".join(map(str, self.granularities))
            raise ValueError(f"activations must be one of {known}, got {self.activations!r}")
        object.__setattr__(self, "chosen", dict(self.chosen))
        _ = self.scheme

    @property
    def scheme(self) -> Scheme:
        """The numbers of a layer."""
        return Scheme(self.bits, self.group_size, self.activations, self.smooth)

    def layers(self, network: nn.Module) -> dict[str, nn.Module]:
        """Return the layers that this is about, by where they are."""
        return quantizable_layers(network, self.targets, self.exclude, self.embeddings)

    def __call__(self, network: nn.Module) -> None:
        """Replace the layers; those that round so already stay."""
        layers = _to_replace(self.layers(network), self.scheme, _FAKE)
        for name, layer in layers.items():
            if isinstance(layer, _WHOLE):
                raise ValueError(
                    f"{name} is quantized already ({layer.scheme}), and whole numbers do not "
                    "learn: begin with the model as it was before it was quantized"
                )
        for name, layer in layers.items():
            replace_module(network, name, _fake(layer, self.scheme))


@dataclass(frozen=True)
class Quantize(FakeQuantize):
    """Put whole numbers in the place of the weights of layers: quantization after the training.

    Weights are rounded to the nearest multiple of their step; tables too, and so are layers that
    `FakeQuantize` has prepared. What is left learns no more than biases, norms and other layers.

    Attributes:
        targets: as of `FakeQuantize`, and so are the others.
        exclude: what is left out.
        embeddings: whether the tables of the tokens are rounded too.
        bits: of a weight, 8 or 4; of 4 two share a byte.
        group_size: how many inputs of an output share a step.
        activations: `static` too, with a range of its inputs, see `quantization_ranges`.
        smooth: whether there are factors of the inputs.
        chosen: how this came about.

    Raises:
        ValueError: an attribute lies outside its range; when called, a layer cannot be rounded or
            is quantized otherwise.
        NothingMatchedError: when called, a target or what is excluded matches nothing.

    Example:
        >>> network = nn.ModuleDict({"q_proj": nn.Linear(4, 2)})
        >>> Quantize(activations=None, targets=["query"])(network)
        >>> network["q_proj"].weight.dtype
        torch.int8
    """

    granularities: ClassVar[tuple[str | None, ...]] = (
        None,
        "per_token",
        "per_tensor",
        "static",
    )

    def __call__(self, network: nn.Module) -> None:
        """Replace the layers; those that are quantized so already stay."""
        layers = _to_replace(self.layers(network), self.scheme, _WHOLE)
        _replace(network, layers, lambda layer: _whole(layer, self.scheme))


def quantized_layers(network: nn.Module) -> dict[str, Any]:
    """Return the layers of a network that hold whole numbers, by name.

    Example:
        >>> quantized_layers(nn.Linear(2, 2))
        {}
    """
    return {name: m for name, m in network.named_modules() if isinstance(m, _WHOLE)}


def fake_quantized_layers(network: nn.Module) -> dict[str, Any]:
    """Return the layers of a network that learn to be rounded, by name.

    Example:
        >>> fake_quantized_layers(nn.Linear(2, 2))
        {}
    """
    return {name: m for name, m in network.named_modules() if isinstance(m, _FAKE)}


def convert(network: nn.Module) -> None:
    """Make whole numbers of all layers that learned to be rounded; the network computes the same.

    Args:
        network: changed in place.

    Example:
        >>> network = nn.ModuleDict({"q_proj": nn.Linear(4, 2)})
        >>> FakeQuantize(["query"])(network)
        >>> convert(network)
        >>> list(network.state_dict())
        ['q_proj.weight', 'q_proj.scale', 'q_proj.bias']
    """
    _replace(network, fake_quantized_layers(network), lambda layer: _whole(layer, layer.scheme))


def converted(ledger: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the ledger of a network after `convert`.

    Args:
        ledger: surgeries as plain data.
    """
    prepared, whole = (f"{__name__}.{cls.__name__}" for cls in (FakeQuantize, Quantize))
    return [
        {**spec, "class_path": whole} if spec["class_path"] == prepared else dict(spec)
        for spec in ledger
    ]


def make_float(network: nn.Module, smoothed: bool = False) -> None:
    """Put plain layers with the rounded weights in the place of all that are rounded.

    They read what comes, without rounding it.

    Args:
        network: changed in place; without such layers it stays as it is.
        smoothed: whether layers with factors of their inputs keep them, as `SmoothedLinear`.

    Example:
        >>> network = nn.Sequential(nn.Linear(9, 9))
        >>> Quantize(["0"])(network)
        >>> make_float(network)
        >>> network
        Sequential(
          (0): Linear(in_features=9, out_features=9, bias=True)
        )
    """

    def plain(layer: Any) -> nn.Module:
        factors = getattr(layer, "smooth", None)
        return make_dense_layer(layer) if factors is None or not smoothed else SmoothedLinear(layer)

    _replace(network, fake_quantized_layers(network) | quantized_layers(network), plain)


def _to_replace(layers: Mapping[str, Any], scheme: Scheme, done: Any) -> dict[str, Any]:
    """Leave out what is there already, and check the rest."""
    open_layers = {}
    for name, layer in layers.items():
        is_table = isinstance(layer, nn.Embedding)
        if isinstance(layer, done):
            if layer.scheme != _scheme_of(layer, scheme):
                raise ValueError(
                    f"{name} is quantized already, with {layer.scheme}, and this asks for "
                    f"{_scheme_of(layer, scheme)}: begin with the model as it was before"
                )
            continue
        turned = isinstance(layer, Conv1D)
        width = layer.embedding_dim if is_table else layer.weight.shape[0 if turned else 1]
        try:
            check_groups(scheme, width)
        except ValueError as error:
            raise ValueError(f"{name} cannot be quantized: {error} inputs") from None
        open_layers[name] = layer
    return open_layers


def _scheme_of(layer: nn.Module, scheme: Scheme) -> Scheme:
    return Scheme(*scheme.grid) if isinstance(layer, nn.Embedding) else scheme


def _fake(layer: Any, scheme: Scheme) -> nn.Module:
    if isinstance(layer, nn.Embedding):
        return FakeQuantizedEmbedding(layer, _scheme_of(layer, scheme))
    turned = isinstance(layer, Conv1D)
    return FakeQuantizedConv1D(layer, scheme) if turned else FakeQuantizedLinear(layer, scheme)


def _whole(layer: Any, scheme: Scheme) -> nn.Module:
    kind = QuantizedEmbedding if isinstance(layer, nn.Embedding) else QuantizedLinear
    return kind(layer, _scheme_of(layer, scheme))


def _replace(
    network: nn.Module, layers: Mapping[str, Any], make: Callable[[Any], nn.Module]
) -> None:
    """Replace layers; those that shared a weight share it afterwards."""
    made: dict[int, Any] = {}
    held = [layer.weight for layer in layers.values()]  # so that no number is given twice
    for name, layer in layers.items():
        new: Any = make(layer)
        if id(layer.weight) in made:
            first = made[id(layer.weight)]
            for word in ("weight", "scale"):
                if hasattr(new, word):
                    setattr(new, word, getattr(first, word))
        made.setdefault(id(layer.weight), new)
        replace_module(network, name, new)
    del held
