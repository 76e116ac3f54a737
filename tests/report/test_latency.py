"""Latencies are taken in turn, and compared within the rounds."""

from __future__ import annotations

import gc
import random
import statistics

import numpy as np
import pytest

from lmkit.report.latency import Samples, speedup, summarize, time_in_turn


class Machine:
    """A clock that moves by what runs, in a world that is slow in some rounds."""

    def __init__(self, slow: list[float] | None = None) -> None:
        self.now, self.ran, self.slow = 0.0, list[str](), slow

    def run(self, name: str, seconds: float) -> None:
        place = len(self.ran) // 2
        self.now += seconds * (self.slow[place % len(self.slow)] if self.slow else 1)
        self.ran.append(name)

    def clock(self) -> float:
        return self.now


def timed(machine: Machine, rounds: int, warmup: int = 0) -> dict[str, Samples]:
    runs = {name: lambda n=name, s=s: machine.run(n, s) for name, s in (("a", 2.0), ("b", 1.0))}
    return time_in_turn(runs, rounds, warmup, machine.clock, lambda: machine.now / 2)


def test_each_runs_once_a_round_and_another_is_the_first_in_the_next() -> None:
    machine = Machine()
    samples = timed(machine, rounds=4, warmup=1)
    assert machine.ran == ["a", "b", "a", "b", "b", "a", "a", "b", "b", "a"]
    assert samples["a"] == ([2.0] * 4, [1.0] * 4) and samples["b"] == ([1.0] * 4, [0.5] * 4)


def test_a_slow_spell_of_the_machine_drops_out_of_the_speedup() -> None:
    # Slow in most rounds, and by other factors each time: no median of either is what it was.
    machine = Machine(slow=[1.0, 7.0, 3.0, 9.0, 5.0])
    samples = timed(machine, rounds=15)
    assert speedup(samples["a"].wall, samples["b"].wall) == pytest.approx(2.0)
    assert summarize(samples["a"]).median != 2000.0


def test_figures_are_those_of_the_statistics_module() -> None:
    draw = random.Random(0)
    wall, cpu = ([draw.expovariate(50) for _ in range(40)] for _ in range(2))
    made = summarize(Samples(wall, cpu))
    assert made.median == pytest.approx(1000 * statistics.median(wall))
    assert made.least == 1000 * min(wall) and made.cpu_least == 1000 * min(cpu)
    assert made.cpu_median == pytest.approx(1000 * statistics.median(cpu))
    cuts = statistics.quantiles(wall, n=100, method="inclusive")
    assert made.p95 == pytest.approx(1000 * cuts[94])
    assert made.least <= made.median <= made.p95


def test_one_round_is_its_own_figure() -> None:
    assert summarize(Samples([0.5], [0.25])) == (500.0, 500.0, 500.0, 250.0, 250.0)


def test_the_speedup_of_a_model_over_itself_is_one_and_turns_over() -> None:
    draw = np.random.default_rng(1)
    times, others = draw.uniform(0.1, 1, 21).tolist(), draw.uniform(0.1, 1, 21).tolist()
    assert speedup(times, times) == 1.0
    assert speedup(times, others) * speedup(others, times) == pytest.approx(1.0)
    scaled = [3 * t for t in others]
    assert speedup(times, scaled) == pytest.approx(speedup(times, others) / 3)


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_waits_and_is_as_before(enabled: bool) -> None:
    was, seen = gc.isenabled(), []
    (gc.enable if enabled else gc.disable)()
    try:
        time_in_turn({"a": lambda: seen.append(gc.isenabled())}, 2, 0)
        assert seen == [False, False] and gc.isenabled() is enabled
        with pytest.raises(ZeroDivisionError):
            time_in_turn({"a": lambda: 1 / 0}, 1, 0)
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if was else gc.disable)()


def test_real_clocks_measure_real_work() -> None:
    samples = time_in_turn({"long": lambda: sum(range(200_000)), "short": lambda: None}, 5, 1)
    assert speedup(samples["long"].cpu, samples["short"].cpu) > 10
    assert all(t > 0 for t in samples["long"].wall)
