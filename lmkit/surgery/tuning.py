"""Which weights are trained: a frozen base, its head, and what a surgery has added or chosen."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from .sites import base_name

__all__ = [
    "freeze_base",
    "head_parameters",
    "is_tuned_in_part",
    "rename_trainable",
    "thaw",
    "trainable_at_first",
    "unfreeze_base",
]

# Set on a network whose base was frozen: what could be trained before. A second technique does not
# freeze what the first one has chosen to train.
_MARK = "_tuned_in_part"


def freeze_base(network: nn.Module, head: bool = True) -> None:
    """Freeze a network once; with techniques that follow, what is trainable only grows.

    Args:
        network: changed in place. Done again, nothing is frozen.
        head: whether the head of the task stays trainable, see `head_parameters`.

    Example:
        >>> network = nn.Linear(2, 2)
        >>> freeze_base(network)
        >>> network.weight.requires_grad
        False
    """
    if not is_tuned_in_part(network):
        weights = network.named_parameters(remove_duplicate=False)
        before = {base_name(name) for name, p in weights if p.requires_grad}
        network.requires_grad_(False)
        setattr(network, _MARK, before)
    if head:
        known = trainable_at_first(network)
        for name in head_parameters(network).keys() & known.keys():
            known[name].requires_grad_(True)


def is_tuned_in_part(network: nn.Module) -> bool:
    """Whether `freeze_base` has frozen the network."""
    return hasattr(network, _MARK)


def trainable_at_first(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights that were trainable before `freeze_base`, by the names they have now.

    What an architecture, or somebody else, had frozen before is not among them, nor what a surgery
    has added since.

    Example:
        >>> network = nn.Linear(2, 2)
        >>> freeze_base(network)
        >>> list(trainable_at_first(network))
        ['weight', 'bias']
    """
    before: set[str] | None = getattr(network, _MARK, None)
    return {
        name: parameter
        for name, parameter in network.named_parameters()
        if (parameter.requires_grad if before is None else base_name(name) in before)
    }


def rename_trainable(network: nn.Module, old: Collection[str], new: Collection[str]) -> None:
    """Let weights take the places of others that could be trained before `freeze_base`.

    Args:
        network: in which a surgery has replaced weights; if its base was not frozen, nothing
            changes.
        old: names of the weights that are gone.
        new: names of those that stand for them.
    """
    before: set[str] = getattr(network, _MARK, set())
    gone = {base_name(name) for name in old}
    if gone <= before:
        before -= gone
        before |= {base_name(name) for name in new}


def head_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights of the head of a task: what stands outside the base model.

    A language model has none: its head is as large as its vocabulary, and was trained with it.

    Args:
        network: of transformers, which know their base model; others have no head.

    Returns:
        Parameters by name, none that the base model shares.
    """
    known: Any = network
    base = getattr(known, "base_model", network)
    if base is network or known.get_output_embeddings() is not None:
        return {}
    inside = {id(parameter) for parameter in base.parameters()}
    return {name: p for name, p in network.named_parameters() if id(p) not in inside}


def thaw(network: nn.Module, names: Collection[str]) -> None:
    """Let weights learn that were drawn at random and that `freeze_base` has frozen.

    Args:
        network: changed in place if its base was frozen.
        names: of weights, as they were before any layer was wrapped.
    """
    if not is_tuned_in_part(network):
        return
    for name, parameter in network.named_parameters():
        if base_name(name) in names:
            parameter.requires_grad_(True)


def unfreeze_base(network: nn.Module) -> None:
    """Undo `freeze_base`: what could be trained before it can be again.

    Args:
        network: changed in place.

    Example:
        >>> network = nn.Linear(2, 2)
        >>> freeze_base(network)
        >>> unfreeze_base(network)
        >>> network.weight.requires_grad
        True
    """
    for parameter in trainable_at_first(network).values():
        parameter.requires_grad_(True)
    if is_tuned_in_part(network):
        delattr(network, _MARK)
