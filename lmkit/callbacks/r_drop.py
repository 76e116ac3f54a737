"""R-Drop: two dropouts of one text should agree."""

from __future__ import annotations

from typing import ClassVar

from ..types import Batch, Objective, StepOutput
from .adversary import check_share
from .consistency import ConsistencyCallback, Seen
from .divergences import divergence

__all__ = ["RDropCallback"]


class RDropCallback(ConsistencyCallback):
    r"""Runs each batch twice with other dropout, and lets the two predictions agree.

    $\frac{1}{N} \sum_i \bigl[\frac{1}{2}(\ell_i^1 + \ell_i^2) + \frac{\alpha}{2}
    (\mathrm{KL}(p_i^1 \| p_i^2) + \mathrm{KL}(p_i^2 \| p_i^1))\bigr]$ over the items $i$: examples,
    or tokens with a label (Wu et al. 2021, arXiv:2106.14448; there $\alpha$ is 1 to 5 for
    understanding and 5 for translation). Without dropout it is plain training.

    A step takes two passes, and memory for both graphs. Logs `r_drop/divergence`, the mean of the
    symmetric divergence without $\alpha / 2$. For every module of lmkit that has `scores`; of a
    regression the squared difference takes the place of the divergence, and rows of
    `unlabelled_file` take part in it.

    Args:
        alpha: $\alpha$, at least 0.

    Raises:
        ValueError: `alpha` is negative; in `setup`, see `ConsistencyCallback`.
        TypeError: in `setup`, the module is not lmkit's.

    Example:
        >>> RDropCallback(alpha=2.0).alpha
        2.0
    """

    word: ClassVar[str] = "r_drop"

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        check_share("alpha", alpha, 0.0)
        self.alpha = alpha

    def compare(self, objective: Objective, batch: Batch, seen: Seen) -> StepOutput:
        """Run the batch again, and join the two."""
        again = objective(batch)
        each = divergence(seen.scores, self.module.scores(again, batch), "symmetric")
        return self.joined(seen, each, 0.5 * self.alpha, [(again, 0.5)], first_weight=0.5)
