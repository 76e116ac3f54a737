"""Checks of what a transform is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

__all__ = ["check_one_of", "check_rate", "check_table", "check_whole"]


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


def check_table(name: str, value: Any, where: str = "") -> None:
    """Check that an argument has words, and for each a list of words that may stand there.

    Raises:
        ValueError: it has not; a word is no string, empty, or holds white space.

    Example:
        >>> check_table("table", {"car": ["motor car"]})
        Traceback (most recent call last):
        ...
        ValueError: table must hold words with lists of words, has 'motor car' for 'car'
    """
    says = f"{name} must hold words with lists of words{where}"
    if not isinstance(value, Mapping):
        raise ValueError(f"{says}, got {value!r}")
    for word, others in value.items():
        if not isinstance(others, list):
            raise ValueError(f"{says}, has {others!r} for {word!r}")
        for each in (word, *others):
            if not isinstance(each, str) or len(each.split()) != 1:
                raise ValueError(f"{says}, has {each!r} for {word!r}")
