"""Cutoff: a text with a part of its embeddings taken away should be understood as the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from ..types import Batch, Objective, StepOutput
from .adversary import check_share
from .consistency import ConsistencyCallback, Seen
from .divergences import divergence
from .views import CutoffView

__all__ = ["CutoffCallback"]


class CutoffCallback(ConsistencyCallback):
    r"""Trains on each batch and on the same batch with less in it, and lets the two agree.

    $\frac{1}{N} \sum_i [\ell_i + \alpha\, \ell_i^c + \beta\, \mathrm{JS}(p_i, p_i^c)]$, where $c$
    marks the pass in which a part of the word embeddings is 0 (Shen et al. 2020,
    arXiv:2009.13818). What is cut off is drawn anew in each epoch, by the text.

    A step takes two passes, and memory for both graphs. Logs `cutoff/divergence`. For every module
    of lmkit that has `scores`; of a regression the squared difference takes the place of the
    divergence, and rows of `unlabelled_file` take part in it.

    Args:
        cutoff: `token` cuts off single tokens, `span` tokens in a row, `feature` the same numbers
            of all tokens; special tokens stay whole.
        ratio: share of each text that is cut off, in `[0, 1]`.
        loss_weight: $\alpha$, at least 0.
        divergence_weight: $\beta$, at least 0.
        embedding: the name of the layers that give the embeddings, or a pattern; by default those
            that the network names.
        ignore_ids: ids of tokens that are not cut off, beside padding and special ones.

    Raises:
        ValueError: a number lies outside its range; in `setup`, see `ConsistencyCallback`.
        TypeError: in `setup`, the module is not lmkit's.
        NothingMatchedError: there is no layer of embeddings.

    Example:
        >>> CutoffCallback("span", ratio=0.15).view.kind
        'span'
    """

    word: ClassVar[str] = "cutoff"
    changes_embeddings: ClassVar[bool] = True

    def __init__(
        self,
        cutoff: Literal["token", "span", "feature"] = "token",
        ratio: float = 0.1,
        loss_weight: float = 1.0,
        divergence_weight: float = 1.0,
        embedding: str | None = None,
        ignore_ids: Sequence[int] | None = None,
    ) -> None:
        super().__init__(None, embedding, ignore_ids)
        self.view = CutoffView(cutoff, ratio)
        check_share("loss_weight", loss_weight, 0.0)
        check_share("divergence_weight", divergence_weight, 0.0)
        self.loss_weight, self.divergence_weight = loss_weight, divergence_weight

    @property
    def is_idle(self) -> bool:
        """Whether the second pass counts for nothing."""
        return self.loss_weight == 0 and self.divergence_weight == 0

    def compare(self, objective: Objective, batch: Batch, seen: Seen) -> StepOutput:
        """Run the batch with less in it, and join the two."""
        cut = self.view(self, objective, batch, seen)
        each = divergence(seen.scores, self.module.scores(cut, batch), "jensen_shannon")
        return self.joined(seen, each, self.divergence_weight, [(cut, self.loss_weight)])
