"""The perturbations of the embeddings of one batch: where they start, climb and end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..functional import mix
from ..functional.adversarial import (
    NORMS,
    Norm,
    peak_direction,
    project,
    relative_radius,
    unit,
)
from ..functional.noise import ball_start, normal_noise, uniform_noise
from ..surgery.arguments import check_whole
from .perturbed_embedding import Tokens

__all__ = ["Adversary", "Perturbation", "check_ascent", "check_share"]


class Perturbation(NamedTuple):
    r"""What is added to the embeddings of one call.

    Attributes:
        tokens: what the layer read.
        radius: $\epsilon$ of each ball, float32, broadcasts to `[R, T, 1]`.
        width: $H$.
        delta: $\delta$, float32 `[R, T, H]`.
    """

    tokens: Tokens
    radius: Tensor
    width: int
    delta: Tensor


class Adversary:
    r"""Keeps the perturbations $\delta$ of a batch, one for each call of an embedding layer.

    In float32 in any precision, 0 at padding and special tokens, and of a norm of at most
    $\epsilon$ in each ball.

    Args:
        epsilon: $\epsilon$, at least 0: the bound of the norm, as a share of that of the embeddings
            in the same ball, or absolute.
        relative: whether it is a share.
        norm: what it holds for: the text (`sentence`), each token, or each number (`entry`).

    Raises:
        ValueError: an option lies outside its range.

    Example:
        >>> Adversary(-0.1)
        Traceback (most recent call last):
        ValueError: epsilon must be at least 0, got -0.1
    """

    def __init__(self, epsilon: float, relative: bool = True, norm: Norm = "sentence") -> None:
        if not epsilon >= 0:
            raise ValueError(f"epsilon must be at least 0, got {epsilon}")
        if norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
        self.epsilon, self.relative, self.norm = float(epsilon), relative, norm
        self.perturbations: list[Perturbation] = []
        self._stream = 0

    def begin(self, stream: int) -> None:
        """Forget the last batch, and draw from another stream."""
        self.perturbations, self._stream = [], stream

    def meet(self, number: int, tokens: Tokens, embedded: Tensor) -> Perturbation:
        """Take up a call of a layer, with a perturbation of 0.

        Args:
            number: of the call; the next one.
            tokens: what the layer reads.
            embedded: `[R, T, H]`.
        """
        values, width = embedded.detach(), embedded.shape[-1]
        if self.relative:
            how = self.epsilon, self.norm, tokens.segments
            radius = relative_radius(values, tokens.free, *how)
        else:
            radius = torch.tensor(self.epsilon, device=values.device)
        zeros = torch.zeros(values.shape, device=values.device)
        self.perturbations.append(Perturbation(tokens, radius, width, zeros))
        return self.perturbations[number]

    def record(self, number: int, tokens: Tokens, embedded: Tensor) -> Tensor:
        """Take up a call, and leave its embeddings as they are."""
        self.meet(number, tokens, embedded)
        return embedded

    def move(self, number: int, tokens: Tokens, embedded: Tensor) -> Tensor:
        """Add the perturbation of a call that was taken up before."""
        return self.add(number, embedded)

    def add(self, number: int, embedded: Tensor) -> Tensor:
        """Return the embeddings of a call with the perturbation added, in their own type.

        Raises:
            ValueError: the call was not met: a further pass calls the layers more often.
        """
        if number >= len(self.perturbations):
            raise ValueError(
                f"a further pass over the batch called the embedding layers more often than the "
                f"first, which had {len(self.perturbations)} calls: the training step must do the "
                "same whenever it is called with the same batch"
            )
        return embedded + self.perturbations[number].delta.to(embedded.dtype)

    def leaves(self) -> list[Tensor]:
        """Let the perturbations have gradients from now on, and return them."""
        return [each.delta.requires_grad_() for each in self.perturbations]

    def freeze(self) -> None:
        """Let the perturbations have no gradients from now on."""
        self._set([each.delta.detach() for each in self.perturbations])

    def start(self, share: float, noise: Literal["uniform", "normal"] = "uniform") -> None:
        r"""Start at random: noise in each ball, scaled to a share of $\epsilon$, and projected.

        Args:
            share: at least 0; uniform noise has at most this share of the norm.
            noise: of each number.
        """
        self._set([self._start(n, share, noise) for n in range(len(self.perturbations))])

    def start_call(self, number: int, share: float) -> None:
        """Start one call at random, with uniform noise."""
        delta = self._start(number, share, "uniform")
        self.perturbations[number] = self.perturbations[number]._replace(delta=delta)

    def climb(
        self,
        gradients: Sequence[Tensor | None],
        step: float,
        direction: Literal["unit", "peak"] = "unit",
    ) -> None:
        r"""Take a step uphill within the balls: $\delta \leftarrow \Pi(\delta + s \epsilon d)$.

        Args:
            gradients: of the loss by each perturbation, in any scale; `None` for none.
            step: $s$, as a share of $\epsilon$.
            direction: $d$: `unit` is $g / \lVert g \rVert$ in the norm of the balls, `peak` is
                $g / \lVert g \rVert_\infty$ of each text.

        Raises:
            ValueError: the loss depends on none of the perturbations.
        """
        if all(gradient is None for gradient in gradients):
            raise ValueError(
                "the loss does not depend on the embeddings: no gradient comes back to any of them "
                "(a network that runs under torch.no_grad, or another layer than the one that is "
                "used); set embedding to the name of the right layer"
            )
        made = []
        for each, gradient in zip(self.perturbations, gradients, strict=True):
            if gradient is None:
                gradient = torch.zeros_like(each.delta)
            masked = gradient.masked_fill(~each.tokens.free, 0.0)
            segments = each.tokens.segments
            if direction == "unit":
                uphill = unit(masked, self.norm, segments)
            else:
                uphill = peak_direction(masked, segments)
            moved = each.delta.detach() + step * each.radius * uphill
            made.append(self._within(each, moved))
        self._set(made)

    def aim(self, gradients: Sequence[Tensor | None], share: float = 1.0) -> None:
        r"""Set each perturbation to $s \epsilon g / \lVert g \rVert$, with the share $s$."""
        self._set([torch.zeros_like(each.delta) for each in self.perturbations])
        self.climb(gradients, share)

    def _start(self, number: int, share: float, noise: str) -> Tensor:
        each = self.perturbations[number]
        draw = uniform_noise if noise == "uniform" else normal_noise
        drawn = draw(each.tokens.keys(mix(self._stream, number)), each.width)
        where = each.tokens.free, share * each.radius, self.norm, each.tokens.segments
        return self._within(each, ball_start(drawn, *where))

    def _within(self, each: Perturbation, delta: Tensor) -> Tensor:
        return project(delta, each.radius, self.norm, each.tokens.segments)

    def _set(self, deltas: Sequence[Tensor]) -> None:
        pairs = zip(self.perturbations, deltas, strict=True)
        self.perturbations = [each._replace(delta=delta) for each, delta in pairs]


def check_ascent(steps: int, step_size: float) -> None:
    """Check how an ascent goes.

    Args:
        steps: how many there are, at least 1.
        step_size: over 0.

    Raises:
        ValueError: a number lies outside its range.

    Example:
        >>> check_ascent(3, 0.0)
        Traceback (most recent call last):
        ValueError: step_size must be over 0, got 0.0
    """
    check_whole("steps", steps, 1)
    if not step_size > 0:
        raise ValueError(f"step_size must be over 0, got {step_size}")


def check_share(name: str, value: float, least: float, most: float | None = None) -> None:
    """Check that a number lies in its range.

    Args:
        name: of the argument.
        value: that was given.
        least: the smallest that is allowed.
        most: the largest; `None` for no bound.

    Raises:
        ValueError: it does not.

    Example:
        >>> check_share("start", 2.0, 0.0, 1.0)
        Traceback (most recent call last):
        ValueError: start must lie in [0.0, 1.0], got 2.0
    """
    if most is None:
        if not value >= least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    elif not least <= value <= most:
        raise ValueError(f"{name} must lie in [{least}, {most}], got {value}")
