"""What is pruned by what, how much of it and when: the arguments of the callback that prunes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ..functional.pruning import (
    CRITERIA,
    SCHEDULES,
    SCOPES,
    last_update,
    next_update,
    parse_pattern,
    planned_sparsity,
)
from ..surgery.arguments import check_finite, check_whole

__all__ = ["PruningPlan", "Timetable"]

# What scores are compared with, where the paper of the criterion says so.
_OWN_SCOPES = {"wanda": "row", "soft_movement": "global"}


class Timetable(NamedTuple):
    """The optimizer steps of a run after which masks are chosen.

    Attributes:
        start: the first.
        end: the last.
        interval: between two.

    Example:
        >>> table = Timetable(start=0, end=4, interval=3)
        >>> [table.last(step) for step in range(5)], table.next(3)
        ([0, 0, 0, 3, 4], 4)
    """

    start: int
    end: int
    interval: int

    def last(self, step: int) -> int | None:
        """Return the last of them up to a step."""
        return last_update(step, *self)

    def next(self, step: int) -> int | None:
        """Return the first of them behind a step."""
        return next_update(step, *self)


@dataclass(frozen=True)
class PruningPlan:
    """The checked arguments of `PruningCallback`, as they are described there, but its targets.

    Raises:
        ValueError: one lies outside its range, or they do not go together.

    Example:
        >>> plan = PruningPlan(pattern="1:4")
        >>> plan.target, plan.groups, plan.steps(100)
        (0.75, (1, 4), Timetable(start=10, end=70, interval=10))
    """

    sparsity: float | None = None
    criterion: str = "magnitude"
    scope: str | None = None
    pattern: str | None = None
    schedule: str = "cubic"
    start: float = 0.1
    end: float = 0.7
    interval: int = 10
    calibration_steps: int = 8
    score_rate: float = 1000.0
    penalty: float = 100.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the arguments."""
        for word, value, known in (
            ("criterion", self.criterion, CRITERIA),
            ("scope", self.compared, SCOPES),
            ("schedule", self.schedule, SCHEDULES),
        ):
            if value not in known:
                raise ValueError(f"{word} must be one of {', '.join(known)}, got {value!r}")
        for word in ("start", "end", "score_rate", "penalty"):
            check_finite(word, getattr(self, word))
        end = 1.0 if self.schedule == "one_shot" else self.end
        if not 0.0 <= self.start < end <= 1.0:
            raise ValueError(
                "start and end must be shares of the run with 0 <= start < end <= 1, got "
                f"{self.start} and {self.end}"
            )
        for word, least in (("interval", 1), ("calibration_steps", 1), ("seed", 0)):
            check_whole(word, getattr(self, word), least)
        if self.score_rate <= 0 or self.penalty < 0:
            raise ValueError(
                "score_rate must be over 0 and penalty at least 0, got "
                f"{self.score_rate} and {self.penalty}"
            )
        self._check_target()

    @property
    def compared(self) -> str:
        """The scope, that of the criterion if none was given."""
        return self.scope or _OWN_SCOPES.get(self.criterion, "local")

    @property
    def groups(self) -> tuple[int, int] | None:
        """N and M of the pattern."""
        return None if self.pattern is None else parse_pattern(self.pattern)

    @property
    def target(self) -> float:
        """The share of zeros in the end."""
        if self.groups is None:
            return self.sparsity or 0.0
        kept, of = self.groups
        return 1 - kept / of

    def steps(self, total: int | None) -> Timetable:
        """Return when masks are chosen in a run of `total` optimizer steps.

        Raises:
            ValueError: the run has no end, and the plan needs one.
        """
        if self.schedule == "one_shot":
            if self.start and total is None:
                raise ValueError(_endless("start"))
            begin = round(self.start * (total or 0))
            return Timetable(begin, begin, self.interval)
        if total is None:
            raise ValueError(_endless(f"schedule={self.schedule!r}"))
        begin = round(self.start * total)
        return Timetable(begin, max(begin + 1, round(self.end * total)), self.interval)

    def level(self, step: int, table: Timetable, initial: float) -> float:
        """Return the share of zeros that is planned after a step.

        Args:
            step: the optimizer step.
            table: of `steps`.
            initial: the share at the start.
        """
        return planned_sparsity(step, *table[:2], self.target, self.schedule, initial)

    def _check_target(self) -> None:
        given = self.sparsity
        if self.groups is None and given is None:
            raise ValueError("give the sparsity that is to be reached, in [0, 1), or a pattern")
        if given is not None:
            check_finite("sparsity", given)
            if not 0.0 <= given < 1.0:
                raise ValueError(f"sparsity must lie in [0, 1), got {given}")
            if self.groups is not None and abs(given - self.target) > 1e-9:
                raise ValueError(
                    f"the pattern {self.pattern!r} has a sparsity of {self.target:g}, and sparsity "
                    f"is {given}: leave one of them out"
                )


def _endless(what: str) -> str:
    return f"{what} needs to know how long the run is; set max_steps of the Trainer"
