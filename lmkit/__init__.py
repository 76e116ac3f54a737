"""lmkit: every technique that improves a language model as one PyTorch Lightning part."""

from typing import TYPE_CHECKING, Any

from .__about__ import __version__

if TYPE_CHECKING:
    from .exporting import export as export
    from .loading import load as load

__all__ = ["__version__", "export", "load"]


def __getattr__(name: str) -> Any:
    # PEP 562: `import lmkit` stays free of torch (over a second) until something needs it.
    if name == "load":
        from .loading import load

        return load
    if name == "export":
        from .exporting import export

        return export
    raise AttributeError(f"module 'lmkit' has no attribute {name!r}")
