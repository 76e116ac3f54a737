"""Surgeries that a callback has made, found again in a ledger by what it was told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["entry_of", "why_no_entry"]


def entry_of(
    ledger: Sequence[Mapping[str, Any]], class_path: str, settings: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    """Return the entry of a ledger that a callback, or its like, has made.

    Args:
        ledger: of a network or a checkpoint.
        class_path: of the surgery, whose `chosen` are the arguments of the callback.
        settings: arguments of the callback.

    Example:
        >>> spec = {"class_path": "Cut", "init_args": {"chosen": {"share": 0.5}}}
        >>> entry_of([spec], "Cut", {"share": 0.5}) is spec, entry_of([spec], "Cut", {"share": 0.7})
        (True, None)
    """
    known = (spec for spec in ledger if spec["class_path"] == class_path)
    return next((spec for spec in known if spec["init_args"]["chosen"] == settings), None)


def why_no_entry(
    ledger: Sequence[Mapping[str, Any]],
    class_path: str,
    settings: Mapping[str, Any],
    *,
    name: str,
    done: str,
    otherwise: str,
) -> str:
    """Say why a checkpoint does not go with a callback, and what to do.

    Args:
        ledger: of the checkpoint, without an entry of these settings.
        class_path: of the surgery.
        settings: arguments of the callback.
        name: of the callback.
        done: what an entry says was done, e.g. `"was factorized"`.
        otherwise: what is said where there is none.

    Example:
        >>> spec = {"class_path": "Cut", "init_args": {"chosen": {"share": 0.5}}}
        >>> words = {"name": "CutCallback", "done": "was cut", "otherwise": "is whole"}
        >>> why_no_entry([spec], "Cut", {"share": 0.7}, **words)[:53]
        'the checkpoint was cut with share=0.5, and CutCallbac'
    """
    fault = otherwise
    for spec in ledger:
        if spec["class_path"] == class_path:
            had = spec["init_args"]["chosen"]
            other = [word for word in settings if had.get(word) != settings[word]]
            before, now = (
                ", ".join(f"{word}={known.get(word)!r}" for word in other)
                for known in (had, settings)
            )
            fault = f"{done} with {before}, and {name} of this run has {now}"
    return (
        f"the checkpoint {fault}: give the callback the arguments it had or leave it out, or start "
        "anew from an export of the checkpoint"
    )
