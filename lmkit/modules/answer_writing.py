"""From the spans of windows to the answers of questions."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..functional.question_answering import Spans, codes_to_text, text_to_codes
from ..tokenization.question_windows import QuestionWindows
from ..types import Batch

__all__ = ["Found", "window_batch", "write_answers"]


class Found(NamedTuple):
    """What a network finds in windows.

    Attributes:
        spans: the best ones of each window, `[B, N]`.
        null: float32 `[B]`, the score of no answer in each.
    """

    spans: Spans
    null: Tensor


def window_batch(
    windows: QuestionWindows, question: str, context: str, device: torch.device
) -> Batch:
    """Return the batch of all windows of one question, as the data module makes it.

    Raises:
        ValueError: the question has no token.
    """
    (ids,), (encoded,) = windows.questions([question]), windows.contexts([context])
    if not ids:
        raise ValueError(f"the question {question!r} is blank")
    rows = windows(ids, encoded)
    places = []
    for row in rows:
        place = torch.full((len(row.ids), 2), -1)
        covered = torch.from_numpy(encoded.offsets[row.first : row.last])
        place[row.column : row.column + len(covered)] = covered
        places.append(place)
    tokens = [torch.tensor(row.ids) for row in rows]
    place = pad_sequence(places, batch_first=True, padding_value=-1)
    types = [torch.tensor(row.types) for row in rows]
    batch = {
        # What stands in the padding is not looked at.
        "input_ids": pad_sequence(tokens, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(t) for t in tokens], batch_first=True),
        "token_type_ids": pad_sequence(types, batch_first=True),
        "char_start": place[..., 0],
        "char_end": place[..., 1],
        "null_positions": torch.tensor([row.null for row in rows]),
        "context_start": torch.zeros(len(rows), dtype=torch.int64),
        "context_codes": text_to_codes([context]).expand(len(rows), -1),
        "owner": torch.zeros(len(rows), dtype=torch.int64),
    }
    return {name: tensor.to(device) for name, tensor in batch.items()}


def write_answers(
    batch: Batch, found: Found, questions: int, null_threshold: float | None
) -> list[dict[str, Any]]:
    """Write the answer to each question from the spans of all its windows.

    Args:
        batch: `char_start` and `char_end`, int64 `[B, L]`; `context_codes` `[B, C]`, which begins
            at the character `context_start` `[B]`; `owner` `[B]`, the question of each window.
        found: what the network finds in the windows.
        questions: how many there are.
        null_threshold: as of `QuestionAnsweringModule`.

    Returns:
        What `QuestionAnsweringModule.predict_step` says.
    """
    spans = found.spans
    first = batch["char_start"].gather(1, spans.start).tolist()
    last = batch["char_end"].gather(1, spans.end).tolist()
    shift, codes = batch["context_start"].tolist(), batch["context_codes"].cpu()
    texts = [codes_to_text(row) for row in codes]
    candidates: list[dict[tuple[int, int], tuple[float, str]]] = [{} for _ in range(questions)]
    null = [float("inf")] * questions
    for row, owner in enumerate(batch["owner"].tolist()):
        null[owner] = min(null[owner], float(found.null[row]))
        for begin, stop, score in zip(
            first[row], last[row], spans.score[row].tolist(), strict=True
        ):
            text = texts[row][begin - shift[row] : stop - shift[row]]
            # Windows overlap: what two of them hold is one candidate.
            known = candidates[owner].get((begin, stop))
            if score > float("-inf") and (known is None or score > known[0]):
                candidates[owner][begin, stop] = (score, text)
    count = spans.score.shape[1]
    return [
        _written(own, none, count, null_threshold)
        for own, none in zip(candidates, null, strict=True)
    ]


def _written(
    candidates: dict[tuple[int, int], tuple[float, str]],
    null: float,
    count: int,
    threshold: float | None,
) -> dict[str, Any]:
    rows: list[dict[str, Any]] = [
        {"answer": text, "start": begin, "end": stop, "logit": logit}
        for (begin, stop), (logit, text) in candidates.items()
    ]
    rows.sort(key=lambda row: -row["logit"])
    del rows[count:]
    none: dict[str, Any] = {"answer": "", "start": None, "end": None, "logit": null}
    difference = null - rows[0]["logit"] if rows else float("inf")
    if threshold is not None or not rows:
        rows = sorted([*rows, none], key=lambda row: -row["logit"])
    logits = torch.tensor([row["logit"] for row in rows], dtype=torch.float64)
    for row, score in zip(rows, logits.softmax(0).tolist(), strict=True):
        row["score"] = score
    is_none = threshold is not None and difference > threshold
    best = next((row for row in rows if (row["start"] is None) == is_none), rows[0])
    written = {name: best[name] for name in ("answer", "start", "end", "score")}
    if threshold is not None:
        written["null_difference"] = difference
    return {**written, "answers": rows}
