"""Networks that no config can express, as a folder: the surgeries that made them, and weights."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Size, Tensor
from transformers import PretrainedConfig, PreTrainedModel

from .base import from_spec
from .config_history import config_changes, config_remembered, earlier_config

__all__ = [
    "STRUCTURE",
    "WEIGHTS",
    "Mismatch",
    "has_structure",
    "load_structure",
    "read_structure",
    "saved_surgeries",
    "structural_specs",
    "write_structure",
]

#: The surgeries; and the weights, under a name that plain transformers does not look for: it would
#: load those whose names it knows, and draw the others at random.
STRUCTURE, WEIGHTS = "structure.json", "network.safetensors"

_OURS = "lmkit.surgery."


class Mismatch(NamedTuple):
    """Which weights of a network a folder does not have.

    Attributes:
        missing: names of weights that no weight of the folder stands for.
        other: names of those that have another shape there.
    """

    missing: set[str]
    other: set[str]


def structural_specs(
    network: PreTrainedModel, specs: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return the surgeries that make this structure of the plain architecture.

    Those that change no shape, such as the choice of what is trained, are left out.

    Args:
        network: as it is now.
        specs: of all surgeries that were performed on it, in order.

    Returns:
        None if the network's config says all of its structure. Otherwise those that make it of the
        network that the config said before the first of them.

    Raises:
        ValueError: these surgeries do not make it, or one is not lmkit's own.
    """
    wanted = _shapes(network)
    config = copy.deepcopy(network.config)
    if _shapes(type(network)(config)) == wanted:
        return []
    plain = type(network)(earlier_config(config, config_changes(network)))
    shapes = _shapes(plain)
    found = []
    for spec in specs:
        if not str(spec["class_path"]).startswith(_OURS):
            continue
        from_spec(spec)(plain)
        if (after := _shapes(plain)) != shapes:
            shapes = after
            found.append(dict(spec))
    if shapes != wanted:
        raise ValueError(
            "plain transformers cannot express this structure, which was changed by "
            f"{[spec['class_path'] for spec in specs]}, and surgeries of lmkit alone do not make it"
        )
    return found


def write_structure(
    network: PreTrainedModel,
    folder: str | os.PathLike[str],
    specs: Sequence[Mapping[str, Any]],
    head: bool = True,
) -> None:
    """Write config, surgeries and weights of a network.

    The config is as it is now. What it said before the surgeries, which start from there, stands
    beside these.

    Args:
        network: on the CPU.
        folder: made if it is not there.
        specs: of `structural_specs`.
        head: whether the weights above the encoder are written.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(network.config)
    config.architectures = [type(network if head else network.base_model).__name__]
    config.save_pretrained(place)
    if head and network.can_generate() and network.generation_config is not None:
        network.generation_config.save_pretrained(place)
    said: dict[str, Any] = {"weights": WEIGHTS, "surgeries": list(specs)}
    if changes := config_changes(network):
        said["before"] = changes
    (place / STRUCTURE).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    inside = "" if head else f"{network.base_model_prefix}."
    seen: set[tuple[int, Size]] = set()
    state = {}
    for name, tensor in network.state_dict().items():
        if not name.startswith(inside):
            continue
        # Of tied weights the first name stands for all.
        key = (tensor.data_ptr(), tensor.shape)
        if tensor.numel() and key in seen:
            continue
        seen.add(key)
        state[name] = tensor.detach().contiguous().clone()
    save_file(state, place / WEIGHTS, metadata={"format": "pt"})


def has_structure(model: Any) -> bool:
    """Whether a model is named by a folder that `write_structure` has written.

    Example:
        >>> has_structure("bert-base-uncased")
        False
    """
    return isinstance(model, str | os.PathLike) and (Path(model) / STRUCTURE).is_file()


def read_structure(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read the surgeries of a folder.

    Raises:
        ValueError: the file is broken, or weights are missing.
    """
    return _read(Path(folder))[0]


def load_structure(
    auto_class: Any,
    config: PretrainedConfig,
    folder: str | os.PathLike[str],
    any_head: bool = False,
) -> tuple[PreTrainedModel, Mismatch]:
    """Build a network, perform the surgeries of a folder on it, and load its weights.

    Args:
        auto_class: of transformers, which gives the head; it may be another one than the folder's.
        config: of the folder.
        folder: as `write_structure` wrote it.
        any_head: whether the head may be for other classes; it is left at random then.

    Returns:
        The network in float32, and what the folder has no weights for; these are random.

    Raises:
        ValueError: a file is cut short or broken; the weights are of another structure, or a head
            for other classes; or a surgery is not to be had.
    """
    specs, changes = _read(Path(folder))
    first = earlier_config(config, changes)
    network: PreTrainedModel = auto_class.from_config(first, dtype=torch.float32)
    with config_remembered(network):
        for spec in specs:
            from_spec(spec)(network)
    place = Path(folder) / WEIGHTS
    try:
        state = load_file(place)
    except SafetensorError as error:
        raise ValueError(f"{place} is cut short or no file of weights: {error}") from error
    own = network.state_dict()
    other = {name for name in state if name in own and own[name].shape != state[name].shape}
    network.load_state_dict({n: t for n, t in state.items() if n not in other}, strict=False)
    there = set(state)
    tied: dict[int, set[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        tied.setdefault(id(parameter), set()).add(name)
    there |= {name for names in tied.values() if names & there for name in names}
    missing = set(own) - there
    # A head may be another one, and then all of it is; a layer in part is of another structure.
    inside = f"{network.base_model_prefix}." if any_head else ""
    parted = {_owner(name) for name in missing} & {_owner(name) for name in state}
    if wrong := sorted(parted | {name for name in other if name.startswith(inside)}):
        raise ValueError(
            f"the weights in {place} are not of the structure that {STRUCTURE} beside it says, "
            f"e.g. of {wrong[0]}: export the model again"
        )
    return network, Mismatch(missing, other)


def saved_surgeries(model: Any, pretrained: bool) -> list[dict[str, Any]]:
    """Return the surgeries that a network has from what it was built from; most have none.

    Args:
        model: a hub name, a folder or a config.
        pretrained: whether its weights were loaded.
    """
    return read_structure(model) if pretrained and has_structure(model) else []


def _read(place: Path) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Read the surgeries of a folder, and what the config said before them."""
    try:
        said = json.loads((place / STRUCTURE).read_text(encoding="utf-8"))
        specs = [
            {key: spec[key] for key in ("class_path", "init_args")} for spec in said["surgeries"]
        ]
        changes = said.get("before")
        if changes is not None:
            changes = {"changed": dict(changes["changed"]), "added": list(changes["added"])}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{place / STRUCTURE} lists no surgeries ({error!r}): export the model again"
        ) from error
    if not (place / WEIGHTS).is_file():
        raise ValueError(f"the folder {place} has a {STRUCTURE} and no {WEIGHTS}: export it again")
    return specs, changes


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _shapes(network: PreTrainedModel) -> dict[str, Size]:
    state: dict[str, Tensor] = network.state_dict()
    return {name: tensor.shape for name, tensor in state.items()}
