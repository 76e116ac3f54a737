"""The fast gradient method: one step to the worst neighbour of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from ..functional.adversarial import Norm
from .pgd import PGDCallback

__all__ = ["FGMCallback"]


class FGMCallback(PGDCallback):
    r"""Trains on texts whose embeddings were moved against the label, in one step.

    $w \mathcal{L}(0) + (1 - w) \mathcal{L}(\delta)$ with $\delta = \epsilon\, g / \lVert g \rVert$
    and $g = \nabla_\delta \mathcal{L}(0)$ (Miyato et al. 2016, arXiv:1605.07725; with signs and
    `norm: entry` FGSM, arXiv:1412.6572). That is `PGDCallback` with one step of full size from the
    text, at twice the cost of plain training. Logs `fgm/loss`, the loss at $\delta$.

    Unlike the code that is often passed on under this name it moves the embeddings of the texts,
    each within its own bound, and not the table of the words.

    Args:
        epsilon: $\epsilon$, at least 0, as a share of the norm of the text's embeddings (of the
            token's, for `token`); 0 is plain training.
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
        >>> FGMCallback(epsilon=0.05).steps
        1
    """

    word: ClassVar[str] = "fgm"

    def __init__(
        self,
        epsilon: float = 0.02,
        clean_weight: float = 0.5,
        norm: Norm = "sentence",
        relative: bool = True,
        embedding: str | None = None,
        ignore_ids: Sequence[int] | None = None,
    ) -> None:
        more = clean_weight, norm, relative, embedding, ignore_ids
        super().__init__(epsilon, 1, 1.0, 0.0, *more)
