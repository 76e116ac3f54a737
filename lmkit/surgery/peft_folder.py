"""LoRA, its kin and (IA)³ as a folder of peft's: written for plain peft, and read from it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .adapter_state import adapter_tensors, as_plain_lora, other_tensors, place_of
from .ia3 import IA3
from .injection import bare_layer, require_peft
from .lora import LoRA
from .prefix_folder import task_of
from .prefix_tuning import PrefixTuning

__all__ = ["read_peft_folder", "write_peft_folder"]

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."

# Starts that do not change the base, so that the saved factors are all there is to an adapter.
_HARMLESS = (True, False, "gaussian", "orthogonal", "eva")


def write_peft_folder(
    network: nn.Module,
    surgery: LoRA | IA3,
    folder: Path | str,
    base_name: str | None,
    saved: Sequence[str] = (),
) -> None:
    """Write an adapter so that `peft.PeftModel.from_pretrained(base, folder)` loads it.

    PiSSA and OLoRA are written as what they add to the base, a LoRA of twice the rank.

    Args:
        network: has the adapter.
        surgery: that it was made by.
        folder: to write into; made if it is not there.
        base_name: hub name or folder of the base, for the config.
        saved: dotted names of modules that were trained as well, such as the head.

    Raises:
        ValueError: peft would not tell these modules from others, or one has an adapter inside.
    """
    state = network.state_dict()
    made, tensors = as_plain_lora(surgery, adapter_tensors(state, surgery.name))
    places = list(dict.fromkeys(map(place_of, tensors)))
    _check_saved(network, saved, places)
    config = _config(network, made, places, tensors)
    config.base_model_name_or_path = base_name
    config.modules_to_save = list(saved) or None
    config.inference_mode = True
    config.task_type = task_of(network)
    tensors |= {
        name: tensor
        for name, tensor in other_tensors(state).items()
        if any(name.startswith(f"{module}.") for module in saved)
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    files = {
        # Peft's files call these vectors by the name that they once had.
        _PREFIX + re.sub(r"(?<=lora_magnitude_vector)\.weight$", "", name): tensor
        for name, tensor in tensors.items()
    }
    save_file(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in files.items()},
        Path(folder) / _WEIGHTS,
        metadata={"format": "pt"},
    )


def read_peft_folder(
    folder: Path | str,
) -> tuple[LoRA | IA3 | PrefixTuning, dict[str, Tensor], dict[str, Tensor], str | None]:
    """Read an adapter that peft, or `write_peft_folder`, has written.

    Args:
        folder: with `adapter_config.json` and `adapter_model.safetensors`.

    Returns:
        The surgery, the weights as `adapter_tensors` returns them, the weights of modules that were
        trained as well by their names in the network, and the name of the base.

    Raises:
        ImportError: peft is not installed.
        ValueError: the folder holds no adapter, or one that lmkit does not compute; says why.
    """
    require_peft()
    from peft import PeftConfig

    place = Path(folder)
    if not ((place / _CONFIG).is_file() and (place / _WEIGHTS).is_file()):
        raise ValueError(f"{place} holds no adapter: no {_CONFIG} with {_WEIGHTS}")
    config: Any = PeftConfig.from_pretrained(str(place))
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    read: Any = _READERS.get(kind)
    if read is None:
        raise ValueError(
            f"{place} holds an adapter of the kind {kind}; lmkit reads "
            f"{', '.join(_READERS)} of peft"
        )
    tensors: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    for name, tensor in load_file(place / _WEIGHTS).items():
        plain = name.removeprefix(_PREFIX).removeprefix("base_model.")
        if plain.endswith("lora_magnitude_vector"):
            plain += ".weight"
        (tensors if place_of(plain) or plain == "prompt_embeddings" else others)[plain] = tensor
    surgery, tensors = read(config, tensors, str(place))
    return surgery, tensors, others, config.base_model_name_or_path


def _config(
    network: nn.Module, made: LoRA | IA3, places: list[str], tensors: Mapping[str, Tensor]
) -> Any:
    from peft import AdaLoraConfig, IA3Config, LoraConfig

    layers = {place: bare_layer(network.get_submodule(place)) for place in places}
    turned = all(isinstance(layer, Conv1D) for layer in layers.values())
    # Peft takes the ends of names in a list, and an expression as a whole.
    names = [name for name, _ in network.named_modules()]
    exact = not any(name.endswith(f".{place}") for name in names for place in places)
    if isinstance(made, IA3):
        fed = [place for place in places if len(tensors[f"{place}.ia3_l"]) == 1]
        if not exact:
            return IA3Config(
                target_modules=_expression(places),
                feedforward_modules=_expression(fed),
                fan_in_fan_out=turned,
            )
        return IA3Config(target_modules=places, feedforward_modules=fed, fan_in_fan_out=turned)
    common: dict[str, Any] = {
        "target_modules": places if exact else _expression(places),
        "lora_alpha": made.alpha,
        "lora_dropout": made.dropout,
        "bias": "none",
        "fan_in_fan_out": turned,
    }
    if made.variant == "adalora":
        return AdaLoraConfig(init_r=made.ranks, target_r=made.rank, total_step=1, **common)
    dora, root = made.variant == "dora", made.variant == "rslora"
    return LoraConfig(r=made.rank, use_rslora=root, use_dora=dora, **common)


def _expression(places: list[str]) -> str:
    return "|".join(map(re.escape, places)) or "(?!)"


def _check_saved(network: nn.Module, saved: Sequence[str], places: list[str]) -> None:
    """Check that peft finds just these modules by the ends of their names."""
    for name, module in network.named_modules():
        if hasattr(module, "base_layer") and any(f"{name}.".startswith(f"{m}.") for m in saved):
            raise ValueError(
                f"{name} was trained as a whole and is adapted as well, which peft cannot express; "
                "export the model merged"
            )
    found = {n for n, _ in network.named_modules() if any(n.endswith(m) for m in saved)}
    inside = {n for n in found if any(n.startswith(f"{m}.") for m in saved)}
    hidden = [p for p in places if any(re.match(rf"(^|.*\.){m}($|\..*)", p) for m in saved)]
    if other := sorted(found - inside - set(saved)) + hidden:
        raise ValueError(
            f"peft knows modules by the ends of their names, and would take {other[0]} for one of "
            f"{', '.join(saved)}; export the model merged"
        )


def _lora(config: Any, tensors: dict[str, Tensor], where: str) -> tuple[LoRA, dict[str, Tensor]]:
    ranks = {len(tensor) for name, tensor in tensors.items() if ".lora_A" in name}
    start = config.init_lora_weights
    reasons = {
        f"its start {start!r} changes the base (save it with peft's "
        "path_initial_model_for_weight_conversion)": start not in _HARMLESS,
        "its layers have several ranks or scales": len(ranks) != 1 or bool(config.alpha_pattern),
        "it has biases": config.bias != "none" or bool(getattr(config, "lora_bias", False)),
        "it adapts embeddings": any("lora_embedding" in name for name in tensors),
    }
    _refuse(reasons, where)
    if config.use_dora and config.use_rslora:
        _refuse({"it is DoRA with the scale of rsLoRA": True}, where)
    variant = "dora" if config.use_dora else "rslora" if config.use_rslora else "lora"
    places = tuple(dict.fromkeys(map(place_of, tensors)))
    (rank,) = ranks
    alpha, dropout = float(config.lora_alpha), float(config.lora_dropout)
    return LoRA("default", places, rank, alpha, dropout, variant), tensors


def _adalora(config: Any, tensors: dict[str, Tensor], where: str) -> tuple[LoRA, dict[str, Tensor]]:
    ranks = {len(tensor) for name, tensor in tensors.items() if ".lora_A" in name}
    _refuse({"its layers have several ranks": ranks != {config.init_r}}, where)
    places = tuple(dict.fromkeys(map(place_of, tensors)))
    first = config.init_r
    how = {"rank": min(config.target_r, first), "initial_rank": first, "variant": "adalora"}
    alpha, dropout = float(config.lora_alpha), float(config.lora_dropout)
    return LoRA("default", places, alpha=alpha, dropout=dropout, **how), tensors


def _ia3(config: Any, tensors: dict[str, Tensor], where: str) -> tuple[IA3, dict[str, Tensor]]:
    fed = tuple(place_of(name) for name, gain in tensors.items() if len(gain) == 1)
    rest = tuple(place_of(name) for name, gain in tensors.items() if len(gain) != 1)
    return IA3("default", rest, fed), tensors


def _prefix(
    config: Any, tensors: dict[str, Tensor], where: str
) -> tuple[PrefixTuning, dict[str, Tensor]]:
    _refuse({"it holds no prompt_embeddings": list(tensors) != ["prompt_embeddings"]}, where)
    (states,) = tensors.values()
    return PrefixTuning(length=len(states)), {"prefixes.adapters.embedding.weight": states}


_READERS = {"LORA": _lora, "ADALORA": _adalora, "IA3": _ia3, "PREFIX_TUNING": _prefix}


def _refuse(reasons: Mapping[str, bool], where: str) -> None:
    if found := [reason for reason, holds in reasons.items() if holds]:
        raise ValueError(f"the adapter in {where} cannot be taken over: {'; '.join(found)}")
