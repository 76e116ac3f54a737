"""The losses between tensors inside a student and a teacher."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor

from ..functional.distillation_features import (
    first_token_distance,
    fsp_distance,
    hidden_cosine,
    hidden_distance,
    similarity_distance,
)
from ..functional.layer_map import LAYER_MAPS, layer_pairs, monotone_match
from .captures import Captures, Kind, Place
from .distillation_losses import DistillationLoss
from .scores import Scores

__all__ = ["FeatureLoss", "FlowLoss", "HiddenLoss", "Pairs"]

#: Pairs of a student's and a teacher's layer.
Pairs = list[tuple[int, int]]

# CoFi aligns four layers of the teacher.
_DYNAMIC_LAYERS = 4


@dataclass(frozen=True, kw_only=True)
class FeatureLoss(DistillationLoss, ABC):
    """What losses between tensors inside the networks share.

    Args:
        stack: `"encoder"` or `"decoder"` of an encoder-decoder, which has two.
        teacher: which of several teachers, from 0.
        weight: factor of the loss, at least 0.
        final_weight: what the weight moves to from `start` to `stop`.
        start: share of the run from which on the loss counts.
        stop: share of the run up to which it counts.
    """

    stack: Literal["", "encoder", "decoder"] = ""
    teacher: int = 0

    @property
    def whole_texts(self) -> bool:
        """Whether tokens of a row are compared with each other, so that it must be of one text."""
        return False

    @abstractmethod
    def pairs(self, student: int, teacher: int) -> Pairs:
        """Return which layers are compared, of networks of so many layers."""

    def check_widths(self, student: int, teacher: int) -> None:
        """Raise `ValueError` if states of these widths cannot be compared."""

    def student_places(self, pairs: Pairs) -> list[Place]:
        """Return what has to be kept of the student."""
        return self._places([first for first, _ in pairs])

    def teacher_places(self, pairs: Pairs) -> list[Place]:
        """Return what has to be kept of the teacher."""
        return self._places([second for _, second in pairs])

    def _places(self, layers: Sequence[int]) -> list[Place]:
        return [Place(kind, layer, self.stack) for layer in layers for kind in self.kinds]

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Return which tensors of a layer are compared."""
        return ("hidden",)

    @abstractmethod
    def compare(
        self,
        student: Captures,
        teacher: Captures,
        scores: Scores,
        pairs: Pairs,
        projections: Mapping[str, Tensor],
    ) -> Tensor:
        """Return the loss of each row, float `[R]`: the mean over its tokens, and over pairs."""

    def tokens(self, scores: Scores) -> Tensor:
        """Return the real tokens of the stack that is compared, bool `[R, L]`."""
        return cast(Tensor, scores.written) if self.stack == "decoder" else scores.tokens


@dataclass(frozen=True, kw_only=True)
class HiddenLoss(FeatureLoss):
    r"""The distance of hidden states (TinyBERT, arXiv:1909.10351; PKD, arXiv:1908.09355).

    $\frac{1}{D}\lVert W h^S_{i} - h^T_{g(i)} \rVert^2$, the mean over the real tokens of each text
    and over the pairs of layers. $W$ is learned, begins as the identity cut to size, and is there
    only where the widths differ; the exported student has none of it.

    Args:
        layers: the map $g$ from the student's to the teacher's layers, where 0 are the embeddings:
            `uniform` $g(i) = i L_T / L_S$ rounded, `last`, `skip` (inner layers at even distances),
            `dynamic` (each of four layers of the teacher with that of the student that is nearest
            at the moment, in order; CoFi, arXiv:2204.00408), or a list of pairs.
        distance: `mse`; `cosine` (one minus it); `first_token`, of the first token's states, each
            of length 1 (PKD); or `similarity`, of the matrices of similarities between tokens
            (arXiv:1707.01219), which needs no projection.
        normalize: whether both states are normalized first, to mean 0 and variance 1, so that the
            few dimensions with large values do not outweigh the others.
        projection: whether there is a $W$ also where the widths are equal.
        stack: `"encoder"` or `"decoder"` of an encoder-decoder, which has two.
        teacher: which of several teachers, from 0.
        weight: factor of the loss, at least 0.
        final_weight: what the weight moves to from `start` to `stop`.
        start: share of the run from which on the loss counts.
        stop: share of the run up to which it counts.
    """

    word: ClassVar[str] = "hidden"

    layers: Literal["uniform", "last", "skip", "dynamic"] | list[list[int]] = "uniform"
    distance: Literal["mse", "cosine", "first_token", "similarity"] = "mse"
    normalize: bool = True
    projection: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        maps = (*LAYER_MAPS, "dynamic")
        if isinstance(self.layers, str) and self.layers not in maps:
            raise ValueError(
                f"HiddenLoss: layers must be one of {', '.join(maps)}, or a list of pairs, got "
                f"{self.layers!r}"
            )
        known = ("mse", "cosine", "first_token", "similarity")
        if self.distance not in known:
            raise ValueError(f"distance must be one of {', '.join(known)}, got {self.distance!r}")

    @property
    def whole_texts(self) -> bool:
        """Whether a row must be of one text: for its first token, or its tokens' similarities."""
        return self.distance in ("first_token", "similarity")

    def pairs(self, student: int, teacher: int) -> Pairs:
        """Return the map's pairs; of the dynamic one all that may be chosen."""
        if self.layers != "dynamic":
            return layer_pairs(student, teacher, self.layers)
        count = min(_DYNAMIC_LAYERS, teacher, student)
        chosen = [round((k + 1) * teacher / count) for k in range(count)]
        return [(first, second) for second in chosen for first in range(1, student + 1)]

    def compare(
        self,
        student: Captures,
        teacher: Captures,
        scores: Scores,
        pairs: Pairs,
        projections: Mapping[str, Tensor],
    ) -> Tensor:
        """Return the distance of each row, float `[R]`."""
        tokens = self.tokens(scores)
        each = [
            self._distance(
                student[Place("hidden", first, self.stack)],
                teacher[Place("hidden", second, self.stack)],
                tokens,
                projections.get(self.projection_name(first, second)),
            )
            for first, second in pairs
        ]
        stacked = torch.stack(each)
        return stacked.mean(0) if self.layers != "dynamic" else _nearest(stacked, pairs, scores)

    def projection_name(self, first: int, second: int) -> str:
        """Return under which name the projection of a pair is kept; a dynamic map has one."""
        return "all" if self.layers == "dynamic" else f"{first}_{second}"

    def _distance(
        self, student: Tensor, teacher: Tensor, tokens: Tensor, projection: Tensor | None
    ) -> Tensor:
        if self.distance == "similarity":
            return similarity_distance(student, teacher, tokens)
        if self.distance == "cosine":
            return hidden_cosine(student, teacher, tokens, projection)
        if self.distance == "first_token":
            return first_token_distance(student, teacher, tokens, projection)
        return hidden_distance(student, teacher, tokens, projection, self.normalize)


