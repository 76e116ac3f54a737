"""Which fits a network has gone through: those of the export it begins from, and its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import LMModule

__all__ = ["NOTE", "history_of", "read_history"]

#: A file of an export, with what plain transformers does not ask for.
NOTE = "lmkit.json"


def history_of(module: LMModule) -> list[dict[str, Any]]:
    """Return the fits that made a network, the module's own at the end if it had one.

    A surgery that an earlier fit did is listed there, whether the config of its export says it or a
    `structure.json`.

    Args:
        module: with its network built.

    Returns:
        Of each fit the `module` (its class), its `settings` as plain data, and the `surgeries`.
    """
    earlier = list(module.base.get("history", []))
    if not module.base.get("fit"):
        return earlier
    before = [spec for fit in earlier for spec in fit["surgeries"]]
    own = [spec for spec in module.ledger if spec not in before]
    settings = json.loads(json.dumps(dict(module.hparams), default=str))
    return [*earlier, {"module": type(module).__name__, "settings": settings, "surgeries": own}]


def read_history(model: Any, pretrained: bool) -> list[dict[str, Any]]:
    """Return the fits that made what a module is built from; none of a hub name or a config.

    Args:
        model: a hub name, a folder or a config.
        pretrained: whether its weights are loaded.
    """
    note = Path(model) / NOTE if pretrained and isinstance(model, str) else None
    if note is None or not note.is_file():
        return []
    try:
        said = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # of another tool, or cut short: weights do not depend on it
        return []
    found = said.get("history", []) if isinstance(said, dict) else []
    keys = {"module", "settings", "surgeries"}
    whole = isinstance(found, list) and all(isinstance(f, dict) and keys <= f.keys() for f in found)
    return found if whole else []
