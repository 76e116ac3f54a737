"""The head that an adapter was trained with, in the place of a module's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..modules import LMModule
from ..modules.frozen_base import mark
from ..modules.step_log import make_metrics
from ..surgery import replace_module
from ..surgery.adapter_state import other_tensors
from ..surgery.tuning import head_parameters
from .stored import StoredAdapter

__all__ = ["find_head", "own_head", "take_head", "widen_head"]


def own_head(module: LMModule) -> set[str]:
    """Return the names of what the base does not decide: the head, and what was drawn at random."""
    head = other_tensors(dict(head_parameters(module.network)))
    return {*head, *module.base.get("fresh", ())}


def find_head(module: LMModule, stored: StoredAdapter) -> dict[str, Tensor]:
    """Return the weights to be taken over, by the names that they have here.

    They may be of another number of classes, if the module's own head was drawn at random and is
    still as it was drawn.

    Raises:
        ValueError: there is no head, or it is for other classes than one that has to stay.
    """
    own = other_tensors(dict(module.network.named_parameters()))
    wanted = {key for key in own if key in {*own_head(module), *stored.fresh}}
    found = {key: stored.others[key] for key in own if key in wanted and key in stored.others}
    if not found:
        raise ValueError(f"{stored.where} has no head for a {type(module.network).__name__}")
    other = [key for key in found if own[key].shape != found[key].shape]
    if other and (reason := _why_it_stays(module, stored, own, found, other)):
        key, labels = other[0], module.network.config.id2label
        raise ValueError(
            f"the head in {stored.where} is for other classes ({_listed(stored.labels)}) than "
            f"this module's ({_listed(labels)}): {key} is {tuple(found[key].shape)} instead of "
            f"{tuple(own[key].shape)}, and the module's own head is not replaced, since {reason}, "
            "or leave the head out (head=False)"
        )
    return found


def widen_head(module: LMModule, heads: dict[str, Tensor]) -> None:
    """Put layers for the classes of another head in the place of those that were drawn at random.

    Args:
        module: changed in place.
        heads: as `find_head` returns them.
    """
    network: Any = module.network
    own = other_tensors(dict(network.named_parameters()))
    other = {key: len(heads[key]) for key in heads if own[key].shape != heads[key].shape}
    for place, classes in {key.rpartition(".")[0]: count for key, count in other.items()}.items():
        layer: Any = network.get_submodule(place)
        how = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        new = nn.Linear(layer.in_features, classes, layer.bias is not None, **how)
        replace_module(network, place, new.requires_grad_(layer.weight.requires_grad))
        _name_classes(network, {number: f"LABEL_{number}" for number in range(classes)})


@torch.no_grad()
def take_head(module: LMModule, heads: dict[str, Tensor], stored: StoredAdapter) -> None:
    """Give a module the weights that `find_head` has found, with classes, task and metrics.

    Args:
        module: changed in place.
        heads: as `find_head` returns them; if there are none, nothing is changed.
        stored: where they are from.
    """
    if not heads:
        return
    network: Any = module.network
    own = other_tensors(dict(network.named_parameters()))
    for key, tensor in heads.items():
        own[key].copy_(tensor)
    if stored.labels and len(stored.labels) == network.config.num_labels:
        _name_classes(network, stored.labels)
    if stored.problem is not None:
        network.config.problem_type = stored.problem
    module.metrics = make_metrics(module).to(module.device)


def _name_classes(network: Any, names: dict[int, str]) -> None:
    network.config.id2label = dict(names)
    network.config.label2id = {name: number for number, name in names.items()}
    network.num_labels = len(names)


def _why_it_stays(
    module: LMModule,
    stored: StoredAdapter,
    own: dict[str, Tensor],
    found: dict[str, Tensor],
    other: list[str],
) -> str | None:
    """Say why a head cannot be replaced by one for other classes, and what to do."""
    drawn, fresh = module.base.get("drawn", {}), module.base.get("fresh", ())
    layers: dict[str, Any] = dict(module.network.named_modules())
    places = {key.rpartition(".")[0] for key in other}
    if not all(key in fresh for key in other):
        return "it came with the base; take a base without a head"
    if any(mark(own[key]) != drawn.get(key) for key in other):
        return "it was trained or came with an adapter; build the module anew from its base"
    if any(place not in layers or hasattr(layers[place], "base_layer") for place in places):
        return "an adapter stands in it; build the module anew from its base"
    counts = {len(found[key]) if found[key].dim() else 0 for key in other}
    whole = {f"{place}.{name}" for place in places for name, _ in layers[place].named_parameters()}
    fits = (
        all(type(layers[place]) is nn.Linear for place in places)
        and whole <= found.keys()
        and all(own[key].shape[1:] == found[key].shape[1:] for key in other)
        and all(len(own[key]) == module.network.config.num_labels for key in other)
        and len(counts) == 1
        and (not stored.labels or counts == {len(stored.labels)})
    )
    if not fits:
        return "the two are not of one kind; build a module of the adapter's task and architecture"
    return None


def _listed(labels: Any) -> str:
    return ", ".join(map(str, (labels or {}).values())) or "unnamed"
