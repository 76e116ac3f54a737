"""Masks of the masked language model: which tokens are to be predicted, and what stands for them.

First tokens are chosen (`choose_tokens`, or `choose_words` and `choose_spans` of
`token_choice.py`), then they are corrupted (`corrupt_tokens`). Both are pure functions of a key
per row: no batch size, worker, rank or padding changes what a row gets. All tensors are on the CPU;
inside they are numpy's, whose calls cost a fraction of torch's on arrays of this size.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..types import IGNORE_INDEX
from .random import draw_words

__all__ = [
    "check_shares",
    "choose_tokens",
    "corrupt_tokens",
    "label_positions",
    "token_budget",
]

# Streams of one key for its several uses: a draw must not tell anything of another.
_CORRUPT = 0x6A09E667F3BCC908

_TOP = np.uint64(2**64 - 1)


def choose_tokens(maskable: Tensor, keys: Tensor, rate: float, exact: bool = False) -> Tensor:
    r"""Choose tokens one by one (BERT, arXiv:1810.04805, section 3.1).

    Each candidate draws $u \sim U[0, 1)$. It is chosen iff $u < p$, with $p$ the rate, or, when
    the count is to be exact, iff its $u$ is among the $\max(1, \mathrm{round}(pn))$ smallest of the
    row's $n$ candidates. The draw at a position does not depend on how far the row is padded.

    Args:
        maskable: bool `[B, L]`, the candidates: false at special tokens and padding.
        keys: int64 `[B]`, one per row.
        rate: $p$, in `[0, 1]`.
        exact: choose `token_budget` tokens in each row, and not a binomial number.

    Returns:
        bool `[B, L]`.

    Example:
        >>> inner = torch.tensor([[False, True, True, True, True, False]])
        >>> choose_tokens(inner, torch.tensor([1]), 0.5, exact=True).sum().item()
        2
    """
    candidates = maskable.numpy()
    words = draw_words(keys.numpy()[:, np.newaxis], np.arange(maskable.shape[1]))
    if not exact:
        below = (words >> np.uint64(11)).view(np.int64) < rate * 2.0**53
        return torch.from_numpy(below & candidates)
    # A row's words differ from each other, so that as many lie below the k-th as there should.
    words[~candidates] = _TOP
    budget = token_budget(candidates.sum(1), rate)
    ranked = np.sort(words, 1)
    last = np.take_along_axis(ranked, np.maximum(budget - 1, 0)[:, np.newaxis], 1)
    return torch.from_numpy((words <= last) & candidates & (budget > 0)[:, np.newaxis])


def token_budget(candidates: npt.NDArray[np.int64], rate: float) -> npt.NDArray[np.int64]:
    r"""Return how many tokens of each row are to be chosen: $\max(1, \mathrm{round}(pn))$.

    Args:
        candidates: int64 of any shape, $n$.
        rate: $p$, in `[0, 1]`.

    Returns:
        int64 of the same shape; 0 where there is no candidate, or when the rate is 0.

    Example:
        >>> token_budget(np.array([0, 3, 100]), 0.15).tolist()
        [0, 1, 15]
    """
    budget = np.maximum(np.rint(rate * candidates), 1).astype(np.int64)
    return np.where((candidates > 0) & (rate > 0), budget, 0)


def corrupt_tokens(
    input_ids: Tensor,
    chosen: Tensor,
    keys: Tensor,
    *,
    mask_token_id: int,
    vocab_size: int,
    mask_share: float = 0.8,
    random_share: float = 0.1,
    random_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Replace the chosen tokens (BERT, arXiv:1810.04805, section 3.1).

    Each chosen token draws $v \sim U[0, 1)$: with $v < m$ it becomes the mask token, with
    $m \le v < m + r$ a random token, else it stays as it is; BERT has $m = 0.8$ and $r = 0.1$.
    Which random token is $(v - m) / r$, which is uniform where it is asked for. `random_ids` may
    leave special tokens out, where BERT draws from the whole vocabulary.

    Args:
        input_ids: int64 `[B, L]`.
        chosen: bool `[B, L]`.
        keys: int64 `[B]`, one per row; those that the tokens were chosen by will do.
        mask_token_id: id of the mask token.
        vocab_size: number of tokens; a random token is drawn from `range(vocab_size)` when
            `random_ids` is `None`.
        mask_share: $m$, in `[0, 1]`.
        random_share: $r$, in `[0, 1 - m]`.
        random_ids: int64 `[N]`, the ids that a random token is drawn from.

    Returns:
        The corrupted ids, int64 `[B, L]`, and the labels, int64 `[B, L]`: the original id where a
        position was chosen, -100 elsewhere.

    Raises:
        ValueError: a share lies outside its range.

    Example:
        >>> ids = torch.tensor([[2, 7, 8, 9, 3]])
        >>> chosen = torch.tensor([[False, True, False, True, False]])
        >>> corrupted, labels = corrupt_tokens(ids, chosen, torch.tensor([1]), mask_token_id=4,
        ...     vocab_size=10, mask_share=1.0, random_share=0.0)
        >>> corrupted.tolist(), labels.tolist()
        ([[2, 4, 8, 4, 3]], [[-100, 7, -100, 9, -100]])
    """
    check_shares(0.0, mask_share, random_share)
    ids = input_ids.numpy()
    corrupted, labels = ids.copy(), np.full_like(ids, IGNORE_INDEX)
    places = chosen.numpy().ravel().nonzero()[0]
    rows, columns = np.divmod(places, ids.shape[1])
    original = ids.ravel()[places]
    labels.reshape(-1)[places] = original
    words = draw_words((keys.numpy() ^ _CORRUPT)[rows], columns)
    draw = (words >> np.uint64(11)).view(np.int64) * 2.0**-53
    replaced = np.where(draw < mask_share, mask_token_id, original)
    random = (draw >= mask_share) & (draw < mask_share + random_share)
    count = vocab_size if random_ids is None else random_ids.numel()
    pick = (draw[random] - mask_share) * (count / random_share) if random_share else draw[random]
    # Rounding may carry the last of the interval over its end.
    pick = np.minimum(pick.astype(np.int64), count - 1)
    replaced[random] = pick if random_ids is None else random_ids.numpy()[pick]
    corrupted.reshape(-1)[places] = replaced
    return torch.from_numpy(corrupted), torch.from_numpy(labels)


