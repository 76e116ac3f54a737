"""Training of the biases alone."""

from __future__ import annotations

from collections.abc import Sequence

from ..surgery.selection import Selection
from .surgery import SurgeryCallback

__all__ = ["BitFitCallback"]


class BitFitCallback(SurgeryCallback):
    r"""Trains the biases of a network and the head of its task; all else is frozen.

    About 0.1 % of BERT's weights (Zaken et al. 2021, arXiv:2106.10199), which starts from the
    network as it is. A rate of 10 to 30 times that of full tuning is usual. The export is a plain
    folder.

    Args:
        patterns: only the biases in modules of these names, e.g. `["query", "intermediate.dense"]`,
            the half of them that the paper found to be enough; all by default.
        head: whether the head of the task is trained too. What was drawn at random always is.

    Raises:
        NothingMatchedError: in `setup`, there are no such biases (T5, Llama and ModernBERT have
            none at all).

    Example:
        >>> BitFitCallback(patterns=["query"]).surgery.biases
        True
    """

    word = "bitfit"

    def __init__(self, patterns: Sequence[str] | None = None, head: bool = True) -> None:
        super().__init__(Selection(patterns or (), biases=True, head=head))
