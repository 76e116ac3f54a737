"""An adapter as it is stored: in a checkpoint, or in a folder of lmkit's or peft's."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..modules import LMModule
from ..modules.checkpoint_io import read_checkpoint
from ..modules.checks import check_same
from ..modules.history import NOTE
from ..surgery import from_spec
from ..surgery.adapter_state import adapter_tensors, other_tensors, place_of
from ..surgery.peft_folder import read_peft_folder
from ..tokenization import load_tokenizer, tokenizer_from_files

__all__ = [
    "WEIGHTS",
    "StoredAdapter",
    "choose",
    "how_to_add",
    "named_surgeries",
    "read_adapter",
    "stored_tokenizer",
    "surgeries_of_base",
    "unmerged",
]

#: Of a folder: the weights of an adapter that peft does not know.
WEIGHTS = "adapter.safetensors"

_KINDS = ("LoRA", "IA3", "Adapter", "PromptTuning", "PrefixTuning")
# What changes the layers of the base; the first is undone with the adapters when all is merged.
_MERGED = ("LowRank",)
_OF_BASE = (*_MERGED, "RemoveUnits")


@dataclass
class StoredAdapter:
    """One adapter, read.

    Attributes:
        where: it was read from.
        surgeries: that put it in; one, or several under one name.
        tensors: its weights, as `adapter_tensors` returns them.
        others: weights of the network that are no adapter's, by plain name: at least the head.
        fresh: names of those that no base has, such as the head's.
        labels: the names of the classes, `None` if they are not known.
        problem: the kind of its task as the config says it, `None` if that is not known.
        base: name and fingerprint of the base, as far as they are known.
        marks: hashes of frozen weights by plain name, see `lmkit.modules.frozen_base.mark`.
        changed: names of weights of the base that are not as they were.
        structure: surgeries that changed the layers of the base.
    """

    where: str
    surgeries: list[Any]
    tensors: dict[str, Tensor]
    others: dict[str, Tensor]
    fresh: set[str] = field(default_factory=set)
    labels: dict[int, str] | None = None
    problem: str | None = None
    base: dict[str, Any] = field(default_factory=dict)
    marks: dict[str, str] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    structure: list[dict[str, Any]] = field(default_factory=list)


def read_adapter(source: str | os.PathLike[str], adapter: str | None = None) -> StoredAdapter:
    """Read one adapter of a checkpoint, or that of a folder.

    Args:
        source: a checkpoint, whole or without what is frozen; or a folder of lmkit's or peft's.
        adapter: its name in a checkpoint; needed where there are several and not one is active.

    Raises:
        FileNotFoundError: there is nothing at `source`.
        ValueError: there is no adapter in it, or several.
    """
    place = Path(source)
    if place.is_dir():
        return _from_folder(place)
    return _from_checkpoint(place, adapter)


def stored_tokenizer(source: str | os.PathLike[str]) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer of a checkpoint or a folder; `None` if it holds none that can be read.

    Args:
        source: as `read_adapter` takes it.
    """
    place = Path(source)
    try:
        if place.is_dir():
            return load_tokenizer(str(place.resolve()))
        files = read_checkpoint(place, mmap=True)["lmkit"]["tokenizer"]
        return tokenizer_from_files(files) if files else None
    except ValueError:
        return None


