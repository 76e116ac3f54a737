"""Adapters computed into the weights of the base: for good, or until they are taken out again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from .bottleneck import AdaptedLayer
from .composition import active_adapters, adapters_of
from .effective_weight import changed_weights, wrappers
from .injection import bare_layer, forget_origins
from .low_rank import low_rank_layers, make_dense
from .norm_shift import Shifted
from .tuning import unfreeze_base
from .virtual_tokens import VirtualTokens

__all__ = ["check_mergeable", "fold", "is_folded", "merge", "unfold"]

# Set on a folded network: the base's own weights by the names that they have in it.
_KEPT = "_folded_away"


def fold(network: nn.Module) -> None:
    r"""Let the base's layers compute what the active adapters add, at no cost, until `unfold`.

    $W + \sum_a w_a \Delta W_a$ takes the place of $W$ for LoRA and its kin, $l \odot W$ for (IA)³,
    $\gamma + \sum_a w_a \Delta \gamma_a$ for moved normalizations. The base's own weights are kept
    beside them, so that `unfold` gives them back to the bit; a weight that other layers share stays
    as it is for them. Adapters get no gradient meanwhile. Folded once, a network stays as it is.

    Args:
        network: changed in place.

    Raises:
        ValueError: an active adapter is no change of weights, or a weight is quantized or a
            low-rank product; nothing is changed then.

    Example:
        >>> from lmkit.surgery.lora import LoRA
        >>> network = nn.ModuleDict({"q_proj": nn.Linear(2, 2)})
        >>> LoRA(targets=["query"], rank=2)(network)
        >>> fold(network)
        >>> is_folded(network)
        True
    """
    if is_folded(network):
        return
    _check_foldable(network)
    kept: dict[str, nn.Parameter] = {}
    for name, layer, weights in list(_folded_weights(network)):
        bare = bare_layer(layer)
        for word, tensor in weights.items():
            own = cast(nn.Parameter, getattr(bare, word))
            kept[f"{_bare_name(name, layer)}.{word}"] = own
            setattr(bare, word, _like(own, tensor))
        for module in wrappers(layer):
            if isinstance(module, Shifted):
                module.folded = True
            elif hasattr(module, "merged_adapters"):
                # Told by it, peft's layers compute what their base layer computes.
                module.merged_adapters = list(getattr(module, "ia3_l", None) or module.lora_A)
    setattr(network, _KEPT, kept)


def unfold(network: nn.Module) -> None:
    """Give the base its own weights back, to the bit; when it is not folded, do nothing.

    Args:
        network: changed in place.
    """
    for name, own in getattr(network, _KEPT, {}).items():
        place, _, word = name.rpartition(".")
        bare = network.get_submodule(place)
        own.data = own.data.to(getattr(bare, word).device)
        setattr(bare, word, own)
    for layer in network.modules():
        if isinstance(layer, Shifted):
            layer.folded = False
        elif hasattr(layer, "merged_adapters"):
            cast(Any, layer).merged_adapters = []
    if is_folded(network):
        delattr(network, _KEPT)


def is_folded(network: nn.Module) -> bool:
    """Whether the base's weights hold the active adapters, see `fold`."""
    return hasattr(network, _KEPT)


def merge(network: nn.Module) -> None:
    r"""Compute the active adapters into the base's weights, and take all adapters out.

    Low-rank layers become dense ones, with the products of their factors as weights. What is left
    has the structure, the names and the types of the plain architecture, and computes what the
    network computed. Its weights can be trained as if it had just been built. Adapters that are not
    active are dropped. A head that shares its weight with the embeddings gets one of its own if it
    is adapted, and the config says so.

    Args:
        network: changed in place.

    Raises:
        ValueError: there is neither an adapter nor a low-rank layer; or an adapter that is active
            is no change of weights, or of a weight that is quantized or shared; nothing is changed
            then.

    Example:
        >>> from lmkit.surgery.lora import LoRA
        >>> network = nn.ModuleDict({"q_proj": nn.Linear(2, 2)})
        >>> LoRA(targets=["query"], rank=2)(network)
        >>> merge(network)
        >>> list(network.state_dict())
        ['q_proj.weight', 'q_proj.bias']
    """
    unfold(network)
    check_mergeable(network)
    changes = list(_folded_weights(network))
    tied = _tied(network, [(name, layer) for name, layer, weights in changes if weights])
    if low_rank_layers(network):
        make_dense(network)
        changes = list(_folded_weights(network))
    for name, layer, weights in changes:
        bare = bare_layer(layer)
        for word, tensor in weights.items():
            setattr(bare, word, _like(getattr(bare, word), tensor))
        owner, _, child = name.rpartition(".")
        setattr(network.get_submodule(owner), child, bare.train(layer.training))
    if tied:
        cast(Any, network).config.tie_word_embeddings = False
    _take_tokens_out(network)
    forget_origins(network)
    unfreeze_base(network)


