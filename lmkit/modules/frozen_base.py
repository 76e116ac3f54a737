"""The weights that a module has from its base and does not train: left out of small checkpoints."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..surgery.sites import base_name
from .fresh_weights import checkpoint_follows
from .network import MissingModelError, named_config

if TYPE_CHECKING:
    from .base import LMModule

__all__ = [
    "as_in_base",
    "complete",
    "decided_settings",
    "describe_base",
    "fingerprint",
    "leave_out",
    "leaves_out",
    "left_out",
    "mark",
    "marks_kept",
    "name_base",
    "on_base_of",
    "settings_of",
    "take_head",
]

# Entries of a config that the data may decide.
_DECIDED = ("id2label", "label2id", "problem_type", "seq2seq")
_saved_settings: ContextVar[Mapping[str, Any] | None] = ContextVar("saved_settings", default=None)


def name_base(model: Any) -> dict[str, Any]:
    """Return the `name` of a base, `None` of one that has none, and the whole path of a `folder`.

    Args:
        model: a hub name, a folder, or a config.
    """
    if not isinstance(model, str):
        return {"name": None}
    folder = Path(model)
    return {"name": model, **({"folder": str(folder.resolve())} if folder.is_dir() else {})}


def describe_base(network: PreTrainedModel, loaded: Collection[str]) -> dict[str, Any]:
    """Describe what a network was built from, before its structure is changed.

    Args:
        network: as it was built.
        loaded: names of the weights that came from a folder or the hub.

    Returns:
        If any was loaded: the `fingerprint` of those that were; `weights`, the hash of each of
        them that can be trained; `fresh`, the names of what was drawn at random; and `drawn`, the
        hash of each of those.
    """
    if not loaded:
        return {}
    weights = {
        name: p for name, p in network.named_parameters(remove_duplicate=False) if p.requires_grad
    }
    known = set(loaded)
    return {
        "fingerprint": fingerprint(network, loaded),
        "weights": {name: mark(p) for name, p in weights.items() if name in known},
        "fresh": sorted(weights.keys() - known),
        "drawn": {name: mark(p) for name, p in weights.items() if name not in known},
    }


def fingerprint(network: nn.Module, keys: Collection[str]) -> str:
    """Hash the named weights: the same base gives the same hash, whatever was added since.

    Of each tensor it takes the name, the shape and up to 4096 values at even distances, so that
    a model of billions of weights takes seconds. Two models that differ by training differ
    everywhere.

    Args:
        network: holds the weights.
        keys: names of the weights in its state dict.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=16)
    state = network.state_dict()
    for key in sorted(keys):
        digest.update(f"{key} {tuple(state[key].shape)} ".encode())
        digest.update(_sampled(state[key]))
    return digest.hexdigest()


def decided_settings(datamodule: Any) -> dict[str, Any]:
    """Return the entries of a network's config that a data module decides, if it decides any.

    While a checkpoint that needs its base is being loaded, they are those of the checkpoint.
    """
    decide = getattr(datamodule, "network_settings", dict)
    saved = _saved_settings.get() or {}
    settings = {key: saved[key] for key in _DECIDED if key in saved}
    if settings.get("id2label"):  # JSON has made words of its numbers
        settings["id2label"] = {int(k): name for k, name in settings["id2label"].items()}
    return settings or dict(decide())


@contextmanager
def settings_of(task: str) -> Iterator[None]:
    """Let `decided_settings` inside be those of one of several tasks, if a checkpoint says them."""
    saved = _saved_settings.get() or {}
    token = _saved_settings.set({**saved, **saved.get("tasks", {}).get(task, {})} or None)
    yield
    _saved_settings.reset(token)


@contextmanager
def marks_kept(module: LMModule) -> Iterator[None]:
    """Hash anew what a surgery makes of weights that were as the base, and so can be made again."""
    marks = module.base.get("weights", {})
    same = {base_name(name) for name in as_in_base(module)}
    yield
    now = module.network.named_parameters(remove_duplicate=False) if marks else ()
    again = {base_name(name): mark(p) for name, p in now if base_name(name) in same}
    module.base = module.base | ({"weights": marks | again} if marks else {})


def leaves_out(trainer: Any) -> bool:
    """Whether a callback of a Trainer asks for checkpoints without frozen weights."""
    return any(getattr(callback, "leaves_out", False) for callback in trainer.callbacks)


def left_out(module: LMModule) -> set[str]:
    """Return the keys of the state dict that a checkpoint can do without.

    Those are frozen, in no group of an optimizer, from which a callback may take them to be
    trained later, and still have the values of the base.
    """
    optimizers = module.trainer.optimizers if module._trainer is not None else []
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    trained = {id(p) for group in groups for p in group["params"]}
    same = as_in_base(module).items()
    return {f"network.{name}" for name, p in same if not p.requires_grad and id(p) not in trained}


def leave_out(module: LMModule, checkpoint: dict[str, Any]) -> None:
    """Take the frozen weights of the base out of a checkpoint, and note which are missing."""
    missing = left_out(module)
    # Lightning's averaging of weights keeps a second state.
    for part in ("state_dict", "current_model_state"):
        if part in checkpoint:
            kept = {k: v for k, v in checkpoint[part].items() if k not in missing}
            checkpoint[part] = kept
    checkpoint["lmkit"]["left_out"] = sorted(missing)


