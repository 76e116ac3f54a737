"""The losses between the attention of a student and that of a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..functional.distillation_relations import (
    attention_divergence,
    relation_divergence,
    relation_heads,
)
from ..functional.layer_map import layer_pairs
from .captures import Captures, Kind
from .feature_losses import FeatureLoss, Pairs
from .scores import Scores

__all__ = ["AttentionLoss", "RelationLoss"]


@dataclass(frozen=True, kw_only=True)
class AttentionLoss(FeatureLoss):
    r"""The divergence of attention maps, $\mathrm{KL}(A^T \parallel A^S)$ of each real query.

    Heads are averaged where the networks have different numbers of them. The maps are those before
    dropout; to have them, both networks compute attention by plain products.

    Args:
        layers: the map from the student's to the teacher's layers, as of `HiddenLoss`, but for the
            embeddings, and not `dynamic`.
        stack: `"encoder"` or `"decoder"` of an encoder-decoder, which has two.
        teacher: which of several teachers, from 0.
        weight: factor of the loss, at least 0.
        final_weight: what the weight moves to from `start` to `stop`.
        start: share of the run from which on the loss counts.
        stop: share of the run up to which it counts.
    """

    word: ClassVar[str] = "attention"

    layers: Literal["uniform", "last", "skip"] | list[list[int]] = "uniform"

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Return the maps."""
        return ("attention",)

    def pairs(self, student: int, teacher: int) -> Pairs:
        """Return the map's pairs without the embeddings.

        Raises:
            ValueError: no pair is left, or one is of a layer with the embeddings.
        """
        among = all if isinstance(self.layers, str) else any
        found = [pair for pair in layer_pairs(student, teacher, self.layers) if among(pair)]
        if not found or not all(map(all, found)):
            raise ValueError(
                f"AttentionLoss: layers={self.layers!r} gives the pairs {found}, and embeddings "
                "(0) have no attention: name pairs of layers, counted from 1"
            )
        return found

    def compare(
        self,
        student: Captures,
        teacher: Captures,
        scores: Scores,
        pairs: Pairs,
        projections: Mapping[str, Tensor],
    ) -> Tensor:
        """Return the divergence of each row, float `[R]`."""
        places = zip(self.student_places(pairs), self.teacher_places(pairs), strict=True)
        tokens = self.tokens(scores)
        each = [attention_divergence(student[one], teacher[two], tokens) for one, two in places]
        return torch.stack(each).mean(0)


@dataclass(frozen=True, kw_only=True)
class RelationLoss(FeatureLoss):
    r"""The divergence of the relations of queries, keys and values (MiniLMv2, arXiv:2012.15828).

    Of one layer each: $X \in \{Q, K, V\}$ is cut anew into heads of width $d_r$, and
    $\mathrm{KL}$ compares $\operatorname{softmax}(X X^\top / \sqrt{d_r})$ of teacher and student,
    row by row. Neither width nor number of heads has to agree, and attention stays as fast as it
    is. It reaches no weight behind the projections of the student's layer: with no other loss these
    are not trained.

    Args:
        student_layer: from 1; negative numbers count from the end.
        teacher_layer: likewise. The last is best for a teacher of 12 layers, an upper one for 24.
        heads: into how many heads; by default as many as divide both widths, up to 48.
        stack: `"encoder"` or `"decoder"` of an encoder-decoder, which has two.
        teacher: which of several teachers, from 0.
        weight: factor of the loss, at least 0.
        final_weight: what the weight moves to from `start` to `stop`.
        start: share of the run from which on the loss counts.
        stop: share of the run up to which it counts.
    """

    word: ClassVar[str] = "relations"

    student_layer: int = -1
    teacher_layer: int = -1
    heads: int | None = None

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Return the three projections."""
        return ("query", "key", "value")

    def pairs(self, student: int, teacher: int) -> Pairs:
        """Return the one pair."""
        wanted = (self.student_layer, student), (self.teacher_layer, teacher)
        first, second = (number if number > 0 else total + number + 1 for number, total in wanted)
        if not (1 <= first <= student and 1 <= second <= teacher):
            raise ValueError(
                f"RelationLoss: there is no pair of layers {self.student_layer} and "
                f"{self.teacher_layer}: the student has {student} layers and the teacher {teacher}"
            )
        return [(first, second)]

    def compare(
        self,
        student: Captures,
        teacher: Captures,
        scores: Scores,
        pairs: Pairs,
        projections: Mapping[str, Tensor],
    ) -> Tensor:
        """Return the divergence of each row, float `[R]`."""
        places = zip(self.student_places(pairs), self.teacher_places(pairs), strict=True)
        each = []
        for one, two in places:
            ours, theirs = student[one], teacher[two]
            heads = self.heads or relation_heads(ours.shape[-1], theirs.shape[-1])
            segments = None if self.stack == "decoder" else scores.segments
            each.append(relation_divergence(ours, theirs, self.tokens(scores), heads, segments))
        return torch.stack(each).mean(0)
