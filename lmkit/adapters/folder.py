"""One adapter and the head of its task as a folder: peft's where that can be, or lmkit's own."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..modules import LMModule
from ..modules.frozen_base import as_in_base, mark
from ..modules.history import NOTE
from ..surgery import from_spec, to_spec
from ..surgery.adapter_state import adapter_tensors, other_tensors
from ..surgery.composition import active_adapters
from ..surgery.folding import is_folded
from ..surgery.ia3 import IA3
from ..surgery.lora import LoRA
from ..surgery.peft_folder import write_peft_folder
from ..surgery.prefix_folder import write_prefix_folder
from ..surgery.prefix_tuning import PrefixTuning
from ..surgery.prompt_encoder import SoftPrompt
from ..surgery.prompt_tuning import PromptTuning
from ..surgery.sites import base_name
from ..surgery.tuning import head_parameters
from .ownership import check_module
from .stored import WEIGHTS, choose, named_surgeries, surgeries_of_base

__all__ = ["write_adapter"]


def write_adapter(
    module: LMModule, folder: str | os.PathLike[str], name: str | None = None
) -> None:
    """Write one adapter, with the head and what else no base had, so that others can add it.

    LoRA and its kin, (IA)³ and prefixes become a folder that `peft.PeftModel.from_pretrained(base,
    folder)` loads. Bottleneck adapters, prompts, and several techniques under one name become one
    that `add_adapter` reads: peft has nothing that computes the same. The adapter is written as it
    was trained, with weight 1. Hashes of the base's weights go with it, by which `add_adapter`
    knows the base.

    Args:
        module: has the adapter.
        folder: to write into; made if it is not there.
        name: of the adapter; by default the only or only active one.

    Raises:
        TypeError: the module is not lmkit's.
        ValueError: there is no such adapter, or other weights of the base were trained as well, be
            it before the adapter was added, or its layers are low-rank.
        ImportError: peft is needed and not installed.
    """
    remedy = "lmkit.surgery.peft_folder.write_peft_folder(network, surgery, folder, base)"
    check_module(module, "write_adapter", remedy)
    module.configure_model()
    network: Any = module.network
    if is_folded(network):
        raise ValueError("the module is folded: unfold_adapters(module) first")
    if surgeries_of_base(module.ledger):
        raise ValueError(
            "the adapter was trained on low-rank layers or pruned ones, and computes another thing "
            "on the base that its folder would name; export the model with merge=True (--merge), "
            "or keep the checkpoint"
        )
    known = named_surgeries(module.ledger)
    chosen = choose(known, active_adapters(network), name)
    surgeries: list[Any] = [from_spec(spec) for spec in known[chosen]]
    trained = _trained_besides(module)
    _check_frozen(module, trained)
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    said: dict[str, Any] = {
        "module": type(module).__name__,
        "base": module.base.get("name"),
        "labels": network.config.id2label if trained else None,
        "problem": network.config.problem_type if trained else None,
        "weights": _marks(module, trained),
    }
    (one, *more) = surgeries
    if not more and isinstance(one, LoRA | IA3):
        saved = _modules_of(network, trained)
        write_peft_folder(network, one, place, module.base.get("name"), saved)
    elif not more and isinstance(one, PrefixTuning):
        write_prefix_folder(network, one, place, module.base.get("name"))
    else:
        made, tensors = _as_computed(network, surgeries, chosen)
        said |= {"surgeries": [to_spec(surgery) for surgery in made], "tensors": sorted(tensors)}
        weights = tensors | trained
        save_file(
            {key: t.detach().cpu().contiguous().clone() for key, t in weights.items()},
            place / WEIGHTS,
            metadata={"format": "pt"},
        )
    note = json.dumps({"adapter": said}, indent=2) + "\n"
    (place / NOTE).write_text(note, encoding="utf-8")


def _trained_besides(module: LMModule) -> dict[str, Tensor]:
    """Return the weights that a fit has trained besides the adapters, by plain name.

    Raises:
        ValueError: some are the base's own.
    """
    network = module.network
    plain = other_tensors(dict(network.named_parameters()))
    apart = {*map(base_name, head_parameters(network)), *module.base.get("fresh", ())}
    if moved := [key for key, p in plain.items() if p.requires_grad and key not in apart]:
        raise ValueError(
            f"beside adapters and head {len(moved)} weights of the base were trained, such as "
            f"{moved[0]}, and an adapter's folder holds none of those; export the model with "
            "merge=True (--merge), or keep the checkpoint"
        )
    return {key: tensor for key, tensor in plain.items() if key in apart}


def _check_frozen(module: LMModule, trained: dict[str, Tensor]) -> None:
    """Check that what is frozen beneath the adapter is still the base that the folder will name.

    Raises:
        ValueError: it was trained since, e.g. by a fit of the whole network before.
    """
    kept, same = module.base.get("weights", {}), as_in_base(module)
    frozen = {
        name: p
        for name, p in module.network.named_parameters(remove_duplicate=False)
        if base_name(name) in kept and base_name(name) not in trained
    }
    # In half precision a weight that is as it was may have another hash than in float32.
    if moved := [n for n, p in frozen.items() if n not in same and p.dtype == torch.float32]:
        raise ValueError(
            f"{len(moved)} of {len(frozen)} frozen weights are not those of the base "
            f"{module.base.get('name')!r} any more, such as {base_name(moved[0])}, and on that "
            "base the adapter would compute something else; export the model with merge=True "
            "(--merge), or train the adapter on a module that is built from the base"
        )


def _marks(module: LMModule, trained: dict[str, Tensor]) -> dict[str, str]:
    """Hash the weights of the base that are as they were."""
    network = module.network
    lacking = {base_name(n) for n, m in network.named_modules() if getattr(m, "starts", None)}
    weights = other_tensors(dict(network.named_parameters(remove_duplicate=False)))
    return {
        key: mark(tensor)
        for key, tensor in weights.items()
        if key not in trained and key.rpartition(".")[0] not in lacking
    }


def _modules_of(network: Any, trained: dict[str, Tensor]) -> list[str]:
    """Name the modules that hold these weights: of the head whole ones, below single ones."""
    head = {base_name(name) for name in head_parameters(network)}
    owners = {key.partition(".")[0] if key in head else key.rpartition(".")[0] for key in trained}
    return sorted(owners)


@torch.no_grad()
def _as_computed(
    network: Any, surgeries: list[Any], name: str
) -> tuple[list[Any], dict[str, Tensor]]:
    """Return surgeries and weights, prompts without the encoder that computed them."""
    tensors, made = adapter_tensors(network.state_dict(), name), []
    for surgery in surgeries:
        if isinstance(surgery, PromptTuning):
            surgery = replace(surgery, encoder="none", hidden=0)
            for path, module in network.named_modules():
                if isinstance(module, SoftPrompt) and path.endswith(f".adapters.{name}"):
                    inside = f"{path.removesuffix(name)}"
                    tensors = {k: t for k, t in tensors.items() if not k.startswith(inside)}
                    tensors[f"{inside}vectors"] = module()
        made.append(surgery)
    return made, tensors
