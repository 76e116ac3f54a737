"""How strong transforms are over a run."""

from __future__ import annotations

from dataclasses import dataclass

from .arguments import check_rate

__all__ = ["Ramp"]


@dataclass(frozen=True)
class Ramp:
    r"""A strength that goes from one value to another in a straight line.

    $s(t) = s_0 + (s_1 - s_0)\, \min(1, \max(0, (t - a) / (b - a)))$ of the share $t$ of the run.

    Attributes:
        start: $s_0$, in `[0, 1]`.
        stop: $s_1$, in `[0, 1]`.
        begin: $a$, share of the run at which it begins to change.
        end: $b$, share at which it has `stop`; at least `begin`.

    Raises:
        ValueError: a value lies outside its range.

    Example:
        >>> Ramp(0.0, 1.0, end=0.5).at(0.25)
        0.5
    """

    start: float = 0.0
    stop: float = 1.0
    begin: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        """Check the attributes."""
        for name, value in vars(self).items():
            check_rate(name, value)
        if self.end < self.begin:
            raise ValueError(f"end must be at least begin, {self.begin}, got {self.end}")

    def at(self, progress: float) -> float:
        """Return the strength at a share of the run, which is cut to `[0, 1]`."""
        if progress >= self.end:
            return self.stop
        if progress <= self.begin:
            return self.start
        share = (progress - self.begin) / (self.end - self.begin)
        return self.start + (self.stop - self.start) * share
