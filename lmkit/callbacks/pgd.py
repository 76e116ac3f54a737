"""Projected gradient descent on the embeddings: several steps to the worst neighbour of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from ..functional.adversarial import Norm
from .adversary import Adversary, check_ascent, check_share
from .extra_passes import ExtraPassCallback
from .passes import Passes
from .perturbed_embedding import Tokens

__all__ = ["PGDCallback"]


class PGDCallback(ExtraPassCallback):
    r"""Trains on texts whose embeddings were moved, in several steps, to where the loss is high.

    $w \mathcal{L}(0) + (1 - w) \mathcal{L}(\delta_K)$ with $\delta_0 = 0$ or random and
    $\delta_{k+1} = \Pi_\epsilon(\delta_k + \alpha\, g / \lVert g \rVert)$,
    $g = \nabla_\delta \mathcal{L}(\delta_k)$ (Madry et al. 2017, arXiv:1706.06083; on word
    embeddings Miyato et al. 2016, arXiv:1605.07725). $\delta$ is added to the word embeddings,
    before positions and normalization, of each token but padding and special ones. $\Pi_\epsilon$
    keeps each text, or each token, within its own bound, whatever else is in the batch.

    A step takes $K + 1$ passes, with a random start or $w = 0$ one more; those in between compute
    no gradient of the weights. Logs `pgd/loss`, the loss at $\delta_K$. Works on any
    LightningModule that optimizes automatically; see `ExtraPassCallback`.

    Args:
        epsilon: $\epsilon$, at least 0, as a share of the norm of the text's embeddings (of the
            token's, for `token`); 0 is plain training.
        steps: $K$, at least 1.
        step_size: $\alpha$ as a share of $\epsilon$, over 0.
        start: norm of a random start as a share of $\epsilon$, in `[0, 1]`; 0 starts from the text.
        clean_weight: $w$, in `[0, 1)`.
        norm: `sentence`, `token`, or `entry` for the largest number, with signs as directions.
        relative: whether $\epsilon$ is a share; else it is the bound itself.
        embedding: the name of the layers that give the embeddings, or a pattern; by default those
            that the network names.
        ignore_ids: ids of tokens that are not moved, beside padding and special ones.

    Raises:
        ValueError: a number lies outside its range; in `setup`, see `ExtraPassCallback`.
        NothingMatchedError: there is no layer of embeddings.

    Example:
        >>> PGDCallback(epsilon=0.05, steps=2).adversary.epsilon
        0.05
    """

    word: ClassVar[str] = "pgd"

    def __init__(
        self,
        epsilon: float = 0.02,
        steps: int = 3,
        step_size: float = 0.5,
        start: float = 0.0,
        clean_weight: float = 0.5,
        norm: Norm = "sentence",
        relative: bool = True,
        embedding: str | None = None,
        ignore_ids: Sequence[int] | None = None,
    ) -> None:
        super().__init__(embedding, ignore_ids)
        self.adversary = Adversary(epsilon, relative, norm)
        check_ascent(steps, step_size)
        check_share("start", start, 0.0, 1.0)
        if not 0.0 <= clean_weight < 1.0:
            raise ValueError(f"clean_weight must lie in [0, 1), got {clean_weight}")
        self.steps, self.step_size, self.start = steps, step_size, start
        self.first_weight = clean_weight

    @property
    def is_idle(self) -> bool:
        """Whether nothing is moved."""
        return self.adversary.epsilon == 0

    @property
    def _climbs_from_first(self) -> bool:
        """Whether the backward of the text itself gives the first gradient."""
        return not self.start and self.first_weight > 0

    def begin(self, stream: int) -> None:
        """Forget the perturbations of the last step."""
        self.adversary.begin(stream)

    def move(self, number: int, tokens: Tokens, embedded: Tensor, again: bool) -> Tensor:
        """Add the perturbation."""
        if again:
            return self.adversary.add(number, embedded)
        self.adversary.meet(number, tokens, embedded)
        if not self._climbs_from_first:
            return embedded
        self.adversary.perturbations[number].delta.requires_grad_()
        return self.adversary.add(number, embedded)

    def passes(self, passes: Passes) -> None:
        """Climb, and train at the top."""
        adversary = self.adversary
        if self._climbs_from_first:
            found = [each.delta.grad for each in adversary.perturbations]
            adversary.climb(found, self.step_size)
        elif self.start:
            adversary.start(self.start)
        for _ in range(self.steps - self._climbs_from_first):
            adversary.climb(passes.gradients(adversary.leaves()), self.step_size)
        adversary.freeze()
        passes.backward(1.0 - self.first_weight, last=True)
