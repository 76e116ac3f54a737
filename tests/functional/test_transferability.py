"""Evidence and predictions of what was left out, against what they are by definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lmkit.functional.transferability import PENALTIES, leave_one_out, log_evidence

SHAPES = [(40, 6), (40, 40), (15, 60)]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(n: int, d: int) -> tuple[Tensor, Tensor]:
    """Features of uneven strength; targets of little noise, of much, and classes."""
    features = draw(n, d) * torch.logspace(0.5, -1, d, dtype=torch.float64)
    signal = features @ draw(d, 2, seed=1)
    noise = torch.tensor([0.3, 3.0], dtype=torch.float64) * draw(n, 2, seed=2)
    classes = (signal[:, :1] > 0).double()
    return features, torch.cat([signal + noise, classes], 1)


def density(features: Tensor, target: Tensor, alpha: float, beta: float) -> float:
    """The logarithm of N(y; 0, F F^T / alpha + I / beta), by the covariance itself."""
    f, y = features.numpy(), target.numpy()
    covariance = f @ f.T / alpha + np.eye(len(f)) / beta
    sign, log_det = np.linalg.slogdet(covariance)
    assert sign == 1
    return float(
        -0.5 * (len(y) * math.log(2 * math.pi) + log_det + y @ np.linalg.solve(covariance, y))
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_the_evidence_is_the_density_of_the_targets(shape):
    features, targets = problem(*shape)
    found = log_evidence(features, targets)
    for column, target in enumerate(targets.T):
        alpha, beta = float(found.alpha[column]), float(found.beta[column])
        expected = density(features, target, alpha, beta)
        assert float(found.value[column]) * len(target) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_no_other_precisions_have_more_evidence(shape):
    optimize = pytest.importorskip("scipy.optimize")
    features, targets = problem(*shape)
    found = log_evidence(features, targets)
    for column, target in enumerate(targets.T):
        own = np.log([float(found.alpha[column]), float(found.beta[column])])

        def loss(logs, target=target):
            return -density(features, target, *np.exp(logs))

        # A stationary point ...
        for side in np.eye(2):
            slope = (loss(own + 1e-4 * side) - loss(own - 1e-4 * side)) / 2e-4
            assert abs(slope) < 1e-5 * len(target)
        # ... and the highest that is found from elsewhere.
        for start in ([0.0, 0.0], [3.0, -2.0], [-3.0, 3.0]):
            best = optimize.minimize(loss, start, method="Nelder-Mead", options={"xatol": 1e-6})
            assert loss(own) <= best.fun + 1e-6


@pytest.mark.parametrize("shape", [(40, 6), (100, 64), (30, 60)])
@pytest.mark.parametrize("mean", [0, 30, 100])
def test_a_direction_much_longer_than_the_others_does_not_hide_them(shape, mean):
    n, d = shape
    classes = torch.arange(n) % 2
    features = draw(n, d) + 0.3 * draw(2, d, seed=1)[classes] + mean
    targets = torch.nn.functional.one_hot(classes).double()
    found = log_evidence(features, targets)
    gram = features.numpy() @ features.numpy().T
    for column, target in enumerate(targets.T):
        # Of each ratio the best noise; the ratio from all features to none.
        highest = -math.inf
        for ratio in np.logspace(-3, 10, 131):
            rest = np.linalg.solve(gram / ratio + np.eye(n), target.numpy())
            beta = n / float(target.numpy() @ rest)
            highest = max(highest, density(features, target, ratio * beta, beta))
        assert float(found.value[column]) == pytest.approx(highest / n, abs=1e-3)
        assert float(found.value[column]) > highest / n - 1e-6


def test_rotated_and_scaled_features_have_the_same_evidence():
    features, targets = problem(40, 6)
    rotation = torch.linalg.qr(draw(6, 6, seed=5)).Q
    found, turned = log_evidence(features, targets), log_evidence(features @ rotation * 7, targets)
    torch.testing.assert_close(turned.value, found.value, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(turned.alpha, found.alpha * 49, rtol=1e-7, atol=0.0)
    left, other = leave_one_out(features, targets), leave_one_out(features @ rotation * 7, targets)
    torch.testing.assert_close(other.predictions, left.predictions, rtol=1e-9, atol=1e-9)
    # Features that are zero add nothing, in another width.
    wider = torch.cat([features, torch.zeros(40, 3)], 1)
    torch.testing.assert_close(log_evidence(wider, targets).value, found.value)


def test_features_that_say_nothing_leave_the_evidence_of_noise():
    target = draw(30, 1)
    around = 0.5 * math.log(float(target.square().mean()) * 2 * math.pi * math.e)
    for features in (torch.zeros(30, 4), _beside(target)):
        found = log_evidence(features, target)
        assert float(found.value) == pytest.approx(-around, abs=1e-6)
        assert float(found.beta) == pytest.approx(1 / float(target.square().mean()), rel=1e-6)
        # What is left out is predicted by the mean of the others.
        others = (target.sum() - target) / 29
        nothing = leave_one_out(torch.zeros(30, 4), target)
        torch.testing.assert_close(nothing.predictions, others)


def _beside(target: Tensor) -> Tensor:
    """Features in which nothing of the target lies."""
    features = draw(len(target), 4, seed=9)
    return features - target @ (target.T @ features) / target.square().sum()


def test_features_that_say_all_have_great_evidence_and_no_error():
    features = draw(30, 4)
    target = features @ draw(4, 1, seed=1)
    exact = log_evidence(features, target)
    noisy = log_evidence(features, target + 0.01 * draw(30, 1, seed=2))
    assert math.isfinite(float(exact.value)) and float(exact.value) > float(noisy.value) + 2
    assert leave_one_out(features, target, [1e-12]).error < 1e-16


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("penalty", PENALTIES)
def test_each_prediction_is_that_of_a_fit_without_the_example(shape, penalty):
    features, targets = problem(*shape)
    found = leave_one_out(features, targets, [penalty])
    f, y = features.numpy(), targets.numpy()
    centred = f - f.mean(0)
    weight = penalty * np.square(np.linalg.svd(centred, compute_uv=False)).mean()
    for row in range(len(f)):
        rest = np.arange(len(f)) != row
        # The last column is the intercept, which is not penalized.
        design = np.column_stack([f[rest], np.ones(len(f) - 1)])
        normal = design.T @ design + weight * np.diag([*np.ones(f.shape[1]), 0.0])
        answer = np.append(f[row], 1.0) @ np.linalg.solve(normal, design.T @ y[rest])
        np.testing.assert_allclose(found.predictions[row].numpy(), answer, rtol=1e-7, atol=1e-9)
    error = float((found.predictions - targets).square().mean())
    assert found.error == pytest.approx(error) and found.penalty == penalty


def test_the_penalty_with_the_least_error_is_chosen():
    features, targets = problem(40, 6)
    noise = draw(40, 1, seed=7)
    for target, penalty in ((targets[:, :1], PENALTIES[0]), (noise, PENALTIES[2])):
        each = [leave_one_out(features, target, [penalty]).error for penalty in PENALTIES]
        chosen = leave_one_out(features, target)
        assert chosen.error == min(each) < max(each) and chosen.penalty == penalty
    # A shift of features or targets changes what is said by that shift alone.
    moved = leave_one_out(features + 5, noise - 3)
    torch.testing.assert_close(moved.predictions, chosen.predictions - 3)


def test_single_precision_is_taken_as_double():
    features, targets = problem(40, 6)
    single, double = features.float(), features.float().double()
    assert torch.equal(log_evidence(single, targets).value, log_evidence(double, targets).value)


@pytest.mark.parametrize(
    ("features", "targets", "match"),
    [
        (torch.ones(3, 2), torch.ones(4, 1), r"\(3, 2\) and \(4, 1\)"),
        (torch.ones(3, 2), torch.ones(3), "same examples"),
        (torch.ones(0, 2), torch.ones(0, 1), "same examples"),
        (torch.tensor([[1.0], [torch.nan]]), torch.ones(2, 1), "features holds numbers"),
        (torch.ones(2, 1), torch.tensor([[1.0], [torch.inf]]), "targets holds numbers"),
    ],
)
def test_wrong_numbers_are_refused(features, targets, match):
    for function in (log_evidence, leave_one_out):
        with pytest.raises(ValueError, match=match):
            function(features, targets)


def test_what_only_one_of_the_two_refuses():
    with pytest.raises(ValueError, match="a column of zeros"):
        log_evidence(torch.ones(3, 2), torch.tensor([[1.0, 0.0]] * 3))
    with pytest.raises(ValueError, match="at least two examples"):
        leave_one_out(torch.ones(1, 2), torch.ones(1, 1))
    for penalties in ([], [0.0], [1.0, -1.0]):
        with pytest.raises(ValueError, match="penalties must be numbers above 0"):
            leave_one_out(torch.ones(3, 2), torch.ones(3, 1), penalties)
