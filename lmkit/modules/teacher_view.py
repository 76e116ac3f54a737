"""What teachers said of a batch, laid beside the scores of the student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..functional.distillation_teachers import (
    mix_binary_teachers,
    mix_teachers,
    mix_values,
    teacher_confidence,
)
from ..functional.distillation_top_k import TopK
from ..types import Batch
from .captures import Place
from .scores import Scores
from .teacher import TeacherFacts, class_order

__all__ = ["Alignment", "Said", "align", "attach", "mixture", "present", "said_of", "spread"]

# In a batch what a teacher said stands under this, its number, and the name of the tensor; what
# comes from a store has only the items and tokens that count, one after the other.
_PREFIX = "teacher"
_RUNS = "runs."


class Alignment(NamedTuple):
    """How a teacher's scores become the student's.

    Attributes:
        order: where the teacher has each class of the student; `None` for the same order.
        width: rows of the vocabulary that both have; `None` for all.
    """

    order: list[int] | None
    width: int | None


def align(ours: Sequence[str], vocabulary: int, tokens: int, facts: TeacherFacts) -> Alignment:
    """Compare the classes, or the vocabularies, of student and teacher.

    Args:
        ours: names of the student's classes; empty of a language model.
        vocabulary: rows of the student's language-model head; 0 without one.
        tokens: how many tokens the tokenizer has.
        facts: of the teacher.

    Raises:
        ValueError: the teacher has other classes, or a smaller vocabulary than there are tokens.
    """
    if not vocabulary:
        return Alignment(class_order(ours, facts.labels, facts.name), None)
    if vocabulary == facts.vocabulary:
        return Alignment(None, None)
    if min(vocabulary, facts.vocabulary) < tokens:
        raise ValueError(
            f"the teacher {facts.name} has a vocabulary of {facts.vocabulary}, the student one of "
            f"{vocabulary}, and the tokenizer {tokens} tokens: the same ids mean other words. "
            "Distil from the teacher's texts (sequence_level) or from hidden states instead"
        )
    # What is beyond the tokenizer's tokens is padding of the matrix.
    return Alignment(None, tokens)


def attach(batch: Batch, said: Sequence[Mapping[str, Tensor]]) -> Batch:
    """Add what each teacher said to a batch."""
    named = {f"{_PREFIX}.{n}.{name}": t for n, each in enumerate(said) for name, t in each.items()}
    return {**batch, **named}


class Said(NamedTuple):
    """What a teacher said, item by item and token by token.

    Attributes:
        logits: float `[N, ..., C]` in the order of the student's classes; `None` if not kept.
        top: the most probable of them, in place of all.
        inside: what was kept of its inside.
    """

    logits: Tensor | None
    top: TopK | None
    inside: dict[Place, Tensor]


def said_of(
    batch: Batch, number: int, scores: Scores, alignment: Alignment, places: Sequence[Place]
) -> Said:
    """Find what a teacher said of a batch.

    Args:
        batch: with what `attach` added.
        number: of the teacher.
        scores: of the student, which say what counts.
        alignment: of the teacher's scores with the student's.
        places: what is wanted of its inside.
    """
    start = f"{_PREFIX}.{number}."
    inside = {}
    for place in places:
        tokens = scores.tokens if place.stack != "decoder" else scores.written
        assert tokens is not None
        found = batch.get(f"{start}{place}")
        inside[place] = spread(batch[f"{start}{_RUNS}{place}"], tokens) if found is None else found
    if f"{start}{_RUNS}ids" in batch:
        parts = [batch[f"{start}{_RUNS}{name}"] for name in TopK._fields]
        top = TopK(*(spread(part, scores.valid) for part in parts))
        if alignment.order is not None:
            # Where the student has each class of the teacher.
            ours = torch.tensor(alignment.order, device=top.ids.device).argsort()
            top = top._replace(ids=ours[top.ids])
        return Said(None, top, inside)
    logits = batch.get(f"{start}logits")
    if (runs := batch.get(f"{start}{_RUNS}choices")) is not None:
        there = present(scores)
        each = spread(runs, there).masked_fill(~there.unsqueeze(-1), -torch.inf)
        logits = each.transpose(1, 2).reshape(scores.logits.shape)
    if logits is None and f"{start}{_RUNS}logits" in batch:
        logits = spread(batch[f"{start}{_RUNS}logits"], scores.valid)
    if logits is None:
        return Said(None, None, inside)
    if alignment.order is not None:
        logits = logits[..., alignment.order]
    return Said(logits[..., : alignment.width], None, inside)


def mixture(
    scores: Scores, said: Sequence[Said], weights: Any, temperature: float | None = 1.0
) -> Tensor:
    """Return the logits of all teachers together, of the shape of one's.

    Args:
        scores: of the student, which know what kind of scores they are, and the labels.
        said: by each teacher.
        weights: one a teacher, `"confidence"`, or `None` for all the same.
        temperature: at which the probabilities are averaged; `None` for the mean of the logits.
    """
    logits = [each.logits for each in said if each.logits is not None]
    if len(logits) == 1:
        return logits[0]
    if weights == "confidence":
        if scores.kind != "classes" or scores.labels is None:
            raise ValueError(
                "teacher_weights='confidence' is for classes: give one number for each teacher"
            )
        weights = teacher_confidence(logits, scores.labels)
    how = torch.ones(len(logits)) if weights is None else torch.as_tensor(weights)
    how = how.to(logits[0].device)
    if scores.kind == "value" or temperature is None:
        return mix_values(logits, how)
    mix = mix_teachers if scores.kind == "classes" else mix_binary_teachers
    return mix(logits, how, temperature)


def present(scores: Scores) -> Tensor:
    """Return which classes each item has, where each has its own: bool `[N, C]`."""
    first = scores.logits.reshape(len(scores.valid), -1, scores.logits.shape[-1])[:, 0]
    return (first > -torch.inf) & scores.valid.unsqueeze(1)


def spread(runs: Tensor, places: Tensor) -> Tensor:
    """Put the entries of a run where a mask is true, in order, and zeros elsewhere.

    Nothing waits for the device.

    Args:
        runs: `[n, ...]`, as many as there are true places.
        places: bool `[...]`.

    Example:
        >>> spread(torch.tensor([5.0, 6.0]), torch.tensor([[True, False], [False, True]])).tolist()
        [[5.0, 0.0], [0.0, 6.0]]
    """
    flat = places.flatten()
    if not len(runs):
        runs = runs.new_zeros(1, *runs.shape[1:])
    picked = runs[(flat.cumsum(0) - 1).clamp(min=0, max=len(runs) - 1)]
    kept = flat.reshape(-1, *[1] * (runs.ndim - 1))
    zeros = torch.zeros_like(picked)
    made: Tensor = torch.where(kept, picked, zeros).unflatten(0, places.shape)
    return made
