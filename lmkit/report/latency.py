"""How long models take, measured so that they can be compared: in turn, on the same machine."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

__all__ = ["Latency", "Samples", "speedup", "summarize", "time_in_turn"]


class Samples(NamedTuple):
    """What was measured of one model.

    Attributes:
        wall: seconds on the clock, one number for each round.
        cpu: seconds of all threads of the process together, one for each round.
    """

    wall: list[float]
    cpu: list[float]


class Latency(NamedTuple):
    """What the samples of one model come to, in milliseconds.

    Attributes:
        median: of the wall clock.
        p95: 95 in 100 rounds took at most this, on the wall clock.
        least: of the wall clock.
        cpu_median: of the processor time of all threads.
        cpu_least: of it, which another job on the machine disturbs the least.
    """

    median: float
    p95: float
    least: float
    cpu_median: float
    cpu_least: float


def time_in_turn(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int,
    clock: Callable[[], float] = time.perf_counter,
    cpu_clock: Callable[[], float] = time.process_time,
) -> dict[str, Samples]:
    """Run each model once a round, so that what else the machine does falls on all of them alike.

    In each round another one is the first. The garbage collector waits.

    Args:
        runs: the models by name.
        rounds: how many times each is timed.
        warmup: how many times each runs before.
        clock: of the wall, in seconds.
        cpu_clock: of the processor, in seconds.

    Returns:
        The samples by name, in the order of the rounds.

    Example:
        >>> samples = time_in_turn({"one": lambda: sum(range(9)), "other": lambda: None}, 5, 1)
        >>> len(samples["one"].wall), list(samples)
        (5, ['one', 'other'])
    """
    names = list(runs)
    for name in names * warmup:
        runs[name]()
    samples = {name: Samples([], []) for name in names}
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                run = runs[name]
                cpu, wall = cpu_clock(), clock()
                run()
                samples[name].wall.append(clock() - wall)
                samples[name].cpu.append(cpu_clock() - cpu)
    finally:
        if was_enabled:
            gc.enable()
    return samples


def summarize(samples: Samples) -> Latency:
    """Return the figures of the samples, in milliseconds.

    Example:
        >>> summarize(Samples([0.001, 0.002, 0.009], [0.001, 0.001, 0.002])).median
        2.0
    """
    wall, cpu = (np.asarray(seconds) * 1000 for seconds in samples)
    return Latency(
        float(np.median(wall)),
        float(np.percentile(wall, 95)),
        float(wall.min()),
        float(np.median(cpu)),
        float(cpu.min()),
    )


def speedup(dense: list[float], own: list[float]) -> float:
    r"""Return how many times as fast a model is: the median of $t_{dense} / t_{own}$ over rounds.

    The two times of a round were taken one after the other, so that a slow spell of the machine
    falls on both, and drops out.

    Args:
        dense: seconds of the dense model, by round.
        own: seconds of the other, by round.

    Example:
        >>> speedup([2.0, 4.0, 9.0], [1.0, 2.0, 3.0])
        2.0
    """
    return statistics.median(a / max(b, 1e-9) for a, b in zip(dense, own, strict=True))
