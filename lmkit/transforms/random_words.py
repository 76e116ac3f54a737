"""Words swapped and left out at random."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .arguments import check_rate
from .base import WordTransform
from .changes import Change

__all__ = ["RandomDeletion", "RandomSwap", "choose", "count_for", "pick"]


def choose(
    rate: float, places: Sequence[int], rng: np.random.Generator
) -> tuple[list[int], list[float]]:
    """Draw each of some places with a probability.

    Returns:
        The places, in their order, and a number for each that is uniform in `[0, 1)`.

    Example:
        >>> choose(1.0, [3, 5], np.random.default_rng(0))[0]
        [3, 5]
    """
    drawn = rng.random(len(places))
    found = (drawn < rate).nonzero()[0]
    # Below the rate a uniform number is uniform again.
    shares = (drawn[found] / rate).tolist() if len(found) else []
    return [places[i] for i in found.tolist()], shares


def count_for(alpha: float, length: int, strength: float, rng: np.random.Generator) -> int:
    r"""Return $n = \max(1, \lfloor \alpha s L \rfloor)$, how many changes a row of words gets.

    With a strength $s < 1$ the one change that a short row is given comes with probability $s$.

    Example:
        >>> count_for(0.1, 35, 1.0, np.random.default_rng(0))
        3
    """
    if not alpha:
        return 0
    # What is a whole number in the formula must not fall below it by rounding.
    count = int(alpha * strength * length + 1e-9)
    if count or (strength < 1 and rng.random() >= strength):
        return count
    return 1


def pick(count: int, items: Sequence[int], rng: np.random.Generator) -> list[int]:
    """Draw some of the items, each at most once.

    Example:
        >>> sorted(pick(5, [3, 4], np.random.default_rng(0)))
        [3, 4]
    """
    left = list(items)
    made = []
    for drawn in rng.random(min(count, len(left))).tolist():
        place = int(drawn * len(left))
        made.append(left[place])
        left[place] = left[-1]
        left.pop()
    return made


class RandomSwap(WordTransform):
    r"""Swaps two words, $\max(1, \lfloor \alpha L \rfloor)$ times (RS of EDA, arXiv:1901.11196).

    $L$ is the number of words that may be changed. With BIO tags, words are swapped outside of
    entities or inside of one; plain tags go with their words.

    Args:
        alpha: in `[0, 1]`; 0 for never.

    Raises:
        ValueError: `alpha` lies outside its range.

    Example:
        >>> RandomSwap()(["a", "b"], None, np.random.default_rng(0)).words
        ['b', 'a']
    """

    def __init__(self, alpha: float = 0.1) -> None:
        check_rate("alpha", alpha)
        self.alpha = alpha

    def changes(
        self,
        words: list[str],
        free: list[int],
        rng: np.random.Generator,
        strength: float,
        groups: list[int] | None,
    ) -> list[Change]:
        """Draw pairs of places."""
        rooms = [free]
        if groups is not None:
            by_group: dict[int, list[int]] = {}
            for place in free:
                by_group.setdefault(groups[place], []).append(place)
            rooms = list(by_group.values())
        rooms = [room for room in rooms if len(room) > 1]
        count = count_for(self.alpha, len(free), strength, rng) if rooms else 0
        if not count:
            return []
        flat = [(room, i) for room in rooms for i in range(len(room))]
        moved: dict[int, int] = {}
        drawn = rng.random(2 * count).tolist()
        for first, second in zip(drawn[0::2], drawn[1::2], strict=True):
            room, i = flat[int(first * len(flat))]
            # One of the others: `i` and those from it on are passed over.
            j = int(second * (len(room) - 1))
            one, other = room[i], room[j + (j >= i)]
            moved[one], moved[other] = moved.get(other, other), moved.get(one, one)
        return [
            Change("swap", place, place + 1, [words[origin]], (origin,))
            for place, origin in sorted(moved.items())
            if place != origin
        ]


class RandomDeletion(WordTransform):
    """Leaves each word out with a probability (RD of EDA, arXiv:1901.11196).

    Where all words would go, one of them stays.

    Args:
        rate: of a word that may be changed, in `[0, 1]`.

    Raises:
        ValueError: the rate lies outside its range.

    Example:
        >>> len(RandomDeletion(1.0)(["a", "b", "c"], None, np.random.default_rng(0)).words)
        1
    """

    def __init__(self, rate: float = 0.1) -> None:
        check_rate("rate", rate)
        self.rate = rate

    def changes(
        self,
        words: list[str],
        free: list[int],
        rng: np.random.Generator,
        strength: float,
        groups: list[int] | None,
    ) -> list[Change]:
        """Draw which words go."""
        gone, shares = choose(self.rate * strength, free, rng)
        if len(gone) == len(words):
            gone.pop(shares.index(max(shares)))
        return [Change("delete", place, place + 1, []) for place in gone]
