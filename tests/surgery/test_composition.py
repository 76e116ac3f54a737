"""Adapters of several names and kinds stand on one base, and are weighed, switched and stacked."""

from __future__ import annotations

import copy
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lmkit.surgery.adapter import Adapter
from lmkit.surgery.composition import (
    active_adapters,
    adapters_of,
    flags_kept,
    injected_layers,
    use_adapters,
)
from lmkit.surgery.ia3 import IA3
from lmkit.surgery.lora import VARIANTS, LoRA
from lmkit.surgery.prompt_tuning import PromptTuning
from tests.surgery.adapted import bert, build, logits, stir
from tests.surgery.lora_formulas import added, fold_by_hand, folded_layers

pytest.importorskip("peft", reason="LoRA needs the extra peft")
EACH_VARIANT = pytest.mark.parametrize("variant", VARIANTS)
FROM_BASE = ("pissa", "olora")


def trained(network: nn.Module) -> set[str]:
    return {name for name, p in network.named_parameters() if p.requires_grad}


def changes_of(network: nn.Module, kinds: dict[str, str], weights: dict[str, float]) -> Any:
    """Write out what adapters of rank 3 and alpha 5 add to the weights inside, by layer."""
    changes: dict[str, Any] = {}
    for place, layers in folded_layers(network).items():
        for name, kind in kinds.items():
            layer = next(each for each in layers if name in each.lora_A)
            ranks = 5 if kind == "adalora" else 3
            own = weights.get(name, 0.0) * added(layer, name, kind, 5.0, ranks)
            if kind in FROM_BASE:
                start = layer.starts[name]
                taken = 5 / 3 * (start.up @ start.down).double().numpy()
                own = own + (1 - weights.get(name, 0.0)) * taken
            changes[place] = changes.get(place, 0.0) + own
    return changes


@pytest.mark.parametrize("first", VARIANTS)
@pytest.mark.parametrize("second", VARIANTS)
def test_a_weighted_sum_is_the_sum_of_what_each_adds(first: str, second: str) -> None:
    name = "gpt2" if first == "lora" else "bert"
    network = build(name).double()
    kinds = {"a": first, "b": second}
    for adapter, kind in kinds.items():
        if kind in FROM_BASE and first == "dora":
            with pytest.raises(ValueError, match="adapter first"):
                LoRA(adapter, ["all"], 3, 5.0, variant=kind)(network)
            return
        LoRA(adapter, ["all"], 3, 5.0, variant=kind, initial_rank=5 * (kind == "adalora"))(network)
    assert sorted(adapters_of(network)) == ["a", "b"]
    stir(network.double(), "lora_")
    for weights in ({"a": 1.0, "b": 1.0}, {"b": 1.0}, {"a": 0.25, "b": -2.0}, {}):
        use_adapters(network, weights)
        assert active_adapters(network) == weights
        plain = build(name).double()
        fold_by_hand(network, plain, changes_of(network, kinds, weights))
        assert torch.allclose(logits(network), logits(plain), atol=1e-9, rtol=0)


@EACH_VARIANT
@pytest.mark.parametrize("name", ["bert", "modernbert", "gpt2", "t5"])
@torch.no_grad()
def test_the_base_is_as_it_was_when_all_adapters_are_off(name: str, variant: str) -> None:
    network = build(name)
    before = logits(network)
    LoRA("a", ["all"], 3, variant=variant)(network)
    LoRA("b", ["all"], 2)(network)
    stir(network, "lora_")
    assert not torch.allclose(logits(network), before, atol=1e-3)
    use_adapters(network, {})
    assert not active_adapters(network)
    if variant in FROM_BASE:
        # What was taken out of the weights is added again, in another order of rounding.
        assert torch.allclose(logits(network), before, atol=1e-5, rtol=1e-5)
    else:
        assert torch.equal(logits(network), before)
    use_adapters(network, {"a": 1.0, "b": 1.0})
    assert not torch.allclose(logits(network), before, atol=1e-3)


@EACH_VARIANT
def test_a_new_adapter_leaves_the_weights_of_the_others_as_they_are(variant: str) -> None:
    network = bert()
    LoRA("a", ["all"], 3)(network)
    stir(network, "lora_")
    use_adapters(network, {"a": 0.5})
    before = logits(network)
    LoRA("b", ["all"], 2, variant=variant)(network)
    assert active_adapters(network) == {"a": 0.5, "b": 1.0}
    assert torch.allclose(logits(network), before, atol=1e-6)
    LoRA("c", ["query"], 2, variant=variant)(network)
    assert active_adapters(network) == {"a": 0.5, "b": 1.0, "c": 1.0}


