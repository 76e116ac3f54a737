"""Learning-rate schedules as factors of the peak rate."""

from __future__ import annotations

import math

__all__ = ["SCHEDULES", "schedule_factor", "warmup_steps"]

#: The shapes that a schedule may take after its warm-up.
SCHEDULES = ("linear", "cosine", "constant")


def schedule_factor(step: int, total: int, warmup: int, schedule: str = "linear") -> float:
    r"""Factor of the peak learning rate at an optimizer step.

    It rises linearly from 0 to 1 over the warm-up, $s / w$, then with $t = (s - w) / (T - w)$ is
    $1 - t$ (`linear`), $\frac{1}{2}(1 + \cos \pi t)$ (`cosine`, arXiv:1608.03983 without
    restarts) or 1 (`constant`), and stays at its last value after $T$.

    Args:
        step: optimizer steps done, at least 0.
        total: $T$, optimizer steps of the whole run; not used by `constant`.
        warmup: $w$, optimizer steps of the warm-up, at least 0.
        schedule: `"linear"`, `"cosine"` or `"constant"`.

    Returns:
        The factor, in `[0, 1]`.

    Raises:
        ValueError: an unknown schedule.

    Example:
        >>> [schedule_factor(s, total=10, warmup=2) for s in (0, 1, 2, 6, 10, 99)]
        [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
    if step < warmup:
        return step / warmup
    if schedule == "constant":
        return 1.0
    passed = min(1.0, (step - warmup) / max(1, total - warmup))
    return 1.0 - passed if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * passed))


def warmup_steps(warmup: int | float, total: int) -> int:
    """Number of warm-up steps, from a number of steps or a share of the run.

    Args:
        warmup: an int is a number of steps, a float in `[0, 1)` a share of `total`.
        total: optimizer steps of the whole run.

    Returns:
        A number of steps, at least 0.

    Raises:
        ValueError: a negative value, or a number over 1 that is not whole.

    Example:
        >>> warmup_steps(0.06, 1000), warmup_steps(100, 1000)
        (60, 100)
    """
    if warmup < 0 or (isinstance(warmup, float) and warmup >= 1 and not warmup.is_integer()):
        raise ValueError(
            f"warmup must be a number of steps (0, 1, 2 ...) or a share in [0, 1), got {warmup}"
        )
    return int(warmup) if warmup >= 1 else round(warmup * total)
