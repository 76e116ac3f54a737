"""Questions as tables of windows, and the windows as batches."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..functional.question_answering import text_to_codes
from ..tokenization.question_windows import EncodedContext, QuestionWindows
from ..types import IGNORE_INDEX, Batch
from .example_collator import ExampleCollator
from .example_table import Columns, ExampleTable, Ragged
from .squad import Question
from .text_rows import BadRows

__all__ = ["AnswerCollator", "QuestionCollator", "encode_questions", "training_collator"]

_RAGGED = {"token_type_ids": 0}
_LABELS = {"start_positions": IGNORE_INDEX, "end_positions": IGNORE_INDEX}
_PLACES = {"question": -1, "context_start": 0, "null_positions": 0}
# Contexts that the tokenizer gets at once.
_AT_ONCE = 1000


def encode_questions(
    questions: Sequence[Question], windows: QuestionWindows, bad: BadRows
) -> Columns:
    """Cut questions into windows.

    Each window is a row: `input_ids` and `token_type_ids`; `start_positions` and `end_positions` of
    the first answer, both at the null token where the window does not hold it whole, -100 where the
    answers are not known; `char_start` and `char_end` of each token in the context, -1 outside;
    `null_positions`, the null token; `question`, its number; `context`, the part of it that the
    window covers, which begins at the character `context_start`; `answers`, the right ones as JSON;
    and `unlabelled`, whether they are not known.

    Args:
        questions: a context that several share is tokenized once.
        windows: makes rows of tokens.
        bad: told of an answer that has no token.
    """
    asked = windows.questions([question.question for question in questions])
    contexts = _encoded_contexts(questions, windows)
    rows: dict[str, list[NDArray[np.int64]]] = {
        name: [] for name in ("input_ids", "token_type_ids", "char_start", "char_end")
    }
    flat: dict[str, list[int]] = {name: [] for name in (*_PLACES, *_LABELS)}
    texts: dict[str, list[str]] = {"context": [], "answers": []}
    number = 0
    for question, ids in zip(questions, asked, strict=True):
        context = contexts[question.context]
        span = None
        if question.answers and (span := _answer_tokens(question, context.offsets)) is None:
            fault = (
                f"question {question.id!r}: the answer {question.answers[0].text!r} has no token"
            )
            bad(question.file, question.line, fault, "Correct the row")
            continue
        for window in windows(ids, context):
            inside = span is not None and window.first <= span[0] and span[1] < window.last
            move = window.column - window.first
            ends = (span[0] + move, span[1] + move) if span and inside else (window.null,) * 2
            place = np.full((len(window.ids), 2), -1)
            covered = context.offsets[window.first : window.last]
            place[window.column : window.column + len(covered)] = covered
            known = covered[covered[:, 0] >= 0]
            begin, stop = (known[0, 0], known[:, 1].max()) if len(known) else (0, 0)
            rows["input_ids"].append(np.array(window.ids))
            rows["token_type_ids"].append(np.array(window.types))
            rows["char_start"].append(place[:, 0])
            rows["char_end"].append(place[:, 1])
            flat["question"].append(number)
            flat["context_start"].append(int(begin))
            flat["null_positions"].append(window.null)
            for name, end in zip(_LABELS, ends, strict=True):
                flat[name].append(IGNORE_INDEX if question.answers is None else end)
            texts["context"].append(question.context[begin:stop])
            texts["answers"].append(json.dumps([answer.text for answer in question.answers or ()]))
        number += 1
    laid: dict[str, Any] = {name: _laid_end_to_end(column) for name, column in rows.items()}
    return {
        **laid,
        **{name: np.array(column, np.int64) for name, column in flat.items()},
        **texts,
        "unlabelled": np.array(flat["start_positions"]) == IGNORE_INDEX,
    }


def training_collator(table: ExampleTable, pad_id: int) -> ExampleCollator:
    """Return what makes batches to train on: windows and where the answer stands in each."""
    return ExampleCollator(table, pad_id, ragged=_RAGGED, flat=_LABELS)


class AnswerCollator:
    """Batches of windows to evaluate, with all that it takes to write and to score an answer.

    Args:
        table: as `encode_questions` has it.
        pad_id: id of the padding.
    """

    def __init__(self, table: ExampleTable, pad_id: int) -> None:
        self.table = table
        self._collate = ExampleCollator(
            table,
            pad_id,
            ragged={**_RAGGED, "char_start": -1, "char_end": -1},
            flat={**_LABELS, **_PLACES},
        )

    def __call__(self, epoch: int, rows: Tensor) -> Batch:
        """Return the batch of these windows, int64 `[B]`, -1 for a filler row.

        It has `input_ids`, `attention_mask`, `token_type_ids`, `char_start` and `char_end`, int64
        `[B, L]`; `start_positions`, `end_positions`, `null_positions`, `question`, `context_start`
        and `index`, int64 `[B]`; `context_codes`, int32 `[B, C]`, the characters that each window
        covers; and `answer_codes`, int32 `[B, A, T]`, the right answers, of which one of -1 alone
        is none.
        """
        batch = self._collate(epoch, rows)
        chosen = [int(row) for row in rows]
        contexts = [self.table.text("context", row) if row >= 0 else "" for row in chosen]
        answers = [json.loads(self.table.text("answers", r)) if r >= 0 else [] for r in chosen]
        count = max([1, *map(len, answers)])
        laid = [text for given in answers for text in [*given, *[""] * (count - len(given))]]
        codes = text_to_codes(laid)
        batch["context_codes"] = text_to_codes(contexts)
        batch["answer_codes"] = codes.reshape(len(chosen), count, -1)
        return batch


class QuestionCollator:
    """Batches of whole questions to predict on: all windows of each.

    Args:
        table: as `encode_questions` has it.
        pad_id: id of the padding.
    """

    def __init__(self, table: ExampleTable, pad_id: int) -> None:
        self._collate = AnswerCollator(table, pad_id)
        question = table.array("question")
        self.bounds = np.searchsorted(question, np.arange(int(question[-1]) + 2))

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __call__(self, epoch: int, rows: Tensor) -> Batch:
        """Return the batch of these questions, int64 `[Q]`, -1 for a filler.

        It is that of their windows, as `AnswerCollator` has it, with `index` `[Q]` of the questions
        and `owner`, int64 `[B]`, the place in `index` of each window's question.
        """
        owners, windows = [], []
        for place, row in enumerate(rows.tolist()):
            own = range(*self.bounds[row : row + 2]) if row >= 0 else [-1]
            windows += list(own)
            owners += [place] * len(own)
        batch = self._collate(epoch, torch.tensor(windows))
        return {**batch, "owner": torch.tensor(owners), "index": rows}


def _encoded_contexts(
    questions: Sequence[Question], windows: QuestionWindows
) -> Mapping[str, EncodedContext]:
    different = list(dict.fromkeys(question.context for question in questions))
    encoded: dict[str, EncodedContext] = {}
    for first in range(0, len(different), _AT_ONCE):
        some = different[first : first + _AT_ONCE]
        encoded.update(zip(some, windows.contexts(some), strict=True))
    return encoded


def _answer_tokens(question: Question, offsets: NDArray[np.int64]) -> tuple[int, int] | None:
    """Return the first and the last token that share a character with the first answer."""
    answer = (question.answers or ())[0]
    end = answer.start + len(answer.text)
    (tokens,) = np.nonzero((offsets[:, 0] < end) & (offsets[:, 1] > answer.start))
    return (int(tokens[0]), int(tokens[-1])) if len(tokens) else None


def _laid_end_to_end(rows: list[NDArray[np.int64]]) -> Ragged:
    bounds = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=bounds[1:])
    values = np.concatenate(rows) if rows else np.zeros(0, np.int64)
    return Ragged(values.astype(np.int32), bounds)
