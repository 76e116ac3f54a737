"""The greedy search for the words that change what a classifier says of a text."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from ..transforms import Edit, example_rng, split_words
from ..transforms.gaps import gaps_after
from ..transforms.words import join_words
from .results import AttackResult, WordChange
from .together import Answer, Ask, Asked

__all__ = ["IMPORTANCE", "Importance", "Limits", "search"]

Importance = Literal["deletion", "masking", "temporal", "pwws", "random"]
IMPORTANCE = "deletion", "masking", "temporal", "pwws", "random"

T = TypeVar("T")
Asking = Generator[Ask, Answer, T]
Row = npt.NDArray[np.float64]

# Draws for places count from 1.
_ORDER = 0


@dataclass(frozen=True)
class Limits:
    """What a search keeps to.

    Attributes:
        importance: in which order words are tried.
        max_changed: share of the words that may be changed.
        query_budget: distinct texts that may be asked for, the original among them.
        min_similarity: to the original; `None` where similarity is not asked for.
        unknown: what a word is masked with.
        seed: of the draws.
    """

    importance: Importance
    max_changed: float
    query_budget: int | None
    min_similarity: float | None
    unknown: str
    seed: int


class _Attempt:
    """One example: what is known of it, and what it may still ask."""

    def __init__(
        self, text: str, label: int, index: int, limits: Limits, read: Callable[[str], Asked]
    ) -> None:
        self.text, self.label, self.index, self.limits = text, label, index, limits
        self.read = read
        self.words, self.gaps = split_words(text)
        self.count = sum(any(map(str.isalnum, word)) for word in self.words)
        self.seen: dict[str, Row] = {}
        self.current = list(self.words)
        self.similarity: float | None = None

    @property
    def most(self) -> int:
        return int(self.limits.max_changed * self.count + 1e-9)

    @property
    def is_spent(self) -> bool:
        budget = self.limits.query_budget
        return budget is not None and len(self.seen) >= budget

    def text_with(self, place: int, word: str) -> str:
        return join_words([*self.current[:place], word, *self.current[place + 1 :]], self.gaps)

    def ask(self, texts: Sequence[str]) -> Asking[list[Row | None]]:
        """Return the probabilities of texts; `None` of those beyond the budget."""
        new = [text for text in dict.fromkeys(texts) if text not in self.seen]
        if self.limits.query_budget is not None:
            new = new[: self.limits.query_budget - len(self.seen)]
        if new:
            rows = yield Ask("probabilities", self.text, tuple(map(self.read, new)))
            self.seen.update(zip(new, rows, strict=True))
        return [self.seen.get(text) for text in texts]

    def near(self, texts: Sequence[str]) -> Asking[dict[str, float]]:
        """Return the texts that are near enough to the original, and how near they are."""
        least = self.limits.min_similarity
        if least is None or not texts:
            return dict.fromkeys(texts, 1.0)
        values = yield Ask("similarities", self.text, tuple(texts))
        return {t: float(v) for t, v in zip(texts, values, strict=True) if v >= least}

    def result(self, status: Literal["succeeded", "failed", "skipped"]) -> AttackResult:
        text = join_words(self.current, self.gaps)
        read = self.read(text)
        pairs = enumerate(zip(self.words, self.current, strict=True))
        return AttackResult(
            index=self.index,
            status=status,
            original=self.text,
            adversarial=text,
            inputs=(read,) if isinstance(read, str) else read,
            label=self.label,
            probabilities=self.seen[self.text].tolist(),
            adversarial_probabilities=self.seen[text].tolist(),
            changes=[WordChange(place, old, new) for place, (old, new) in pairs if old != new],
            words=self.count,
            queries=len(self.seen),
            similarity=self.similarity,
        )


def search(
    text: str,
    label: int,
    index: int,
    limits: Limits,
    candidates: Callable[[list[str], int, int], list[str]],
    protect: Callable[[Sequence[str]], list[bool]],
    read: Callable[[str], Asked] = str,
) -> Asking[AttackResult]:
    """Search for a text that is classified otherwise, word by word from the most important one.

    Args:
        text: that is attacked.
        label: its class.
        index: of the example, which decides what is drawn for it.
        limits: what it keeps to.
        candidates: from the words of the text, a place among them, and `index`, to the words that
            may stand there instead.
        protect: says which words stay.
        read: from the text, or a changed one, to what the classifier reads.

    Yields:
        What it asks for, see `run_together`.

    Returns:
        The result. One that failed has the least certain text that was found.
    """
    attempt = _Attempt(text, label, index, limits, read)
    (row,) = yield from attempt.ask([text])
    assert row is not None
    if row.argmax() != label:
        return attempt.result("skipped")
    choices = {
        place: [w for w in dict.fromkeys(candidates(attempt.words, place, index)) if w != word]
        for place, (word, fixed) in enumerate(
            zip(attempt.words, protect(attempt.words), strict=True)
        )
        if not fixed
    }
    choices = {place: words for place, words in choices.items() if words}
    if not choices or not attempt.most:
        return attempt.result("failed")
    found = _saliency_search if limits.importance == "pwws" else _greedy_search
    succeeded = yield from found(attempt, choices)
    return attempt.result("succeeded" if succeeded else "failed")


def _greedy_search(attempt: _Attempt, choices: dict[int, list[str]]) -> Asking[bool]:
    """TextFooler's: at each word the candidate that flips, else the one that unsettles most."""
    order = yield from _order(attempt, list(choices))
    least = attempt.seen[attempt.text][attempt.label]
    changed = 0
    for place in order:
        if changed == attempt.most or attempt.is_spent:
            break
        texts = {attempt.text_with(place, word): word for word in choices[place]}
        near = yield from attempt.near(list(texts))
        rows = yield from attempt.ask(list(near))
        told = [(t, row) for t, row in zip(near, rows, strict=True) if row is not None]
        flips = [(t, row) for t, row in told if row.argmax() != attempt.label]
        if flips:
            # The nearest one, and of equally near ones the surest.
            best = min(flips, key=lambda each: (-near[each[0]], each[1][attempt.label]))
        elif told:
            best = min(told, key=lambda each: each[1][attempt.label])
            if best[1][attempt.label] >= least:
                continue
        else:
            continue
        _accept(attempt, place, texts[best[0]], near[best[0]])
        least = best[1][attempt.label]
        changed += 1
        if flips:
            return True
    return False


