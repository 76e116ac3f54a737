"""Replaced-token detection: sample replacements, put them in, and the loss of finding them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..types import IGNORE_INDEX

__all__ = ["replace_tokens", "sample_tokens", "token_binary_cross_entropy"]

# The largest float32 below 1 whose product with any float32 is smaller than that.
_BELOW_ONE = 1.0 - 2.0**-23


@torch.no_grad()
def sample_tokens(logits: Tensor, draws: Tensor) -> Tensor:
    r"""Sample a token at each position from the softmax of its logits.

    The token is the first $v$ with $\sum_{w \le v} p_w > u$: the distribution of
    $\arg\max_v (z_v + g_v)$ with Gumbel noise $g$, which the released code of ELECTRA
    (arXiv:2003.10555) draws, for one random number a position instead of one a token of the
    vocabulary. No gradient flows through it.

    Args:
        logits: float `[K, V]`, $z$.
        draws: float `[K]`, $u$, uniform in `[0, 1)`; make them with `uniform` of
            `lmkit.functional`, and the sample is a pure function of a key.

    Returns:
        int64 `[K]`, each in `[0, V)`.

    Example:
        >>> logits = torch.tensor([[0.25, 0.25, 0.5]]).log().expand(3, 3)
        >>> sample_tokens(logits, torch.tensor([0.1, 0.3, 0.9])).tolist()
        [0, 1, 2]
    """
    below = logits.float().softmax(-1).cumsum(-1)
    # The last sum is 1 only up to rounding.
    reached = draws.float().clamp(max=_BELOW_ONE).unsqueeze(-1) * below[:, -1:]
    return torch.searchsorted(below, reached, right=True).squeeze(-1)


def replace_tokens(
    input_ids: Tensor, positions: Tensor, sampled: Tensor, originals: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Put sampled tokens in, and say which tokens are no longer the original ones.

    $\tilde x_i = \hat x_i$ for $i \in C$, else $x_i$; the label is $\tilde x_i \ne x_i$. A sample
    that happens to be the original counts as original (ELECTRA, arXiv:2003.10555, section 2).

    Args:
        input_ids: int64 `[B, L]`; what stands at the positions, e.g. a mask token, is replaced.
        positions: int64 `[K]`, into the flattened `[B * L]`; one may appear twice where it has no
            original.
        sampled: int64 `[K]`, $\hat x$.
        originals: int64 `[K]`, $x$, or -100 where the slot has no token: there nothing is replaced.

    Returns:
        The corrupted ids, int64 `[B, L]`, and whether each token was replaced, bool `[B, L]`.

    Example:
        >>> corrupted, replaced = replace_tokens(torch.tensor([[2, 4, 4, 3]]),
        ...     torch.tensor([1, 2]), torch.tensor([7, 9]), torch.tensor([8, 9]))
        >>> corrupted.tolist(), replaced.tolist()
        ([[2, 7, 9, 3]], [[False, True, False, False]])
    """
    flat = input_ids.reshape(-1)
    chosen = originals != IGNORE_INDEX
    token = torch.where(chosen, sampled, flat[positions])
    corrupted = flat.scatter(0, positions, token)
    wrong = torch.zeros_like(flat, dtype=torch.bool)
    wrong = wrong.scatter(0, positions, chosen & (sampled != originals))
    return corrupted.view_as(input_ids), wrong.view_as(input_ids)


def token_binary_cross_entropy(
    logits: Tensor, targets: Tensor, real: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Mean binary cross-entropy over the real tokens, in float32.

    $-\frac{1}{n}\sum_{i \in R} \left[ y_i \log \sigma(z_i) + (1 - y_i) \log(1 - \sigma(z_i))
    \right]$ with $n = |R|$. With no real token the loss is 0 with a gradient of 0.

    Args:
        logits: float `[B, L]`, $z$.
        targets: bool `[B, L]`, $y$.
        real: bool `[B, L]`, $R$: false at padding.

    Returns:
        The loss, a float32 scalar, and the count $n$, an int64 scalar.

    Example:
        >>> loss, count = token_binary_cross_entropy(torch.zeros(1, 3),
        ...     torch.tensor([[True, False, False]]), torch.tensor([[True, True, False]]))
        >>> round(loss.item(), 4), count.item()
        (0.6931, 2)
    """
    count = real.sum()
    each = F.binary_cross_entropy_with_logits(
        logits.float(), targets.to(torch.float32), reduction="none"
    )
    # Not a product with the mask: what padding gives may be infinite, and 0 times that is NaN.
    total = torch.where(real, each, torch.zeros_like(each)).sum()
    return total / count.clamp(min=1), count
