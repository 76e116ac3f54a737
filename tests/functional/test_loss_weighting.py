"""Weights of losses against autograd, closed forms and invariances."""

from __future__ import annotations

import math

import pytest
import torch

from lmkit.functional.loss_weighting import (
    AdamMoments,
    adam_step,
    dwa_weights,
    famo_gradient,
    famo_weights,
    geometric_weights,
    gradnorm_gradient,
    random_weights,
    uncertainty_loss,
)


def wide(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_uncertainty_is_the_likelihood_of_its_noise() -> None:
    # A squared error under a normal distribution, without the constant.
    target, said, variance = wide(1.3), wide(0.2), 0.7
    normal = torch.distributions.Normal(said, math.sqrt(variance))
    known = -normal.log_prob(target).sum() - 0.5 * math.log(2 * math.pi)
    log_variance = wide(math.log(variance))
    found = uncertainty_loss((target - said) ** 2, log_variance, wide(0.5))
    assert found.item() == pytest.approx(known.item(), abs=1e-12)


@pytest.mark.parametrize("factor", [0.5, 1.0])
def test_at_the_optimum_every_weighted_loss_is_the_same(factor: float) -> None:
    losses, factors = wide(0.02, 1.0, 55.0), torch.full((3,), factor).double()
    s = torch.zeros(3).double().requires_grad_()
    optimizer = torch.optim.LBFGS([s], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = uncertainty_loss(losses, s, factors)
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)  # type: ignore[arg-type]
    assert torch.allclose(2 * factors * (-s.detach()).exp() * losses, torch.ones(3).double())
    assert torch.allclose(s.detach(), (2 * factors * losses).log(), atol=1e-5)


def test_dwa_has_its_closed_form() -> None:
    found = dwa_weights(wide(0.9, 0.5), wide(1.0, 1.0))
    powers = [math.exp(0.45), math.exp(0.25)]
    assert found.tolist() == pytest.approx([2 * power / sum(powers) for power in powers])
    assert found.sum().item() == pytest.approx(2.0)
    assert torch.equal(dwa_weights(wide(3.0, 0.1), wide(6.0, 0.2)), torch.ones(2).double())
    losses = wide(5.0, 0.3, 1.0), wide(4.0, 0.4, 2.0)
    scale = wide(10.0, 0.01, 7.0)  # of a loss does not matter
    assert torch.allclose(dwa_weights(*losses), dwa_weights(*(scale * each for each in losses)))
    assert torch.allclose(dwa_weights(*losses, 1e9), torch.ones(3).double())


def test_random_weights_are_one_in_the_mean() -> None:
    drawn = torch.stack([random_weights(key, 3) for key in range(4000)])
    assert torch.allclose(drawn.sum(1), torch.full((4000,), 3.0))
    assert (drawn.mean(0) - 1.0).abs().max() < 4 * float(drawn.std()) / math.sqrt(4000)
    assert len(drawn.unique(dim=0)) == 4000
    state = torch.get_rng_state()
    random_weights(1, 3)
    assert torch.equal(torch.get_rng_state(), state)


def test_geometric_weights_give_the_gradient_of_the_geometric_mean() -> None:
    losses = wide(0.3, 2.0, 9.0).requires_grad_()
    mean = losses.prod() ** (1 / 3)
    (known,) = torch.autograd.grad(mean, losses)
    found = geometric_weights(losses.detach())
    assert torch.allclose(found, known)
    assert (found @ losses).item() == pytest.approx(mean.item())


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.5])
def test_gradnorm_is_the_gradient_of_its_loss(alpha: float) -> None:
    weights = wide(0.5, 1.7, 0.8).requires_grad_()
    norms, losses, initial = wide(2.0, 0.3, 1.0), wide(1.0, 0.2, 3.0), wide(1.5, 0.9, 3.1)
    pace = losses / initial
    target = ((weights * norms).mean() * (pace / pace.mean()) ** alpha).detach()
    (known,) = torch.autograd.grad((weights * norms - target).abs().sum(), weights)
    found = gradnorm_gradient(weights.detach(), norms, losses, initial, alpha)
    assert torch.allclose(found, known)


def test_gradnorm_leaves_equal_tasks_alone() -> None:
    ones = torch.ones(3)
    for size in (1e-8, 0.1, 3e5):
        found = gradnorm_gradient(ones, size * ones, 0.3 * ones, 0.7 * ones, 1.5)
        assert torch.equal(found, torch.zeros(3))


def test_gradnorm_finds_weights_that_make_gradients_equal() -> None:
    weights, norms, ones = wide(1.0, 1.0, 1.0), wide(1.0, 2.0, 4.0), torch.ones(3).double()
    for step in range(4000):
        weights -= 0.05 / (1 + step) ** 0.75 * gradnorm_gradient(weights, norms, ones, ones, 1.5)
        weights *= 3 / weights.sum()
    assert torch.allclose(weights * norms, (weights * norms).mean().expand(3), rtol=2e-2)


def test_famo_is_the_gradient_of_weighted_logarithms() -> None:
    logits, losses = wide(0.3, -1.0, 0.1), wide(0.2, 4.0, 1.0).requires_grad_()
    shares = logits.softmax(0)
    constant = 1 / (shares / losses.detach()).sum()
    (known,) = torch.autograd.grad(constant * (shares * losses.log()).sum(), losses)
    assert torch.allclose(famo_weights(logits, losses.detach()), known)
    assert famo_weights(logits, losses.detach()).sum().item() == pytest.approx(1.0)


def test_famo_descends_as_autograd_does() -> None:
    logits = wide(0.3, -1.0, 0.1).requires_grad_()
    before, after = wide(1.0, 2.0, 3.0), wide(0.9, 1.0, 3.3)
    decrease = before.log() - after.log()
    (known,) = torch.autograd.grad(logits.softmax(0), logits, grad_outputs=decrease)
    found = famo_gradient(logits.detach(), before, after)
    assert torch.allclose(found, known) and abs(float(found.sum())) < 1e-12
    # Where all fell by one share, nothing changes.
    assert famo_gradient(logits.detach(), before, 0.7 * before).abs().max() < 1e-12


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_adam_is_that_of_torch(decay: float) -> None:
    value, target = wide(1.0, -2.0, 0.5), wide(0.1, 0.2, 0.3)
    other = value.clone().requires_grad_()
    optimizer = torch.optim.Adam([other], lr=0.025, weight_decay=decay)
    moments = AdamMoments(torch.zeros_like(value), torch.zeros_like(value), torch.zeros(()))
    for _ in range(30):
        optimizer.zero_grad()
        (other - target).square().sum().backward()
        optimizer.step()
        adam_step(value, 2 * (value - target), moments, 0.025, decay)
    assert torch.allclose(value, other.detach(), atol=1e-6)
