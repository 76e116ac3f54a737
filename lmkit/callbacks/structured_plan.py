"""What is to be left of a network, chosen by what and when: the arguments of structured pruning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from numbers import Integral
from typing import Any

from ..functional.pruning import planned_sparsity
from ..functional.unit_allocation import ALLOCATIONS
from ..functional.unit_importance import IMPORTANCES
from ..surgery.arguments import check_finite, check_whole
from .pruning_plan import Timetable

__all__ = ["StructuredPlan"]

_COUNTS = ("ffn", "heads", "layers", "hidden")


@dataclass(frozen=True)
class StructuredPlan:
    """The checked arguments of `StructuredPruningCallback`, as they are described there.

    Raises:
        ValueError: one lies outside its range, or they do not go together.

    Example:
        >>> plan = StructuredPlan(ffn=0.5, start=0.1, end=0.5)
        >>> plan.kinds, plan.steps(100), plan.is_at_once
        (['ffn'], Timetable(start=10, end=50, interval=10), False)
    """

    ffn: int | float | None = None
    heads: int | float | None = None
    layers: Sequence[int] | int | None = None
    hidden: int | None = None
    parameters: float | None = None
    speedup: float | None = None
    importance: str = "taylor"
    allocation: str = "local"
    multiple_of: int = 8
    start: float = 0.1
    end: float = 0.5
    interval: int = 10
    calibration_batches: int = 32
    speed_batch: int = 32
    speed_length: int = 128
    gate_rate: float = 0.1
    multiplier_rate: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.layers is not None and not isinstance(self.layers, int):
            object.__setattr__(self, "layers", list(self.layers))
        for word, value, known in (
            ("importance", self.importance, IMPORTANCES),
            ("allocation", self.allocation, ALLOCATIONS),
        ):
            if value not in known:
                raise ValueError(f"{word} must be one of {', '.join(known)}, got {value!r}")
        for word in ("start", "end", "gate_rate", "multiplier_rate"):
            check_finite(word, getattr(self, word))
        if not (0.0 <= self.start <= self.end <= 1.0 and self.start < 1.0):
            raise ValueError(
                "start and end must be shares of the run with 0 <= start <= end <= 1 and start < "
                f"1, got {self.start} and {self.end}"
            )
        least = {"seed": 0}
        for word in ("multiple_of", "interval", "calibration_batches", "seed"):
            check_whole(word, getattr(self, word), least.get(word, 1))
        for word in ("speed_batch", "speed_length"):
            check_whole(word, getattr(self, word), 1)
        if self.gate_rate <= 0 or self.multiplier_rate < 0:
            raise ValueError(
                "gate_rate must be over 0 and multiplier_rate at least 0, got "
                f"{self.gate_rate} and {self.multiplier_rate}"
            )
        self._check_family()
        self._check_counts()
        self._check_learned()

    @property
    def arguments(self) -> dict[str, Any]:
        """All of them as plain data."""
        return asdict(self)

    @property
    def kinds(self) -> list[str]:
        """Which units are removed: `heads`, `ffn`, both or none."""
        if self.parameters is not None or self.speedup is not None:
            return ["heads", "ffn"]
        return [kind for kind in ("heads", "ffn") if getattr(self, kind) is not None]

    @property
    def is_at_once(self) -> bool:
        """Whether all is removed before the first step."""
        return self.end == 0.0

    @property
    def is_learned(self) -> bool:
        """Whether gates are trained."""
        return self.importance == "learned"

    def steps(self, total: int | None) -> Timetable:
        """Return when units are chosen in a run of `total` optimizer steps.

        Raises:
            ValueError: the run has no end, and something is to happen in its course.
        """
        if total is None:
            if not self.is_at_once:
                raise ValueError(
                    f"start={self.start} and end={self.end} need to know how long the run is; set "
                    "max_steps of the Trainer, or remove all before the first step (start=0, end=0)"
                )
            total = 0
        begin = round(self.start * total)
        return Timetable(begin, max(begin, round(self.end * total)), self.interval)

    def done(self, step: int, table: Timetable) -> float:
        """Return which share of all that is to go is gone after a step: cubic, from 0 to 1.

        By learned gates it is linear, as the target that they are held to.

        Args:
            step: the optimizer step.
            table: of `steps`.

        Example:
            >>> plan = StructuredPlan(heads=2)
            >>> [plan.done(step, Timetable(0, 4, 1)) for step in (0, 2, 4)]
            [0.0, 0.875, 1.0]
        """
        shape = "linear" if self.is_learned else "cubic"
        return planned_sparsity(step, table.start, table.end, 1.0, shape)

    def _check_family(self) -> None:
        counts = [word for word in _COUNTS if getattr(self, word) is not None]
        shares = [word for word in ("parameters", "speedup") if getattr(self, word) is not None]
        if len(shares) + bool(counts) != 1:
            given = ", ".join(f"{word}={getattr(self, word)!r}" for word in [*counts, *shares])
            raise ValueError(
                "say what is to be left by one of: counts (ffn, heads, layers, hidden, or several "
                f"of these), parameters, speedup; got {given or 'none'}"
            )

    def _check_counts(self) -> None:
        for word in ("ffn", "heads"):
            value = getattr(self, word)
            if value is None:
                continue
            if type(value) is not bool and isinstance(value, Integral):
                check_whole(word, value, 1)
                continue
            check_finite(word, value)
            if not 0.0 < value < 1.0:
                raise ValueError(
                    f"{word} must be a number of {_MEANT[word]} that each layer keeps (a whole "
                    f"number), or a share of them in (0, 1), got {value!r}"
                )
        if isinstance(self.ffn, int) and self.ffn % self.multiple_of:
            near = max(1, round(self.ffn / self.multiple_of)) * self.multiple_of
            raise ValueError(
                f"ffn={self.ffn} is no multiple of multiple_of={self.multiple_of}: give "
                f"ffn={near}, or another multiple_of"
            )
        if isinstance(self.layers, list):
            for number in self.layers:
                check_whole("layers", number, 0)
            if not self.layers or sorted(set(self.layers)) != self.layers:
                raise ValueError(
                    "layers must be how many to keep, or numbers of layers in increasing order, "
                    f"got {self.layers}"
                )
        elif self.layers is not None:
            check_whole("layers", self.layers, 1)
        if self.hidden is not None:
            check_whole("hidden", self.hidden, 1)
        if self.parameters is not None:
            check_finite("parameters", self.parameters)
            if not 0.0 < self.parameters < 1.0:
                raise ValueError(f"parameters must lie in (0, 1), got {self.parameters}")
        if self.speedup is not None:
            check_finite("speedup", self.speedup)
            if self.speedup <= 1.0:
                raise ValueError(f"speedup must be over 1, got {self.speedup}")

    def _check_learned(self) -> None:
        if not self.is_learned:
            return
        fault = ""
        if self.layers is not None or self.hidden is not None or self.speedup is not None:
            fault = "has gates on heads and neurons alone: give ffn, heads or parameters"
        elif self.start >= self.end:
            fault = "needs steps to learn in: let end be later than start"
        if fault:
            raise ValueError(f"importance='learned' {fault}")


_MEANT = {"ffn": "inner neurons", "heads": "heads"}
