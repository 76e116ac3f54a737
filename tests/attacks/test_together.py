"""What many searches ask is answered to each of them."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
import torch

from lmkit.attacks.together import Answer, Ask, SimilarityTo, run_together


def angles(texts: Sequence[str]) -> torch.Tensor:
    """A vector for each text, by a number at its end."""
    numbers = torch.tensor([float(text.split()[-1]) for text in texts])
    return torch.stack([numbers.cos(), numbers.sin()], 1)


def test_each_text_is_compared_with_its_own_original() -> None:
    calls: list[list[str]] = []

    def encode(texts: Sequence[str]) -> torch.Tensor:
        calls.append(list(texts))
        return angles(texts)

    similarity = SimilarityTo(encode)
    asked = [
        Ask("similarities", "x 0.5", ("a 0.7", "b 1.5")),
        Ask("similarities", "y 2.0", ("c 2.1", "x 0.5")),
    ]
    first, second = similarity(asked)
    assert np.allclose(first, [np.cos(0.2), np.cos(1.0)], atol=1e-6)
    assert np.allclose(second, [np.cos(0.1), np.cos(1.5)], atol=1e-6)
    similarity([Ask("similarities", "y 2.0", ("d 3.0",))])
    # The vector of an original that is still attacked is known.
    assert calls == [["x 0.5", "a 0.7", "b 1.5", "y 2.0", "c 2.1"], ["d 3.0"]]


def test_searches_of_any_length_get_their_answers_in_shared_calls() -> None:
    calls: list[int] = []

    def predict(texts: Sequence[str]) -> Answer:
        calls.append(len(texts))
        return np.array([[float(text.split()[-1])] for text in texts])

    def search(number: int) -> Generator[Ask, Answer, float]:
        total = 0.0
        for turn in range(number % 3):
            near = yield Ask("similarities", f"x {number}", (f"x {number + turn}",))
            rows = yield Ask("probabilities", "", (f"p {number}", f"q {turn}"))
            assert np.allclose(near, np.cos(turn), atol=1e-6)
            total += float(rows.sum())
        return total

    ended: list[int] = []
    results = run_together(
        map(search, range(9)), predict, SimilarityTo(angles), 4, lambda: ended.append(1)
    )
    assert results == [sum(n + turn for turn in range(n % 3)) for n in range(9)]
    assert len(ended) == 9 and sum(calls) == 2 * 9 and len(calls) < 9
