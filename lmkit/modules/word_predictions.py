"""From the scores of pieces to tags of words, and from those to entities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from transformers import PretrainedConfig

from ..functional.tagging import detect_scheme, find_spans

__all__ = ["TaggedRow", "label_list", "outside_label", "read_rows", "row_record", "word_choices"]


class TaggedRow(NamedTuple):
    """The words of a sentence as the network tags them.

    Attributes:
        tags: one a word; `None` for a word that has no token.
        scores: probability of each, 0 for none.
    """

    tags: list[str | None]
    scores: list[float]


def label_list(config: PretrainedConfig) -> list[str]:
    """Return the names of the labels of a network, in order."""
    names: Mapping[Any, str] = config.id2label or {}
    return [str(names[number]) for number in sorted(names, key=int)]


def outside_label(labels: Sequence[str]) -> int | None:
    """Return the number of `O` where labels spell entities, `None` where they spell none.

    Example:
        >>> outside_label(["O", "B-PER", "I-PER"]), outside_label(["NOUN", "VERB"])
        (0, None)
    """
    spells = detect_scheme([labels]) != "none"
    return list(labels).index("O") if spells and "O" in labels else None


def word_choices(logits: Tensor, positions: Tensor) -> Tensor:
    """Return the most probable label of each word, by its first token.

    Args:
        logits: float `[B, L, C]`, or `[B, K, L, C]` of windows.
        positions: int64 `[B, W]`, where in its row (windows laid end to end) a word's first token
            is; -1 for none.

    Returns:
        int64 `[B, W]`; -1 for none.

    Example:
        >>> import torch
        >>> word_choices(torch.eye(3)[None], torch.tensor([[2, -1, 0]])).tolist()
        [[2, -1, 0]]
    """
    best = logits.argmax(-1).flatten(1)
    return best.gather(1, positions.clamp(min=0)).masked_fill(positions < 0, -1)


def read_rows(
    logits: Tensor, positions: Tensor, counts: Sequence[int], labels: Sequence[str]
) -> list[TaggedRow]:
    """Return the tags of the words of some sentences.

    Args:
        logits: as of `word_choices`.
        positions: as of `word_choices`.
        counts: words of each sentence.
        labels: names of the labels.
    """
    probabilities = logits.float().softmax(-1)
    best = probabilities.amax(-1).flatten(1).gather(1, positions.clamp(min=0))
    scores = best.masked_fill(positions < 0, 0.0).tolist()
    choices = word_choices(logits, positions).tolist()
    return [
        TaggedRow([labels[n] if n >= 0 else None for n in chosen[:count]], row[:count])
        for chosen, row, count in zip(choices, scores, counts, strict=True)
    ]


def row_record(
    row: TaggedRow,
    labels: Sequence[str],
    places: Sequence[tuple[int, int]] | None,
    text: str | None,
) -> dict[str, Any]:
    """Return the entities of a sentence, or where tags spell none, its words with their tags.

    Args:
        row: the tagged words.
        labels: names of the labels.
        places: the first character of each word in the text and the one behind it, if known.
        text: the text, if known.

    Returns:
        `entities`: a list of `type`, `score` (mean over the words), `start_word` and `end_word`,
        `start` and `end` (characters), `text`; or `words`: a list of `tag`, `score`, `start`,
        `end`, `text`. An end is the place behind the last one.

    Example:
        >>> row = TaggedRow(["B-LOC", "I-LOC", "O"], [0.9, 0.7, 1.0])
        >>> row_record(row, ["O", "B-LOC", "I-LOC"], [(0, 3), (4, 8), (9, 10)], "New York !")
        {'entities': [{'type': 'LOC', 'score': 0.8, 'start_word': 0, 'end_word': 2, 'start': 0,
         'end': 8, 'text': 'New York'}]}
    """

    def stretch(first: int, end: int) -> dict[str, Any]:
        if places is None:
            return {}
        found = {"start": places[first][0], "end": places[end - 1][1]}
        return found if text is None else {**found, "text": text[found["start"] : found["end"]]}

    if outside_label(labels) is None:
        return {
            "words": [
                {"tag": tag, "score": round(score, 6), **stretch(number, number + 1)}
                for number, (tag, score) in enumerate(zip(row.tags, row.scores, strict=True))
            ]
        }
    return {
        "entities": [
            {
                "type": kind,
                "score": round(sum(row.scores[first:end]) / (end - first), 6),
                "start_word": first,
                "end_word": end,
                **stretch(first, end),
            }
            for first, end, kind in find_spans([tag or "O" for tag in row.tags])
        ]
    }