def label_positions(chosen: Tensor, slots: int) -> Tensor:
    """List the columns of the chosen tokens, in as many slots for every row.

    The positions of labels then have one shape in every batch, which a compiled network needs.

    Args:
        chosen: bool `[B, L]`.
        slots: how many columns each row lists.

    Returns:
        int64 `[B, slots]`: the chosen columns in order; slots beyond them hold one column that is
        not chosen, whose label is -100.

    Raises:
        ValueError: a row has more chosen tokens than slots, or fewer and no other column to name.

    Example:
        >>> label_positions(torch.tensor([[False, True, False, True], [False] * 4]), 3).tolist()
        [[1, 3, 0], [0, 0, 0]]
    """
    flags = chosen.numpy()
    counts = flags.sum(1)
    most = int(counts.max(initial=0))
    if most > slots:
        raise ValueError(f"slots must be at least {most}, the tokens chosen in a row, got {slots}")
    if slots > flags.shape[1] and most == flags.shape[1]:
        raise ValueError(
            f"slots must be at most {most}, the length of a row whose every token is chosen, got "
            f"{slots}"
        )
    rows, columns = flags.nonzero()
    positions = np.repeat(flags.argmin(1)[:, np.newaxis], slots, 1)
    positions[rows, np.arange(len(rows)) - (counts.cumsum() - counts)[rows]] = columns
    return torch.from_numpy(positions)


def check_shares(mask_rate: float, mask_share: float, random_share: float) -> None:
    """Raise `ValueError` for a rate or share outside its range."""
    for name, value in (
        ("mask_rate", mask_rate),
        ("mask_share", mask_share),
        ("random_share", random_share),
    ):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} must lie in [0, 1], got {value}")
    if mask_share + random_share > 1.0:
        raise ValueError(
            "mask_share + random_share must be at most 1 (the rest keeps its token), got "
            f"{mask_share} + {random_share}"
        )
