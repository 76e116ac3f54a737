"""Attacks written once more, as plain loops that ask about one text after the other."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Predict = Callable[[list[str]], Any]


def hashed(texts: Sequence[str], classes: int = 3) -> list[list[float]]:
    """Probabilities of which each text has its own, and texts of like words a class in common."""
    rows = []
    for text in texts:
        digest = hashlib.sha256(text.encode()).digest()
        favourite = sum(ord(word[0]) for word in text.split()) % classes
        scores = [math.exp(digest[k] / 100 + 2 * (k == favourite)) for k in range(classes)]
        rows.append([score / sum(scores) for score in scores])
    return rows


class Bag:
    """The probability of class 1 is the logistic function of the sum of the words' weights.

    Attributes:
        asked: all texts that it was asked about.
        batches: how many at a time.
    """

    def __init__(self, weights: Mapping[str, float], bias: float = 0.0) -> None:
        self.weights, self.bias = weights, bias
        self.asked: list[str] = []
        self.batches: list[int] = []

    def __call__(self, texts: list[str]) -> list[list[float]]:
        self.asked += texts
        self.batches.append(len(texts))
        return [[1 - p, p] for p in map(self.sure, texts)]

    def sure(self, text: str) -> float:
        total = self.bias + sum(self.weights.get(word, 0.0) for word in text.split())
        return 1 / (1 + math.exp(-total))


def fewest_changes(
    bag: Bag, words: Sequence[str], table: Mapping[str, Sequence[str]]
) -> int | None:
    """The least number of replacements after which class 1 is class 0, by trying all."""
    choices = [[word, *table.get(word, [])] for word in words]
    found = [
        sum(new != old for new, old in zip(row, words, strict=True))
        for row in itertools.product(*choices)
        if bag.sure(" ".join(row)) < 0.5
    ]
    return min(found, default=None)


def plain_greedy(
    predict: Predict,
    words: Sequence[str],
    label: int,
    table: Mapping[str, Sequence[str]],
    most: int,
    masked: str | None = None,
    near: Callable[[str], float] = lambda text: 1.0,
    least_near: float = -1.0,
) -> tuple[str, bool]:
    """TextFooler's search; returns the last text, and whether it is classified otherwise."""

    def ask(row: Sequence[str]) -> np.ndarray:
        return np.array(predict([" ".join(row)])[0])

    before = ask(words)
    scores = []
    for place in range(len(words)):
        middle = [] if masked is None else [masked]
        row = ask([*words[:place], *middle, *words[place + 1 :]])
        score = before[label] - row[label]
        if row.argmax() != label:
            score += row[row.argmax()] - before[row.argmax()]
        scores.append(score)
    current, sure, changed = list(words), before[label], 0
    for place in sorted(range(len(words)), key=lambda n: -scores[n]):
        if not table.get(words[place]) or changed == most:
            continue
        tried = []
        for word in table[words[place]]:
            row = [*current[:place], word, *current[place + 1 :]]
            if near(" ".join(row)) >= least_near:
                tried.append((row, ask(row)))
        flips = [each for each in tried if each[1].argmax() != label]
        if flips:
            best = min(flips, key=lambda each: (-near(" ".join(each[0])), each[1][label]))
            return " ".join(best[0]), True
        if tried:
            best = min(tried, key=lambda each: each[1][label])
            if best[1][label] < sure:
                current, sure = best[0], best[1][label]
                changed += 1
    return " ".join(current), False


def plain_pwws(
    predict: Predict,
    words: Sequence[str],
    label: int,
    table: Mapping[str, Sequence[str]],
    most: int,
    unknown: str = "[UNK]",
) -> tuple[str, bool]:
    """PWWS; returns the last text, and whether it is classified otherwise."""

    def sure(row: Sequence[str]) -> float:
        return float(predict([" ".join(row)])[0][label])

    before = sure(words)
    places = [place for place, word in enumerate(words) if table.get(word)]
    saliency, best = {}, {}
    for place in places:
        saliency[place] = before - sure([*words[:place], unknown, *words[place + 1 :]])
        drops = [
            before - sure([*words[:place], word, *words[place + 1 :]])
            for word in table[words[place]]
        ]
        best[place] = max(drops), table[words[place]][int(np.argmax(drops))]
    total = sum(math.exp(value) for value in saliency.values())
    worth = {p: math.exp(saliency[p]) / total * best[p][0] for p in places}
    current = list(words)
    for place in sorted(worth, key=lambda p: -worth[p])[:most]:
        if worth[place] <= 0:
            break
        current[place] = best[place][1]
        if int(np.argmax(predict([" ".join(current)])[0])) != label:
            return " ".join(current), True
    return " ".join(current), False
