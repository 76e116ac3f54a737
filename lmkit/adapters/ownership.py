"""What the functions of adapters take: a module of lmkit, which has a ledger and a base."""

from __future__ import annotations

from typing import Any

from ..modules import LMModule

__all__ = ["check_module"]


def check_module(module: Any, function: str, instead: str) -> None:
    """Check that something is a module of lmkit.

    Args:
        module: what was given.
        function: that it was given to.
        instead: what to call for any other module.

    Raises:
        TypeError: it is not; says what to do.

    Example:
        >>> check_module(3, "f", "g")
        Traceback (most recent call last):
        ...
        TypeError: f takes a module of lmkit, got a int; for another module there is g
    """
    if not isinstance(module, LMModule):
        raise TypeError(
            f"{function} takes a module of lmkit, got a {type(module).__name__}; for another "
            f"module there is {instead}"
        )
