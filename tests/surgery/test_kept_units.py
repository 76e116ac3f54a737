"""What of a surgery is to be done: all, or nothing because it was done."""

from __future__ import annotations

from typing import Any

import pytest

from lmkit.surgery import NothingMatchedError
from lmkit.surgery.kept_units import layers_to_keep, resolve
from lmkit.surgery.structured_pruning import RemoveUnits, removal
from lmkit.surgery.units import find_units
from tests.surgery.pruned import build, same

B = "bert.encoder.layer."


def due(network: Any, *args: Any, **how: Any) -> Any:
    return resolve(network, RemoveUnits(*args, **how))


def test_all_that_is_named_is_due_but_what_stays_whole() -> None:
    network = build("bert")
    kept = {f"{B}0.output.dense": [1, 2], f"{B}1.output.dense": list(range(24))}
    found = due(network, kept, hidden=[0, 1], layers=[0, 1])
    assert [(group[0].reader, list(k)) for group, k in found.units] == [
        (f"{B}0.output.dense", [1, 2])
    ]
    assert found.hidden is not None and found.hidden.width == 16 and found.layers
    whole = due(network, {f"{B}0.output.dense": [1, 2]}, hidden=list(range(16)), layers=[0, 1, 2])
    assert whole.hidden is None and not whole.layers
    assert due(network, {f"{B}1.output.dense": list(range(24))}, layers=[0, 1, 2]) is None


def test_units_of_a_layer_that_goes_are_not_asked_for() -> None:
    network = build("bert")
    kept = same(find_units(network), 2, 9)
    surgery = removal(network, kept, layers=[0, 2])
    found = resolve(network, surgery)
    assert found is not None
    assert {group[0].layer for group, _ in found.units} == {0, 2}
    surgery(network)
    assert resolve(network, surgery) is None
    # Layer 2 of before is layer 1 now.
    assert (
        resolve(network, RemoveUnits({f"{B}2.output.dense": kept[f"{B}2.output.dense"]}, [0, 2]))
        is None
    )
    with pytest.raises(ValueError, match="there are 9, and the surgery keeps 3 of"):
        due(network, {f"{B}2.output.dense": [0, 1, 23]}, [0, 2])


def test_what_a_stack_shares_is_named_by_its_first_layer_though_that_goes() -> None:
    network = build("t5")
    name = "encoder.block.0.layer.0.SelfAttention.o"
    surgery = removal(network, {name: [1, 3]}, layers={"encoder": [1, 2]})
    found = resolve(network, surgery)
    assert found is not None and len(found.units[0][0]) == 3
    surgery(network)
    assert [u.count for u in find_units(network) if u.kind == "heads"] == [2, 4, 4]
    assert network.config.num_layers == 2 and resolve(network, surgery) is None
    with pytest.raises(NothingMatchedError, match="no units 'encoder"):
        due(network, {"encoder.block.1.layer.0.SelfAttention.o": [0]})


def test_layers_are_asked_for_by_stack() -> None:
    assert layers_to_keep(build("bert"), [0, 1]) == {"layers": ("bert.encoder.layer", [0, 1])}
    t5 = build("t5")
    both = layers_to_keep(t5, [1])
    assert both == {
        "encoder layers": ("encoder.block", [1]),
        "decoder layers": ("decoder.block", [1]),
    }
    assert list(layers_to_keep(t5, {"decoder": [0]})) == ["decoder layers"]
    assert layers_to_keep(t5, None) == {}
    with pytest.raises(ValueError, match="the stack 'middle'; there is encoder and decoder"):
        due(t5, {}, layers={"middle": [0]})
    with pytest.raises(ValueError, match="the stack 'encoder'; there is one: give a list"):
        due(build("bert"), {}, layers={"encoder": [0]})


def test_a_network_half_of_which_is_done_is_refused() -> None:
    network = build("bert")
    first = {f"{B}0.output.dense": [1, 2]}
    RemoveUnits(first)(network)
    for more in (
        {"kept": {**first, f"{B}1.output.dense": [0, 5]}},
        {"kept": first, "hidden": [0, 3]},
        {"kept": first, "layers": [0, 2]},
    ):
        with pytest.raises(ValueError, match="only what is to be kept already"):
            due(network, **more)
    assert due(network, first) is None


def test_a_stack_of_another_depth_is_refused() -> None:
    network = build("bert")
    with pytest.raises(ValueError, match="of layers there are 3, and the surgery keeps 2 of at"):
        due(network, {}, layers=[0, 4])
    with pytest.raises(ValueError, match="of layers there are 3, and the surgery keeps 2 of 12"):
        due(network, {}, layers=[0, 1], counts={"layers": 12})
