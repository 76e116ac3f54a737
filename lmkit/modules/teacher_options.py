"""How teachers are used, and which ways of it go together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from .distillation_losses import DistillationLoss, LogitLoss
from .feature_losses import FeatureLoss

__all__ = ["TeacherOptions", "check_options"]


class TeacherOptions(NamedTuple):
    """How teachers are used; see `DistillationModule`."""

    weights: list[float] | Literal["confidence"] | None = None
    wrong_weight: float = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"
    cache: bool = False
    cache_precision: Literal["fp16", "fp32"] = "fp16"
    cache_top_k: int | None = None
    cache_folder: str | None = None
    sequence_level: bool = False
    on_policy: float = 0.0
    prompt_share: float = 0.5
    #: Precision of the Trainer, in which the teachers are run.
    autocast: str = "32-true"


def check_options(
    names: Sequence[str], losses: Sequence[DistillationLoss], options: TeacherOptions
) -> None:
    """Raise `ValueError` for what does not go together."""
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(
            f"teacher must name a checkpoint, a folder or a hub model, or several, got {names}"
        )
    for loss in losses:
        if not isinstance(loss, LogitLoss | FeatureLoss):
            raise ValueError(
                f"{type(loss).__name__} is no loss against a teacher: take LogitLoss, or one "
                "derived from FeatureLoss; the student's own is weighed by hard_weight"
            )
        number = getattr(loss, "teacher", 0)
        if not 0 <= number < len(names):
            raise ValueError(
                f"{type(loss).__name__}: teacher={number}, but teachers are counted from 0 and "
                f"there are {len(names)}"
            )
    weights = options.weights
    if weights not in (None, "confidence") and (
        not isinstance(weights, list)
        or len(weights) != len(names)
        or min(weights) < 0
        or max(weights) == 0
    ):
        raise ValueError(
            f"teacher_weights must be one number of at least 0 for each of {len(names)} "
            f"teachers, not all of them 0, or 'confidence'; got {weights!r}"
        )
    for name, value, known in (
        ("teacher_precision", options.precision, ("fp32", "bf16")),
        ("cache_precision", options.cache_precision, ("fp16", "fp32")),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    if options.cache_top_k is not None and len(names) > 1:
        raise ValueError("cache_top_k is for one teacher: the tops of several do not add up")
    if options.cache_top_k is not None and options.cache_top_k < 1:
        raise ValueError(f"cache_top_k must be at least 1, got {options.cache_top_k}")
    if options.cache_top_k is not None and not options.cache:
        raise ValueError("cache_top_k is of a cache: set cache too")
    if options.cache_top_k is not None and options.wrong_weight < 1.0:
        raise ValueError("wrong_weight is not known of a teacher's top classes: set no cache_top_k")
    for name in ("wrong_weight", "on_policy"):
        if not 0.0 <= getattr(options, name) <= 1.0:
            raise ValueError(f"{name} must lie in [0, 1], got {getattr(options, name)}")
    if options.on_policy and (options.cache or options.sequence_level):
        other = "cache" if options.cache else "sequence_level"
        raise ValueError(f"on_policy has new texts in each step: set no {other}")
    if options.sequence_level and len(names) > 1:
        raise ValueError("sequence_level is for one teacher, who writes the targets")
    if not 0.0 < options.prompt_share < 1.0:
        raise ValueError(f"prompt_share must lie in (0, 1), got {options.prompt_share}")
