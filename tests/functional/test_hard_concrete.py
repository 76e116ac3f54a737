"""Gates are open as often as the formula says, and the multipliers hold their size."""

from __future__ import annotations

import math

import pytest
import torch

from lmkit.functional.hard_concrete import (
    GAMMA,
    TEMPERATURE,
    ZETA,
    gate_log_alpha,
    gate_mean,
    gate_probability,
    gate_sample,
    lagrangian,
)
from lmkit.functional.random import mix, uniform


@pytest.mark.parametrize("log_alpha", [-3.0, -1.5, 0.0, 2.0])
def test_the_share_of_open_gates_is_the_formula(log_alpha: float) -> None:
    noise = uniform(torch.tensor(mix(7)), 200_000)
    gates = gate_sample(torch.full_like(noise, log_alpha), noise)
    probability = float(gate_probability(torch.tensor(log_alpha, dtype=torch.float64)))
    assert float((gates > 0).double().mean()) == pytest.approx(probability, abs=2e-3)
    # By symmetry a gate is exactly one as often as that of the opposite is exactly zero.
    shut = 1 - float(gate_probability(torch.tensor(-log_alpha, dtype=torch.float64)))
    assert float((gates == 1).double().mean()) == pytest.approx(shut, abs=2e-3)


def test_the_probabilities_are_those_of_the_distribution_function() -> None:
    for log_alpha in (-2.0, 0.0, 1.0):
        # s is below -gamma / (zeta - gamma) where u is below this; written out from the definition.
        edge = -GAMMA / (ZETA - GAMMA)
        u = 1 / (1 + math.exp(-(TEMPERATURE * math.log(edge / (1 - edge)) - log_alpha)))
        found = float(gate_probability(torch.tensor(log_alpha, dtype=torch.float64)))
        assert found == pytest.approx(1 - u, rel=1e-12)


def test_noise_of_exactly_zero_is_no_infinity() -> None:
    log_alpha = torch.zeros(3, requires_grad=True)
    gates = gate_sample(log_alpha, torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64))
    assert gates.tolist() == pytest.approx([0.0, 0.5, 1.0], abs=1e-6)
    gates.sum().backward()
    assert log_alpha.grad is not None and bool(log_alpha.grad.isfinite().all())


def test_gates_open_as_log_alpha_rises() -> None:
    log_alpha = torch.linspace(-6, 6, 50, dtype=torch.float64)
    for found in (gate_mean(log_alpha), gate_probability(log_alpha)):
        assert bool((found.diff() >= 0).all()) and 0 <= found[0] < 0.02 and found[-1] > 0.99
    assert gate_mean(log_alpha)[0] == 0 and gate_mean(log_alpha)[-1] == 1


def test_the_log_alpha_of_a_probability_is_its_inverse() -> None:
    for probability in (0.01, 0.5, 0.99):
        log_alpha = torch.tensor(gate_log_alpha(probability), dtype=torch.float64)
        assert float(gate_probability(log_alpha)) == pytest.approx(probability, rel=1e-12)


def test_descent_by_the_gates_and_ascent_by_the_multipliers_meet_the_target() -> None:
    log_alpha = torch.full([64], gate_log_alpha(0.99), requires_grad=True)
    multipliers = torch.zeros(2, requires_grad=True)
    descent = torch.optim.Adam([log_alpha], lr=0.1)
    ascent = torch.optim.Adam([multipliers], lr=0.1, maximize=True)
    for _ in range(300):
        loss = lagrangian(gate_probability(log_alpha).mean(), 0.4, *multipliers.unbind())
        descent.zero_grad()
        ascent.zero_grad()
        loss.backward()
        descent.step()
        ascent.step()
    assert float(gate_probability(log_alpha.detach()).mean()) == pytest.approx(0.4, abs=0.02)


def test_at_the_target_there_is_no_penalty_whatever_the_multipliers() -> None:
    three, nine = torch.tensor(3.0), torch.tensor(9.0)
    assert lagrangian(torch.tensor(0.25), 0.25, three, nine) == 0
    assert float(lagrangian(torch.tensor(0.5), 0.25, three, nine)) == pytest.approx(
        3 * 0.25 + 9 * 0.0625
    )
