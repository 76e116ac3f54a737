"""What every attack is: a search that keeps to limits, run on many texts at once."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Literal

from torch import Tensor
from tqdm import tqdm

from ..modules.checks import require_tokenizer
from ..modules.sentence_vectors import SentenceVectors
from ..transforms import Protection
from .predictors import Predictor
from .results import AttackReport
from .search import IMPORTANCE, Importance, Limits, search
from .together import Asked, SimilarityTo, run_together

__all__ = ["LEAST", "Attack", "Encoder"]

#: From texts to vectors of length 1, `[N, H]`.
Encoder = Callable[[Sequence[str]], Tensor]

#: The least similarity, where one is asked for and no other bound is given.
LEAST: Final = 0.8


class Attack(ABC):
    """Searches for texts that a classifier takes for another class than a human would.

    The options are those that every attack has, see `WordAttack`.
    """

    def __init__(
        self,
        importance: Importance,
        max_changed: float,
        query_budget: int | None,
        similarity: str | Encoder | None,
        min_similarity: float,
        protection: Protection | None,
        seed: int,
        batch_size: int | None,
        at_once: int,
    ) -> None:
        if importance not in IMPORTANCE:
            raise ValueError(
                f"importance must be one of {', '.join(IMPORTANCE)}, got {importance!r}"
            )
        if not 0.0 < max_changed <= 1.0:
            raise ValueError(f"max_changed must lie in (0, 1], got {max_changed}")
        if not -1.0 <= min_similarity <= 1.0:
            raise ValueError(f"min_similarity must lie in [-1, 1], got {min_similarity}")
        if similarity is None and min_similarity != LEAST:
            raise ValueError(
                f"min_similarity={min_similarity} is the least of a similarity, and there is none: "
                "give similarity, an encoder's folder or hub name, 'own', or a function"
            )
        counts = {"batch_size": batch_size, "at_once": at_once, "query_budget": query_budget}
        for name, value in counts.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not (similarity is None or isinstance(similarity, str) or callable(similarity)):
            raise TypeError(
                "similarity must be 'own', an encoder's folder or hub name, or a function from "
                f"texts to vectors, got {type(similarity).__name__}"
            )
        self.importance, self.max_changed, self.query_budget = importance, max_changed, query_budget
        self.similarity, self.min_similarity = similarity, min_similarity
        self.protection = protection if protection is not None else Protection()
        self.seed, self.batch_size, self.at_once = seed, batch_size, at_once

    @abstractmethod
    def candidates_of(self, words: list[str], place: int, index: int) -> list[str]:
        """Return what may stand in the place of a word of an example, the best first."""

    def protect(self, words: Sequence[str]) -> list[bool]:
        """Return of each word whether it must stay."""
        return self.protection(words)

    @property
    def settings(self) -> dict[str, Any]:
        """What the attack keeps to, as plain data."""
        is_named = self.similarity is None or isinstance(self.similarity, str)
        return {
            "attack": type(self).__name__,
            "importance": self.importance,
            "max_changed": self.max_changed,
            "query_budget": self.query_budget,
            "similarity": self.similarity if is_named else type(self.similarity).__name__,
            "min_similarity": None if self.similarity is None else self.min_similarity,
            "protection": repr(self.protection),
            "seed": self.seed,
        }

    def run(
        self,
        predictor: Any,
        texts: Sequence[str],
        labels: Sequence[int | str],
        pairs: Sequence[str] | None = None,
        changed: Literal["first", "second"] = "second",
    ) -> AttackReport:
        """Attack texts, or one text of each pair.

        What is found for a text depends on it, its number and the options alone: not on the other
        texts, and on the sizes of batches only as far as the network's rounding does.

        Args:
            predictor: a `SequenceClassificationModule` with one label per text, the path of what
                `lmkit.load` makes such a one of, or a function from a list of texts to
                probabilities `[N, C]`; of pairs it is given two lists.
            texts: that are attacked.
            labels: the class of each, by number, or of a module also by name.
            pairs: the second text of each, for a classifier of pairs.
            changed: which text of a pair words are replaced in; the other stays. What is said of
                words, their share and similarity is of that text alone.

        Raises:
            TypeError: the predictor is none of these, or a text is no string.
            ValueError: there are no texts, or not as many labels or second texts; `changed` is
                neither of both, or given without pairs; a label is no class; the module
                has several labels per text, is a regression, or has no tokenizer; a function
                returns no probabilities; similarity is the module's own and there is none.
        """
        texts, labels = _strings("texts", texts), list(labels)
        pairs = None if pairs is None else _strings("pairs", pairs)
        if not texts or len(texts) != len(labels):
            raise ValueError(
                f"an attack takes texts and one label for each, got {len(texts)} texts and "
                f"{len(labels)} labels"
            )
        searched, reads = _parts(texts, pairs, changed)
        begin = time.perf_counter()
        asked = Predictor(predictor, self.batch_size)
        numbers = asked.numbers(labels)
        encoder = self._encoder(asked)
        limits = Limits(
            importance=self.importance,
            max_changed=self.max_changed,
            query_budget=self.query_budget,
            min_similarity=None if encoder is None else self.min_similarity,
            unknown=asked.unknown,
            seed=self.seed,
        )
        begun = partial(search, limits=limits, candidates=self.candidates_of, protect=self.protect)
        rows = enumerate(zip(searched, numbers, reads, strict=True))
        searches = (begun(text, label, index, read=read) for index, (text, label, read) in rows)
        similarity = None if encoder is None else SimilarityTo(encoder)
        with tqdm(total=len(texts), desc="attacking", unit=" texts", disable=None) as bar:
            results = run_together(searches, asked, similarity, self.at_once, bar.update)
        seconds = time.perf_counter() - begin
        kept = self.settings if pairs is None else {**self.settings, "changed": changed}
        return AttackReport(results, asked.label_names, kept, asked.texts_read, seconds)

    def _encoder(self, asked: Predictor) -> Encoder | None:
        if self.similarity is None or callable(self.similarity):
            return self.similarity
        if self.similarity != "own":
            return SentenceVectors.load(self.similarity, asked.batch_size)
        if asked.module is None:
            raise ValueError(
                "similarity='own' is by the states of the module that is attacked, and the "
                "predictor is a function: give the folder or hub name of an encoder"
            )
        network: Any = asked.module.network
        if not hasattr(network, "base_model"):
            raise ValueError(
                "similarity='own' is by the states of the network, and an ONNX file gives none: "
                "give the folder or hub name of an encoder"
            )
        tokenizer = require_tokenizer(asked.module)
        return SentenceVectors(network.base_model, tokenizer, asked.batch_size)


def _parts(
    texts: Sequence[str], pairs: Sequence[str] | None, changed: str
) -> tuple[Sequence[str], list[Callable[[str], Asked]]]:
    """Return the texts that are searched, and for each what makes of it what is read."""
    if changed not in ("first", "second"):
        raise ValueError(f"changed must be 'first' or 'second', got {changed!r}")
    if pairs is None:
        if changed == "first":
            raise ValueError("changed='first' is of pairs, and there are none: give pairs")
        return texts, [str] * len(texts)
    if len(pairs) != len(texts):
        raise ValueError(f"got {len(texts)} texts and {len(pairs)} second texts")
    if changed == "first":
        return texts, [partial(_before, second) for second in pairs]
    return pairs, [partial(_behind, first) for first in texts]


def _before(second: str, text: str) -> Asked:
    return text, second


def _behind(first: str, text: str) -> Asked:
    return first, text


def _strings(name: str, given: Sequence[str]) -> list[str]:
    """Return texts as a list; they may be an array or a column of a table."""
    made = [] if isinstance(given, str) else list(given)
    if isinstance(given, str) or not all(isinstance(text, str) for text in made):
        raise TypeError(f"{name} must be a list of strings")
    return made
