"""FreeLB: the gradients of all steps of an ascent train the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from ..functional.adversarial import Norm
from .adversary import Adversary, check_ascent, check_share
from .extra_passes import ExtraPassCallback
from .passes import Passes
from .perturbed_embedding import Tokens

__all__ = ["FreeLBCallback"]


class FreeLBCallback(ExtraPassCallback):
    r"""Trains on each point of an ascent through the embeddings, at no cost beyond its passes.

    $\frac{1}{K} \sum_{k=0}^{K-1} \mathcal{L}(\delta_k)$ with $\delta_0$ random and
    $\delta_{k+1} = \Pi_\epsilon(\delta_k + \alpha\, g / \lVert g \rVert)$ (Zhu et al. 2019,
    arXiv:1909.11764): the backward that gives $g = \nabla_\delta \mathcal{L}(\delta_k)$ gives the
    gradient of the weights too. $\delta_0$ is uniform, of a norm of at most `start` times
    $\epsilon$. All $K$ passes of a step drop the same units, as the paper asks.

    A step takes $K$ passes. `train/loss` is the loss at $\delta_0$, and `free_lb/loss` that at
    $\delta_{K-1}$. Works on any LightningModule that optimizes automatically; see
    `ExtraPassCallback`.

    Args:
        epsilon: $\epsilon$, at least 0, as a share of the norm of the text's embeddings (of the
            token's, for `token`); 0 is plain training.
        steps: $K$, at least 1; 1 with `start: 0` is plain training.
        step_size: $\alpha$ as a share of $\epsilon$, over 0.
        start: see above, in `[0, 1]`.
        norm: `sentence`, `token`, or `entry` for the largest number, with signs as directions.
        relative: whether $\epsilon$ is a share; else it is the bound itself.
        embedding: the name of the layers that give the embeddings, or a pattern; by default those
            that the network names.
        ignore_ids: ids of tokens that are not moved, beside padding and special ones.

    Raises:
        ValueError: a number lies outside its range; in `setup`, see `ExtraPassCallback`.
        NothingMatchedError: there is no layer of embeddings.

    Example:
        >>> FreeLBCallback(steps=4).first_weight
        0.25
    """

    word: ClassVar[str] = "free_lb"

    def __init__(
        self,
        epsilon: float = 0.02,
        steps: int = 3,
        step_size: float = 0.5,
        start: float = 0.5,
        norm: Norm = "sentence",
        relative: bool = True,
        embedding: str | None = None,
        ignore_ids: Sequence[int] | None = None,
    ) -> None:
        super().__init__(embedding, ignore_ids)
        self.adversary = Adversary(epsilon, relative, norm)
        check_ascent(steps, step_size)
        check_share("start", start, 0.0, 1.0)
        self.steps, self.step_size, self.start = steps, step_size, start
        self.first_weight = 1.0 / steps

    @property
    def is_idle(self) -> bool:
        """Whether nothing is moved."""
        return self.adversary.epsilon == 0

    def begin(self, stream: int) -> None:
        """Forget the perturbations of the last step."""
        self.adversary.begin(stream)

    def move(self, number: int, tokens: Tokens, embedded: Tensor, again: bool) -> Tensor:
        """Add the perturbation, which starts at random."""
        if not again:
            self.adversary.meet(number, tokens, embedded)
            if self.start:
                self.adversary.start_call(number, self.start)
            if self.steps > 1:
                self.adversary.perturbations[number].delta.requires_grad_()
        return self.adversary.add(number, embedded)

    def passes(self, passes: Passes) -> None:
        """Climb by the gradient of each pass, and train on the next."""
        adversary = self.adversary
        for number in range(1, self.steps):
            found = [each.delta.grad for each in adversary.perturbations]
            adversary.climb(found, self.step_size)
            is_last = number == self.steps - 1
            if not is_last:
                adversary.leaves()
            passes.backward(1.0 / self.steps, last=is_last)
