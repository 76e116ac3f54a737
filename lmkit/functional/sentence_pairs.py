"""Pairs of text segments for next-sentence and sentence-order prediction, planned on lengths."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from .random import draw_words, mix

__all__ = ["SentenceObjective", "SentencePairs", "plan_pairs"]

SentenceObjective = Literal["next_sentence", "sentence_order"]

Integers = NDArray[np.int64]

_BLOCK = 64  # random words drawn at a time


class SentencePairs(NamedTuple):
    """Pairs of segments: stretches of a stream of tokens.

    Attributes:
        a_start: int64 `[N]`, where the first segment begins.
        a_length: int64 `[N]`, its tokens, at least 1.
        b_start: int64 `[N]`, where the second segment begins.
        b_length: int64 `[N]`, its tokens, at least 1.
        label: int64 `[N]`: 0 where the second follows the first, 1 where it is a random one
            (next sentence) or the two are swapped (sentence order).
    """

    a_start: Integers
    a_length: Integers
    b_start: Integers
    b_length: Integers
    label: Integers


def plan_pairs(
    starts: Integers,
    lengths: Integers,
    documents: Integers,
    room: int,
    objective: SentenceObjective,
    *,
    seed: int,
    short_share: float = 0.1,
) -> SentencePairs:
    r"""Make pairs of segments of whole sentences.

    `next_sentence` is BERT's (arXiv:1810.04805, and its released code). Each document has a target
    length, the room, or with probability 0.1 a uniform number in [2, room]. Its sentences are
    gathered until they reach the target, and divided after a random one. With probability 0.5, or
    if there is one sentence only, the second half gives way to sentences of another document,
    from a random one on, and goes back to be gathered anew. The longer segment is trimmed, token by
    token from a random end, until both fit the room.

    `sentence_order` is ALBERT's (arXiv:1909.11942): the two halves are swapped with probability
    0.5. Unlike there, where a random segment is taken, sentences that have no second beside them
    make no pair, so that the label says nothing but the order.

    Args:
        starts: int64 `[S]`, where each sentence begins in the stream of tokens. Those of a document
            lie end to end.
        lengths: int64 `[S]`, tokens of each, at least 1.
        documents: int64 `[D + 1]`: document `d` has the sentences from `documents[d]` to
            `documents[d + 1]`, perhaps none.
        room: most tokens of a pair, special tokens apart; at least 2.
        objective: `"next_sentence"` or `"sentence_order"`.
        seed: of all draws.
        short_share: share of the documents with a shorter target.

    Returns:
        The pairs, in the order of the documents.

    Raises:
        ValueError: an argument lies outside its range; there is one document only, for
            `next_sentence`; or there is no pair at all.

    Example:
        >>> starts, lengths = np.array([0, 4, 10, 12]), np.array([4, 5, 2, 3])
        >>> pairs = plan_pairs(starts, lengths, np.array([0, 2, 4]), 12, "sentence_order", seed=0)
        >>> pairs.a_start.tolist(), pairs.b_start.tolist(), pairs.label.tolist()
        ([0, 12], [4, 10], [0, 1])
    """
    if objective not in get_args(SentenceObjective):
        raise ValueError(
            f"objective must be one of {', '.join(get_args(SentenceObjective))}, got {objective!r}"
        )
    if room < 2 or not 0 <= short_share <= 1:
        raise ValueError(
            f"room must be at least 2 and short_share lie in [0, 1], got {room} and {short_share}"
        )
    filled = np.flatnonzero(np.diff(documents))
    if objective == "next_sentence" and len(filled) < 2:
        raise ValueError(
            "next_sentence takes second segments from other documents, and the training or the "
            f"validation text has {'one document' if len(filled) else 'no text'}; cut it into more "
            "documents (document='line' or 'paragraph', or more files), or use sentence_order"
        )
    held = array("q")
    for number in range(len(filled)):
        for pair in _pairs(
            number, starts, lengths, documents, filled, room, objective, seed, short_share
        ):
            held.extend(pair)
    rows = np.array(held, np.int64).reshape(-1, 5)
    if not len(rows):
        raise ValueError(
            "there is no pair of sentences: every document has one sentence, or sentences that "
            f"alone fill a row ({room} tokens); make documents of several sentences "
            "(document='paragraph' or 'file'), one a line or each with its full stop, or raise "
            "max_length"
        )
    return SentencePairs(*np.ascontiguousarray(rows.T))


def _pairs(
    number: int,
    starts: Integers,
    lengths: Integers,
    documents: Integers,
    filled: Integers,
    room: int,
    objective: SentenceObjective,
    seed: int,
    short_share: float,
) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield the pairs whose first segment is in the document at this place of `filled`."""
    low, high = documents[filled[number] : filled[number] + 2].tolist()
    start, length = starts[low:high].tolist(), lengths[low:high].tolist()
    draws = _Draws(mix(seed, int(filled[number])))
    target = 2 + draws.index(room - 1) if draws.below(short_share) else room
    at = 0
    while at < len(length):
        end, total = at, 0
        while end < len(length) and total < target:
            total += length[end]
            end += 1
        several = end - at > 1
        cut = at + 1 + (draws.index(end - at - 1) if several else 0)
        a_length = sum(length[at:cut])
        first = (start[at], a_length)
        label, after = 0, end
        if objective == "next_sentence" and (not several or draws.below(0.5)):
            label, after = 1, cut
            other = draws.index(len(filled) - 1)
            other = int(filled[other + (other >= number)])
            begin, stop = documents[other : other + 2].tolist()
            begin += draws.index(stop - begin)
            second = _gather(starts, lengths, begin, stop, target - a_length)
        elif several:
            second = (start[cut], total - a_length)
            if objective == "sentence_order" and draws.below(0.5):
                label, first, second = 1, second, first
        else:
            at = after
            continue
        yield (*_trim(first, second, room, draws), label)
        at = after


