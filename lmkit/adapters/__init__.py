"""Several adapters on one base: added, switched, weighed, merged and written to folders."""

from .adding import add_adapter
from .folder import write_adapter
from .using import fold_adapters, list_adapters, merge_adapters, unfold_adapters, use_adapters

__all__ = [
    "add_adapter",
    "fold_adapters",
    "list_adapters",
    "merge_adapters",
    "unfold_adapters",
    "use_adapters",
    "write_adapter",
]
