"""Checks of what a transform is given."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

__all__ = ["check_one_of", "check_rate", "check_whole"]


def check_rate(name: str, value: Any) -> None:
    """Check that an argument is a number from 0 to 1.

    Raises:
        ValueError: it is not.

    Example:
        >>> check_rate("rate", 1.5)
        Traceback (most recent call last):
        ...
        ValueError: rate must lie in [0, 1], got 1.5
    """
    if type(value) is bool or not isinstance(value, Real):
        raise ValueError(f"{name} must be a number in [0, 1], got {value!r}")
    if not 0.0 <= float(value) <= 1.0:
        raise ValueError(f"{name} must lie in [0, 1], got {value}")


def check_whole(name: str, value: Any, least: int) -> None:
    """Check that an argument is a whole number, and large enough.

    Raises:
        ValueError: it is not.

    Example:
        >>> check_whole("top_k", 0, 1)
        Traceback (most recent call last):
        ...
        ValueError: top_k must be a whole number, at least 1, got 0
    """
    if type(value) is bool or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} must be a whole number, at least {least}, got {value!r}")


def check_one_of(name: str, value: Any, known: Sequence[str]) -> None:
    """Check that an argument is one of some words.

    Raises:
        ValueError: it is not.

    Example:
        >>> check_one_of("kind", "typo", ["drop", "swap"])
        Traceback (most recent call last):
        ...
        ValueError: kind must be one of drop, swap, got 'typo'
    """
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
