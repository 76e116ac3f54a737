"""Short names of models that are compared with one another."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

__all__ = ["named_models"]


def named_models(words: Sequence[str | os.PathLike[str]]) -> dict[str, str]:
    """Return models by name: what stands before `=`, or the last part of the path.

    Raises:
        ValueError: two have one name, or there is nothing on one side of `=`.

    Example:
        >>> named_models(["runs/it/exported", "base=some/model"])
        {'exported': 'runs/it/exported', 'base': 'some/model'}
    """
    found: dict[str, str] = {}
    for given in words:
        word = os.fspath(given)
        name, equals, path = word.partition("=")
        if not equals or "/" in name:
            name, path = Path(word).name, word
        if not name or not path:
            raise ValueError(f"a model is given as NAME=MODEL or MODEL, got {word!r}")
        if name in found:
            raise ValueError(
                f"two models are called {name!r}: give them names, as in one={found[name]} "
                f"other={path}"
            )
        found[name] = path
    return found
