"""An adapter that was trained elsewhere, put on the base of a module."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..modules import LMModule
from ..modules.frozen_base import mark
from ..surgery.adapter import check_name
from ..surgery.adapter_state import as_plain_lora, other_tensors, place_of, put_tensors
from ..surgery.bottleneck import layer_width
from ..surgery.composition import active_adapters, adapters_of, use_adapters
from ..surgery.folding import is_folded
from ..surgery.injection import bare_layer
from ..surgery.lora import LoRA
from ..surgery.prefix_tuning import PrefixTuning
from .head import find_head, own_head, take_head, widen_head
from .ownership import check_module
from .stored import StoredAdapter, read_adapter, stored_tokenizer, surgeries_of_base

__all__ = ["add_adapter"]


def add_adapter(
    module: LMModule,
    source: str | os.PathLike[str],
    name: str,
    adapter: str | None = None,
    head: bool = False,
) -> None:
    """Put an adapter from a checkpoint or a folder on the base of a module, by the ledger.

    The base stays one and the same, however many adapters stand on it. If none is active yet, the
    new one is from then on; otherwise `use_adapters` switches to it. PiSSA and OLoRA come in as
    what they add to the base, a LoRA of twice the rank.

    The base is frozen, as it is when an adapter is trained, and so is a head that it brought along.
    A module has one head. That of the source stays there unless `head` is set, and then takes the
    place of the module's own. It may be for other classes if the module's was drawn at random, and
    not trained since.

    A module without a tokenizer takes that of the source, or else of the folder of its base.

    Args:
        module: changed in place; its network is built if it is not yet.
        source: a checkpoint of lmkit, whole or of what was trained alone; or a folder that
            `lmkit.export(..., adapter=...)` or plain peft has written (LoRA, DoRA, AdaLoRA, (IA)³,
            prefixes).
        name: that the adapter shall have here.
        adapter: that it has in a checkpoint with several; by default the only or only active one.
        head: whether the head of its task, and what else no base had, comes along.

    Raises:
        TypeError: the module is not lmkit's.
        FileNotFoundError: there is nothing at `source`.
        ValueError: the name is taken, the source holds no such adapter, or it was trained on
            another base; or the head has other classes than one that was trained or came with the
            base. Nothing is changed then.

    Example:
        >>> from lmkit.modules import MaskedLMModule
        >>> module = MaskedLMModule({"model_type": "bert", "hidden_size": 8, "vocab_size": 9,
        ...     "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8})
        >>> add_adapter(module, "nowhere.ckpt", "topics")
        Traceback (most recent call last):
        ...
        FileNotFoundError: there is no checkpoint at nowhere.ckpt
    """
    remedy = "a surgery, e.g. LoRA(name)(network), and its own load_state_dict"
    check_module(module, "add_adapter", remedy)
    module.configure_model()
    network, training = module.network, module.network.training
    check_name(name)
    if name in adapters_of(network):
        raise ValueError(f"there is an adapter {name!r} already; give this one another name")
    if is_folded(network):
        raise ValueError("the module is folded: unfold_adapters(module) first")
    stored = read_adapter(source, adapter)
    surgeries, tensors = _ready(stored, network)
    _check_places(network, surgeries, tensors, stored.where)
    is_same = _check_base(module, stored)
    heads = find_head(module, stored) if head else {}
    active = active_adapters(network)
    widen_head(module, heads)
    for surgery in surgeries:
        module.operate(replace(surgery, name=name, head=False))
    put_tensors(network, name, tensors)
    take_head(module, heads, stored)
    use_adapters(network, active or {name: 1.0})
    network.train(training)
    if module.tokenizer is None:
        places = [source] if is_same else []
        if Path(str(module.hparams["model"])).is_dir():
            places.append(module.hparams["model"])
        module.tokenizer = next(filter(None, map(stored_tokenizer, places)), None)
    if not head and any(key in stored.others for key in own_head(module)):
        rank_zero_info(
            f"the head that {stored.where} was trained with stays there; add_adapter(..., "
            "head=True) takes it along"
        )


def _ready(stored: StoredAdapter, network: Any) -> tuple[list[Any], dict[str, Tensor]]:
    """Return surgeries and weights as this network needs them."""
    tensors, surgeries = dict(stored.tensors), []
    for surgery in stored.surgeries:
        if isinstance(surgery, LoRA):
            own = {key: t for key, t in tensors.items() if ".lora_" in key or ".starts." in key}
            surgery, made = as_plain_lora(surgery, own)
            tensors = {key: t for key, t in tensors.items() if key not in own} | made
        elif isinstance(surgery, PrefixTuning):
            tensors = {
                f"{network.base_model_prefix}.{key}" if key.startswith("prefixes.") else key: t
                for key, t in tensors.items()
            }
        surgeries.append(surgery)
    return surgeries, tensors


def _check_places(
    network: nn.Module, surgeries: list[Any], tensors: dict[str, Tensor], where: str
) -> None:
    """Check that the network has the layers that the adapter was trained for."""
    known: dict[str, Any] = dict(network.named_modules())
    dora = any(isinstance(surgery, LoRA) and surgery.variant == "dora" for surgery in surgeries)
    for key, tensor in tensors.items():
        # Of each layer the width that its adapter shows: that of its input (0) or output (1).
        if ".lora_A" in key:
            side, size = 0, tensor.shape[-1]
        elif ".lora_B" in key:
            side, size = 1, len(tensor)
        elif ".ia3_l" in key:
            side, size = int(len(tensor) != 1), tensor.numel()
        else:
            continue
        place = place_of(key)
        widths = _widths(known.get(place))
        if widths is None or widths[side] != size:
            had = "none" if widths is None else "one of {} inputs and {} outputs".format(*widths)
            raise ValueError(
                f"the adapter in {where} is for a layer {place} of {size} "
                f"{'outputs' if side else 'inputs'}, and this network has {had}: it was trained on "
                "another architecture"
            )
        if dora and _lacks_a_part(known[place]):
            raise ValueError(
                f"at {place} PiSSA or OLoRA has taken a part out of the base, which DoRA reads: "
                "add the adapters to a module without them"
            )


def _check_base(module: LMModule, stored: StoredAdapter) -> bool:
    """Check that the weights beneath the adapter are those that it was trained on.

    Returns:
        Whether that is known; a folder of plain peft has only a name to go by.

    Raises:
        ValueError: they are not; names one.
    """
    network = module.network
    if stored.structure != surgeries_of_base(module.ledger):
        whose = "the adapter was trained on" if stored.structure else "this module has"
        raise ValueError(
            f"the adapter in {stored.where} is for other layers: {whose} low-rank ones "
            "or pruned ones, which are another base; put it on a module with the same"
        )
    own = other_tensors(dict(network.named_parameters(remove_duplicate=False)))
    apart = {*own_head(module), *stored.fresh, *stored.changed, *_changed(network)}
    shared = [key for key in own if key not in apart]
    values = [key for key in shared if key in stored.others]
    marks = [key for key in shared if key in stored.marks]
    differing = [
        key
        for key in values
        if own[key].shape != stored.others[key].shape
        or not torch.equal(own[key].detach().cpu(), stored.others[key].to(own[key].dtype))
    ]
    differing += [
        key for key in marks if key not in differing and mark(own[key]) != stored.marks[key]
    ]
    ours, theirs = module.base.get("fingerprint"), stored.base.get("fingerprint")
    names = module.base.get("name"), stored.base.get("name")
    if differing:
        raise ValueError(
            f"the adapter in {stored.where} was trained on another base ({names[1]!r}) than this "
            f"module's ({names[0]!r}): {len(differing)} weights differ, such as {differing[0]}"
        )
    if len(values) + len(marks) > len(shared) // 2:
        return True
    if theirs:
        if ours != theirs:
            raise ValueError(
                f"the adapter in {stored.where} was trained on the base {names[1]!r} with the "
                f"weights {theirs}, and this module's is {names[0]!r} with {ours}"
            )
        return True
    if names[0] != names[1]:
        rank_zero_warn(
            f"{stored.where} says that its base is {names[1]!r}, and nothing of its weights; this "
            f"module's is {names[0]!r}: see that they are the same"
        )
    return names[0] == names[1]


def _widths(layer: Any) -> tuple[int, int] | None:
    inside = bare_layer(layer)
    return layer_width(layer) if isinstance(inside, nn.Linear | Conv1D) else None


def _lacks_a_part(layer: Any) -> bool:
    while hasattr(layer, "base_layer"):
        if getattr(layer, "starts", None):
            return True
        layer = layer.base_layer
    return False


def _changed(network: nn.Module) -> set[str]:
    """Return the names of weights that lack what PiSSA or OLoRA has taken."""
    layers: dict[str, Any] = dict(network.named_modules())
    return {
        key
        for name, layer in layers.items()
        if getattr(layer, "starts", None)
        for key in other_tensors({f"{name}.weight": torch.empty(0)})
    }
