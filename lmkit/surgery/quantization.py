"""Linear layers and tables that compute with rounded numbers, to train so or to be used so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
from .quantization_conversion import FAKE, WHOLE, layer_inputs, make_whole, replace_all
from .quantization_scheme import Scheme, check_groups

__all__ = ["FakeQuantize", "Quantize", "converted"]


@dataclass(frozen=True)
class FakeQuantize:
    r"""Let layers round their weights and inputs while they learn: quantization-aware training.

    $\hat x \hat W^\top + b$ with the gradients of $x$ and $W$, straight through the rounding
    (arXiv:1712.05877). The weights keep their names, and `convert` of `quantization_conversion`
    makes whole numbers of them that compute the same. What wraps a layer (LoRA, adapters) stays,
    and the layer inside is replaced. What shares its weight with a chosen layer is chosen too.

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

    def check(self, layers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        """Check that layers can be replaced, and return those that are not yet."""
        for name, layer in layers.items():
            if isinstance(layer, WHOLE):
                raise ValueError(
                    f"{name} is quantized already ({layer.scheme}), and whole numbers do not "
                    "learn: begin with the model as it was before it was quantized"
                )
        return _to_replace(layers, self.scheme, FAKE)

    def __call__(self, network: nn.Module) -> None:
        """Replace the layers; those that round so already stay."""
        for name, layer in self.check(self.layers(network)).items():
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

    def check(self, layers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        """Check that layers can be replaced, and return those that are not yet."""
        return _to_replace(layers, self.scheme, WHOLE)

    def __call__(self, network: nn.Module) -> None:
        """Replace the layers; those that are quantized so already stay."""
        layers = self.check(self.layers(network))
        replace_all(network, layers, lambda layer: make_whole(layer, self.scheme))


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


def _to_replace(layers: Mapping[str, Any], scheme: Scheme, done: Any) -> dict[str, Any]:
    """Leave out what is there already, and check the rest."""
    open_layers = {}
    for name, layer in layers.items():
        if isinstance(layer, done):
            if layer.scheme != _scheme_of(layer, scheme):
                raise ValueError(
                    f"{name} is quantized already, with {layer.scheme}, and this asks for "
                    f"{_scheme_of(layer, scheme)}: begin with the model as it was before"
                )
            continue
        try:
            check_groups(scheme, layer_inputs(layer))
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
