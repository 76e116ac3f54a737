"""What LoRA and (IA)³ share: layers of peft, put into a network beneath whatever wraps a layer."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any, cast

from torch import nn
from transformers.pytorch_utils import Conv1D

from .composition import flags_kept

__all__ = ["bare_layer", "forget_origins", "inject", "origins", "place", "require_peft"]

# Set on a network: from which surgery each adapter of peft came, by kind and name.
_ORIGINS = "_injected_adapters"


def require_peft() -> None:
    """Check that peft is there.

    Raises:
        ImportError: the extra `peft` is not installed.
    """
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ImportError("LoRA and (IA)³ need the extra: pip install 'lmkit[peft]'") from error


def bare_layer(layer: Any) -> nn.Module:
    """Return the layer inside all that wraps it.

    Example:
        >>> bare_layer(nn.Linear(1, 1))
        Linear(in_features=1, out_features=1, bias=True)
    """
    while hasattr(layer, "base_layer"):
        layer = layer.base_layer
    return cast(nn.Module, layer)


def origins(network: nn.Module, kind: type) -> dict[str, Any]:
    """Return the surgeries of a kind that have put adapters into a network, by name."""
    known = getattr(network, _ORIGINS, {})
    return {name: surgery for (word, name), surgery in known.items() if word == kind.__name__}


def forget_origins(network: nn.Module) -> None:
    """Forget all surgeries of a network whose adapters were taken out."""
    if hasattr(network, _ORIGINS):
        delattr(network, _ORIGINS)


def inject(network: nn.Module, surgery: Any, config: Any, places: Sequence[str]) -> dict[str, Any]:
    """Let peft wrap layers, and change no other weight's flag.

    Peft leaves the new adapter alone active: the caller has to see to the others.

    Args:
        network: changed in place.
        surgery: a dataclass, to be remembered; its `name` is the adapter's.
        config: of peft; its targets are set here.
        places: names that `place` gave.

    Returns:
        The layers of peft that have the adapter, by name.
    """
    from peft import inject_adapter_in_model

    modes = {name: network.get_submodule(name).training for name in places}
    # An expression that matches just these: peft would take the end of another name as well.
    config.target_modules = "|".join(map(re.escape, places))
    with flags_kept(network), warnings.catch_warnings():
        # That fan_in_fan_out was set right for a Conv1D, and the like.
        warnings.simplefilter("ignore")
        inject_adapter_in_model(config, cast(Any, network), surgery.name)
    # With the next adapter peft would take the network for a model of its own.
    del cast(Any, network).peft_config
    layers = {name: cast(Any, network.get_submodule(name)) for name in places}
    for name, layer in layers.items():
        layer.train(modes[name])
        if hasattr(layer, "scaling"):
            own = getattr(layer, "own_scaling", {})
            layer.own_scaling = {**own, surgery.name: float(layer.scaling[surgery.name])}
    known = getattr(network, _ORIGINS, {})
    setattr(network, _ORIGINS, {**known, (type(surgery).__name__, surgery.name): surgery})
    return layers


def place(network: nn.Module, site: str) -> str:
    """Return where an adapter goes: the outermost layer of peft at a site, or the bare layer.

    Whatever else wraps that layer reads what the adapted one gives.

    Args:
        network: holds the layer.
        site: dotted name of a linear layer, or of what wraps one.

    Returns:
        A dotted name.

    Raises:
        ValueError: it is no linear layer.
    """
    layer: Any = network.get_submodule(site)
    while hasattr(layer, "base_layer") and not hasattr(layer, "merged_adapters"):
        site, layer = f"{site}.base_layer", layer.base_layer
    inside = bare_layer(layer)
    if not isinstance(inside, nn.Linear | Conv1D):
        raise ValueError(
            f"{site} is a {type(inside).__name__}, and LoRA and (IA)³ go into linear layers"
        )
    return site
