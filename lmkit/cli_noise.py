"""What Lightning says at each run of the command, and helps nobody there."""

from __future__ import annotations

import logging
import warnings

__all__ = ["quieten"]

# Said on every run and never of use to the one who reads it there.
_NOISE = (
    "LightningCLI's args parameter",
    "Checkpoint directory .* exists and is not empty",
    r"The '\w+_dataloader' does not have many workers",
    r".*isinstance\(treespec, LeafSpec\)",
    "Couldn't infer the batch indices",
    "the fit ran in processes of its own",
)


def quieten() -> None:
    """Leave these out, for the rest of the process."""
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    if _is_no_tip not in logger.filters:
        logger.addFilter(_is_no_tip)


def _is_no_tip(record: logging.LogRecord) -> bool:
    return "Tip:" not in str(record.msg)
