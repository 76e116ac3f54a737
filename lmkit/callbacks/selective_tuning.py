"""Training of chosen layers, normalizations, embeddings or modules alone."""

from __future__ import annotations

from collections.abc import Sequence

from ..surgery.selection import Selection
from .surgery import SurgeryCallback

__all__ = ["SelectiveTuningCallback"]


class SelectiveTuningCallback(SurgeryCallback):
    """Trains chosen weights of a network and the head of its task; all else is frozen.

    The choices add up. With `layers` nothing is computed backwards below the lowest layer that is
    trained, which saves time and memory that LoRA does not save. The export is a plain folder.

    Args:
        patterns: modules by name, e.g. `["attention.self.*"]`; a name may be its end alone.
        layers: how many layers from the top, of each stack of an encoder-decoder; at least 0.
        norms: scales and biases of all normalizations.
        embeddings: of tokens, positions and types.
        head: whether the head of the task is trained too. What was drawn at random always is.

    Raises:
        ValueError: nothing is chosen; in `setup`, the network has fewer layers.
        NothingMatchedError: in `setup`, a choice finds nothing; names what is near.

    Example:
        >>> SelectiveTuningCallback(layers=2).surgery.layers
        2
    """

    word = "selective_tuning"

    def __init__(
        self,
        patterns: Sequence[str] | None = None,
        layers: int = 0,
        norms: bool = False,
        embeddings: bool = False,
        head: bool = True,
    ) -> None:
        choices = Selection(patterns or (), layers, norms, embeddings, head=head)
        if not (patterns or layers or norms or embeddings):
            raise ValueError(
                "SelectiveTuningCallback needs a choice: patterns, layers, norms or embeddings"
            )
        super().__init__(choices)
