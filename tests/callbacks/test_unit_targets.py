"""Targets are met to the unit, on the way and in the end, and what cannot be met is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lmkit.callbacks.layer_times import LayerTimes
from lmkit.callbacks.structured_plan import StructuredPlan
from lmkit.callbacks.unit_targets import UnitTargets
from lmkit.surgery.unit_costs import LayerParameters
from lmkit.surgery.units import Units

HEADS = [Units("heads", f"{i}.o", (f"{i}.o",), 4, 8, i, "") for i in range(3)]
NEURONS = [Units("ffn", f"{i}.fc2", (f"{i}.fc2",), 64, 1, i, "") for i in range(3)]
UNITS = [*HEADS, *NEURONS]
PARAMETERS = LayerParameters(
    3 * (4 * 100 + 64 * 10 + 60), {u.name: 100 if u.kind == "heads" else 10 for u in UNITS}
)
#: Of 10 seconds of a layer all heads but one take 3, and all neurons but one take 4.
TIMES = LayerTimes(
    30.0, {u.name: [(1, 7.0 if u.kind == "heads" else 6.0), (u.count, 10.0)] for u in UNITS}, (2, 3)
)


def scores(units: list[Units], seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {each.name: torch.rand(each.count, generator=draw) for each in units}


def targets(units: list[Units] | None = None, **how: Any) -> UnitTargets:
    plan = StructuredPlan(**how)
    chosen = [u for u in UNITS if u.kind in plan.kinds] if units is None else units
    return UnitTargets(plan, chosen, PARAMETERS, how.pop("times", None))


def left(kept: dict[str, Tensor]) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in kept.items()}


@pytest.mark.parametrize(
    ("how", "heads", "ffn"),
    [
        ({"heads": 2}, 2, None),
        ({"heads": 0.5, "ffn": 16}, 2, 16),
        ({"ffn": 0.3}, None, 16),  # 19.2 to the nearest multiple of 8
        ({"ffn": 0.01}, None, 8),
        ({"heads": 0.01}, 1, None),
        ({"ffn": 12, "multiple_of": 4}, None, 12),
    ],
)
def test_local_targets_are_the_same_in_each_layer(
    how: dict[str, Any], heads: int | None, ffn: int | None
) -> None:
    made = targets(**how)
    known = scores(UNITS)
    kept = made.choose(known, 1.0)
    expected = {u.name: heads if u.kind == "heads" else ffn for u in made.units}
    assert left(kept) == expected
    for name, mask in kept.items():
        assert known[name][mask].min() > known[name][~mask].max()


def test_on_the_way_there_are_never_fewer_than_planned_and_never_odd_numbers() -> None:
    made = targets(heads=1, ffn=8)
    before = {u.name: u.count for u in UNITS}
    assert all(bool(mask.all()) for mask in made.choose(scores(UNITS), 0.0).values())
    for tenth in range(1, 11):
        now = left(made.choose(scores(UNITS), tenth / 10))
        for each in UNITS:
            final = 1 if each.kind == "heads" else 8
            assert now[each.name] >= each.count - tenth / 10 * (each.count - final) - 1e-9
            assert now[each.name] <= before[each.name]
            assert each.kind == "heads" or now[each.name] % 8 == 0
        before = now
    assert set(before.values()) == {1, 8}


def test_global_targets_go_where_units_are_worth_more() -> None:
    known = scores(UNITS)
    for name in ("1.o", "1.fc2"):
        known[name] = known[name] + 1
    kept = left(targets(heads=2, ffn=32, allocation="global").choose(known, 1.0))
    assert kept["1.fc2"] == 64 and kept["0.fc2"] + kept["2.fc2"] == 32
    assert min(kept.values()) >= 1 and min(kept[u.name] for u in NEURONS) >= 8
    assert sum(kept[u.name] for u in HEADS) == 6


def test_heads_of_layers_are_compared_by_their_share_of_the_layer() -> None:
    """Ten times the scores of one layer change nothing for heads, and all for neurons."""
    known = scores(UNITS)
    first = left(targets(heads=2, allocation="global").choose(known, 1.0))
    louder = {name: each * (10 if name.startswith("0") else 1) for name, each in known.items()}
    assert left(targets(heads=2, allocation="global").choose(louder, 1.0)) == first
    assert left(targets(ffn=32, allocation="global").choose(louder, 1.0))["0.fc2"] == 64


@pytest.mark.parametrize("allocation", ["local", "global"])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_a_share_of_the_parameters_is_met_and_not_exceeded(allocation: Any, share: float) -> None:
    made = targets(parameters=share, allocation=allocation)
    for seed in range(3):
        kept = left(made.choose(scores(UNITS, seed), 1.0))
        found = PARAMETERS.left(UNITS, kept) / PARAMETERS.total
        # A head of each layer is 9 % of the parameters, and 8 neurons are 7 %.
        assert share - 0.1 < found <= share + 1e-9
        if allocation == "local":
            assert len({kept[u.name] for u in HEADS}) == len({kept[u.name] for u in NEURONS}) == 1


def test_what_is_worth_little_per_parameter_goes_first() -> None:
    known = {u.name: torch.ones(u.count) for u in UNITS}
    # As much worth for ten times the parameters: heads go.
    kept = left(targets(parameters=0.8).choose(known, 1.0))
    assert {kept[u.name] for u in NEURONS} == {64} and {kept[u.name] for u in HEADS} < {1, 2, 3}
    known |= {u.name: torch.full([u.count], 11.0) for u in HEADS}
    kept = left(targets(parameters=0.8).choose(known, 1.0))
    assert {kept[u.name] for u in HEADS} == {4} and max(kept[u.name] for u in NEURONS) < 64


def test_a_budget_falls_with_what_is_done() -> None:
    made = targets(parameters=0.4, allocation="global")
    found = []
    for done in (0.0, 0.25, 0.5, 0.75, 1.0):
        kept = left(made.choose(scores(UNITS), done))
        found.append(PARAMETERS.left(UNITS, kept) / PARAMETERS.total)
    planned = [1 - done * 0.6 for done in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert all(p - 0.08 < f <= p + 1e-9 for p, f in zip(planned, found, strict=True))


def test_what_cannot_be_reached_says_what_can() -> None:
    # 60 of each layer stay, and a head and 8 neurons: 240 of 1100.
    with pytest.raises(ValueError, match=r"with the least that can be left, 0.218 of the param"):
        targets(parameters=0.2)
    targets(parameters=0.22)
    fast = StructuredPlan(speedup=5.0, speed_batch=2, speed_length=3)
    with pytest.raises(ValueError, match=r"it is 2\.90 at batches of 2 x 3 tokens"):
        UnitTargets(fast, UNITS, PARAMETERS, TIMES)


@pytest.mark.parametrize("allocation", ["local", "global"])
def test_a_speed_is_reached_with_as_much_left_as_can_be(allocation: Any) -> None:
    plan = StructuredPlan(speedup=1.5, allocation=allocation)
    made = UnitTargets(plan, UNITS, PARAMETERS, TIMES)
    kept = left(made.choose(scores(UNITS), 1.0))
    costs = {u.name: TIMES.costs(u) for u in UNITS}
    gone = sum(float(costs[n][-1] - costs[n][count]) for n, count in kept.items())
    # A head of all layers is 3 seconds, and 8 neurons of all 1.5.
    assert 10.0 - 1e-6 <= gone < 10.0 + (3.0 if allocation == "local" else 1.0)
    assert float(costs["0.fc2"][-1]) == pytest.approx(4.0 * 64 / 63)


def test_heads_that_go_together_are_counted_as_queries() -> None:
    plan, queries = StructuredPlan(heads=4), {u.name: 2 for u in HEADS}
    made = UnitTargets(plan, HEADS, PARAMETERS, queries=queries)
    assert set(left(made.choose(scores(HEADS), 1.0)).values()) == {2}
    with pytest.raises(ValueError, match=r"heads=3 does not divide .* give a multiple of 2"):
        UnitTargets(StructuredPlan(heads=3), HEADS, PARAMETERS, queries=queries)


def test_nothing_to_do_and_too_much_are_refused() -> None:
    with pytest.raises(ValueError, match="heads=4 removes nothing"):
        targets(heads=4)
    with pytest.raises(ValueError, match=r"ffn=128 is more than the 64 that 0\.fc2 reads"):
        targets(ffn=128)
    with pytest.raises(ValueError, match=r"ffn=0\.99 removes nothing"):
        targets(ffn=0.99)
    with pytest.raises(ValueError, match="ffn=128 removes nothing"):
        targets(ffn=128, allocation="global")


def test_layers_that_differ_are_given_out_globally() -> None:
    uneven = [NEURONS[0], Units("ffn", "1.fc2", ("1.fc2",), 32, 1, 1, "")]
    with pytest.raises(ValueError, match="ffn=40 is more than the 32"):
        targets(uneven, ffn=40)
    kept = left(targets(uneven, ffn=40, allocation="global").choose(scores(uneven), 1.0))
    assert sum(kept.values()) == 80 and kept["1.fc2"] <= 32
