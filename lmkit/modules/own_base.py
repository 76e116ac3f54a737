"""A module whose network is a base of its own by now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import LMModule

__all__ = ["become_base"]


def become_base(module: LMModule, ledger: list[dict[str, Any]]) -> None:
    """Take a network as it is for the base of what follows.

    Args:
        module: no base has its weights any more, so its checkpoints hold all of them.
        ledger: the surgeries that are left of its structure.
    """
    module._ledger = list(ledger)
    module.base = {"name": None}
