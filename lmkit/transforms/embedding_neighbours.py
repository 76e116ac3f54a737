"""Words replaced by those that a model's own table of embeddings holds near."""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .arguments import check_rate, check_whole
from .base import WordTransform
from .candidates import Candidates
from .changes import Change
from .model_digest import model_digest
from .random_words import choose
from .stop_words import STOP_WORDS

__all__ = ["EmbeddingNeighbours", "WordVectors", "nearest_words"]


class WordVectors(NamedTuple):
    """Vectors of words.

    Attributes:
        words: the words, `W` of them.
        places: where each stands among them.
        vectors: float32 `[W, H]`, each of length 1.
    """

    words: list[str]
    places: dict[str, int]
    vectors: NDArray[np.float32]


def nearest_words(
    vectors: WordVectors, word: str, count: int, least: float
) -> list[tuple[str, float]]:
    r"""Return the nearest words by their cosine, the nearest first; ties in the words' order.

    Words that are the same but for capitals do not count.

    Args:
        vectors: of the words.
        word: one of them; another one has no neighbours.
        count: how many at most.
        least: the smallest cosine.

    Example:
        >>> table = np.array([[1, 0], [0.6, 0.8], [0.8, 0.6]], dtype=np.float32)
        >>> vectors = WordVectors(["a", "b", "c"], {"a": 0, "b": 1, "c": 2}, table)
        >>> [(word, round(cosine, 1)) for word, cosine in nearest_words(vectors, "a", 2, 0.7)]
        [('c', 0.8)]
    """
    place = vectors.places.get(word)
    if place is None:
        return []
    cosines = vectors.vectors @ vectors.vectors[place]
    cosines[place] = -2.0
    # Some more than are asked for, for those that are the same word.
    most = min(count + 4, len(cosines))
    near = np.argpartition(-cosines, most - 1)[:most]
    ordered = near[np.lexsort((near, -cosines[near]))].tolist()
    found = [(vectors.words[i], float(cosines[i])) for i in ordered]
    found = [(w, c) for w, c in found if c >= least and w.lower() != word.lower()]
    return found[:count]


@lru_cache(maxsize=2)
def _vectors_of(model: str) -> WordVectors:
    # Slow to import, and only needed here.
    import torch
    from transformers import AutoModel

    from ..tokenization import load_tokenizer
    from .whole_words import whole_words

    known = whole_words(load_tokenizer(model))
    try:
        network = AutoModel.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ValueError(f"model: {model!r} cannot be loaded: {error}") from error
    table: Any = network.get_input_embeddings()
    ids = [i for i in known.values() if i < table.weight.shape[0]]
    words = [word for word, i in known.items() if i < table.weight.shape[0]]
    if not ids:
        raise ValueError(
            f"model: the tokenizer of {model!r} has no whole words (it may be one of bytes or "
            "letters), so there are no neighbours of words"
        )
    with torch.no_grad():
        rows = table.weight[torch.tensor(ids)].float().numpy()
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = (rows / np.maximum(lengths, 1e-12)).astype(np.float32)
    return WordVectors(words, {word: place for place, word in enumerate(words)}, unit)


class EmbeddingNeighbours(WordTransform):
    r"""Replaces words by near ones in the model's own table of input embeddings.

    Each word that is whole in the vocabulary, and no stop word, goes with probability `rate`; what
    comes is drawn from the `top_k` whole words with the largest cosine, all as likely. Other tools
    take a table of GloVe or word2vec for this; here it is that of the model which is trained, and
    nothing is downloaded beside it. Neighbours share a topic, not always a meaning: `good` and
    `bad` are near. Nothing is read before the first use, and once in a process.

    Args:
        model: a folder or a name of the Hugging Face hub.
        rate: of a word that may be changed, in `[0, 1]`.
        top_k: how many neighbours, at least 1.
        least_cosine: neighbours farther off than this do not count, in `[0, 1]`.

    Raises:
        ValueError: a number lies outside its range; at first use, there is no such model.

    Example:
        >>> EmbeddingNeighbours("some/model", top_k=5).top_k
        5
    """

    def __init__(
        self, model: str, rate: float = 0.1, top_k: int = 10, least_cosine: float = 0.4
    ) -> None:
        if not isinstance(model, str):
            raise ValueError(f"model must be a folder or a hub name, got {model!r}")
        check_rate("rate", rate)
        check_whole("top_k", top_k, 1)
        check_rate("least_cosine", least_cosine)
        self.model, self.rate = model, rate
        self.top_k, self.least_cosine = top_k, least_cosine

    @cached_property
    def candidates(self) -> Candidates:
        """The neighbours of each word, the nearest first."""
        vectors = _vectors_of(self.model)

        def find(word: str) -> list[str]:
            if word in STOP_WORDS:
                return []
            return [w for w, _ in nearest_words(vectors, word, self.top_k, self.least_cosine)]

        return Candidates(find)

    def sources(self) -> dict[str, str]:
        """Return the digest of the model's files."""
        return {"model": model_digest(self.model)}

    def changes(
        self,
        words: list[str],
        free: list[int],
        rng: np.random.Generator,
        strength: float,
        groups: list[int] | None,
    ) -> list[Change]:
        """Draw words, and a neighbour of each."""
        table = self.candidates
        made = []
        for place, share in zip(*choose(self.rate * strength, free, rng), strict=True):
            if found := table[words[place]]:
                new = found[int(share * len(found))]
                made.append(Change("substitute", place, place + 1, [new]))
        return made
