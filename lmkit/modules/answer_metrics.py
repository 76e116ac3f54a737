"""Scores of answers, put together from the windows that each question fell into."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

__all__ = ["FIGURES", "AnswerFigures", "AnswerMean"]

#: What an answer is scored by.
FIGURES = ("exact_match", "f1")


class AnswerFigures(Metric):
    r"""Exact match and F1 over questions, of all, of those with an answer and of those without.

    Each window of a context brings its best span $(i, j)$ with the score $s_i + e_j$ of its logits,
    and the score $s_0 + e_0$ of "no answer here". The answer to a question is the best span of all
    its windows; with a threshold $\tau$ it is none where

    $\min_w (s_0 + e_0)_w - \max_w (s_i + e_j)_w > \tau$

    (BERT, arXiv:1810.04805, section 4.3). The windows may come in any order, in any batch and on
    any rank: questions are put together at the end. Memory grows by 56 bytes a window.

    Args:
        null_threshold: $\tau$; `None` where every question has an answer.

    Example:
        >>> figures = AnswerFigures()
        >>> figures.update(torch.tensor([0, 1, 0]), span_score=torch.tensor([1.0, 2.0, 3.0]),
        ...     exact=torch.tensor([1.0, 1.0, 0.0]), f1=torch.tensor([1.0, 1.0, 0.5]))
        >>> figures.compute()["all"]
        {'questions': 2.0, 'exact_match': 0.5, 'f1': 0.75}
    """

    full_state_update = False
    windows: list[Tensor]

    def __init__(self, null_threshold: float | None = None) -> None:
        super().__init__()
        self.null_threshold = null_threshold
        # Apple's GPUs know no float64, which holds the numbers of questions exactly.
        self.kind = torch.float32 if torch.backends.mps.is_available() else torch.float64
        self.add_state("windows", [], dist_reduce_fx="cat")

    def update(
        self,
        question: Tensor,
        span_score: Tensor,
        exact: Tensor,
        f1: Tensor,
        null_score: Tensor | None = None,
        null_credit: Tensor | None = None,
        answerable: Tensor | None = None,
    ) -> None:
        """Add the windows of a batch.

        Args:
            question: int64 `[B]`, the number of the question; of a filler, -1.
            span_score: float `[B]`, of the best span of each window.
            exact: float `[B]`, 1 where that span is right.
            f1: float `[B]`, of that span, in `[0, 1]`.
            null_score: float `[B]`, of "no answer here".
            null_credit: float `[B]`, what it earns to give no answer: 1 where there is none.
            answerable: bool `[B]`, whether the question has an answer; by default it has.
        """
        none, ones = torch.zeros_like(span_score), torch.ones_like(span_score)
        parts = [
            question,
            span_score,
            exact,
            f1,
            none if null_score is None else null_score,
            none if null_credit is None else null_credit,
            ones if answerable is None else answerable,
        ]
        rows = torch.stack([part.to(span_score.device, self.kind) for part in parts], 1)
        self.windows.append(rows[question.to(rows.device) >= 0])

    def compute(self) -> dict[str, dict[str, float]]:
        """Return `questions`, `exact_match` and `f1` of `all`, `has_answer` and `no_answer`.

        The latter two are there where there are questions without an answer. Shares in `[0, 1]`.
        """
        scores, answerable = self.questions()
        groups = {"all": torch.ones_like(answerable)}
        if not answerable.all():
            groups |= {"has_answer": answerable, "no_answer": ~answerable}
        figures = {}
        for name, group in groups.items():
            count = int(group.sum())
            means = scores[group].sum(0) / max(count, 1)
            named = zip(FIGURES, means.tolist(), strict=True)
            figures[name] = {"questions": float(count), **dict(named)}
        return figures

    def questions(self) -> tuple[Tensor, Tensor]:
        """Put the windows of each question together.

        Returns:
            `[Q, 2]`, exact match and F1 of each question, and bool `[Q]`, whether it has an answer.
        """
        rows = dim_zero_cat(self.windows) if len(self.windows) else torch.zeros(0, 7)
        # By question, its best span first.
        rows = rows[rows[:, 1].argsort(descending=True, stable=True)]
        rows = rows[rows[:, 0].argsort(stable=True)]
        _, place, size = rows[:, 0].unique_consecutive(return_inverse=True, return_counts=True)
        best = rows[size.cumsum(0) - size]
        scores = best[:, 2:4]
        if self.null_threshold is not None:
            null = torch.full_like(best[:, 4], torch.inf)
            null = null.scatter_reduce(0, place, rows[:, 4], "amin")
            is_none = (null - best[:, 1] > self.null_threshold).unsqueeze(1)
            scores = torch.where(is_none, best[:, 5:6], scores)
        return scores, best[:, 6] > 0


class AnswerMean(AnswerFigures):
    """One of the two figures over all questions, as a scalar to be logged.

    Args:
        figure: `exact_match` or `f1`.
        null_threshold: as of `AnswerFigures`.
    """

    def __init__(
        self, figure: Literal["exact_match", "f1"], null_threshold: float | None = None
    ) -> None:
        super().__init__(null_threshold)
        self.figure = figure

    def compute(self) -> Tensor:  # type: ignore[override]
        """Return the mean over the questions of all ranks so far, in `[0, 1]`; 0 of none."""
        scores, _ = self.questions()
        return scores[:, FIGURES.index(self.figure)].sum() / max(len(scores), 1)
