"""What every surgery shares: finding modules, replacing them, and being written as plain data."""

from __future__ import annotations

import difflib
import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from fnmatch import fnmatchcase
from typing import Any, cast

from torch import nn

from ..types import Surgery

__all__ = ["NothingMatchedError", "from_spec", "match_modules", "replace_module", "to_spec"]


class NothingMatchedError(ValueError):
    """A surgery's patterns matched no module, so it would have changed nothing."""


def match_modules(
    network: nn.Module,
    patterns: Sequence[str],
    kind: type[nn.Module] | tuple[type[nn.Module], ...] = nn.Module,
) -> dict[str, nn.Module]:
    """Find the modules whose dotted name, or the end of it, matches a pattern.

    Args:
        network: where to look.
        patterns: shell patterns, e.g. `"query"`, `"attention.*.dense"` or `"encoder.layer.0.*"`.
        kind: only modules of this class.

    Returns:
        Modules by dotted name, in the order of the network; never empty.

    Raises:
        NothingMatchedError: no module matches; names the patterns and the nearest names.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> list(match_modules(network, ["0"], nn.Linear))
        ['0']
    """
    candidates = {name: m for name, m in network.named_modules() if name and isinstance(m, kind)}
    found = {
        name: module
        for name, module in candidates.items()
        if any(fnmatchcase(name, p) or fnmatchcase(name, f"*.{p}") for p in patterns)
    }
    if not found:
        ends = {name.rsplit(".", 1)[-1] for name in candidates}
        nearest = {
            near
            for pattern in patterns
            for near in difflib.get_close_matches(pattern, ends | set(candidates), n=3, cutoff=0.3)
        }
        raise NothingMatchedError(
            f"no module matches {list(patterns)}; nearest names: "
            f"{sorted(nearest) or sorted(ends)[:10]}"
        )
    return found


def replace_module(network: nn.Module, name: str, replacement: nn.Module) -> None:
    """Put `replacement` in the place of the module with this dotted name, in its train mode.

    Args:
        network: holds the module.
        name: dotted name, e.g. `"encoder.layer.0.output.dense"`.
        replacement: usually wraps the original and calls it.

    Example:
        >>> network = nn.Sequential(nn.ReLU())
        >>> replace_module(network, "0", nn.Tanh())
        >>> network
        Sequential(
          (0): Tanh()
        )
    """
    parent, _, child = name.rpartition(".")
    owner = network.get_submodule(parent)
    replacement.train(owner.get_submodule(child).training)
    setattr(owner, child, replacement)


def to_spec(surgery: Surgery) -> dict[str, Any]:
    """Write a surgery as plain data: its class path and its arguments.

    Raises:
        TypeError: it is no dataclass, or holds what JSON cannot.
    """
    if not is_dataclass(cast(Any, surgery)):
        raise TypeError(f"a surgery must be an instance of a dataclass, got {surgery!r}")
    arguments = asdict(cast(Any, surgery))
    try:
        arguments = json.loads(json.dumps(arguments))
    except TypeError as error:
        raise TypeError(
            f"{type(surgery).__name__} must hold plain data (numbers, strings, lists, "
            f"dictionaries) so that a checkpoint can name it, got {arguments!r}"
        ) from error
    cls = type(surgery)
    return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": arguments}


def from_spec(spec: Mapping[str, Any]) -> Surgery:
    """Make the surgery that `to_spec` wrote.

    A checkpoint must not be able to name code to run. So the class has to be one of
    `lmkit.surgery`, or live in a module that the program has imported already.

    Raises:
        ValueError: the class is not to be had; names the remedy.
    """
    path = str(spec["class_path"])
    module_name, _, name = path.rpartition(".")
    if module_name.startswith("lmkit.surgery."):
        importlib.import_module(module_name)
    module = sys.modules.get(module_name)
    cls = getattr(module, name, None)
    if not (isinstance(cls, type) and is_dataclass(cls) and issubclass(cls, Surgery)):
        raise ValueError(
            f"the structure names the surgery {path!r}, which is not to be had; import the "
            f"module {module_name!r} first if you trust it"
        )
    return cast(Surgery, cls(**spec["init_args"]))
