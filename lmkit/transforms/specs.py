"""Transforms made from plain data, as YAML has them."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import Any

from .base import Transform

__all__ = ["transform_from"]


def transform_from(spec: Any, name: str = "transform") -> Transform:
    """Make a transform of what says which.

    Args:
        spec: a transform, which is returned; the name of a class of `lmkit.transforms` or a whole
            dotted path; or a dictionary of such a `class_path` and of `init_args`.
        name: what the argument is called in errors.

    Raises:
        ValueError: there is no such class, or it has no such argument, or refuses its value.
        TypeError: it is none of these, or the class is no transform.

    Example:
        >>> transform_from({"class_path": "RandomSwap", "init_args": {"alpha": 0.2}})
        RandomSwap(alpha=0.2)
    """
    if isinstance(spec, Transform):
        return spec
    if isinstance(spec, str):
        spec = {"class_path": spec}
    if not isinstance(spec, Mapping) or "class_path" not in spec:
        raise TypeError(
            f"{name} must be a transform or a dictionary of class_path and init_args: {spec!r}"
        )
    if strange := sorted(map(str, spec.keys() - {"class_path", "init_args"})):
        raise ValueError(f"{name} may have class_path and init_args, got {', '.join(strange)}")
    kind = _class_of(spec["class_path"], name)
    arguments = dict(spec.get("init_args") or {})
    known = list(inspect.signature(kind.__init__).parameters)[1:]
    if wrong := [argument for argument in arguments if argument not in known]:
        raise ValueError(
            f"{name}.init_args: {kind.__name__} has no argument {wrong[0]!r}; it has "
            f"{', '.join(known) or 'none'}"
        )
    try:
        return kind(**arguments)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{name} ({kind.__name__}): {error}") from error


def _class_of(path: Any, name: str) -> type[Transform]:
    if not isinstance(path, str):
        raise TypeError(f"{name}.class_path must be a string, got {path!r}")
    module, _, last = path.rpartition(".")
    module = module or __name__.rpartition(".")[0]
    # A checkpoint has specs, and must not be able to name code to run.
    holder = sys.modules.get(module)
    if "<locals>" in path:
        raise ValueError(
            f"{name}.class_path: {path!r} is a class inside a function, which no other process can "
            "find: define it at the top of a module"
        )
    if holder is None:
        raise ValueError(
            f"{name}.class_path: {path!r} cannot be found, for {module} was not imported: take a "
            "transform of lmkit.transforms, or import the module first"
        )
    kind = getattr(holder, last, None)
    if kind is None:
        near = ", ".join(_kinds(holder))
        raise ValueError(f"{name}.class_path: there is no {last!r}; there are {near or 'none'}")
    if not (isinstance(kind, type) and issubclass(kind, Transform)) or inspect.isabstract(kind):
        raise TypeError(f"{name}.class_path: {path!r} is no transform")
    return kind


def _kinds(holder: Any) -> list[str]:
    found = (n for n, k in vars(holder).items() if isinstance(k, type) and issubclass(k, Transform))
    return sorted(n for n in found if not inspect.isabstract(getattr(holder, n)))
