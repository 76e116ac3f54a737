"""The terms of a distillation's loss: which layers they compare, and their weighted sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..functional.distillation import (
    binary_divergence,
    logit_distance,
    logit_divergence,
    value_distance,
)
from ..functional.distillation_features import initial_projection
from ..functional.distillation_teachers import (
    teacher_is_right,
)
from ..functional.distillation_top_k import top_k_divergence
from ..types import IGNORE_INDEX, Batch, StepOutput
from .captures import Captures, Place, Taps, depth_of, stack_of, width_of
from .distillation_losses import DistillationLoss, LogitLoss
from .feature_losses import FeatureLoss, HiddenLoss, Pairs
from .optimizer import planned_steps
from .scores import Scores
from .teacher_view import Said, mixture, said_of
from .written_targets import OWN_WORDS

if TYPE_CHECKING:
    from .distillation import DistillationModule
    from .teachers import Teachers

__all__ = ["HardLoss", "Terms", "restore_projections"]


@dataclass(frozen=True, kw_only=True)
class HardLoss(DistillationLoss):
    """The student's own loss, with a weight like the others."""

    word: ClassVar[str] = "hard"

    def __post_init__(self) -> None:
        for name, value in (("hard_weight", self.weight), ("final_hard_weight", self.final_weight)):
            if value is not None and value < 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        if not 0.0 <= self.start < 1.0:
            raise ValueError(f"hard_start must lie in [0, 1), got {self.start}")


