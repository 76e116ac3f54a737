"""Extractive question answering: the best span, and how an answer is scored."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .cross_entropy import token_cross_entropy

__all__ = [
    "AnswerScore",
    "Spans",
    "best_spans",
    "codes_to_text",
    "normalize_answer",
    "score_answer",
    "score_answer_or_none",
    "span_loss",
    "text_to_codes",
]

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


class AnswerScore(NamedTuple):
    """How good an answer is.

    Attributes:
        exact: 1 if it is one of the right ones, else 0.
        f1: harmonic mean of precision and recall over its words, in `[0, 1]`.
    """

    exact: float
    f1: float


class Spans(NamedTuple):
    """The best spans of each row, the best one first.

    Attributes:
        start: int64 `[B, N]`, the first token.
        end: int64 `[B, N]`, the last token, itself included.
        score: float32 `[B, N]`; minus infinity where a row has fewer spans than are asked for.
    """

    start: Tensor
    end: Tensor
    score: Tensor


def best_spans(
    start_logits: Tensor,
    end_logits: Tensor,
    allowed: Tensor,
    max_answer_length: int,
    count: int = 1,
) -> Spans:
    r"""Find the spans $(i, j)$ with the largest $s_i + e_j$ (BERT, arXiv:1810.04805, section 4.2).

    Only spans with $i \le j < i + m$ count, whose ends are both allowed.

    Args:
        start_logits: float `[B, L]`, $s$.
        end_logits: float `[B, L]`, $e$.
        allowed: bool `[B, L]`, the tokens that an answer may begin or end with.
        max_answer_length: $m$, the tokens of an answer at most; at least 1.
        count: how many spans to find, at least 1.

    Returns:
        The spans, the best one first. $N$ is `count`, or fewer where a row has fewer pairs.

    Raises:
        ValueError: `max_answer_length` or `count` is below 1.

    Example:
        >>> start, end = torch.tensor([[0.0, 3.0, 1.0]]), torch.tensor([[6.0, 0.0, 1.0]])
        >>> best = best_spans(start, end, torch.tensor([[True, True, True]]), 2, count=2)
        >>> best.start.tolist(), best.end.tolist(), best.score.tolist()
        ([[0, 1]], [[0, 2]], [[6.0, 4.0]])
    """
    for name, value in (("max_answer_length", max_answer_length), ("count", count)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    width = min(max_answer_length, start_logits.shape[1])
    start = start_logits.float().masked_fill(~allowed, -torch.inf)
    end = end_logits.float().masked_fill(~allowed, -torch.inf)
    # [B, L, m]: the end logits of the tokens from each one on. Only these pairs are ever made.
    ahead = F.pad(end, (0, width - 1), value=-torch.inf).unfold(1, width, 1)
    scores = (start.unsqueeze(-1) + ahead).flatten(1)
    score, place = scores.topk(min(count, scores.shape[1]))
    first = place // width
    # A pair that is none, of minus infinity, may end behind the row.
    last = (first + place % width).clamp(max=start_logits.shape[1] - 1)
    return Spans(first, last, score)


def span_loss(
    start_logits: Tensor, end_logits: Tensor, start: Tensor, end: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Mean over rows of the cross-entropies of the two ends of a span, in float32.

    $\frac{1}{n}\sum_b \frac{1}{2}\left(-\log \operatorname{softmax}(s_b)_{i_b}
    - \log \operatorname{softmax}(e_b)_{j_b}\right)$ over the $n$ rows with a label; 0 without one.

    Args:
        start_logits: float `[B, L]`, minus infinity at padding, so that it takes no share.
        end_logits: float `[B, L]`.
        start: int64 `[B]`, the first token of the answer, -100 in a row without a label.
        end: int64 `[B]`, its last token.

    Returns:
        The loss, a float32 scalar, and the count $n$, an int64 scalar.

    Example:
        >>> uniform, label = torch.zeros(2, 4), torch.tensor([1, -100])
        >>> loss, count = span_loss(uniform, uniform, label, label)
        >>> round(loss.item(), 4), count.item()
        (1.3863, 1)
    """
    first, count = token_cross_entropy(start_logits, start)
    last, _ = token_cross_entropy(end_logits, end)
    return (first + last) / 2, count


def normalize_answer(text: str) -> str:
    """Lower the case, take out punctuation (ASCII) and English articles, and close up the spaces.

    Example:
        >>> normalize_answer("The  cat's (a) hat.")
        'cats hat'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def score_answer(prediction: str, answers: Sequence[str]) -> AnswerScore:
    """Score an answer as the script of SQuAD 1.1 does (arXiv:1606.05250).

    Both figures are the best over the right answers. Without right answers both are 0.

    Args:
        prediction: the answer.
        answers: the right ones.

    Example:
        >>> score_answer("the black cat", ["cat", "a cat that is black"])
        AnswerScore(exact=0.0, f1=0.6666666666666666)
    """
    ours = normalize_answer(prediction)
    exact = f1 = 0.0
    for answer in map(normalize_answer, answers):
        exact = max(exact, float(ours == answer))
        f1 = max(f1, _overlap(ours.split(), answer.split()))
    return AnswerScore(exact, f1)


def score_answer_or_none(prediction: str, answers: Sequence[str]) -> AnswerScore:
    """Score an answer as the script of SQuAD 2.0 does (arXiv:1806.03822).

    A question without right answers is one that the text does not answer, and `""` is then right.
    Right answers that normalize to nothing do not count.

    Args:
        prediction: the answer, `""` for none.
        answers: the right ones, none where there is no answer.

    Example:
        >>> score_answer_or_none("", []), score_answer_or_none("cat", [])
        (AnswerScore(exact=1.0, f1=1.0), AnswerScore(exact=0.0, f1=0.0))
    """
    ours = normalize_answer(prediction)
    exact = f1 = 0.0
    for answer in [a for a in map(normalize_answer, answers) if a] or [""]:
        same = float(ours == answer)
        exact = max(exact, same)
        # Nothing has no words to share, but nothing and nothing are the same.
        f1 = max(f1, _overlap(ours.split(), answer.split()) if ours and answer else same)
    return AnswerScore(exact, f1)


def text_to_codes(texts: Sequence[str]) -> Tensor:
    """Write texts as numbers of characters, so that they travel in a batch as all else does.

    Args:
        texts: $N$ of them.

    Returns:
        int32 `[N, C]`, $C$ at least 1, filled up with -1.

    Example:
        >>> text_to_codes(["ab", "é"]).tolist()
        [[97, 98], [233, -1]]
    """
    codes = [np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.int32) for text in texts]
    made = np.full((len(texts), max([1, *map(len, codes)])), -1, np.int32)
    for row, code in zip(made, codes, strict=True):
        row[: len(code)] = code
    return torch.from_numpy(made)


def codes_to_text(codes: Tensor) -> str:
    """Read a text from the numbers of its characters, int32 `[C]`.

    Example:
        >>> codes_to_text(text_to_codes(["ab", "é"])[1])
        'é'
    """
    known = codes[codes >= 0].cpu().numpy()
    return known.tobytes().decode("utf-32-le", "surrogatepass")


def _overlap(ours: list[str], theirs: list[str]) -> float:
    shared = sum((Counter(ours) & Counter(theirs)).values())
    # A zero of its own, where there is no word to divide by.
    return 0.0 if shared == 0 else _harmonic(shared / len(ours), shared / len(theirs))


def _harmonic(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall)
