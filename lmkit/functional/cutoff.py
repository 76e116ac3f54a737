"""Which tokens, spans or features of a text are cut off (arXiv:2009.13818), as functions of keys.

Each function takes keys from which its numbers are drawn, so that what is cut off depends on the
text and the epoch alone, and not on the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .adversarial import text_sum
from .random import uniform

__all__ = ["cut_features", "cut_span", "cut_tokens"]


def cut_tokens(
    keys: Tensor, text_keys: Tensor, free: Tensor, ratio: float, segments: Tensor | None = None
) -> Tensor:
    r"""Choose tokens of each text to be cut off: $\lfloor r n + u \rfloor$ of its $n$ free ones.

    $u$ is uniform in `[0, 1)`, so that of texts of any length the share $r$ is cut off on average.

    Args:
        keys: int64 `[R, T]`, of each token.
        text_keys: int64 `[R, T]`, of each token's text.
        free: bool `[R, T]`, which may be cut off.
        ratio: $r$, in `[0, 1]`.
        segments: int64 `[R, T]`, as of `text_sum`.

    Returns:
        bool `[R, T]`, what is cut off.

    Example:
        >>> keys = torch.arange(20).reshape(1, -1)
        >>> cut_tokens(keys, torch.zeros_like(keys), torch.ones(1, 20).bool(), 0.1).sum().item()
        2
    """
    count = _how_many(text_keys, free, ratio, segments)
    return free & (_rank(uniform(keys, 1).squeeze(-1), free, segments) < count)


def cut_span(
    text_keys: Tensor, free: Tensor, ratio: float, segments: Tensor | None = None
) -> Tensor:
    r"""Choose a span of each text to be cut off: $\lfloor r n + u \rfloor$ free tokens in a row.

    Args:
        text_keys: int64 `[R, T]`, of each token's text.
        free: bool `[R, T]`, which may be cut off.
        ratio: $r$, in `[0, 1]`.
        segments: int64 `[R, T]`, as of `text_sum`.

    Returns:
        bool `[R, T]`, what is cut off.

    Example:
        >>> cut = cut_span(torch.zeros(1, 8).long(), torch.ones(1, 8).bool(), 0.5)
        >>> cut.sum().item(), cut.long().diff().abs().sum().item() <= 2
        (4, True)
    """
    count = _how_many(text_keys, free, ratio, segments)
    places = text_sum(free.double(), segments) - count + 1
    first = (uniform(text_keys, 2)[..., 1] * places).floor()
    order = torch.arange(free.shape[1], device=free.device, dtype=torch.float64) / free.shape[1]
    rank = _rank(order.expand(free.shape), free, segments)
    return free & (rank >= first) & (rank < first + count)


def cut_features(text_keys: Tensor, width: int, ratio: float) -> Tensor:
    r"""Choose features of each text to be cut off, in all of its tokens: $\lfloor r H + u \rfloor$.

    Args:
        text_keys: int64 `[R, T]`, of each token's text; `[R, 1]` where each row is one text.
        width: $H$.
        ratio: $r$, in `[0, 1]`.

    Returns:
        bool `[R, T, H]` or `[R, 1, H]`, what is cut off.

    Example:
        >>> cut_features(torch.zeros(1, 1).long(), 10, 0.2).sum().item()
        2
    """
    drawn = uniform(text_keys, width + 1)
    count = (ratio * width + drawn[..., :1]).floor()
    return drawn[..., 1:].argsort(-1).argsort(-1) < count


def _how_many(text_keys: Tensor, free: Tensor, ratio: float, segments: Tensor | None) -> Tensor:
    tokens = text_sum(free.double(), segments)
    return (ratio * tokens + uniform(text_keys, 1).squeeze(-1)).floor()


def _rank(scores: Tensor, free: Tensor, segments: Tensor | None) -> Tensor:
    """Number the tokens of each text by rising score in `[0, 1)`, those that are not free last."""
    scores = scores.masked_fill(~free, 2.0)
    if segments is None:
        return scores.argsort(1).argsort(1)
    rows, length = segments.shape
    sizes = torch.zeros(rows, length + 1, dtype=torch.int64, device=segments.device)
    sizes.scatter_add_(1, segments, torch.ones_like(segments))
    before = (sizes.cumsum(1) - sizes).gather(1, segments)
    return (scores + 4.0 * segments).argsort(1).argsort(1) - before
