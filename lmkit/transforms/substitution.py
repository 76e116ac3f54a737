"""Words replaced by other words of a corpus, those that say little more often than others."""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .arguments import check_rate, check_table, check_whole
from .base import WordTransform
from .changes import Change
from .words import split_words

__all__ = ["RandomSubstitution", "WordCounts", "count_words"]


class WordCounts(NamedTuple):
    """How often words were met.

    Attributes:
        words: how often each was met at all.
        documents: in how many texts each was met.
        texts: number of texts.
    """

    words: dict[str, int]
    documents: dict[str, int]
    texts: int


def count_words(texts: Iterable[str]) -> WordCounts:
    """Count the words of texts, without numbers and signs, in small letters.

    Example:
        >>> count_words(["A cat, a dog.", "A cat."]).documents["cat"]
        2
    """
    words: Counter[str] = Counter()
    documents: Counter[str] = Counter()
    texts_seen = 0
    for text in texts:
        found = [word.lower() for word in split_words(text).words if _counts(word)]
        words.update(found)
        documents.update(set(found))
        texts_seen += 1
    return WordCounts(dict(sorted(words.items())), dict(sorted(documents.items())), texts_seen)


def _counts(word: str) -> bool:
    """Whether a word is neither number nor sign."""
    return word[:1].isalpha()


class RandomSubstitution(WordTransform):
    r"""Replaces words by words drawn from a corpus.

    Each word is replaced with probability $p$ = `rate` by one that is drawn as often as it is in
    the corpus (arXiv:1703.02573). With `tf_idf`, as in UDA (arXiv:1904.12848), words that say
    little go more often, and come more often: word $i$ of the $L$ of a row is replaced with

    $$\min\left(1, p\, \frac{C - t_i}{\frac{1}{L} \sum_j (C - t_j)}\right), \quad C = \max_j t_j,$$

    where $t$ is the word's count in the row times $\log(N / d)$ with $N$ texts, $d$ of which have
    the word; $w$ is drawn in proportion to $\max_v S(v) - S(w)$, where $S$ is the count in the
    corpus times $\log(N / d)$. A word that no text has counts as if one had it; numbers and signs
    do not count, and go with probability $p$ where they are not protected.

    Args:
        source: a text file with one text a line, of which words are counted at first use; a list
            of words, all as frequent; or counts `{word: count}`.
        rate: $p$, in `[0, 1]`.
        tf_idf: whether rates and draws are those of UDA; needs a text file.
        smallest_count: words of a file that were met less often are not drawn.

    Raises:
        ValueError: a number lies outside its range, there are no words, or `tf_idf` is set without
            texts.
        TypeError: `source` is none of these.
        FileNotFoundError: at first use, there is no such file.

    Example:
        >>> RandomSubstitution(["cat"], 1.0)(["a", "dog"], None, np.random.default_rng(0)).words
        ['cat', 'cat']
    """

    def __init__(
        self,
        source: str | list[str] | dict[str, int],
        rate: float = 0.1,
        tf_idf: bool = False,
        smallest_count: int = 1,
    ) -> None:
        check_rate("rate", rate)
        if not isinstance(source, str | list | Mapping):
            raise TypeError(f"source must be a file, a list or counts of words, got {source!r}")
        if not source:
            raise ValueError("source must have at least one word, got none")
        if tf_idf and not isinstance(source, str):
            raise ValueError("tf_idf needs texts: let source be a file with one text a line")
        check_whole("smallest_count", smallest_count, 1)
        if not isinstance(source, str):
            check_table("source", {word: [] for word in source})
        if isinstance(source, Mapping):
            for word, count in source.items():
                check_whole(f"source[{word!r}]", count, 1)
        self.source, self.rate, self.tf_idf = source, rate, tf_idf
        self.smallest_count = smallest_count

    @cached_property
    def counts(self) -> WordCounts:
        """How often words were met."""
        if isinstance(self.source, str):
            with self._file().open(encoding="utf-8") as lines:
                found = count_words(line for line in lines if line.strip())
            if not found.words:
                raise ValueError(f"source: {self.source} has no word to draw")
            return found
        words: dict[str, int] = dict(Counter(self.source))
        return WordCounts(dict(sorted(words.items())), {}, 0)

    def sources(self) -> dict[str, str]:
        """Return the digest of the file."""
        if not isinstance(self.source, str):
            return {}
        return {"words": hashlib.sha256(self._file().read_bytes()).hexdigest()}

    def _file(self) -> Path:
        path = Path(str(self.source))
        if not path.is_file():
            raise FileNotFoundError(
                f"source: there is no file {str(path)!r}; give one with a text a line, a list of "
                "words, or counts"
            )
        return path

    def idf(self, word: str) -> float:
        """Return log(N / d) of a word in small letters."""
        return math.log(self.counts.texts / self.counts.documents.get(word, 1))

    def weights(self) -> dict[str, float]:
        """Return of each word what the probability that it is drawn is in proportion to.

        Raises:
            ValueError: the file has no word that may be drawn.
        """
        words = {w: n for w, n in self.counts.words.items() if n >= self.smallest_count}
        if not words:
            raise ValueError(f"source: {self.source} has no word to draw")
        if not self.tf_idf:
            return {word: float(count) for word, count in words.items()}
        scores = {word: count * self.idf(word) for word, count in words.items()}
        top = max(scores.values())
        made = {word: top - score for word, score in scores.items()}
        # Where all scores are equal, so are the words.
        return made if any(made.values()) else dict.fromkeys(made, 1.0)

    @cached_property
    def _drawn(self) -> tuple[list[str], list[float]]:
        weights = self.weights()
        return list(weights), list(accumulate(weights.values()))

    def rates(self, words: list[str]) -> list[float]:
        """Return the probability that each word of a row is replaced."""
        if not self.tf_idf:
            return [self.rate] * len(words)
        low = [word.lower() for word in words]
        times = Counter(word for word in low if _counts(word))
        says = {word: count * self.idf(word) for word, count in times.items()}
        top = max(says.values(), default=0.0)
        left = {word: top - said for word, said in says.items()}
        mean = sum(left[word] * count for word, count in times.items()) / max(1, times.total())
        if not mean:
            return [self.rate] * len(words)
        return [min(1.0, self.rate * left.get(word, mean) / mean) for word in low]

    def changes(
        self,
        words: list[str],
        free: list[int],
        rng: np.random.Generator,
        strength: float,
        groups: list[int] | None,
    ) -> list[Change]:
        """Draw which words go, and which ones come."""
        rates = self.rates(words)
        drawn = rng.random(len(free)).tolist()
        chosen = [p for p, x in zip(free, drawn, strict=True) if x < rates[p] * strength]
        if not chosen:
            return []
        known, bounds = self._drawn
        made = []
        for place, number in zip(chosen, rng.random(len(chosen)).tolist(), strict=True):
            new = known[min(bisect_right(bounds, number * bounds[-1]), len(known) - 1)]
            if new != words[place]:
                made.append(Change("substitute", place, place + 1, [new]))
        return made
