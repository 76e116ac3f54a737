"""Changes of a network's structure: model to model, in place, idempotent; no Lightning."""

from .base import NothingMatchedError, from_spec, match_modules, replace_module, to_spec

__all__ = ["NothingMatchedError", "from_spec", "match_modules", "replace_module", "to_spec"]
