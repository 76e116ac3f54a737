"""The weights that a module has from its base and does not train: left out of small checkpoints."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from ..surgery.sites import base_name
from .network import fingerprint

if TYPE_CHECKING:
    from .base import LMModule

__all__ = ["complete", "describe_base", "leave_out", "left_out"]


def describe_base(network: PreTrainedModel, loaded: Collection[str]) -> dict[str, Any]:
    """Describe what a network was built from, before its structure is changed.

    Args:
        network: as it was built.
        loaded: names of the weights that came from a folder or the hub.

    Returns:
        If any was loaded: the `fingerprint` of those that were; `weights`, the names of all that
        can be trained; and `fresh`, the names of those among them that were drawn at random.
    """
    if not loaded:
        return {}
    weights = {
        name for name, p in network.named_parameters(remove_duplicate=False) if p.requires_grad
    }
    return {
        "fingerprint": fingerprint(network, loaded),
        "weights": sorted(weights),
        "fresh": sorted(weights - set(loaded)),
    }


def left_out(module: LMModule) -> set[str]:
    """Return the keys of the state dict that are frozen, and that the base has as well."""
    if "fingerprint" not in module.base:
        return set()
    from_base = set(module.base["weights"]) - set(module.base["fresh"])
    return {
        f"network.{name}"
        for name, parameter in module.network.named_parameters(remove_duplicate=False)
        if not parameter.requires_grad and base_name(name) in from_base
    }


def leave_out(module: LMModule, checkpoint: dict[str, Any]) -> None:
    """Take the frozen weights of the base out of a checkpoint, and note that they are missing."""
    missing = left_out(module)
    # Lightning's averaging of weights keeps a second state.
    for part in ("state_dict", "current_model_state"):
        if part in checkpoint:
            kept = {k: v for k, v in checkpoint[part].items() if k not in missing}
            checkpoint[part] = kept
    checkpoint["lmkit"]["left_out"] = len(missing)


def complete(module: LMModule, checkpoint: dict[str, Any]) -> None:
    """Put the weights that `leave_out` took out back into a checkpoint, from the module's base.

    Raises:
        ValueError: the module was not built from the weights of that base, or other weights are
            missing than those that are frozen.
    """
    saved = checkpoint["lmkit"]
    if not saved.get("left_out"):
        return
    if not module.hparams["pretrained"] or isinstance(module.hparams["model"], dict):
        raise ValueError(
            "the checkpoint holds only what was trained, and needs the weights of its base "
            f"{saved['base']['name']!r}; give that as model, with pretrained=True"
        )
    frozen = left_out(module)
    for part in ("state_dict", "current_model_state"):
        if part not in checkpoint:
            continue
        own = module.state_dict()
        missing = set(own) - set(checkpoint[part])
        if wrong := sorted(missing ^ frozen):
            more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise ValueError(
                "the checkpoint holds only what was trained, but what it leaves out is not what "
                f"is frozen here: {', '.join(wrong[:5])}{more}. Give the callbacks it was made "
                "with, or load it alone with lmkit.load"
            )
        checkpoint[part] = {**checkpoint[part], **{key: own[key] for key in frozen}}
