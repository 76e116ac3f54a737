"""Figures of answers do not depend on where the windows of a question fell."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lmkit.modules.answer_metrics import AnswerFigures, AnswerMean


def windows(count: int = 60, questions: int = 17, seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    question = torch.randint(questions, (count,), generator=draw)
    answerable = (torch.arange(questions) % 3 > 0)[question]
    return {
        "question": question,
        "span_score": torch.randn(count, generator=draw),
        "exact": torch.randint(2, (count,), generator=draw).float() * answerable,
        "f1": torch.rand(count, generator=draw) * answerable,
        "null_score": torch.randn(count, generator=draw),
        "null_credit": (~answerable).float(),
        "answerable": answerable,
    }


def expected(rows: dict[str, Tensor], threshold: float | None) -> dict[str, list[tuple]]:  # type: ignore[type-arg]
    groups: dict[str, list[tuple[float, float]]] = {"all": [], "has_answer": [], "no_answer": []}
    for question in set(rows["question"].tolist()):
        own = [i for i, q in enumerate(rows["question"].tolist()) if q == question]
        best = max(own, key=lambda i: float(rows["span_score"][i]))
        pair = (float(rows["exact"][best]), float(rows["f1"][best]))
        null = min(float(rows["null_score"][i]) for i in own)
        if threshold is not None and null - float(rows["span_score"][best]) > threshold:
            pair = (float(rows["null_credit"][best]),) * 2
        groups["all"].append(pair)
        groups["has_answer" if rows["answerable"][best] else "no_answer"].append(pair)
    return groups


def fed(metric: AnswerFigures, rows: dict[str, Tensor], order: Tensor, size: int) -> AnswerFigures:
    for part in order.split(size):
        metric.update(**{name: column[part] for name, column in rows.items()})
    return metric


@pytest.mark.parametrize("threshold", [None, 0.0, -0.7])
def test_figures_are_those_of_questions_put_together_by_hand(threshold: float | None) -> None:
    rows = windows()
    figures = fed(AnswerFigures(threshold), rows, torch.arange(60), 7).compute()
    for name, pairs in expected(rows, threshold).items():
        assert figures[name]["questions"] == len(pairs)
        exact, f1 = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
        assert figures[name]["exact_match"] == pytest.approx(exact)
        assert figures[name]["f1"] == pytest.approx(f1)


def test_any_order_and_any_batch_size_give_the_same() -> None:
    rows = windows(seed=1)
    one = fed(AnswerFigures(0.1), rows, torch.arange(60), 60).compute()
    for seed, size in enumerate((1, 4, 59)):
        order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
        assert fed(AnswerFigures(0.1), rows, order, size).compute() == one


def test_a_mean_is_that_of_all_questions_and_fillers_do_not_count() -> None:
    rows = windows(seed=2)
    figures = fed(AnswerFigures(0.0), rows, torch.arange(60), 8).compute()
    rows = {name: torch.cat([column, column[:5]]) for name, column in rows.items()}
    rows["question"][-5:] = -1
    for name in ("exact_match", "f1"):
        mean = fed(AnswerMean(name, 0.0), rows, torch.arange(65), 8).compute()  # type: ignore[arg-type]
        assert float(mean) == pytest.approx(figures["all"][name])


def test_fillers_alone_score_nothing() -> None:
    fillers = {name: column[:2] for name, column in windows().items()}
    fillers["question"] = torch.tensor([-1, -1])
    assert float(fed(AnswerMean("f1"), fillers, torch.arange(2), 1).compute()) == 0.0
    nothing = fed(AnswerFigures(), fillers, torch.arange(2), 2).compute()
    assert nothing == {"all": {"questions": 0.0, "exact_match": 0.0, "f1": 0.0}}


def test_without_a_threshold_every_question_is_answered() -> None:
    metric = AnswerMean("f1")
    one = torch.ones(1)
    metric.update(torch.tensor([0]), one, one, one * 0.5, null_score=one * 9, null_credit=one * 0)
    assert float(metric.compute()) == 0.5
