"""Times are read off lines between measurements, and measured of layers that are really smaller."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from lmkit.callbacks import layer_times
from lmkit.callbacks.layer_times import LayerTimes, measure_layer_times
from lmkit.surgery.units import Units, find_units
from tests.surgery.pruned import build

UNITS = Units("ffn", "a", ("a",), 8, 1, 0, "")


def test_between_measurements_lies_a_line() -> None:
    times = LayerTimes(9.0, {"a": [(2, 3.0), (4, 4.0), (8, 12.0)]})
    expected = [0.0, 0.5, 1.0, 1.5, 2.0, 4.0, 6.0, 8.0, 10.0]
    assert times.costs(UNITS).tolist() == pytest.approx(expected)


def test_a_smaller_layer_is_never_the_slower_one() -> None:
    times = LayerTimes(9.0, {"a": [(2, 5.0), (4, 4.0), (8, 12.0)]})
    costs = times.costs(UNITS)
    assert bool((costs.diff() >= 0).all()) and costs[0] == 0
    assert LayerTimes(1.0, {"a": [(8, 5.0)]}).costs(UNITS).tolist() == [0.0] * 9


def test_what_is_shared_by_layers_counts_for_each() -> None:
    shared = Units("heads", "a", ("a", "b", "c"), 2, 4, 0, "encoder")
    assert LayerTimes(9.0, {"a": [(1, 1.0), (2, 3.0)]}).costs(shared).tolist() == [0.0, 6.0, 12.0]


def test_times_are_plain_data() -> None:
    times = LayerTimes(9.0, {"a": [(2, 3.0), (8, 12.0)]}, (4, 7))
    again = LayerTimes.from_state(times.state_dict())
    assert again.total == 9.0 and again.shape == (4, 7)
    assert torch.equal(again.costs(UNITS), times.costs(UNITS))


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "modernbert", "distilbert", "t5"])
def test_the_layers_that_are_timed_are_smaller_by_what_the_table_says(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a clock that counts the parameters of the layer that runs."""
    network: Any = build(name, torch.float32)
    units = find_units(network)
    before = {n: p.clone() for n, p in network.named_parameters()}
    clock = {"now": 0.0}

    def tick(module: Any, args: Any, kwargs: Any) -> None:
        clock["now"] += sum(p.numel() for p in module.parameters())

    real = layer_times.copy.deepcopy

    def hooked(thing: Any, memo: Any = None) -> Any:
        copied = real(thing, memo)
        if memo is not None and hasattr(copied, "config"):
            for path in layer_times.stack_paths(copied).values():
                for layer in copied.get_submodule(path):
                    layer.register_forward_pre_hook(tick, with_kwargs=True)
        return copied

    monkeypatch.setattr(layer_times.copy, "deepcopy", hooked)
    monkeypatch.setattr(layer_times.time, "process_time", lambda: clock["now"])
    times = measure_layer_times(network, units, batch=2, length=5, rounds=2)
    assert times.shape == (2, 5) and times.table.keys() == {each.name for each in units}
    for each in units:
        pairs = times.table[each.name]
        assert [count for count, _ in pairs] == sorted({count for count, _ in pairs})
        assert pairs[-1][0] == each.count
        seconds = [time for _, time in pairs]
        assert all(a < b for a, b in pairwise(seconds))
    # Two measurements of the same dense layer, by its heads and by its neurons.
    here = [each for each in units if each.layer == 0 and each.stack in ("", "encoder")]
    assert len({times.table[each.name][-1][1] for each in here}) == 1
    assert times.total >= times.table[units[0].name][-1][1] * 3
    assert all(torch.equal(before[n], p) for n, p in network.named_parameters())


def test_real_times_are_positive_and_of_this_machine() -> None:
    network: Any = build("bert", torch.float32)
    times = measure_layer_times(network, find_units(network), batch=2, length=5, rounds=1)
    assert times.total > 0 and all(s > 0 for pairs in times.table.values() for _, s in pairs)