class Terms:
    """The losses of a distillation, once student and teachers are known.

    Args:
        losses: against the teachers.
        own: weight of the student's own loss.

    Raises:
        ValueError: nothing has a weight.

    Attributes:
        places: what is kept of the inside of the student.
    """

    def __init__(self, losses: Sequence[DistillationLoss], own: HardLoss) -> None:
        self.losses, self.own = list(losses), own
        self.places: list[Place] = []
        self._pairs: dict[int, Pairs] = {}
        self._total: int | None = None
        self._taps: Taps | None = None
        if not any(each.weight or each.final_weight for each in (own, *losses)):
            raise ValueError(
                "there is nothing to learn from: hard_weight is 0, and so are the weights of all "
                "losses; raise one of them"
            )

    @property
    def uses_scores(self) -> bool:
        """Whether anything depends on what the student predicts."""
        weights = self.own.weight, self.own.final_weight
        return any(weights) or any(isinstance(loss, LogitLoss) for loss in self.losses)

    def lay_out(
        self, network: PreTrainedModel, teachers: Teachers, before: nn.ModuleDict
    ) -> nn.ModuleDict:
        """Choose the layers that are compared, and make what maps the student's states.

        Args:
            network: the student's.
            teachers: whose shapes are known; what is to be kept of them is told to them.
            before: projections that are there, as of a checkpoint that was loaded without them.

        Returns:
            The projections, by number of the loss and pair of layers.
        """
        self.settle()
        self.places, made = [], nn.ModuleDict()
        teachers.places = [[] for _ in teachers.names]
        for number, loss in enumerate(self.losses):
            if not isinstance(loss, FeatureLoss):
                continue
            shape = teachers.shapes[loss.teacher]
            if loss.stack not in shape.depths:
                stack_of(network, loss.stack)  # says what is wrong
            depths = depth_of(network, loss.stack), shape.depths[loss.stack]
            pairs = self._pairs[number] = loss.pairs(*depths)
            self.places += loss.student_places(pairs)
            teachers.places[loss.teacher] += loss.teacher_places(pairs)
            widths = width_of(network, loss.stack), shape.widths[loss.stack]
            loss.check_widths(*widths)
            if isinstance(loss, HiddenLoss):
                made.update(_projections(loss, number, pairs, *widths))
        made.update({name: before[name] for name in made if name in before})
        return made

    def taps(self, network: PreTrainedModel) -> Taps:
        """Return where the student's inside is kept, found once; `settle` looks anew."""
        if self._taps is None:
            self._taps = Taps(network, self.places)
        return self._taps

    def settle(self) -> None:
        """Forget where the inside of the student was: its structure may have changed."""
        self._taps = None

    def plan(self, trainer: Trainer) -> None:
        """Learn how long the run is.

        Raises:
            ValueError: it has no end, and a weight depends on it.
        """
        self._total = planned_steps(trainer)
        if self._total is None and any(loss.needs_length for loss in (self.own, *self.losses)):
            raise ValueError(
                "weights that change over the run need to know how long it is; set max_steps of "
                "the Trainer, or leave start, stop and final_weight out"
            )

    def join(
        self,
        output: StepOutput,
        scores: Scores,
        inside: Captures,
        batch: Batch,
        module: DistillationModule,
    ) -> StepOutput:
        """Return the weighted sum of all losses of a batch.

        Args:
            output: of the student's own step.
            scores: of the student.
            inside: what was kept of the student's inside.
            batch: with what the teachers said.
            module: knows projections, teachers and how far the run is.
        """
        if OWN_WORDS in batch and scores.labels is not None:
            # What the student wrote says nothing of who is right.
            scores = scores._replace(labels=torch.full_like(scores.labels, IGNORE_INDEX))
        progress = module.global_step / self._total if self._total else 0.0
        items = scores.shares.sum()
        share = output.items.to(items) / items.clamp(min=1)
        # Also with the weight 0, so that each weight of the network has a gradient on each rank.
        hard = output.loss * share
        total = hard * (0.0 if OWN_WORDS in batch else self.own.weight_at(progress))
        logs = {**output.logs, "distillation/loss_hard": hard}
        said = self._said(scores, batch, module.teachers)
        for number, loss in enumerate(self.losses):
            weight = loss.weight_at(progress)
            if weight == 0.0:
                # Several ranks wait for a gradient of each projection, also of one that rests.
                for projection in _of_loss(number, module.projections).values():
                    total = total + 0.0 * projection.sum()
                continue
            if isinstance(loss, LogitLoss):
                each = self._of_logits(loss, scores, said, module.teachers)
                value = each.sum() / scores.valid.sum().clamp(min=1)
            else:
                value = self._of_features(number, scores, inside, said, module.projections)
            total = total + weight * value
            name = f"distillation/loss_{loss.word}"
            logs[name if name not in logs else f"{name}_{number}"] = value
        return StepOutput(total, items, output.logits, logs)

    def _said(self, scores: Scores, batch: Batch, teachers: Teachers) -> list[Said]:
        return [
            said_of(batch, number, scores, alignment, teachers.places[number])
            for number, alignment in enumerate(teachers.alignments)
        ]

    def _of_logits(
        self, loss: LogitLoss, scores: Scores, said: list[Said], teachers: Teachers
    ) -> Tensor:
        """Return the divergence of each item, float `[N]`."""
        vocabulary = bool(teachers.facts[0].vocabulary)
        if scores.kind != "classes" and loss.divergence not in ("forward", "mse"):
            raise ValueError(
                f"LogitLoss: divergence={loss.divergence!r} is for classes of which one is right; "
                "take 'forward' or 'mse'"
            )
        temperature = loss.temperature or (1.0 if vocabulary else 2.0)
        if (top := said[0].top) is not None:
            if loss.divergence != "forward" or temperature != 1.0:
                raise ValueError(
                    "with cache_top_k the loss is the forward divergence at temperature 1: set "
                    "LogitLoss(temperature=1.0), or keep all logits"
                )
            return top_k_divergence(scores.logits, top, scores.valid)
        # Of distances of logits the mean is that of logits, and there is no temperature.
        mixed_at = None if loss.divergence == "mse" else temperature
        teacher = mixture(scores, said, teachers.options.weights, mixed_at)
        student = scores.logits[..., : teacher.shape[-1]]
        if scores.kind == "value":
            each = value_distance(student, teacher, scores.valid)
        elif loss.divergence == "mse":
            each = logit_distance(student, teacher, scores.valid)
        elif scores.kind == "labels":
            each = binary_divergence(student, teacher, scores.valid, temperature)
        else:
            how = temperature, loss.divergence, loss.beta
            each = logit_divergence(student, teacher, scores.valid, *how)
        if teachers.options.wrong_weight < 1.0:
            if scores.labels is None:
                raise ValueError("wrong_weight below 1 is for classes of which one is right")
            right = teacher_is_right(teacher, scores.labels, scores.valid)
            each = torch.where(right, each, each * teachers.options.wrong_weight)
        return each

    def _of_features(
        self,
        number: int,
        scores: Scores,
        inside: Captures,
        said: list[Said],
        projections: nn.ModuleDict,
    ) -> Tensor:
        loss = cast(FeatureLoss, self.losses[number])
        if loss.whole_texts and loss.stack != "decoder" and scores.segments is not None:
            raise ValueError(
                f"{type(loss).__name__}: rows that hold several texts cannot be compared so; pass "
                "batching='chunk' or 'bucket' to the data module"
            )
        theirs, weights = said[loss.teacher].inside, _of_loss(number, projections)
        rows = loss.compare(inside, theirs, scores, self._pairs[number], weights)
        return rows @ scores.shares.to(rows) / scores.shares.sum().clamp(min=1)


def restore_projections(projections: nn.ModuleDict, state: Mapping[str, Tensor]) -> None:
    """Make the projections of a checkpoint that are not there, as without their teacher."""
    for key, weight in state.items():
        name = key.removeprefix("projections.").removesuffix(".weight")
        if key.startswith("projections.") and name not in projections:
            out, into = weight.shape
            projections[name] = nn.Linear(into, out, bias=False)


def _of_loss(number: int, projections: nn.ModuleDict) -> dict[str, Tensor]:
    """Return the weights of a loss's projections by the names that it gives them."""
    start = f"{number}_"
    return {
        name.removeprefix(start): cast(Tensor, projection.weight)
        for name, projection in projections.items()
        if name.startswith(start)
    }


def _projections(
    loss: HiddenLoss, number: int, pairs: Pairs, student: int, teacher: int
) -> dict[str, nn.Module]:
    if loss.distance == "similarity" or (student == teacher and not loss.projection):
        return {}
    made: dict[str, nn.Module] = {}
    for first, second in pairs:
        name = f"{number}_{loss.projection_name(first, second)}"
        if name not in made:
            projection = nn.Linear(student, teacher, bias=False)
            with torch.no_grad():
                projection.weight.copy_(initial_projection(student, teacher))
            made[name] = projection
    return made