def _saliency_search(attempt: _Attempt, choices: dict[int, list[str]]) -> Asking[bool]:
    """PWWS's: the best candidate of each word first, then words by what they are worth."""
    places = list(choices)
    before = attempt.seen[attempt.text][attempt.label]
    masked = yield from attempt.ask(
        [attempt.text_with(place, attempt.limits.unknown) for place in places]
    )
    tried = {attempt.text_with(p, word): (p, word) for p in places for word in choices[p]}
    near = yield from attempt.near(list(tried))
    rows = yield from attempt.ask(list(near))
    best: dict[int, tuple[float, str]] = {}
    for text, row in zip(near, rows, strict=True):
        if row is not None:
            place, word = tried[text]
            drop = float(before - row[attempt.label])
            if place not in best or drop > best[place][0]:
                best[place] = drop, word
    saliency = np.array([-np.inf if r is None else before - r[attempt.label] for r in masked])
    if not np.isfinite(saliency).any():
        return False
    weights = np.exp(saliency - saliency.max())
    weights /= weights.sum()
    worth = {p: w * best[p][0] for p, w in zip(places, weights, strict=True) if p in best}
    changed = 0
    for place in sorted(worth, key=lambda p: -worth[p]):
        if changed == attempt.most or worth[place] <= 0:
            break
        word = best[place][1]
        text = attempt.text_with(place, word)
        near = yield from attempt.near([text])
        (row,) = (yield from attempt.ask([text])) if text in near else [None]
        if row is None:
            continue
        _accept(attempt, place, word, near[text])
        changed += 1
        if row.argmax() != attempt.label:
            return True
    return False


def _accept(attempt: _Attempt, place: int, word: str, similarity: float) -> None:
    attempt.current[place] = word
    if attempt.limits.min_similarity is not None:
        attempt.similarity = similarity


def _order(attempt: _Attempt, places: list[int]) -> Asking[list[int]]:
    """Return places from the most important one on, without those that the budget leaves out."""
    kind = attempt.limits.importance
    if kind == "random":
        rng = example_rng(attempt.limits.seed, 0, attempt.index, _ORDER)
        return [places[number] for number in rng.permutation(len(places))]
    if kind == "temporal":
        scores = yield from _temporal(attempt, places)
    else:
        scores = yield from _removal(attempt, places, kind == "masking")
    known = [place for place in places if np.isfinite(scores[place])]
    return sorted(known, key=lambda place: -scores[place])


def _removal(attempt: _Attempt, places: list[int], masking: bool) -> Asking[dict[int, float]]:
    """TextFooler's score, equation 2: what is lost without a word, and what another class gains."""
    unknown, label = attempt.limits.unknown, attempt.label
    before = attempt.seen[attempt.text]
    if masking:
        texts = [attempt.text_with(place, unknown) for place in places]
    else:
        texts = [_without(attempt, place) for place in places]
    scores = {}
    rows = yield from attempt.ask(texts)
    for place, row in zip(places, rows, strict=True):
        if row is None:
            scores[place] = -np.inf
            continue
        scores[place] = float(before[label] - row[label])
        if (other := row.argmax()) != label:
            scores[place] += float(row[other] - before[other])
    return scores


def _temporal(attempt: _Attempt, places: list[int]) -> Asking[dict[int, float]]:
    """DeepWordBug's combined score: what a word adds to those before it and to those behind."""
    words, gaps = attempt.words, attempt.gaps
    ends = sorted({end for place in places for end in (place, place + 1)})
    heads = [join_words(words[:end], [*gaps[:end], ""]) for end in ends]
    tails = [join_words(words[end:], ["", *gaps[end + 1 :]]) for end in ends]
    rows = yield from attempt.ask(heads + tails)
    sure = [np.nan if row is None else float(row[attempt.label]) for row in rows]
    head = dict(zip(ends, sure[: len(ends)], strict=True))
    tail = dict(zip(ends, sure[len(ends) :], strict=True))
    scores = {p: head[p + 1] - head[p] + tail[p] - tail[p + 1] for p in places}
    return {p: -np.inf if np.isnan(score) else score for p, score in scores.items()}


def _without(attempt: _Attempt, place: int) -> str:
    words, gaps = attempt.words, attempt.gaps
    rest = [*words[:place], *words[place + 1 :]]
    return join_words(
        rest, gaps_after(words, gaps, rest, [Edit("delete", place, place + 1, place, place)])
    )
