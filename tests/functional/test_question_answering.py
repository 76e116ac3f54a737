"""The best span against a search over all pairs, the scores against the scripts' definition."""

from __future__ import annotations

import random
import re
import string

import pytest
import torch
from torch.nn.functional import cross_entropy

from lmkit.functional.question_answering import (
    AnswerScore,
    best_spans,
    codes_to_text,
    normalize_answer,
    score_answer,
    score_answer_or_none,
    span_loss,
    text_to_codes,
)


def rows(count: int, length: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    start, end = torch.randn(2, count, length, generator=draw)
    return start, end, torch.rand(count, length, generator=draw) < 0.7


@pytest.mark.parametrize("longest", [1, 3, 50])
def test_best_spans_are_those_of_a_search_over_all_pairs(longest: int) -> None:
    start, end, allowed = rows(6, 11, seed=longest)
    allowed[2] = False
    found = best_spans(start, end, allowed, longest, count=5)
    for row in range(6):
        pairs = [
            (float(start[row, i] + end[row, j]), i, j)
            for i in range(11)
            for j in range(i, min(i + longest, 11))
            if allowed[row, i] and allowed[row, j]
        ]
        best = sorted(pairs, reverse=True)[:5]
        real = found.score[row].isfinite()
        ours = zip(found.start[row][real], found.end[row][real], strict=True)
        assert [(int(i), int(j)) for i, j in ours] == [(i, j) for _, i, j in best]
        assert found.score[row][real].tolist() == pytest.approx([score for score, _, _ in best])


def test_a_row_without_an_allowed_token_has_no_span_and_stays_inside() -> None:
    start, end, allowed = rows(2, 5, seed=3)
    found = best_spans(start, end, allowed & False, 4, count=20)
    assert found.score.isneginf().all() and found.end.max() < 5


def test_the_logits_of_a_span_give_that_span() -> None:
    for first, last in ((0, 0), (2, 5), (6, 6)):
        start, end = torch.zeros(2, 1, 7)
        start[0, first] = end[0, last] = 10.0
        best = best_spans(start, end, torch.ones(1, 7, dtype=torch.bool), 7)
        assert (best.start.item(), best.end.item()) == (first, last)


def test_spans_move_with_their_row() -> None:
    start, end, allowed = rows(1, 9, seed=4)
    here = best_spans(start, end, allowed, 4, count=3)
    there = best_spans(*(tensor.roll(2, 1) for tensor in _framed(start, end, allowed)), 4, count=3)
    assert torch.equal(there.start, here.start + 2) and torch.equal(there.end, here.end + 2)


def _framed(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [torch.cat([t, t.new_zeros(1, 2)], 1) for t in tensors]


@pytest.mark.parametrize("settings", [{"max_answer_length": 0}, {"count": 0}])
def test_no_length_and_no_span_are_refused(settings: dict[str, int]) -> None:
    start, end, allowed = rows(1, 4, seed=0)
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must be at least 1, got 0"):
        best_spans(start, end, allowed, **{"max_answer_length": 3, **settings})


def test_loss_is_half_of_both_cross_entropies() -> None:
    start, end, _ = rows(5, 8, seed=1)
    first, last = torch.tensor([0, 3, -100, 7, 2]), torch.tensor([1, 3, -100, 7, 6])
    loss, count = span_loss(start, end, first, last)
    expected = (cross_entropy(start, first) + cross_entropy(end, last)) / 2
    assert count == 4 and torch.allclose(loss, expected)


def test_padding_takes_no_share_of_the_loss() -> None:
    start, end, _ = rows(3, 6, seed=2)
    label = torch.tensor([1, 0, 5])
    wide = [torch.cat([t, torch.full((3, 4), -torch.inf)], 1) for t in (start, end)]
    assert torch.equal(span_loss(start, end, label, label)[0], span_loss(*wide, label, label)[0])


def test_rows_without_a_label_have_no_loss_and_no_gradient() -> None:
    start = torch.randn(2, 5, requires_grad=True)
    none = torch.tensor([-100, -100])
    padding = torch.arange(5) > torch.tensor([[4], [2]])
    for logits in (start, start.masked_fill(padding, -torch.inf)):
        start.grad = None
        loss, count = span_loss(logits, logits, none, none)
        loss.backward()
        assert loss == 0 and count == 0 and start.grad is not None and not start.grad.any()


# The definition of the two scripts, written out once more and on its own: words as sorted lists,
# articles found word by word, and precision and recall by taking words away.
def reference_words(text: str) -> list[str]:
    kept = "".join(" " if c.isspace() else c for c in text.lower() if c not in string.punctuation)
    # An article stands between characters that are no letters, digits or underscores.
    pieces = re.split(r"(\W+)", kept)
    kept = "".join(" " if piece in ("a", "an", "the") else piece for piece in pieces)
    return kept.split()


def reference_f1(ours: list[str], gold: list[str], version: int) -> float:
    if version == 2 and (not ours or not gold):
        return float(ours == gold)
    left, same = list(gold), 0
    for word in ours:
        if word in left:
            left.remove(word)
            same += 1
    if same == 0:
        return 0.0
    precision, recall = same / len(ours), same / len(gold)
    return 2 * precision * recall / (precision + recall)


def reference(prediction: str, answers: list[str], version: int) -> tuple[float, float]:
    ours = reference_words(prediction)
    golds = [reference_words(answer) for answer in answers]
    if version == 2:
        golds = [gold for gold in golds if gold] or [[]]
    exact = max(float(" ".join(ours) == " ".join(gold)) for gold in golds)
    return exact, max(reference_f1(ours, gold, version) for gold in golds)


WORDS = [
    "a",
    "The",
    "an",
    "cat",
    "Cat's",
    "the-cat",
    "U.S.",
    "é",
    "—",
    "_a",
    "5%",
    "(an)",
    "",
    "A.",
]


def sentence(draw: random.Random) -> str:
    return draw.choice([" ", "  ", "\t", "\u00a0"]).join(draw.choices(WORDS, k=draw.randint(0, 5)))


@pytest.mark.parametrize(("version", "score"), [(1, score_answer), (2, score_answer_or_none)])
def test_scores_equal_the_official_definition(version: int, score) -> None:  # type: ignore[no-untyped-def]
    draw = random.Random(version)
    for _ in range(3000):
        prediction = sentence(draw)
        answers = [sentence(draw) for _ in range(draw.randint(version == 1, 3))]
        assert normalize_answer(prediction).split() == reference_words(prediction)
        expected = reference(prediction, answers, version)
        assert score(prediction, answers) == pytest.approx(expected), (prediction, answers)


def test_the_two_scripts_differ_where_nothing_is_left_of_an_answer() -> None:
    assert score_answer("a", ["the"]) == AnswerScore(1.0, 0.0)
    assert score_answer_or_none("a", ["the"]) == AnswerScore(1.0, 1.0)
    assert score_answer_or_none("cat", ["the"]) == AnswerScore(0.0, 0.0)


def test_a_right_answer_scores_one_whatever_its_articles_and_signs() -> None:
    assert score_answer("Bank of  England", ["the bank, of England!"]) == AnswerScore(1.0, 1.0)


def test_texts_come_back_from_their_codes() -> None:
    texts = ["", "naïve 🙂 \U0010ffff", "a\x00b\n", "lone \ud800"]
    assert [codes_to_text(row) for row in text_to_codes(texts)] == texts
    assert text_to_codes([]).shape == (0, 1)
