"""Checks of the numbers that a technique is given."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

__all__ = ["check_finite", "check_whole"]


def check_whole(word: str, value: Any, least: int) -> None:
    """Check that an argument is a whole number, and large enough.

    Args:
        word: the argument's name.
        value: what was given for it.
        least: what it has to be at least.

    Raises:
        ValueError: it is not.

    Example:
        >>> check_whole("rank", 2.5, 1)
        Traceback (most recent call last):
        ...
        ValueError: rank must be a whole number, got 2.5
    """
    if type(value) is bool or not isinstance(value, Integral):
        raise ValueError(f"{word} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{word} must be at least {least}, got {value}")


def check_finite(word: str, value: Any) -> None:
    """Check that an argument is a number, and neither infinite nor none.

    Args:
        word: the argument's name.
        value: what was given for it.

    Raises:
        ValueError: it is not.

    Example:
        >>> check_finite("alpha", float("inf"))
        Traceback (most recent call last):
        ...
        ValueError: alpha must be a finite number, got inf
    """
    if type(value) is bool or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{word} must be a finite number, got {value!r}")
