"""Choice of whole words, and of spans of them, for the masked language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .masking import token_budget
from .random import draw_words

__all__ = ["choose_spans", "choose_words", "geometric_lengths", "ngram_lengths"]

Flags = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

# Stream of a key for the lengths of spans: they must not tell anything of their order.
_LENGTHS = 0x3C6EF372FE94F82B
# The lower bits of a random word hold a word's place in its row; rows are shorter than that.
_PLACE_BITS = np.uint64(16)
_PLACE = np.uint64((1 << 16) - 1)
_ABSENT = np.uint64(2**64 - 1)


def choose_words(words: Tensor, maskable: Tensor, keys: Tensor, rate: float) -> Tensor:
    r"""Choose whole words (whole-word masking, Devlin et al. 2019; arXiv:1906.08101).

    The words of a row are gone through in random order, and each is chosen that still fits the
    budget of $\max(1, \mathrm{round}(pn))$ tokens, $n$ the row's candidates. The count of chosen
    tokens lies in (budget - longest word, budget]. A row whose every word is longer than its
    budget gets none: the budget is never exceeded.

    Args:
        words: int64 `[B, L]`, number of the word in its row, rising from left to right; -1 where
            there is none.
        maskable: bool `[B, L]`. A word is the candidates that have its number.
        keys: int64 `[B]`, one per row.
        rate: $p$, in `[0, 1]`.

    Returns:
        bool `[B, L]`.

    Example:
        >>> words = torch.tensor([[-1, 0, 0, 1, 1, 2, 2, -1]])
        >>> choose_words(words, words >= 0, torch.tensor([1]), 0.4)[0].int().tolist()
        [0, 0, 0, 1, 1, 0, 0, 0]
    """
    units = _find_words(words.numpy(), maskable.numpy())
    order = draw_words(keys.numpy()[units.rows], units.places)
    return torch.from_numpy(_choose(units, order, None, rate))


def choose_spans(
    words: Tensor, maskable: Tensor, keys: Tensor, rate: float, lengths: Sequence[float]
) -> Tensor:
    r"""Choose spans of words: SpanBERT (arXiv:1907.10529), ALBERT's n-grams (arXiv:1909.11942).

    Each text is laid out in spans whose lengths, in words, are drawn from `lengths`; a span ends
    where its text ends, at a special token or another position that is no candidate. The spans of
    a row are gone through in random order, and the words of each, from either end, are chosen until
    one does not fit the budget of $\max(1, \mathrm{round}(pn))$ tokens. But for the spans that
    the budget cuts short every word has the same chance, also near the ends of a text, which is not
    so where starts of spans are drawn, as the authors do. The count of chosen tokens lies in
    (budget - longest word, budget].

    Args:
        words: int64 `[B, L]`, number of the word in its row, rising from left to right; -1 where
            there is none.
        maskable: bool `[B, L]`.
        keys: int64 `[B]`, one per row.
        rate: $p$, in `[0, 1]`.
        lengths: probabilities of a span of 1, 2, ... words; `geometric_lengths()` are those of
            SpanBERT, `ngram_lengths()` those of ALBERT.

    Returns:
        bool `[B, L]`.

    Raises:
        ValueError: `lengths` are no probabilities.

    Example:
        >>> words = torch.tensor([[-1, 0, 1, 2, 3, 4, 5, 6, 7, -1]])
        >>> choose_spans(words, words >= 0, torch.tensor([1]), 0.4, [0, 0, 1])[0].int().tolist()
        [0, 1, 0, 0, 0, 0, 0, 1, 1, 0]
    """
    shares = np.asarray(lengths, np.float64)
    if shares.ndim != 1 or not shares.size or (shares < 0).any() or abs(shares.sum() - 1) > 1e-6:
        raise ValueError(
            f"lengths must be probabilities of 1, 2, ... words that sum to 1, got {list(lengths)}; "
            "geometric_lengths() and ngram_lengths() make them"
        )
    units = _find_words(words.numpy(), maskable.numpy())
    numbers = keys.numpy()[units.rows]
    draw = (draw_words(numbers ^ _LENGTHS, units.places) >> np.uint64(11)).view(np.int64) * 2.0**-53
    lasts = np.minimum(np.searchsorted(shares.cumsum(), draw, "right"), shares.size - 1)
    first = _lay_spans(units.opens, lasts + 1)
    order = draw_words(keys.numpy()[units.rows[first]], units.places[first])
    return torch.from_numpy(_choose(units, order, first, rate))


def geometric_lengths(success: float = 0.2, longest: int = 10) -> list[float]:
    r"""Return SpanBERT's lengths: geometric, $P(n) \propto q (1 - q)^{n - 1}$ up to the longest.

    Example:
        >>> lengths = geometric_lengths()
        >>> round(sum(n * share for n, share in enumerate(lengths, 1)), 1)
        3.8
    """
    if not 0 < success <= 1 or longest < 1:
        raise ValueError(
            f"success must lie in (0, 1] and longest be at least 1, got {success} and {longest}"
        )
    return _normalized([success * (1 - success) ** n for n in range(longest)])


def ngram_lengths(longest: int = 3) -> list[float]:
    r"""Return ALBERT's lengths: $P(n) \propto 1 / n$ up to the longest.

    Example:
        >>> [round(11 * share) for share in ngram_lengths()]
        [6, 3, 2]
    """
    if longest < 1:
        raise ValueError(f"longest must be at least 1, got {longest}")
    return _normalized([1 / n for n in range(1, longest + 1)])


def _normalized(weights: list[float]) -> list[float]:
    return [weight / sum(weights) for weight in weights]


class _Units(NamedTuple):
    """The words that are candidates, of all rows after each other.

    Attributes:
        shape: of the rows, `(B, L)`.
        token_places: int64 `[N]`, flat position of each candidate token.
        token_units: int64 `[N]`, the word that it belongs to.
        rows: int64 `[W]`, row of each word.
        places: int64 `[W]`, its number among the words of its row.
        sizes: int64 `[W]`, its tokens.
        opens: bool `[W]`, whether no word stands directly before it.
    """

    shape: tuple[int, int]
    token_places: Integers
    token_units: Integers
    rows: Integers
    places: Integers
    sizes: Integers
    opens: Flags


def _find_words(words: Integers, maskable: Flags) -> _Units:
    count, length = words.shape
    places = ((words >= 0) & maskable).ravel().nonzero()[0]
    rows = places // length
    numbers = words.ravel()[places] + rows * length
    starts = np.ones(len(places), bool)
    starts[1:] = numbers[1:] != numbers[:-1]
    at = starts.nonzero()[0]
    joined = np.zeros(len(places), bool)
    joined[1:] = (places[1:] == places[:-1] + 1) & (rows[1:] == rows[:-1])
    unit_rows = rows[at]
    per_row = np.bincount(unit_rows, minlength=count)
    return _Units(
        shape=(count, length),
        token_places=places,
        token_units=starts.cumsum() - 1,
        rows=unit_rows,
        places=np.arange(len(at)) - (per_row.cumsum() - per_row)[unit_rows],
        sizes=np.diff(at, append=len(places)),
        opens=~joined[at],
    )


def _lay_spans(opens: Flags, lengths: Integers) -> Integers:
    """Return for each word the first one of its span: spans are laid from each opening word on.

    The t-th span of a text has the length that was drawn at the text's t-th word.
    """
    number = np.arange(len(opens))
    opening = np.maximum.accumulate(np.where(opens, number, 0))
    before = lengths.cumsum() - lengths
    starts = opening + before - before[opening]
    inside = starts < len(opens)
    starts, owner = starts[inside], opening[inside]
    starts = starts[opening[starts] == owner]
    first = np.zeros(len(opens), np.int64)
    first[starts] = starts
    return np.maximum.accumulate(first)


def _choose(units: _Units, order: Words, spans: Integers | None, rate: float) -> Flags:
    """Go through the words of each row in order, and take those that fit its budget.

    Args:
        units: the words.
        order: uint64 `[W]`, what the words of a row are sorted by; if equal, by their place.
        spans: int64 `[W]`, what the words of a span have in common: when one does not fit, its
            span is over. Without, each word is one of its own.
        rate: share of the tokens to take.
    """
    chosen = np.zeros(units.shape, bool)
    if not len(order):
        return chosen
    count, width = units.shape[0], int(units.places.max()) + 1
    cells = units.rows * width + units.places
    keys = np.full(count * width, _ABSENT, np.uint64)
    # Sorting words that carry their place is three times as fast as sorting places by words. Half
    # of the spans are gone through from right to left: of the one that the budget cuts short,
    # either end may stay.
    keys[cells] = (order & ~_PLACE) | _mirror(order, units.places.view(np.uint64))
    keys = np.sort(keys.reshape(count, width), 1)
    places = _mirror(keys, keys & _PLACE).view(np.int64)
    places += np.arange(0, count * width, width)[:, np.newaxis]
    sizes, names = np.zeros((2, count * width), np.int64)
    sizes[cells] = units.sizes
    left = token_budget(sizes.reshape(count, width).sum(1), rate)[:, np.newaxis]
    sizes = np.where(keys == _ABSENT, 0, sizes[places])
    heads = None
    if spans is not None:
        names[cells] = spans
        names = names[places]
        heads = np.ones(names.shape, bool)
        heads[:, 1:] = names[:, 1:] != names[:, :-1]
    taken = _take_what_fits(sizes, heads, left)
    back = np.zeros(count * width, bool)
    back[places[taken]] = True
    chosen.reshape(-1)[units.token_places] = back[cells][units.token_units]
    return chosen


def _mirror(order: Words, places: Words) -> Words:
    """Count places from the other end where the lowest random bit says so."""
    return places ^ (order >> _PLACE_BITS & np.uint64(1)) * _PLACE


def _take_what_fits(sizes: Integers, heads: Flags | None, left: Integers) -> Flags:
    """Return which of the ordered words are taken, bool `[B, W]`.

    One after the other: a word is taken if it fits what is left of the budget, else it and the rest
    of its span are passed over. In each turn all words up to the first that does not fit are taken
    at once, so that there are a few turns and not one per word.
    """
    waiting = sizes > 0
    taken = np.zeros_like(waiting)
    if heads is not None:
        head = np.maximum.accumulate(np.where(heads, np.arange(sizes.shape[1]), 0), 1)
    while True:
        bars = waiting & (sizes > left)
        if heads is not None:
            # What does not fit takes the words after it in its span along.
            barred = bars.cumsum(1)
            bars = barred > np.take_along_axis(barred - bars, head, 1)
        waiting &= ~bars
        if not waiting.any():
            return taken
        now = waiting & ((sizes * waiting).cumsum(1) <= left)
        taken |= now
        left = left - (sizes * now).sum(1, keepdims=True)
        waiting &= ~now
