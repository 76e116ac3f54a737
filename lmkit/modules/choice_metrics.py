"""Whether a model likes a place better than the others."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["PlaceCounts"]


class PlaceCounts(Metric):
    """Counts, for each place of the choices, how often it is right, chosen, and both.

    A model that reads gets about the same accuracy at each place, and chooses each about as often
    as it is right.

    Args:
        places: how many there are at most; questions with more are counted at the last.

    Example:
        >>> counts = PlaceCounts(3)
        >>> counts.update(torch.tensor([0, 0, 1]), torch.tensor([0, 1, -100]))
        >>> counts.compute().tolist()
        [[1, 2, 1], [1, 0, 0], [0, 0, 0]]
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, places: int = 26) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(places, 3, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, chosen: Tensor, label: Tensor) -> None:
        """Add a batch.

        Args:
            chosen: int64 `[B]`.
            label: int64 `[B]`, -100 where there is none.
        """
        places = len(self.counts)
        known = label >= 0
        chosen, label = (place[known].clamp(max=places - 1) for place in (chosen, label))
        of_each = [torch.bincount(p, minlength=places) for p in (label, chosen)]
        both = torch.bincount(label[chosen == label], minlength=places)
        # Not in place: a reset in inference mode would forbid it afterwards.
        self.counts = self.counts + torch.stack([*of_each, both], 1)

    def compute(self) -> Tensor:
        """Return int64 `[places, 3]`: how often each is right, chosen, and both."""
        return self.counts
