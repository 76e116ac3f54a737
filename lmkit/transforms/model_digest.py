"""What tells one model from another without reading all of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

__all__ = ["model_digest"]


def model_digest(model: str) -> str:
    """Return a digest of the names, sizes and first and last bytes of a model's files.

    Args:
        model: a folder; of a name of the hub the digest is of the name.

    Example:
        >>> model_digest("some/model") == model_digest("some/model")
        True
    """
    state = hashlib.sha256()
    folder = Path(model).expanduser()
    if not folder.is_dir():
        state.update(model.encode())
        return state.hexdigest()
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        size = path.stat().st_size
        state.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            state.update(file.read(1 << 16))
            file.seek(max(0, size - (1 << 16)))
            state.update(file.read())
    return state.hexdigest()
