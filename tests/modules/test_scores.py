"""The items of every task: which count, where they stand, and what they stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lmkit.modules import MaskedLMModule, ReplacedTokenModule, TokenClassificationModule
from lmkit.modules.scores import real_tokens, row_scores, token_scores
from lmkit.types import IGNORE_INDEX, Batch, StepOutput
from tests import lessons, tiny
from tests.cases import named
from tests.lessons import Seen, fit

BY_EXAMPLE = ("sequence_classification", "pairs", "regression", "multi_label", "multiple_choice")


def scored(name: str, folder: Path, **data: Any) -> tuple[Any, Batch, Any, Any]:
    """A module, a training batch of it, the output of its step, and the scores."""
    module, seen = lessons.student(name, learning_rate=0.0), Seen()
    fit(module, lessons.data(name, folder, **data), seen, max_steps=1)
    batch = module.prepare(seen.batches[0])
    module.eval()
    with torch.no_grad():
        output = module.step(batch)
    return module, batch, output, module.scores(output, batch)


@pytest.mark.parametrize("name", lessons.LESSONS)
def test_items_are_those_of_the_loss_and_shares_add_up_to_them(name: str, tmp_path: Path) -> None:
    _, batch, output, scores = scored(name, tmp_path)
    assert int(scores.valid.sum()) == int(output.items)
    assert float(scores.shares.sum()) == pytest.approx(float(output.items))
    items, rows = len(scores.valid), len(scores.tokens)
    assert scores.logits.shape[0] == items == len(scores.rows)
    assert scores.shares.shape == (rows,) and 0 <= int(scores.rows.min()) <= int(scores.rows.max())
    assert int(scores.rows.max()) < rows
    tokens = batch["attention_mask"].reshape(rows, -1).bool()
    assert torch.equal(scores.tokens & tokens, scores.tokens)
    if name != "multiple_choice":
        counted = torch.bincount(scores.rows[scores.valid], minlength=rows)
        assert torch.equal(scores.shares, counted.float())
    if scores.kind == "classes" and name != "question_answering":
        probabilities = scores.logits[scores.valid].double().log_softmax(-1)
        labels = scores.labels[scores.valid]
        loss = -probabilities.gather(1, labels.unsqueeze(1)).mean()
        assert float(loss) == pytest.approx(float(output.loss), rel=1e-5)


@pytest.mark.parametrize("name", BY_EXAMPLE)
def test_a_filler_is_no_item(name: str, tmp_path: Path) -> None:
    module, batch, _, _ = scored(name, tmp_path)
    filled = {n: torch.cat([t, t[:2]]) for n, t in batch.items()}
    filled["index"][-2:] = -1
    scores = module.scores(module.step(filled), filled)
    assert scores.valid.tolist() == [True] * len(batch["index"]) + [False] * 2
    assert float(scores.shares.sum()) == len(batch["index"])
    assert not scores.tokens[-1].any()


def test_an_example_without_a_label_is_an_item() -> None:
    ids = torch.tensor([[5, 6], [7, 0], [0, 0]])
    batch = {
        "input_ids": ids,
        "attention_mask": (ids > 0).long().index_fill(0, torch.tensor([2]), 1),
        "labels": torch.tensor([1, IGNORE_INDEX, IGNORE_INDEX]),
        "index": torch.tensor([4, 9, -1]),
    }
    scores = row_scores("classes", torch.zeros(3, 2), batch)
    assert scores.valid.tolist() == [True, True, False]
    assert real_tokens(batch).sum(1).tolist() == [2, 1, 0]
    assert row_scores("labels", torch.zeros(3, 2), batch).labels is None


def test_of_a_sentence_without_tags_all_pieces_count_and_of_others_the_tagged() -> None:
    none = IGNORE_INDEX
    batch = {
        "input_ids": torch.arange(16).reshape(2, 8),
        "attention_mask": torch.ones(2, 8, dtype=torch.int64),
        "labels": torch.tensor(
            [[none, 1, none, none, none, none, none, none], [none, 0, 2, none] + [none] * 4]
        ),
        "segment_ids": torch.tensor([[1, 1, 1, 2, 2, 2, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0]]),
        "index": torch.tensor([0, 3]),
    }
    scores = token_scores(torch.zeros(2, 8, 3), batch)
    expected = torch.zeros(2, 8, dtype=torch.bool)
    expected[0, [1, 3, 4, 5]] = True
    expected[1, [1, 2]] = True
    assert torch.equal(scores.valid.reshape(2, 8), expected)
    assert scores.shares.tolist() == [4.0, 2.0]


def test_a_row_of_tags_without_index_or_segments_counts_too() -> None:
    batch = {
        "input_ids": torch.tensor([[5, 6, 0]]),
        "attention_mask": torch.tensor([[1, 1, 0]]),
        "labels": torch.full((1, 3), IGNORE_INDEX),
    }
    assert token_scores(torch.zeros(1, 3, 2), batch).valid.tolist() == [True, True, False]


def test_windows_of_sentences_are_rows(tmp_path: Path) -> None:
    module = TokenClassificationModule({**tiny.MASKED["bert"], **named("O", "B-X", "I-X")})
    data = lessons.data("token_classification", tmp_path, max_length=8)
    fit(module, data, max_steps=1)
    batches = [b for b in data.val_dataloader() if b["input_ids"].dim() == 3]
    assert any(b["input_ids"].shape[1] > 1 for b in batches)
    for batch in batches:
        output = module.step(batch)
        scores = module.scores(output, batch)
        assert scores.logits.shape == (batch["labels"].numel(), 3)
        assert torch.equal(scores.labels, batch["labels"].flatten())
        # Each window of a sentence with tags has a tagged piece, or it would count in full.
        assert int(scores.valid.sum()) == int(output.items)
        assert len(scores.shares) == batch["input_ids"].shape[0] * batch["input_ids"].shape[1]


def test_the_slots_that_no_label_needs_are_no_items() -> None:
    module = MaskedLMModule({**tiny.MASKED["bert"], "vocab_size": 99})
    module.configure_model()
    batch = tiny.masked_batch()
    whole = module.scores(module.step(batch), batch)
    labelled = (batch["labels"] != IGNORE_INDEX).int()
    columns = labelled.argsort(dim=1, descending=True, stable=True)
    slots = {**batch, "label_positions": columns[:, :6]}
    same = module.scores(module.step(slots), slots)
    assert len(same.valid) == 24 and int(same.valid.sum()) == int(whole.valid.sum())
    assert torch.equal(same.shares, whole.shares)
    assert sorted(same.labels[same.valid].tolist()) == sorted(whole.labels.tolist())


def test_an_objective_that_says_nothing_of_its_scores_is_named() -> None:
    module = ReplacedTokenModule(tiny.MASKED["electra"])
    with pytest.raises(NotImplementedError, match="ReplacedTokenModule does not say"):
        module.scores(StepOutput(torch.zeros(()), torch.zeros(())), {})
