"""The losses between a student and a teacher: how much each counts, and when."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from ..functional.distillation import DIVERGENCES

__all__ = ["DistillationLoss", "LogitLoss", "loss_from_spec", "loss_to_spec"]

_PACKAGE = __package__ or ""


@dataclass(frozen=True, kw_only=True)
class DistillationLoss:
    """What all losses have: how much they count, and in which part of the run.

    Args:
        weight: factor of the loss, at least 0.
        final_weight: what the weight moves to, in a straight line from `start` to `stop`.
        start: share of the run from which on the loss counts, in `[0, 1)`.
        stop: share of the run up to which it counts, in `(start, 1]`.

    Raises:
        ValueError: a number lies outside its range.
    """

    #: The name in the logs: `distillation/loss_<word>`.
    word: ClassVar[str]

    weight: float = 1.0
    final_weight: float | None = None
    start: float = 0.0
    stop: float = 1.0

    def __post_init__(self) -> None:
        for name in ("weight", "final_weight"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{type(self).__name__}: {name} must be at least 0, got {value}")
        if not 0.0 <= self.start < self.stop <= 1.0:
            raise ValueError(
                f"{type(self).__name__}: start and stop must be shares of the run with "
                f"0 <= start < stop <= 1, got {self.start} and {self.stop}"
            )

    @property
    def needs_length(self) -> bool:
        """Whether the weight depends on how far the run is."""
        return self.final_weight is not None or (self.start, self.stop) != (0.0, 1.0)

    def weight_at(self, progress: float) -> float:
        """Return the weight at a share of the run, in `[0, 1]`.

        Example:
            >>> loss = LogitLoss(weight=1.0, final_weight=0.0, start=0.5)
            >>> [loss.weight_at(share) for share in (0.0, 0.5, 0.75)]
            [0.0, 1.0, 0.5]
        """
        if progress < self.start or progress >= self.stop < 1.0:
            return 0.0
        if self.final_weight is None:
            return self.weight
        share = min(1.0, (progress - self.start) / (self.stop - self.start))
        return self.weight + share * (self.final_weight - self.weight)


@dataclass(frozen=True, kw_only=True)
class LogitLoss(DistillationLoss):
    r"""The divergence of the student's predictions from the teacher's (arXiv:1503.02531).

    $\tau^2\, D(q \parallel p)$ with $q$ and $p$ the softmax of the teacher's and the student's
    logits over $\tau$; of labels of which each is or is not the mean of such divergences, of values
    the squared difference. It is 0 where both agree, and its gradient keeps its size under $\tau$.

    Args:
        temperature: $\tau > 0$; by default 2, and 1 for tokens of a vocabulary.
        divergence: `forward` $\mathrm{KL}(q \parallel p)$, `reverse` $\mathrm{KL}(p \parallel q)$,
            `jensen_shannon` (the generalized one, arXiv:2306.13649), `total_variation`, or `mse` of
            the logits themselves (arXiv:1503.02531, section 2.1: the limit of a high temperature).
        beta: of `jensen_shannon`, in `(0, 1)`.
        weight: factor of the loss, at least 0.
        final_weight: what the weight moves to from `start` to `stop`.
        start: share of the run from which on the loss counts.
        stop: share of the run up to which it counts.
    """

    word: ClassVar[str] = "logits"

    weight: float = 0.5
    temperature: float | None = None
    divergence: Literal["forward", "reverse", "jensen_shannon", "total_variation", "mse"] = (
        "forward"
    )
    beta: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature is not None and self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        known = (*DIVERGENCES, "mse")
        if self.divergence not in known:
            raise ValueError(
                f"divergence must be one of {', '.join(known)}, got {self.divergence!r}"
            )
        if not 0.0 < self.beta < 1.0:
            raise ValueError(f"beta must lie in (0, 1), got {self.beta}")


def loss_to_spec(loss: DistillationLoss) -> dict[str, Any]:
    """Write a loss as plain data: its class and its arguments.

    Example:
        >>> loss_to_spec(LogitLoss(temperature=4.0))["init_args"]["temperature"]
        4.0
    """
    cls = type(loss)
    # As the command line names it.
    home = _PACKAGE if cls.__module__.startswith(f"{_PACKAGE}.") else cls.__module__
    return {"class_path": f"{home}.{cls.__qualname__}", "init_args": asdict(loss)}


def loss_from_spec(spec: Mapping[str, Any] | DistillationLoss) -> DistillationLoss:
    """Make the loss that plain data say.

    Args:
        spec: `class_path`, the whole one or only the name, and `init_args`; or a loss already.

    Raises:
        ValueError: there is no such loss; names those that there are.
        TypeError: it does not take these arguments.
    """
    if isinstance(spec, DistillationLoss):
        return spec
    path = str(spec.get("class_path", ""))
    module, _, name = path.rpartition(".")
    known = {cls.__name__: cls for cls in _subclasses(DistillationLoss)}
    # A class from elsewhere counts where it is imported: plain data must not import code.
    cls = known.get(name) or getattr(sys.modules.get(module), name, None)
    if not (isinstance(cls, type) and issubclass(cls, DistillationLoss)):
        raise ValueError(f"there is no loss {path!r}; there are {', '.join(sorted(known))}")
    return cls(**dict(spec.get("init_args") or {}))


def _subclasses(cls: type) -> list[type]:
    children: list[type] = cls.__subclasses__()
    return [cls] if not children else [leaf for child in children for leaf in _subclasses(child)]
