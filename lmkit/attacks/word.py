"""Attacks that put other words in place of words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from ..transforms import Protection, SynonymReplacement, Transform
from ..transforms.candidates import Candidates
from ..transforms.stop_words import STOP_WORDS
from .base import LEAST, Attack, Encoder
from .search import Importance

__all__ = ["HasCandidates", "WordAttack"]


class HasCandidates(Protocol):
    """A transform with a table of what may stand for a word, such as `SynonymReplacement`."""

    @property
    def candidates(self) -> Candidates:
        """From a word to words."""


class WordAttack(Attack):
    r"""Replaces words by others of like meaning, until a classifier changes its mind.

    TextFooler's search (arXiv:1907.11932): words are ranked by what the classifier loses without
    them,

    $$I_i = p_y(x) - p_y(x_{\setminus i}) + [\hat y_i \ne y] \,
    (p_{\hat y_i}(x_{\setminus i}) - p_{\hat y_i}(x)), \quad
    \hat y_i = \arg\max p(x_{\setminus i}),$$

    and taken from the first one on. Of the candidates for a word that leave the text similar
    enough to the original, one that flips the class ends the search, the most similar one of them;
    else that stays which leaves the least $p_y$, if it is less than before.

    With `importance="pwws"` it is that of Ren et al. (2019, doi:10.18653/v1/P19-1103): for each
    word the candidate with the greatest drop $\Delta_i$ of $p_y$ in the original text, and words in
    the order of $\mathrm{softmax}(S)_i \, \Delta_i$, with the saliency $S_i = p_y(x) - p_y(x_{i \to
    \text{unknown}})$.

    Where it differs from the papers: candidates are those of `source`; parts of speech are not
    compared; similarity is a cosine of whole texts, not of windows; negations, names, numbers and
    what else `protection` says stay as they are.

    Args:
        source: what may stand for a word: a transform with candidates (`SynonymReplacement` for
            WordNet, which is the default, or `EmbeddingNeighbours`), a table `{word: [words]}` or a
            function from a word to words, both in small letters; case follows the text.
        importance: `"deletion"`, `"masking"` (of $x$ with the unknown token in place of a word),
            `"pwws"`, `"temporal"` (see `CharacterAttack`) or `"random"`, drawn by `seed`.
        max_candidates: of a word, the first ones; `None` for all.
        max_changed: share of the words, signs not counted, that may be changed, in `(0, 1]`.
        query_budget: how many distinct texts the classifier is asked about for one text, itself
            among them; `None` for any number.
        similarity: by what a candidate's text is compared with the original: folder or hub name of
            an encoder, `"own"` for the states of the module that is attacked (mean-pooled), a
            function from texts to vectors of length 1, or `None` for no constraint.
        min_similarity: the least cosine, in `[-1, 1]`.
        protection: which words stay; negations, names, numbers, addresses and signs by default.
        stop_words: whether English words that carry grammar stay.
        seed: of the draws.
        batch_size: texts that the network reads at once; by default 16 on a processor, which is
            faster there than more, 256 on an accelerator, and 64 of a function.
        at_once: texts that are attacked together.

    Raises:
        ValueError: an argument lies outside its range.
        TypeError: `source` or `similarity` is none of these.
        FileNotFoundError: at first use, there is no WordNet; says how it is installed.

    Example:
        >>> weights = {"good": 2.0, "fine": -1.0}
        >>> def predict(texts):
        ...     scores = [sum(weights.get(word, 0.0) for word in text.split()) for text in texts]
        ...     return [[1 / (1 + 2 ** s), 1 - 1 / (1 + 2 ** s)] for s in scores]
        >>> attack = WordAttack({"good": ["nice", "fine"]}, max_changed=1.0)
        >>> attack.run(predict, ["a good film"], [1]).results[0].adversarial
        'a fine film'
    """

    def __init__(
        self,
        source: HasCandidates
        | Mapping[str, Sequence[str]]
        | Callable[[str], Iterable[str]]
        | None = None,
        importance: Importance = "deletion",
        max_candidates: int | None = 50,
        max_changed: float = 0.4,
        query_budget: int | None = None,
        similarity: str | Encoder | None = None,
        min_similarity: float = LEAST,
        protection: Protection | None = None,
        stop_words: bool = True,
        seed: int = 0,
        batch_size: int | None = None,
        at_once: int = 32,
    ) -> None:
        limits = importance, max_changed, query_budget, similarity, min_similarity
        super().__init__(*limits, protection, seed, batch_size, at_once)
        if max_candidates is not None and max_candidates < 1:
            raise ValueError(f"max_candidates must be at least 1, got {max_candidates}")
        self.source = SynonymReplacement() if source is None else source
        self.max_candidates, self.stop_words = max_candidates, stop_words
        self._table: Candidates | None = None
        if isinstance(self.source, Mapping):
            table = self.source
            for word, others in table.items():
                if isinstance(others, str) or not all(isinstance(each, str) for each in others):
                    raise TypeError(f"source must have lists of words, has {others!r} for {word!r}")
            self._table = Candidates(lambda word: table.get(word, []))
        elif _has_candidates(self.source):
            pass  # found when it is needed, for it may read files
        elif callable(self.source) and not isinstance(self.source, Transform):
            self._table = Candidates(self.source)
        else:
            raise TypeError(
                "source must be a transform with candidates (SynonymReplacement, "
                "EmbeddingNeighbours), a table or a function from a word to words, "
                f"{self.source!r:.80}"
            )

    def candidates_of(self, words: list[str], place: int, index: int) -> list[str]:
        """Return the first candidates for a word."""
        if self._table is None:
            self._table = self.source.candidates  # type: ignore[union-attr]
        return self._table[words[place]][: self.max_candidates]

    def protect(self, words: Sequence[str]) -> list[bool]:
        """Return of each word whether it must stay."""
        fixed = self.protection(words)
        if not self.stop_words:
            return fixed
        return [f or w.lower() in STOP_WORDS for f, w in zip(fixed, words, strict=True)]

    @property
    def settings(self) -> dict[str, Any]:
        """What the attack keeps to, as plain data."""
        spec = getattr(self.source, "spec", None)
        named = getattr(self.source, "__qualname__", type(self.source).__name__)
        return {
            **super().settings,
            "source": spec or named,
            "max_candidates": self.max_candidates,
            "stop_words": self.stop_words,
        }


def _has_candidates(source: object) -> bool:
    # Not by isinstance, which would ask for the table and open its files.
    return hasattr(type(source), "candidates")
