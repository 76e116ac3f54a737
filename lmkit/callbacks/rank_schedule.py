"""What AdaLoRA does between steps and adds to the loss, for the callback that trains it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..functional.rank_allocation import (
    kept_ranks,
    orthogonality,
    rank_budget,
    smooth_importance,
    triplet_scores,
)
from ..surgery.arguments import check_finite, check_whole
from ..surgery.lora import LoRA
from ..surgery.lora_variants import Triplet, triplets
from ..types import Batch, Objective, StepOutput

__all__ = ["OrthogonalityPenalty", "RankSchedule"]


class RankSchedule:
    r"""Lowers the ranks of an AdaLoRA adapter in the course of a run.

    Before an optimizer step it computes the importance of each weight, $|w \, \partial L / \partial
    w|$; after the step it takes that into moving averages, and sets the $\Lambda$ of the ranks that
    the budget has no room for to zero (Zhang et al. 2023, arXiv:2303.10512, algorithm 1). Until the
    settling such a rank learns on, and may be kept the next time; in the settling the ranks are
    fixed.

    Args:
        surgery: of the variant `adalora`.
        warmup: share of the run at its start, with all ranks.
        settling: share of the run at its end, with the final ranks.
        interval: steps between two choices of the ranks that are kept.
        beta1: of the moving average of the importance.
        beta2: of the moving average of its deviation.

    Raises:
        ValueError: a number lies outside its range.

    Example:
        >>> schedule = RankSchedule(LoRA(variant="adalora", rank=4), interval=2)
        >>> schedule.state_dict()
        {}
    """

    def __init__(
        self,
        surgery: LoRA,
        warmup: float = 0.1,
        settling: float = 0.3,
        interval: int = 10,
        beta1: float = 0.85,
        beta2: float = 0.85,
    ) -> None:
        check_finite("rank_warmup", warmup)
        check_finite("rank_settling", settling)
        if warmup < 0 or settling < 0 or warmup + settling >= 1:
            raise ValueError(
                "rank_warmup and rank_settling must be shares of the run that leave a part of it "
                f"between them, got {warmup} and {settling}"
            )
        check_whole("rank_interval", interval, 1)
        for word, value in (("beta1", beta1), ("beta2", beta2)):
            if not 0.0 <= value < 1.0:
                raise ValueError(f"{word} must lie in [0, 1), got {value}")
        self.surgery, self.warmup, self.settling = surgery, warmup, settling
        self.interval, self.betas = interval, (beta1, beta2)
        self._matrices: list[Triplet] = []
        self._total = 0
        self._averages: dict[str, Tensor] = {}
        self._loaded: dict[str, Tensor] = {}
        self._importance: Tensor | None = None
        self._settled: list[Tensor] | None = None

    @property
    def initial(self) -> int:
        """How many ranks all matrices have together at the start."""
        return self.surgery.ranks * len(self._matrices)

    @property
    def target(self) -> int:
        """How many of them are left in the end."""
        return self.surgery.rank * len(self._matrices)

    def start(self, network: nn.Module, total: int) -> None:
        """Begin a run, or go on with what `load_state_dict` brought.

        Args:
            network: has the adapter.
            total: optimizer steps of the whole run.

        Raises:
            ValueError: the state that was loaded is of other matrices.
        """
        self._matrices = list(triplets(network, self.surgery.name).values())
        self._total, self._importance, self._settled = total, None, None
        weights = [p for matrix in self._matrices for p in matrix]
        like = weights[0].detach().new_zeros(sum(p.numel() for p in weights), dtype=torch.float32)
        loaded, self._loaded = self._loaded, {}
        if any(tensor.shape != like.shape for tensor in loaded.values()):
            raise ValueError(
                f"the checkpoint's schedule of ranks is of {len(loaded['sensitivity'])} weights, "
                f"and the adapter {self.surgery.name!r} has {len(like)}"
            )
        self._averages = {
            key: loaded[key].to(like, copy=True) if loaded else torch.zeros_like(like)
            for key in ("sensitivity", "uncertainty")
        }

    @torch.no_grad()
    def observe(self, factor: Tensor | float) -> None:
        """Compute the importance of the weights, before an optimizer step.

        Args:
            factor: what the gradients are still to be multiplied by.
        """
        importance = [
            torch.zeros_like(p) if p.grad is None else p * p.grad
            for matrix in self._matrices
            for p in matrix
        ]
        flat = torch.cat([each.flatten().float() for each in importance])
        self._importance = (flat * factor).abs_()

    @torch.no_grad()
    def act(self, step: int) -> int | None:
        """Drop what the budget has no room for, after the optimizer step `step`, from 1.

        Returns:
            How many ranks are kept in all matrices together; `None` if no step was observed, or
            the ranks are not chosen now.
        """
        if self._importance is None:
            return None
        importance, self._importance = self._importance, None
        warmup = int(self.warmup * self._total)
        settled = int(self.settling * self._total)
        settling = step >= self._total - settled
        if not settling:
            self._smooth(importance)
            if step <= warmup or step % self.interval:
                return None
        budget = rank_budget(step, self._total, warmup, settled, self.initial, self.target)
        # In the settling the averages stay, and so does what they choose.
        chosen = self._settled or kept_ranks(self.scores(), budget)
        self._settled = chosen if settling else None
        for matrix, kept in zip(self._matrices, chosen, strict=True):
            matrix.values.masked_fill_(~kept[:, None], 0.0)
        return budget

    def scores(self) -> list[Tensor]:
        """Score the ranks of each matrix, `[r]`, by the moving averages."""
        flat = self._averages["sensitivity"] * self._averages["uncertainty"]
        shapes = [p.shape for matrix in self._matrices for p in matrix]
        pieces = flat.split([shape.numel() for shape in shapes])
        parts = [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]
        return [triplet_scores(*parts[i : i + 3]) for i in range(0, len(parts), 3)]

    def state_dict(self) -> dict[str, Tensor]:
        """Return the moving averages, each one vector over all weights; empty before a run."""
        return {key: tensor.cpu().clone() for key, tensor in self._averages.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Keep a state for the next `start`."""
        self._loaded = dict(state)

    def _smooth(self, importance: Tensor) -> None:
        mean, spread = self._averages["sensitivity"], self._averages["uncertainty"]
        # A step that a loss scaler skips has gradients that are no numbers.
        importance = importance.where(importance.isfinite(), mean)
        smooth_importance(mean, spread, importance, *self.betas)


