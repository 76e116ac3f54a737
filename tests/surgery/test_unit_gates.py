"""What is gathered of gates is what a loop over batches with gates in place finds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lmkit.surgery.blocks import stack_paths
from lmkit.surgery.unit_gates import (
    ALL,
    DimensionGates,
    LayerChanges,
    LayerGates,
    MeanActivity,
    NormActivity,
    UnitGates,
    straight_weight,
)
from lmkit.surgery.units import find_units, gate_units
from lmkit.types import Batch
from tests.surgery.pruned import build, inputs


def batches(network: Any, count: int = 3) -> list[Batch]:
    """Make batches with padding; the last one has another length."""
    made = []
    for number in range(count):
        batch = inputs(network)
        batch["input_ids"] = (batch["input_ids"] + 7 * number) % 90 + 5
        if number == count - 1:
            batch = {name: tensor[:, :5] for name, tensor in batch.items()}
        made.append(batch)
    return made


def loss_of(network: Any, batch: Batch) -> Tensor:
    """A loss with the sign of each batch's own."""
    logits: Tensor = network(**batch).logits
    return (logits.sin() * batch["input_ids"].double().mean()).sum()


def gather(gathering: Any, network: Any, differentiated: bool = True) -> Any:
    network.eval()
    with gathering, torch.set_grad_enabled(differentiated):
        for batch in batches(network):
            with gathering.watching(batch):
                if differentiated:
                    gathering.accumulate(loss_of(network, batch))
                else:
                    network(**batch)
        network(**batch)  # outside of the watching: nothing of it counts
    return gathering


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_gates_on_units_are_differentiated_batch_by_batch(name: str) -> None:
    network: Any = build(name)
    units = find_units(network)
    gates = {u.name: torch.ones(u.count, dtype=torch.float64).requires_grad_() for u in units}
    sums = {u.name: torch.zeros(u.count, dtype=torch.float64) for u in units}
    handles = gate_units(network, units, gates)
    for batch in batches(network):
        found = torch.autograd.grad(loss_of(network, batch), list(gates.values()))
        for unit, gradient in zip(sums, found, strict=True):
            sums[unit] += gradient.abs()
    for handle in handles:
        handle.remove()
    network.requires_grad_(False)  # as below adapters
    gathered = gather(UnitGates(network, units), network)
    for unit, expected in sums.items():
        assert gathered.counts[unit] == 3
        assert torch.allclose(gathered.total(unit), expected, rtol=1e-8, atol=1e-12)
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())


def test_gates_on_layers_are_differentiated_batch_by_batch() -> None:
    network: Any = build("bert")
    names = [f"{path}.{n}" for path in stack_paths(network).values() for n in range(3)]
    gates = [torch.ones((), dtype=torch.float64, requires_grad=True) for _ in names]

    def skip(gate: Tensor) -> Any:
        def hook(_: Any, args: Any, output: Any) -> Any:
            out = output if isinstance(output, Tensor) else output[0]
            opened = args[0] + gate * (out - args[0])
            return opened if isinstance(output, Tensor) else (opened, *output[1:])

        return hook

    handles = [
        network.get_submodule(name).register_forward_hook(skip(gate))
        for name, gate in zip(names, gates, strict=True)
    ]
    sums = torch.zeros(3, dtype=torch.float64)
    for batch in batches(network):
        found = torch.autograd.grad(loss_of(network, batch), gates)
        sums += torch.stack(found).abs()
    for handle in handles:
        handle.remove()
    gathered = gather(LayerGates(network, names), network)
    found = torch.cat([gathered.total(name) for name in names])
    assert torch.allclose(found, sums, rtol=1e-8)


def test_gates_on_dimensions_are_the_same_in_all_normalizations() -> None:
    network: Any = build("bert")
    norms = [n for n, m in network.named_modules() if isinstance(m, nn.LayerNorm)]
    gate = torch.ones(16, dtype=torch.float64, requires_grad=True)
    handles = [
        network.get_submodule(name).register_forward_hook(lambda m, a, out: out * gate)
        for name in norms
    ]
    expected = torch.zeros(16, dtype=torch.float64)
    for batch in batches(network):
        expected += torch.autograd.grad(loss_of(network, batch), gate)[0].abs()
    for handle in handles:
        handle.remove()
    gathered = gather(DimensionGates(network, norms), network)
    assert torch.allclose(gathered.total(ALL), expected, rtol=1e-8)


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_activity_is_of_real_tokens_alone(name: str) -> None:
    network: Any = build(name)
    readers = [reader for each in find_units(network) for reader in each.readers]
    gathered = gather(MeanActivity(network, readers), network, differentiated=False)
    seen: dict[str, list[Tensor]] = {reader: [] for reader in readers}

    def keep(reader: str) -> Any:
        return lambda m, args: seen[reader].append(args[0].detach())

    handles = [network.get_submodule(r).register_forward_pre_hook(keep(r)) for r in readers]
    expected = {reader: torch.zeros(()) for reader in readers}
    tokens = 0
    for batch in batches(network):
        network(**batch)
        mask = batch["attention_mask"].bool()
        tokens += int(mask.sum())
        for reader in readers:
            # Without labels nothing tells the padding of a target.
            expected[reader] = expected[reader] + seen[reader][-1][mask].abs().sum(0)
    for handle in handles:
        handle.remove()
    for reader in readers:
        assert gathered.counts[reader] == tokens
        assert torch.allclose(gathered.total(reader), expected[reader].double(), rtol=1e-12)


def test_a_layer_that_changes_nothing_is_worth_nothing() -> None:
    network: Any = build("gpt2")
    names = [f"transformer.h.{n}" for n in range(3)]
    with torch.no_grad():
        for word in ("attn.c_proj", "mlp.c_proj"):
            for parameter in network.get_submodule(f"{names[1]}.{word}").parameters():
                parameter.zero_()
    changes = gather(LayerChanges(network, names), network, differentiated=False)
    gates = gather(LayerGates(network, names), network)
    for gathered in (changes, gates):
        found = [float(gathered.total(name)) for name in names]
        assert found[1] == 0 and min(found[0], found[2]) > 1e-3


def test_a_change_is_measured_against_what_came_in() -> None:
    class Double(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 3 * x

    network = nn.Sequential(Double())
    with LayerChanges(network, ["0"]) as seen, seen.watching({}), torch.no_grad():
        network(torch.randn(2, 5, 4))
    assert float(seen.sums["0"]) / seen.counts["0"] == pytest.approx(2.0)


def test_normalizations_are_seen_behind_their_scale() -> None:
    norm = nn.LayerNorm(4)
    with NormActivity(nn.Sequential(norm), ["0"]) as seen, torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, 0.0, -1.0]))
        with seen.watching({}):
            out = norm(torch.randn(3, 4))
    assert torch.allclose(seen.sums["0"], out.abs().double().sum(0))


def test_weights_are_turned_the_same_way_round() -> None:
    network: Any = build("gpt2")
    layer = network.get_submodule("transformer.h.0.mlp.c_proj")
    assert straight_weight(layer).shape == (16, 64)
    assert straight_weight(nn.Linear(3, 2), torch.zeros(2, 3)).shape == (2, 3)
