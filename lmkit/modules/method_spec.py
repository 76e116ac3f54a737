"""Methods from plain data: a short name, or a class path with arguments."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["method_of"]


def method_of(
    word: str, spec: str | Mapping[str, Any], known: Mapping[str, Callable[..., Any]]
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Find the method that a spec names, and the arguments that go with it.

    A checkpoint must not be able to name code to run: a full path has to be in a module that the
    program has imported already.

    Args:
        word: the argument's name, for the errors.
        spec: one of `known`; or `{"class_path": ..., "init_args": {...}}`, where the path is one of
            `known`, or a full one.
        known: methods by their short names.

    Returns:
        The function or class, and its keyword arguments.

    Raises:
        ValueError: there is no such method.
        TypeError: it does not take these arguments.

    Example:
        >>> method_of("weighting", {"class_path": "mean", "init_args": {"start": 1}}, {"mean": sum})
        (<built-in function sum>, {'start': 1})
    """
    path, arguments = spec, {}
    if not isinstance(spec, str):
        path, arguments = spec.get("class_path", ""), dict(spec.get("init_args", {}))
    module_name, _, name = str(path).rpartition(".")
    found = known.get(str(path)) or getattr(sys.modules.get(module_name), name, None)
    if not callable(found):
        near = difflib.get_close_matches(str(path), known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"{word} must be one of {', '.join(known)}, or a class_path in a module that was "
            f"imported, got {spec!r}{hint}"
        )
    takes = inspect.signature(found).parameters
    if unknown := [name for name in arguments if name not in takes]:
        raise TypeError(f"{word} {path!r} does not take {', '.join(unknown)}")
    return found, arguments
