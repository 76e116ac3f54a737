"""Corruption of spans of tokens for the encoder-decoder that writes what is missing."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import IGNORE_INDEX
from .random import uniform

__all__ = ["corrupt_spans", "raw_length", "span_lengths"]


def span_lengths(n: int, density: float = 0.15, mean: float = 3.0) -> tuple[int, int]:
    r"""Count the tokens and spans that are taken out of a text (T5, arXiv:1910.10683, section 3.1).

    $\min(\max(\operatorname{round}(d n), 1), n - 1)$ tokens in
    $\max(\operatorname{round}(\text{tokens} / m), 1)$ spans, but no more spans than tokens stay,
    of which each pair of spans needs one between. Halves are rounded to the even neighbour.

    Args:
        n: tokens of the text; one of fewer than 2 is left alone.
        density: $d$, share of the tokens that are taken out, in `(0, 1)`.
        mean: $m$, tokens in a span on average, at least 1.

    Returns:
        How many tokens, and in how many spans.

    Raises:
        ValueError: `density` or `mean` lies outside its range.

    Example:
        >>> span_lengths(568)
        (85, 28)
    """
    noise, spans = _counts(torch.tensor([n]), density, mean)
    return int(noise), int(spans)


def raw_length(inputs_length: int, density: float = 0.15, mean: float = 3.0) -> tuple[int, int]:
    """Find how much text becomes an input of this length, and how long its target is.

    Of $n$ tokens, of which $k$ are taken out in $s$ spans, the input has $n - k + s + 1$, with a
    sentinel for each span and the end, and the target $k + s + 1$.

    Args:
        inputs_length: tokens of the encoder's input, at least 3.
        density: share of the tokens that are taken out, in `(0, 1)`.
        mean: tokens in a span on average, at least 1.

    Returns:
        The largest number of tokens whose input has at most `inputs_length`, and the length of
        their target.

    Raises:
        ValueError: `inputs_length` is below 3, or another argument outside its range.

    Example:
        >>> raw_length(512), raw_length(128)
        ((568, 114), (141, 29))
    """
    if inputs_length < 3:
        raise ValueError(f"inputs_length must be at least 3, got {inputs_length}")
    _check(density, mean)
    # An input is no shorter than the share of its text that stays, and neither length ever falls.
    lengths = torch.arange(2, int(inputs_length / (1 - density)) + 4)
    noise, spans = _counts(lengths, density, mean)
    last = int((lengths - noise + spans + 1 <= inputs_length).sum()) - 1
    return int(lengths[last]), int(noise[last] + spans[last]) + 1


def corrupt_spans(
    tokens: Tensor,
    keys: Tensor,
    *,
    sentinels: Tensor,
    eos_id: int,
    lengths: Tensor | None = None,
    density: float = 0.15,
    mean: float = 3.0,
    random_roll: bool = True,
) -> tuple[Tensor, Tensor]:
    r"""Take spans out of texts, and ask for them (T5, arXiv:1910.10683, section 3.1).

    The tokens that go and those that stay are cut into spans at random, each way of cutting being
    as likely, and stand in turn. The input has a sentinel in place of each span; the target has
    each sentinel with its span behind it. Both end with the end-of-text token and nothing else:
    the paper's figure shows a last sentinel in the target, which the released code does not write.

    Laid out that way, the first token always stays and the last always goes. `random_roll` evens
    that out as the option of that name in T5's code does, by beginning the turn at a random place.
    There the beginning may fall inside a span, which makes two of it, so that lengths vary by one;
    here a text that begins and ends inside spans has one span fewer within, and lengths are exact.
    The first and the last token then go as often as `density` says, and each other one within 2 %
    of that for inputs of 512 tokens, 5 % for 128; the ends of a row with one span go less often.

    Args:
        tokens: int64 `[B, n]` on the CPU or elsewhere, $n \ge 2$.
        keys: int64 `[B]`, one per row: the draw is a pure function of it and of the row's length.
        sentinels: int64 `[S]`, in the order of use, at least as many as spans in `n` tokens.
        eos_id: id that ends input and target.
        lengths: int64 `[B]`, how many of each row's tokens are real; all by default. A row with
            fewer than 2 is left as it is, and has no target.
        density: share of the tokens that are taken out, in `(0, 1)`.
        mean: tokens in a span on average, at least 1.
        random_roll: whether a row may begin with a span and end without one.

    Returns:
        Inputs, int64 `[B, I]`, and targets, int64 `[B, T]`, -100 behind the end of each. `I` and
        `T` are the exact lengths for `n` tokens.

    Raises:
        ValueError: there are too few tokens or sentinels, or a share lies outside its range.

    Example:
        >>> inputs, targets = corrupt_spans(
        ...     torch.arange(10, 20).unsqueeze(0), torch.tensor([3]),
        ...     sentinels=torch.tensor([99, 98]), eos_id=1, density=0.4, mean=2.0)
        >>> inputs.tolist(), targets.tolist()
        ([[10, 11, 12, 99, 15, 16, 98, 19, 1]], [[99, 13, 14, 98, 17, 18, 1]])
    """
    n = tokens.shape[1]
    noise_max, spans_max = span_lengths(n, density, mean)
    if n < 2:
        raise ValueError(f"tokens must have at least 2 columns, got {n}")
    if len(sentinels) < spans_max:
        raise ValueError(
            f"{n} tokens have {spans_max} spans, and there are {len(sentinels)} sentinels; take a "
            "tokenizer with more of them, or shorter rows"
        )
    if lengths is None:
        lengths = torch.full_like(keys, n)
    noise, spans = _counts(lengths, density, mean)
    kept = lengths - noise
    gone_before, kept_before = _spans(keys, noise, kept, spans, spans_max, n, random_roll)

    device, s = tokens.device, torch.arange(spans_max, device=tokens.device)
    names = sentinels[:spans_max].to(device).expand(len(tokens), -1)
    sides = []
    for before, width, count in (
        (kept_before, n - noise_max + spans_max + 1, kept),
        (gone_before[:, :-1], noise_max + spans_max + 1, noise),
    ):
        # Spans that a row does not have fall on its end and behind it, which are written over.
        is_sentinel = torch.zeros(len(tokens), width, dtype=torch.int64, device=device)
        is_sentinel.scatter_(1, before + s, 1)
        passed = is_sentinel.cumsum(1)
        column = torch.arange(width, device=device).expand_as(passed) - passed
        if count is kept:
            source = column + gone_before.gather(1, passed)
        else:
            source = column + kept_before.gather(1, (passed - 1).clamp(min=0))
        side = tokens.gather(1, source.clamp(0, n - 1)).scatter(1, before + s, names)
        end = (count + spans).unsqueeze(1)
        side = side.scatter(1, end, eos_id)
        sides.append(side.masked_fill(torch.arange(width, device=device) > end, IGNORE_INDEX))
    inputs, targets = sides
    return inputs, targets.masked_fill((spans == 0).unsqueeze(1), IGNORE_INDEX)


def _check(density: float, mean: float) -> None:
    if not 0.0 < density < 1.0:
        raise ValueError(f"density must lie in (0, 1), got {density}")
    if not mean >= 1.0:
        raise ValueError(f"mean must be at least 1, got {mean}")


def _counts(lengths: Tensor, density: float, mean: float) -> tuple[Tensor, Tensor]:
    """Count the tokens and spans to take out of texts of these lengths; all int64 `[B]`."""
    _check(density, mean)
    noise = (lengths.double() * density).round().long().clamp(min=1)
    noise = noise.minimum(lengths - 1).clamp(min=0)
    spans = (noise.double() / mean).round().long().clamp(min=1)
    return noise, spans.minimum(lengths - noise).minimum(noise)


def _spans(
    keys: Tensor,
    noise: Tensor,
    kept: Tensor,
    spans: Tensor,
    spans_max: int,
    n: int,
    random_roll: bool,
) -> tuple[Tensor, Tensor]:
    """Draw the spans of each row.

    Returns:
        For each span, and one more, how many tokens go before it, int64 `[B, spans_max + 1]`, and
        for each span how many stay before it, `[B, spans_max]`; all of them behind the last.
    """
    draw = uniform(keys, n + 1)
    # Whether the row begins and ends with tokens that stay. Of the places where a circle of spans
    # can be cut, so many lie within spans, so many at their edges, and the others between.
    starts, ends = torch.ones_like(noise), torch.zeros_like(noise)
    if random_roll:
        inside = torch.where(spans > 1, noise - spans, torch.zeros_like(noise))
        place = (draw[:, 0] * (spans + inside + kept)).long()
        starts = ((place >= spans) & ~((place >= 2 * spans) & (place < 2 * spans + inside))).long()
        ends = ((place < spans) | (place >= 2 * spans + inside)).long()
    # The spans are between cuts, drawn without replacement from the gaps between tokens: the
    # gaps of those that go are in front, sorted by their draws, and those of the others follow.
    column = torch.arange(n, device=keys.device)
    gaps, others = (noise - 1).unsqueeze(1), (noise + kept - 2).unsqueeze(1)
    order = (draw[:, 1:] + (column >= gaps) + (column >= others)).argsort(dim=1, stable=True)

    def bounds(first: Tensor, parts: Tensor, total: Tensor, count: int) -> Tensor:
        rank = torch.arange(count, device=keys.device)
        at = order.gather(1, (first + rank).clamp(0, n - 1)) - first + 1
        at = torch.where(rank < (parts - 1).unsqueeze(1), at, total.unsqueeze(1))
        return torch.nn.functional.pad(at.sort(1).values, (1, 0))

    gone_before = bounds(torch.zeros_like(gaps), spans, noise, spans_max)
    kept_before = bounds(gaps.clamp(min=0), spans - 1 + starts + ends, kept, spans_max + 1)
    span = torch.arange(spans_max, device=keys.device) + starts.unsqueeze(1)
    return gone_before, kept_before.gather(1, span)
