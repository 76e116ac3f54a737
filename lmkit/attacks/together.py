"""Many searches at once: what all of them ask goes to the network in one call."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["Answer", "Ask", "Asked", "SimilarityTo", "run_together"]

Result = TypeVar("Result")
#: Probabilities `[N, C]` or similarities `[N]`, float64.
Answer = npt.NDArray[np.float64]
#: What a classifier reads: a text, or two.
Asked = str | tuple[str, str]


class Ask(NamedTuple):
    """What a search wants to know.

    Attributes:
        kind: the probabilities of texts, or how similar they are to `original`.
        original: the text that is attacked.
        texts: at least one; similarities are those of single texts.
    """

    kind: Literal["probabilities", "similarities"]
    original: str
    texts: tuple[Asked, ...]


class SimilarityTo:
    """Cosines of texts with an original each, all vectors of one call computed together.

    Args:
        encoder: from texts to vectors, `[N, H]`, such as `SentenceVectors`.
    """

    def __init__(self, encoder: Callable[[Sequence[str]], Tensor]) -> None:
        self._encoder, self._originals = encoder, dict[Asked, Tensor]()

    def __call__(self, asked: Sequence[Ask]) -> list[Answer]:
        """Return for each question the cosines of its texts."""
        originals = {ask.original for ask in asked}
        texts = dict.fromkeys(text for ask in asked for text in (ask.original, *ask.texts))
        new = [cast(str, text) for text in texts if text not in self._originals]
        vectors = torch.empty(0)
        if new:
            made = torch.as_tensor(self._encoder(new)).detach().double().cpu()
            vectors = torch.nn.functional.normalize(made, dim=-1)
        known: dict[Asked, Tensor] = {**self._originals, **dict(zip(new, vectors, strict=True))}
        # Of the texts only the originals are asked for again, and only while they are attacked.
        self._originals = {text: known[text] for text in originals}
        return [
            (torch.stack([known[text] for text in ask.texts]) @ known[ask.original]).numpy()
            for ask in asked
        ]


def run_together(
    searches: Iterator[Generator[Ask, Answer, Result]],
    predict: Callable[[Sequence[Asked]], Answer],
    similarity: SimilarityTo | None,
    at_once: int,
    done: Callable[[], Any] = lambda: None,
) -> list[Result]:
    """Run searches, and answer what all active ones ask with one call each round.

    A search is a generator that yields an `Ask`, is sent the answer, and returns its result. What
    it is told does not depend on the others, up to the rounding of the network in other batches.

    Args:
        searches: begun when there is room.
        predict: from texts to probabilities.
        similarity: may be `None` if no search asks for it.
        at_once: how many are active.
        done: called for each one that ends.

    Returns:
        The results, in the order of the searches.

    Example:
        >>> def search(text):
        ...     rows = yield Ask("probabilities", text, (text, text + "!"))
        ...     return float(rows.sum())
        >>> run_together(map(search, ["a", "bb", "c"]), lambda texts: np.array(
        ...     [[len(text)] for text in texts], float), None, at_once=2)
        [3.0, 5.0, 3.0]
    """
    results: dict[int, Result] = {}
    active: dict[int, tuple[Generator[Ask, Answer, Result], Ask]] = {}
    waiting = enumerate(searches)

    def advance(number: int, search: Generator[Ask, Answer, Result], answer: Answer | None) -> None:
        try:
            asked = next(search) if answer is None else search.send(answer)
        except StopIteration as stop:
            active.pop(number, None)
            results[number] = stop.value
            done()
        else:
            active[number] = search, asked

    while True:
        while len(active) < at_once and (following := next(waiting, None)) is not None:
            advance(*following, None)
        if not active:
            return [results[number] for number in sorted(results)]
        # Similarities first: most of those that ask for them ask for probabilities then.
        for kind in ("similarities", "probabilities"):
            asked = [(number, s, ask) for number, (s, ask) in active.items() if ask.kind == kind]
            if not asked:
                continue
            if kind == "similarities":
                assert similarity is not None
                answers = similarity([ask for *_, ask in asked])
            else:
                rows = predict([text for *_, ask in asked for text in ask.texts])
                ends = np.cumsum([len(ask.texts) for *_, ask in asked])
                answers = np.split(rows, ends[:-1])
            for (number, search, _), answer in zip(asked, answers, strict=True):
                advance(number, search, answer)
