"""What libraries say when they are imported, and helps nobody."""

from __future__ import annotations

import logging

__all__ = ["quieten_imports"]

# transformers imports torchao where it is there, which reports on kernels of other machines, and
# torch on how torchao registers its types.
_LOGGERS = ("torchao", "torchao.kernel.intmm", "torch.utils._pytree")
_NOISE = ("Failed to load", "<enum '", "Warning: Detected no triton")


def quieten_imports() -> None:
    """Leave these lines out, for the rest of the process; all else is said."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if _is_no_noise not in logger.filters:
            logger.addFilter(_is_no_noise)


def _is_no_noise(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_NOISE)