def take_head(module: LMModule, checkpoint: Mapping[str, Any]) -> None:
    """Build a network that is to be used, not fit, anew with the head of a small checkpoint.

    Data to predict on do not say which classes there are, so it may have been built without.

    Raises:
        ValueError: data to evaluate on have other classes than the checkpoint.
    """
    saved, state = checkpoint["lmkit"], checkpoint["state_dict"]
    own = module.state_dict().items()
    is_other = any(name in state and state[name].shape != tensor.shape for name, tensor in own)
    used = module._trainer is not None and module.trainer.state.fn != TrainerFn.FITTING
    if not (saved.get("left_out") and is_other and used):
        return
    with on_base_of(saved, module.hparams["model"], module.trainer.ckpt_path):
        del module.network
        module._ledger.clear()
        module.configure_model()
    module.setup(str(module.trainer.state.fn))


def complete(module: LMModule, checkpoint: dict[str, Any]) -> None:
    """Put the weights that `leave_out` took out back into a checkpoint, from the module's base.

    Args:
        module: built, with the structure of the checkpoint.
        checkpoint: changed in place.

    Raises:
        ValueError: the module was not built from the weights of a base, or has trained them since;
            or other weights are missing than those that the checkpoint says it leaves out.
    """
    saved = checkpoint["lmkit"]
    parts = [part for part in ("state_dict", "current_model_state") if part in checkpoint]
    noted, own = set(saved.get("left_out", ())), module.state_dict()
    for part in parts:
        missing = own.keys() - checkpoint[part].keys()
        if noted and (wrong := sorted(missing ^ noted)):
            fault = "is missing" if wrong[0] in missing else "is there, or unknown"
            raise ValueError(
                f"the checkpoint leaves {len(noted)} frozen weights out, and these are not what is "
                f"missing: {wrong[0]} {fault} ({len(wrong)} differ). It is damaged or of another "
                "structure; give the callbacks it was made with, or load it alone with lmkit.load"
            )
    if (noted or _lacks_frozen(module, checkpoint)) and "fingerprint" not in module.base:
        raise ValueError(
            "the checkpoint holds only what was trained, and needs the weights of its base "
            f"{saved['base']['name']!r}; give that as model, with pretrained=True"
        )
    if other := sorted(noted - {f"network.{name}" for name in as_in_base(module)}):
        raise ValueError(
            "the checkpoint holds only what was trained, and this module has other weights by now "
            f"than the base, in {len(other)} that it needs, e.g. {other[0]}; load it into a new "
            "module"
        )
    for part in parts:
        checkpoint[part] = {**checkpoint[part], **{key: own[key] for key in noted}}


@contextmanager
def on_base_of(saved: Mapping[str, Any], named: Any, path: Any) -> Iterator[dict[str, Any]]:
    """Let the module that is built inside have the head that a checkpoint was trained with.

    Args:
        saved: the entry `lmkit` of the checkpoint.
        named: the model that it is to be built from.
        path: of the checkpoint, for messages.

    Yields:
        Arguments of the module: the `model`, which may have been named by another working folder.

    Raises:
        ValueError: there is no such base; says how to give another place.
    """
    model, folder = named, saved["base"].get("folder")
    if isinstance(model, str) and folder and model == saved["base"]["name"]:
        model = model if Path(model).is_dir() else folder
    token = _saved_settings.set(saved["config"])
    try:
        if isinstance(model, str):
            named_config(model)
        with checkpoint_follows():
            yield {"model": model}
    except (OSError, MissingModelError) as error:
        raise ValueError(
            f"the checkpoint {path} holds only what was trained, and its base {named!r} could not "
            f"be loaded ({str(error).splitlines()[0]}). If the base was moved, say where to: "
            "lmkit.load(path, base='folder or hub name'), lmkit export --base, or --model.model of "
            "the other commands"
        ) from error
    finally:
        _saved_settings.reset(token)


def mark(weight: Tensor) -> str:
    """Hash the shape of a weight and up to 4096 of its values at even distances.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.blake2b(f"{tuple(weight.shape)} ".encode(), digest_size=8)
    digest.update(_sampled(weight))
    return digest.hexdigest()


def as_in_base(module: LMModule) -> dict[str, nn.Parameter]:
    """Return the weights that still have the values of the base, by name."""
    marks = module.base.get("weights", {})
    return {
        name: parameter
        for name, parameter in module.network.named_parameters(remove_duplicate=False)
        if base_name(name) in marks and mark(parameter) == marks[base_name(name)]
    }


def _lacks_frozen(module: LMModule, checkpoint: Mapping[str, Any]) -> bool:
    """Whether frozen weights are missing that no tied one stands for."""
    there = checkpoint["state_dict"].keys()
    known = dict(module.named_parameters(remove_duplicate=False))
    tied = {id(p) for name, p in known.items() if name in there}
    return any(
        name not in there and id(p) not in tied and not p.requires_grad for name, p in known.items()
    )


def _sampled(weight: Tensor) -> bytes:
    """Return up to 4096 values of a weight at even distances, in float32."""
    flat = weight.detach().reshape(-1)
    values = flat[:: max(1, flat.numel() // 4096)][:4096].to("cpu", torch.float32)
    return values.contiguous().numpy().tobytes()