def _gather(
    starts: Integers, lengths: Integers, begin: int, stop: int, wanted: int
) -> tuple[int, int]:
    """Return start and length of the sentences from `begin` that reach the wanted length."""
    total = int(lengths[begin])
    start = int(starts[begin])
    while total < wanted and begin + 1 < stop:
        begin += 1
        total += int(lengths[begin])
    return start, total


def _trim(
    first: tuple[int, int], second: tuple[int, int], room: int, draws: _Draws
) -> tuple[int, int, int, int]:
    """Take from the longer segment, from a random end, a token at a time; all of them at once."""
    (a_start, a_length), (b_start, b_length) = first, second
    excess = max(0, a_length + b_length - room)
    level = min(excess, abs(a_length - b_length))
    # Once they are equally long they take turns, the second first.
    from_a = (level if a_length > b_length else 0) + (excess - level) // 2
    from_b = excess - from_a
    a_start += draws.heads(from_a)
    b_start += draws.heads(from_b)
    return a_start, a_length - from_a, b_start, b_length - from_b


class _Draws:
    """Random numbers one by one, a pure function of a key."""

    def __init__(self, key: int) -> None:
        self.key = np.array([key])
        self.place = 0
        self.held: list[int] = []

    def word(self) -> int:
        if not self.held:
            places = np.arange(self.place, self.place + _BLOCK)
            self.held = draw_words(self.key, places)[::-1].tolist()
            self.place += _BLOCK
        return self.held.pop()

    def below(self, share: float) -> bool:
        """Say yes with this probability."""
        return (self.word() >> 11) < share * 2.0**53

    def index(self, n: int) -> int:
        """Draw from `range(n)`."""
        return ((self.word() >> 11) * n) >> 53

    def heads(self, n: int) -> int:
        """Toss `n` coins, and return how many show heads."""
        total = 0
        for low in range(0, n, 64):
            total += (self.word() & ((1 << min(64, n - low)) - 1)).bit_count()
        return total
