"""Virtual adversarial training: predictions should not change in any direction, label or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from ..functional.adversarial import Norm
from ..surgery.arguments import check_whole
from ..types import Batch, Objective, StepOutput
from .adversary import Adversary, check_share
from .consistency import ConsistencyCallback, Seen, predicting
from .divergences import divergence
from .views import AdversarialView

__all__ = ["VATCallback"]


class VATCallback(ConsistencyCallback):
    r"""Lets the prediction at the worst neighbour of a text be that at the text.

    $\frac{1}{N} \sum_i [\ell_i + \lambda\, \mathrm{KL}(\bar p_i(0) \| p_i(\delta))]$, where
    $\bar p$ gets no gradient, $\delta = \epsilon\, g / \lVert g \rVert$ and
    $g = \nabla_d \mathrm{KL}(\bar p(0) \| p(d))$ at a random $d$ of norm $\xi \epsilon$ (Miyato et
    al. 2017, arXiv:1704.03976; on word embeddings arXiv:1605.07725). It needs no label: rows of
    `unlabelled_file` take part. All passes of a step have the same dropout.

    A step takes three passes, of which one computes no gradient of the weights. Logs
    `vat/divergence`. For every module of lmkit that has `scores`.

    Args:
        epsilon: $\epsilon$, at least 0, as a share of the norm of the text's embeddings (of the
            token's, for `token`); 0 is plain training.
        weight: $\lambda$, at least 0.
        steps: how often the direction is sought, at least 1.
        probe: $\xi$, in `(0, 1]`; at 0 the divergence is at its least, and has no direction.
        norm: `sentence`, `token`, or `entry` for the largest number, with signs as directions.
        relative: whether $\epsilon$ is a share; else it is the bound itself.
        embedding: the name of the layers that give the embeddings, or a pattern; by default those
            that the network names.
        ignore_ids: ids of tokens that are not moved, beside padding and special ones.

    Raises:
        ValueError: a number lies outside its range; in `setup`, see `ConsistencyCallback`.
        TypeError: in `setup`, the module is not lmkit's.
        NothingMatchedError: there is no layer of embeddings.

    Example:
        >>> VATCallback(epsilon=0.05).adversary.epsilon
        0.05
    """

    word: ClassVar[str] = "vat"
    changes_embeddings: ClassVar[bool] = True

    def __init__(
        self,
        epsilon: float = 0.02,
        weight: float = 1.0,
        steps: int = 1,
        probe: float = 0.5,
        norm: Norm = "sentence",
        relative: bool = True,
        embedding: str | None = None,
        ignore_ids: Sequence[int] | None = None,
    ) -> None:
        adversary = Adversary(epsilon, relative, norm)
        super().__init__(adversary, embedding, ignore_ids)
        check_share("weight", weight, 0.0)
        check_whole("steps", steps, 1)
        if not 0.0 < probe <= 1.0:
            raise ValueError(f"probe must lie in (0, 1], got {probe}")
        self.weight = weight
        self.view = AdversarialView(adversary, probe, steps)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is moved or weighed."""
        return self.view.adversary.epsilon == 0 or self.weight == 0

    def compare(self, objective: Objective, batch: Batch, seen: Seen) -> StepOutput:
        """Compare the prediction with that of the worst neighbours."""
        with predicting():
            there = self.module.scores(self.view(self, objective, batch, seen), batch)
        each = divergence(seen.scores, there, "forward")
        return self.joined(seen, each, self.weight)
