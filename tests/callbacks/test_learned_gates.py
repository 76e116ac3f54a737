"""Gates learn of the loss and of their size, and shut as many units as was asked for."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from lmkit.callbacks.learned_gates import LearnedGates
from lmkit.callbacks.structured_plan import StructuredPlan
from lmkit.callbacks.unit_masks import UnitMasks
from lmkit.callbacks.unit_targets import UnitTargets
from lmkit.functional.hard_concrete import gate_mean, gate_probability, gate_sample, lagrangian
from lmkit.functional.random import mix, uniform
from lmkit.surgery.unit_costs import count_layer_parameters
from lmkit.surgery.units import find_units, gated
from tests.surgery.pruned import build, said, scores


def made(network: Any, rate: float = 0.1, ascent: float = 0.0, **how: Any) -> LearnedGates:
    plan = StructuredPlan(importance="learned", multiple_of=4, **how)
    units = find_units(network, plan.kinds)
    parameters = count_layer_parameters(network, units)
    gates = LearnedGates(UnitTargets(plan, units, parameters), rate, 3, ascent)
    gates.attach(network)
    return gates


def alone(tensor: Tensor) -> Tensor:
    return tensor


def test_gates_start_open_and_are_the_same_for_a_whole_step() -> None:
    network: Any = build("bert")
    whole = said(network)
    gates = made(network, ffn=12)
    assert torch.equal(said(network), whole)
    gates.settle(0.0)
    assert torch.equal(said(network), whole)
    gates.draw(7)
    first = {n: g.detach().clone() for n, g in gates.gates.items()}
    gates.draw(7)
    assert all(torch.equal(first[n], g) for n, g in gates.gates.items())
    gates.draw(8)
    assert not all(torch.equal(first[n], g) for n, g in gates.gates.items())
    gates.close()
    assert torch.equal(said(network), whole)


@pytest.mark.parametrize("ascent", [0.0, 0.1])
def test_a_step_is_adams_by_the_gradient_of_loss_and_lagrangian_together(ascent: float) -> None:
    network: Any = build("gpt2")
    gates = made(network, heads=2, ascent=ascent)
    for name, log_alpha in gates.log_alpha.items():
        with torch.no_grad():
            log_alpha.copy_(torch.linspace(-1, 1, len(log_alpha)) + len(name) % 3)
    with torch.no_grad():
        gates.multipliers.copy_(torch.tensor([[0.3, 0.7]]))
    expected = {n: a.detach().clone().requires_grad_() for n, a in gates.log_alpha.items()}
    gates.draw(5)
    drawn = {n: g.detach().clone() for n, g in gates.gates.items()}
    (scores(network).sin().sum() * 2).backward()
    gates.step(5, 0.5, done=0.4, reduce=alone)
    gates.close()
    # The same with samples that are differentiated as a whole.
    samples = {
        n: gate_sample(a, uniform(torch.tensor(mix(3, 5, *n.encode())), len(a)))
        for n, a in expected.items()
    }
    assert all(torch.equal(samples[n].detach(), drawn[n].float()) for n in samples)
    with gated(network, samples):
        loss = scores(network).sin().sum()
    size = torch.cat([gate_probability(a) for a in expected.values()]).mean()
    multipliers = torch.tensor([0.3, 0.7], requires_grad=True)
    # Half of the heads go in the end, and 0.4 of that by now.
    penalty = lagrangian(size, 1 - 0.4 * 0.5, multipliers[0], multipliers[1])
    (loss + (penalty if ascent else 0 * multipliers.sum())).backward()
    for name, log_alpha in gates.log_alpha.items():
        assert log_alpha.grad is not None and expected[name].grad is not None
        assert torch.allclose(log_alpha.grad, expected[name].grad, rtol=1e-4, atol=1e-7)
    torch.optim.Adam(list(expected.values()), lr=0.1).step()
    moved = torch.cat([gates.log_alpha[name] - expected[name] for name in expected]).detach()
    if ascent:
        assert moved.abs().max() < 1e-5
        torch.optim.Adam([multipliers], lr=ascent, maximize=True).step()
        assert torch.allclose(gates.multipliers[0], multipliers, atol=1e-6)
        assert (multipliers - torch.tensor([0.3, 0.7])).abs().min() > 0.05
    else:  # then all are moved together to the target
        assert moved.std() < 1e-5 and moved.abs().min() > 1e-2
        assert float(gates.expected("heads").detach()) == pytest.approx(0.8, abs=1e-5)
        assert torch.equal(gates.multipliers[0], torch.tensor([0.3, 0.7]))
    assert all(gate.grad is None for gate in gates.gates.values())


def test_multipliers_that_ascend_bring_the_size_down() -> None:
    network: Any = build("bert")
    gates = made(network, ffn=12, ascent=0.1)
    for step in range(200):
        gates.draw(step)
        gates.step(step, 1.0, min(1.0, step / 50), alone)
    assert float(gates.expected("ffn").detach()) == pytest.approx(0.5, abs=0.25)
    assert bool((gates.multipliers.detach().abs() > 1e-3).all())


@pytest.mark.parametrize(
    "how", [{"ffn": 0.5, "heads": 0.5}, {"parameters": 0.5}, {"ffn": 12, "allocation": "global"}]
)
def test_the_expected_size_is_at_its_target_and_useless_units_go(how: dict[str, Any]) -> None:
    network: Any = build("bert")
    gates = made(network, **how)
    units = gates.units
    # The second half of all units is worth nothing: the loss does not ask for them.
    worth = {n: (torch.arange(u.count) < u.count // 2).double() for n, u in units.items()}
    for step in range(60):
        gates.draw(step)
        loss = -sum((gates.gates[n] * worth[n]).sum() for n in units) * 0.01
        loss.backward()  # type: ignore[attr-defined]
        done = min(1.0, step / 30)
        gates.step(step, 1.0, done, alone)
        for size in gates.sizes:
            target = min(0.99, 1 - done * (1 - gates._final[size]))
            assert float(gates.expected(size).detach()) == pytest.approx(target, abs=1e-4)
    kept = gates.targets.choose(gates.scores(), 1.0)
    if "parameters" not in how:
        for name, mask in kept.items():
            assert mask[: int(mask.sum())].all(), name
    assert all(bool((a.abs() <= 6).all()) for a in gates.log_alpha.values())


def test_expected_parameters_are_those_of_units_that_go_alone() -> None:
    network: Any = build("llama")
    gates = made(network, parameters=0.5)
    parameters = gates.targets.parameters
    with torch.no_grad():
        for log_alpha in gates.log_alpha.values():
            log_alpha.fill_(50.0)
            log_alpha[0] = -50.0
    gone = sum(parameters.per_unit.values())
    expected = 1 - gone / parameters.total
    assert float(gates.expected("parameters").detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_what_is_folded_computes_what_was_evaluated(name: str) -> None:
    network: Any = build(name)
    gates = made(network, ffn=0.5, heads=0.5)
    with torch.no_grad():
        for log_alpha in gates.log_alpha.values():
            log_alpha.copy_(torch.randn(len(log_alpha), generator=torch.Generator().manual_seed(2)))
    gates.settle(1.0)
    assert any(bool(((g > 0) & (g < 1)).any()) for g in gates.gates.values())
    evaluated = said(network)
    state = {f"network.{n}": t for n, t in network.state_dict().items()}
    whole = gates.bake(state, 1.0, "network.")
    baked = copy.deepcopy(network)
    for module in baked.modules():
        module._forward_pre_hooks.clear()
    baked.load_state_dict({n.removeprefix("network."): t for n, t in state.items()})
    assert torch.allclose(said(baked), evaluated, atol=1e-12)
    assert all(torch.equal(network.get_submodule(r).weight, w) for r, w in whole.items())
    shut = gates.fold()
    masks = UnitMasks()
    masks.start(network, gates.targets.units)
    masks.shut(shut)
    assert torch.allclose(said(network), evaluated, atol=1e-12)
    masks.open()
    assert (said(network) - evaluated).abs().max() > 1e-4


def test_a_unit_that_stays_is_open_and_the_others_are_shut() -> None:
    gates = made(build("bert"), ffn=12)
    with torch.no_grad():
        for log_alpha in gates.log_alpha.values():
            log_alpha.fill_(-9.0)
    found = gates.evaluated(1.0)
    assert all(int((gate > 0).sum()) == 12 for gate in found.values())
    with torch.no_grad():
        for log_alpha in gates.log_alpha.values():
            log_alpha.copy_(torch.linspace(-2, 4, 24))
    for gate in gates.evaluated(1.0).values():
        assert torch.equal(gate[12:], gate_mean(torch.linspace(-2, 4, 24))[12:])
        assert not gate[:12].any()


def test_a_state_goes_on_in_the_middle_of_a_window() -> None:
    def learn(gates: LearnedGates, network: Any, step: int) -> None:
        gates.draw(step)
        scores(network).sin().sum().backward()

    network: Any = build("bert")
    first, second = made(network, heads=2), made(copy.deepcopy(network), heads=2)
    for step in range(3):
        learn(first, network, step)
        first.step(step, 1.0, 0.3, alone)
    learn(first, network, 3)
    state = first.state_dict(alone)
    other = copy.deepcopy(network)
    for module in other.modules():
        module._forward_pre_hooks.clear()
    second.load_state_dict(state)
    second.attach(other, state["gradients"])
    learn(first, network, 3)
    learn(second, other, 3)
    first.step(3, 1.0, 0.5, alone)
    second.step(3, 1.0, 0.5, alone)
    for name in first.log_alpha:
        assert torch.equal(first.log_alpha[name], second.log_alpha[name])
    assert torch.equal(first.multipliers, second.multipliers)
    second.forget()
    assert all(gate.grad is None for gate in second.gates.values())