class OrthogonalityPenalty:
    r"""Adds $\gamma R(P, Q)$ to any objective, with $R$ of `functional.rank_allocation`.

    A loss is a mean over items, and what accumulates batches or joins ranks weights the means by
    their items; a constant that is added to each mean is then added once to the mean of all. So
    several small batches are one large one, and a batch without items adds nothing.

    Args:
        network: has the adapter.
        name: of the adapter.
        coefficient: $\gamma$.
    """

    def __init__(self, network: nn.Module, name: str, coefficient: float) -> None:
        self.name, self.coefficient = name, coefficient
        self._matrices = list(triplets(network, name).values())

    def __call__(self, objective: Objective, batch: Batch) -> StepOutput:
        """Return the objective's result with the penalty in its loss."""
        output = objective(batch)
        # In bfloat16 the difference from the unit matrix would be mostly rounding.
        with torch.autocast(output.loss.device.type, enabled=False):
            lefts = [matrix.left.float() for matrix in self._matrices]
            gap = orthogonality(lefts, [matrix.right.float() for matrix in self._matrices])
            loss = output.loss + self.coefficient * gap * (output.items > 0)
        logs: dict[str, Any] = {**output.logs, "lora/orthogonality": gap}
        return output._replace(loss=loss, logs=logs)