def _nearest(each: Tensor, pairs: Pairs, scores: Scores) -> Tensor:
    """Return the mean over the pairs of least distance, `[R]`, from `[T * S, R]`."""
    depths = len({first for first, _ in pairs})
    costs = (each.detach() @ scores.shares).unflatten(0, (-1, depths))
    match = torch.tensor(monotone_match(costs), device=each.device)
    rows = torch.arange(len(match), device=each.device)
    nearest: Tensor = each.unflatten(0, (-1, depths))[rows, match]
    return nearest.mean(0)


@dataclass(frozen=True, kw_only=True)
class FlowLoss(FeatureLoss):
    """The distance of flow matrices, how features of one layer go with those of the next.

    Yim et al., A Gift from Knowledge Distillation, CVPR 2017: of neighbouring layers of the map the
    mean over tokens of the outer products of their states, compared by squared distance. The widths
    have to agree.

    Args:
        layers: the map from the student's to the teacher's layers, as of `HiddenLoss`, and not
            `dynamic`; of at least two pairs.
        stack: `"encoder"` or `"decoder"` of an encoder-decoder, which has two.
        teacher: which of several teachers, from 0.
        weight: factor of the loss, at least 0.
        final_weight: what the weight moves to from `start` to `stop`.
        start: share of the run from which on the loss counts.
        stop: share of the run up to which it counts.
    """

    word: ClassVar[str] = "flow"

    layers: Literal["uniform", "skip"] | list[list[int]] = "uniform"

    @property
    def whole_texts(self) -> bool:
        """Whether a row must be of one text: it is, for the flow is a mean over its tokens."""
        return True

    def pairs(self, student: int, teacher: int) -> Pairs:
        """Return the map's pairs.

        Raises:
            ValueError: there is no second one.
        """
        found = layer_pairs(student, teacher, self.layers)
        if len(found) < 2:
            raise ValueError(
                f"FlowLoss: a flow goes from one layer to another, and layers={self.layers!r} "
                f"gives {len(found)}; name at least two pairs"
            )
        return found

    def check_widths(self, student: int, teacher: int) -> None:
        """Raise `ValueError` if the widths differ."""
        if student != teacher:
            raise ValueError(
                f"FlowLoss: the student has the width {student} and the teacher {teacher}, and "
                "they have to agree; take HiddenLoss, which learns a projection"
            )

    def compare(
        self,
        student: Captures,
        teacher: Captures,
        scores: Scores,
        pairs: Pairs,
        projections: Mapping[str, Tensor],
    ) -> Tensor:
        """Return the distance of each row, float `[R]`."""
        ours = [student[place] for place in self.student_places(pairs)]
        theirs = [teacher[place] for place in self.teacher_places(pairs)]
        flows = zip(ours, ours[1:], theirs, theirs[1:], strict=False)
        each = [fsp_distance(*flow, self.tokens(scores)) for flow in flows]
        return torch.stack(each).mean(0)