def test_switching_trains_and_freezes_nothing() -> None:
    network = bert()
    for variant in ("pissa", "dora", "adalora"):
        LoRA(variant, variant=variant)(network)
    IA3("i")(network)
    before = trained(network)
    for weights in ({}, {"dora": 1.0}, {"i": 1.0, "pissa": 0.5}):
        use_adapters(network, weights)
        assert trained(network) == before
    logits(network).sum().backward()
    for name, parameter in network.named_parameters():
        if "lora_" in name and parameter.requires_grad:
            assert (parameter.grad is not None) == ("pissa" in name), name


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_kinds_stack_in_every_order(order: tuple[int, ...]) -> None:
    kinds = [LoRA("l", ["all"], 3), IA3("i"), Adapter("a", size=4)]
    network, base = bert(), logits(bert())
    for number in order:
        kinds[number](network)
    assert torch.equal(logits(network), base)
    assert sorted(adapters_of(network)) == ["a", "i", "l"]
    stir(network, "lora_", "ia3_l", ".adapters.")
    logits(network).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert not torch.allclose(logits(network), base, atol=1e-2)
    for kind in kinds:
        kind(network)
    assert sorted(active_adapters(network)) == ["a", "i", "l"]
    use_adapters(network, {})
    assert torch.equal(logits(network), base)


def test_one_name_of_several_kinds_is_switched_as_one() -> None:
    network, base = bert(), logits(bert())
    LoRA("x", ["all"], 3)(network)
    PromptTuning("x", 3)(network)
    Adapter("x", size=4)(network)
    assert adapters_of(network) == ["x"]
    stir(network, "lora_", ".adapters.")
    assert not torch.allclose(logits(network), base, atol=1e-2)
    use_adapters(network, {})
    assert torch.equal(logits(network), base)
    use_adapters(network, {"x": 1.0})
    assert active_adapters(network) == {"x": 1.0}


def test_what_is_not_there_is_named_and_nothing_is_changed() -> None:
    network = bert()
    with pytest.raises(ValueError, match=r"no adapters \['x'\]; it has none"):
        use_adapters(network, {"x": 1.0})
    LoRA("a")(network)
    IA3("i")(network)
    for weights, message in (
        ({"a": 0.5, "b": 1.0}, r"no adapters \['b'\]; it has a, i"),
        ({"a": 0.5, "i": 0.5}, r"must be 0 or 1, got \{'i': 0.5\}"),
    ):
        with pytest.raises(ValueError, match=message):
            use_adapters(network, weights)
        assert active_adapters(network) == {"a": 1.0, "i": 1.0}


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (["a"], TypeError, r"numbers by the names of adapters.*got \['a'\]"),
        ({"a": "x"}, TypeError, r"must be numbers, such as 0\.7, got \{'a': 'x'\}"),
        ({"a": None}, TypeError, "must be numbers"),
        ({"a": float("nan")}, ValueError, r"must be finite, got \{'a': nan\}"),
        ({"a": float("inf")}, ValueError, "must be finite"),
    ],
)
def test_what_is_no_weight_is_refused(weights: Any, error: type[Exception], message: str) -> None:
    network = bert()
    LoRA("a")(network)
    with pytest.raises(error, match=message):
        use_adapters(network, weights)
    assert active_adapters(network) == {"a": 1.0}


def test_flags_are_given_back_after_an_error() -> None:
    network = nn.Linear(2, 2)
    network.bias.requires_grad_(False)
    with pytest.raises(RuntimeError), flags_kept(network):
        network.requires_grad_(True)
        raise RuntimeError
    assert network.weight.requires_grad and not network.bias.requires_grad


def test_weights_survive_a_copy() -> None:
    network = bert()
    LoRA("a", variant="pissa")(network)
    LoRA("b")(network)
    stir(network, "lora_")
    use_adapters(network, {"a": 0.5})
    before: Tensor = logits(network)
    twin = copy.deepcopy(network)
    assert active_adapters(twin) == {"a": 0.5} and torch.equal(logits(twin), before)
    use_adapters(twin, {"b": 1.0})
    assert torch.equal(logits(network), before)
    assert all(layer.adapter_weights == {"a": 0.5} for layer in injected_layers(network).values())