def named_surgeries(ledger: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Return the entries of a ledger that put in adapters, by the names of these.

    A mixture of adapters is none.
    """
    found: dict[str, list[Mapping[str, Any]]] = {}
    for spec in ledger:
        if _kind(spec) in _KINDS:
            found.setdefault(spec["init_args"]["name"], []).append(spec)
    return found


def surgeries_of_base(ledger: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the entries of a ledger that change the layers of the base: low rank, removal."""
    return [dict(spec) for spec in ledger if _kind(spec) in _OF_BASE]


def unmerged(ledger: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what is left of a ledger when a network was merged."""
    gone = (*_KINDS, "AdapterFusion", *_MERGED)
    return [dict(spec) for spec in ledger if _kind(spec) not in gone]


def choose(names: Iterable[str], active: Mapping[str, float] | None, wanted: str | None) -> str:
    """Choose one adapter: the wanted, the only, or the only active one.

    Raises:
        ValueError: there is none, not the wanted one, or none that stands out; names them.

    Example:
        >>> choose(["a", "b"], {"b": 0.5}, None)
        'b'
    """
    known = list(names)
    if wanted is not None:
        if wanted not in known:
            raise ValueError(
                f"there is no adapter {wanted!r}; there are {', '.join(known) or 'none'}"
            )
        return wanted
    on = [name for name in known if active is None or name in active]
    for found in (known, on):
        if len(found) == 1:
            return found[0]
    if not known:
        raise ValueError("there is no adapter that could be taken by itself")
    raise ValueError(f"there are the adapters {', '.join(known)}: name the one that is meant")


def how_to_add(folder: Path) -> str | None:
    """Say in Python how the adapter of a folder comes on its base; `None` if it holds none."""
    config = folder / "adapter_config.json"
    if not (config.is_file() or (folder / WEIGHTS).is_file()):
        return None
    theirs = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    said = _said(folder)
    base = said.get("base") or theirs.get("base_model_name_or_path") or "its base"
    head = ", head=True" if said.get("labels") or theirs.get("modules_to_save") else ""
    return (
        f"module = lmkit.modules.{said.get('module', '<Task>Module')}({base!r}); "
        f"lmkit.adapters.add_adapter(module, {str(folder)!r}, 'a name'{head})"
    )


def _from_checkpoint(path: Path, adapter: str | None) -> StoredAdapter:
    # Mapped into memory: of the base no more is read than is compared.
    checkpoint = read_checkpoint(path, mmap=True)
    saved = check_same(LMModule, checkpoint)
    surgeries = named_surgeries(saved["ledger"])
    try:
        name = choose(surgeries, saved.get("adapters"), adapter)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    state = {
        key.removeprefix("network."): tensor
        for key, tensor in checkpoint["state_dict"].items()
        if key.startswith("network.")
    }
    base, config = dict(saved["base"]), saved["config"]
    marks = base.get("weights", {})
    return StoredAdapter(
        where=str(path),
        surgeries=[from_spec(spec) for spec in surgeries[name]],
        tensors=adapter_tensors(state, name),
        others=other_tensors(state),
        fresh=set(base.get("fresh", ())),
        labels=_labels(config.get("id2label")),
        problem=config.get("problem_type"),
        base=base,
        marks=dict(marks) if isinstance(marks, Mapping) else {},
        changed={
            f"{place_of(key)}.weight"
            for each in surgeries
            for key in adapter_tensors(state, each)
            if ".starts." in key
        },
        structure=surgeries_of_base(saved["ledger"]),
    )


def _from_folder(folder: Path) -> StoredAdapter:
    said = _said(folder)
    known: dict[str, Any] = {
        "where": str(folder),
        "labels": _labels(said.get("labels")),
        "problem": said.get("problem"),
        "marks": dict(said.get("weights", {})),
    }
    if said and (folder / WEIGHTS).is_file():
        surgeries = [from_spec(spec) for spec in said["surgeries"]]
        tensors = load_file(folder / WEIGHTS)
        own = {key: tensor for key, tensor in tensors.items() if key in said["tensors"]}
        others = {key: tensor for key, tensor in tensors.items() if key not in own}
        base = {"name": said.get("base")}
        return StoredAdapter(
            **known, surgeries=surgeries, tensors=own, others=others, fresh=set(others), base=base
        )
    surgery, own, others, name = read_peft_folder(folder)
    return StoredAdapter(
        **known,
        surgeries=[surgery],
        tensors=own,
        others=others,
        fresh=set(others),
        base={"name": name},
    )


def _kind(spec: Mapping[str, Any]) -> str:
    """Return the class of a surgery of lmkit, `""` of any other."""
    module, _, name = str(spec["class_path"]).rpartition(".")
    return name if module.startswith("lmkit.surgery.") else ""


def _labels(names: Mapping[Any, str] | None) -> dict[int, str] | None:
    return {int(number): name for number, name in names.items()} if names else None


def _said(folder: Path) -> dict[str, Any]:
    """Return what lmkit notes of the adapter in a folder."""
    if not (folder / NOTE).is_file():
        return {}
    noted: dict[str, Any] = json.loads((folder / NOTE).read_text(encoding="utf-8"))
    return noted.get("adapter") or {}