def check_mergeable(network: nn.Module) -> None:
    """Check that there is something to merge, and that each active adapter is a change of weights.

    Raises:
        ValueError: there is none, or one is not; says why, and what to do.
    """
    if not adapters_of(network) and not low_rank_layers(network):
        raise ValueError(
            "the network has no adapters to merge, nor low-rank layers; LoRA, (IA)³ and LowRank "
            "add some"
        )
    reasons: dict[str, str] = {}
    for name, module in network.named_modules():
        if isinstance(module, AdaptedLayer):
            for each in module.active_adapters:
                kind = "is a fusion" if each in module.fusions else "is a bottleneck adapter"
                reasons[each] = f"{kind}, which computes what no weight of a layer can"
        elif isinstance(module, VirtualTokens):
            for each in module.active_adapters:
                reasons[each] = "is made of tokens in front of the text, and no weight holds those"
        elif hasattr(module, "base_layer") and not (
            isinstance(module, Shifted) or hasattr(module, "merged_adapters")
        ):
            raise ValueError(
                f"{name} is wrapped by a {type(module).__name__}, and how that is merged is not "
                "known"
            )
    if reasons:
        listed = "; ".join(f"{name!r} {reason}" for name, reason in reasons.items())
        others = [name for name in active_adapters(network) if name not in reasons]
        raise ValueError(
            f"not every active adapter can be merged: {listed}. Export the adapter alone, or as "
            f"ONNX, or use only {', '.join(others) or 'others'} before (use_adapters)"
        )


def _folded_weights(network: nn.Module) -> Iterator[tuple[str, Any, dict[str, Tensor]]]:
    """Yield name and layer of all that wraps a layer of the base, and the weights to put there."""
    for name, layer in network.named_modules():
        if not hasattr(layer, "base_layer") or "base_layer" in name.split("."):
            continue
        yield name, layer, changed_weights(name, layer)


def _check_foldable(network: nn.Module) -> None:
    check_mergeable(network)
    narrow = [name for name in low_rank_layers(network) if "base_layer" in name.split(".")]
    if narrow or not adapters_of(network):
        what = f"{narrow[0]} is a low-rank product" if narrow else "the network has no adapters"
        raise ValueError(f"{what}, and there is no weight to fold into; merge makes all dense")


def _like(own: nn.Parameter, tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.to(own.dtype).contiguous().clone(), requires_grad=own.requires_grad)


def _bare_name(name: str, layer: Any) -> str:
    return name + ".base_layer" * len(list(wrappers(layer)))


def _tied(network: nn.Module, layers: list[tuple[str, Any]]) -> bool:
    """Check that no weight that changes is another layer's as well.

    Returns:
        Whether the head has to be parted from the embeddings, which can be said in the config.

    Raises:
        ValueError: a weight is shared in a way that the plain architecture cannot do without.
    """
    users: dict[int, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        users.setdefault(id(parameter), []).append(name)
    known: Any = network
    head = bare_layer(known.get_output_embeddings()) if _has_head(network) else None
    tied = False
    for name, layer in layers:
        bare: Any = bare_layer(layer)
        if len(shared := users.get(id(bare.weight), [])) <= 1:
            continue
        settings = {**known.config.to_dict(), "tie_word_embeddings": False} if head else {}
        if bare is not head or type(known.config)(**settings).tie_word_embeddings:
            raise ValueError(
                f"{name} cannot be merged: {' and '.join(shared)} are one weight, and would all be "
                "changed; leave this layer out of the targets, or export the adapter alone"
            )
        tied = True
    return tied


def _has_head(network: nn.Module) -> bool:
    return isinstance(network, PreTrainedModel) and network.get_output_embeddings() is not None


def _take_tokens_out(network: nn.Module) -> None:
    """Take prompts and prefixes out, with the hooks by which they are reached."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, VirtualTokens):
                delattr(module, name)
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for number, hook in list(hooks.items()):
                if isinstance(getattr(hook, "__self__", None), VirtualTokens):
                    del hooks[number]
                    module._forward_pre_hooks_with_kwargs.pop(number, None)
