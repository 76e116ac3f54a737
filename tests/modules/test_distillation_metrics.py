"""How near a student is to its teacher, counted by hand."""

from __future__ import annotations

import torch

from lmkit.modules.distillation_metrics import agreement_of
from lmkit.modules.scores import Scores


def scores(kind: str, logits: torch.Tensor, valid: list[bool]) -> Scores:
    rows = torch.arange(len(logits))
    tokens, count = torch.ones(len(logits), 1, dtype=torch.bool), torch.tensor(valid)
    return Scores(kind, logits, count, None, rows, tokens, count.float())  # type: ignore[arg-type]


def test_labels_agree_where_all_of_an_example_are_decided_alike() -> None:
    ours = torch.tensor([[2.0, -1.0], [2.0, -1.0], [2.0, -1.0]])
    theirs = torch.tensor([[0.1, -9.0], [0.1, 0.2], [0.1, -9.0]])
    same = agreement_of(scores("labels", ours, [True, True, False]), theirs)
    assert same is not None and same.tolist() == [True, False, False]


def test_classes_agree_where_the_most_probable_is_one_and_values_never_decide() -> None:
    ours, theirs = torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([[9.0, 1.0], [2.0, 1.0]])
    same = agreement_of(scores("classes", ours, [True, True]), theirs)
    assert same is not None and same.tolist() == [True, False]
    assert agreement_of(scores("value", ours, [True, True]), theirs) is None
