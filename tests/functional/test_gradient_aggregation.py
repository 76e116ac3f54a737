"""Weights from inner products against methods written out on the gradients themselves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from lmkit.functional.gradient_aggregation import (
    aligned_mtl_weights,
    cagrad_weights,
    imtl_weights,
    mean_weights,
    mgda_weights,
    nash_mtl_weights,
    pcgrad_weights,
    sum_weights,
)

Weights = Callable[[Tensor], Tensor]


def seeded_pcgrad(gramian: Tensor) -> Tensor:
    return pcgrad_weights(gramian, torch.Generator().manual_seed(5))


METHODS: dict[str, Weights] = {
    "sum": sum_weights,
    "mean": mean_weights,
    "pcgrad": seeded_pcgrad,
    "mgda": mgda_weights,
    "cagrad": cagrad_weights,
    "imtl": imtl_weights,
    "aligned": aligned_mtl_weights,
    "nash": nash_mtl_weights,
}
EACH = pytest.mark.parametrize("name", METHODS)


def gradients(count: int, seed: int, length: int = 11) -> Tensor:
    """Gradients of different lengths that disagree in part."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, length, dtype=torch.float64, generator=generator)
    lengths = torch.rand(count, 1, dtype=torch.float64, generator=generator) * 3 + 0.2
    return (drawn + 0.3) * lengths


def update(weights: Weights, jacobian: Tensor) -> Tensor:
    return weights(jacobian @ jacobian.T) @ jacobian


# What all have in common.


@EACH
def test_one_task_keeps_its_gradient(name: str) -> None:
    assert METHODS[name](torch.tensor([[7.0]])).tolist() == pytest.approx([1.0], abs=1e-12)


@EACH
@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_scale_of_all_gradients_does_not_matter(name: str, count: int) -> None:
    jacobian = gradients(count, 2)
    gram = jacobian @ jacobian.T
    found = METHODS[name](gram)
    for scale in (1e-30, 1e-8, 65536.0**2, 1e30):
        assert torch.allclose(METHODS[name](gram * scale), found, rtol=1e-6)
    assert found.dtype == torch.float64 and found.isfinite().all()


@EACH
def test_the_axes_do_not_matter(name: str) -> None:
    jacobian = gradients(3, 4)
    turn = torch.linalg.qr(gradients(11, 1))[0]
    there = update(METHODS[name], jacobian @ turn) @ turn.T
    assert torch.allclose(there, update(METHODS[name], jacobian), atol=1e-9)


# The orders of pcgrad are drawn.
@pytest.mark.parametrize("name", [name for name in METHODS if name != "pcgrad"])
def test_the_order_of_the_tasks_does_not_matter(name: str) -> None:
    jacobian, order = gradients(4, 7), torch.tensor([2, 0, 3, 1])
    gram = jacobian @ jacobian.T
    found = METHODS[name](gram[order][:, order])
    assert torch.allclose(found, METHODS[name](gram)[order], atol=1e-9)


@EACH
def test_identical_gradients_keep_their_direction(name: str) -> None:
    one = gradients(1, 3)[0]
    found = update(METHODS[name], torch.stack([one, one, one]))
    expected = found.norm() / one.norm()
    assert torch.allclose(found, expected * one, atol=1e-9)
    known = {"sum": 3, "mean": 1, "pcgrad": 3, "mgda": 1, "cagrad": 1.4, "imtl": 1, "aligned": 3}
    assert expected.item() == pytest.approx(known.get(name, 3), abs=1e-9)


@EACH
def test_opposite_gradients_cancel(name: str) -> None:
    one = gradients(1, 3)[0]
    found = update(METHODS[name], torch.stack([one, -one]))
    assert found.norm() < 1e-9 * one.norm()


@EACH
def test_a_task_without_a_gradient_does_no_harm(name: str) -> None:
    pair = gradients(2, 6)
    found = METHODS[name]((j := torch.cat([pair, torch.zeros(1, 11)]).double()) @ j.T)
    assert found.isfinite().all()
    if name == "mgda":  # the shortest vector of the hull
        assert (found @ j).norm() < 1e-12
    elif name in ("sum", "pcgrad", "aligned", "nash", "imtl"):
        assert torch.allclose(found[:2] @ pair, update(METHODS[name], pair), atol=1e-9)
    assert METHODS[name](torch.zeros(3, 3)).isfinite().all()


@EACH
def test_what_is_no_number_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="task 1 is NaN"):
        METHODS[name](torch.tensor([[1.0, 0.0], [0.0, float("nan")]]))
    with pytest.raises(ValueError, match="shape"):
        METHODS[name](torch.ones(3))


# Each against its definition, on the gradients.


def pcgrad_by_hand(jacobian: Tensor, generator: torch.Generator) -> Tensor:
    total = torch.zeros_like(jacobian[0])
    for task, own in enumerate(jacobian):
        projected = own.clone()
        for other in torch.randperm(len(jacobian), generator=generator).tolist():
            if other != task and (product := projected @ jacobian[other]) < 0:
                projected -= product / jacobian[other].square().sum() * jacobian[other]
        total += projected
    return total


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("count", [2, 4, 6])
def test_pcgrad_projects_the_gradients(count: int, seed: int) -> None:
    jacobian = gradients(count, seed) - 0.4
    expected = pcgrad_by_hand(jacobian, torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed)
    found = update(partial(pcgrad_weights, generator=generator), jacobian)
    assert torch.allclose(found, expected, atol=1e-10)


def test_pcgrad_has_its_closed_form() -> None:
    jacobian = torch.tensor([[1.0, 0.0], [-1.0, 1.0]]).double()
    assert torch.allclose(update(pcgrad_weights, jacobian), torch.tensor([0.5, 1.5]).double())
    peace = gradients(3, 0).abs()
    assert torch.equal(pcgrad_weights(peace @ peace.T), torch.ones(3).double())


def test_pcgrad_of_two_has_one_order_and_no_conflict_left() -> None:
    jacobian = gradients(2, 1)
    jacobian[1] -= 2 * jacobian[0]
    gram = jacobian @ jacobian.T
    drawn = [pcgrad_weights(gram, torch.Generator().manual_seed(s)) for s in range(8)]
    assert all(torch.equal(weights, drawn[0]) for weights in drawn)
    assert (jacobian @ (drawn[0] @ jacobian) >= -1e-9).all()


def test_pcgrad_draws_the_same_orders_from_the_same_seed() -> None:
    jacobian = gradients(6, 3) - 0.5
    gram = jacobian @ jacobian.T
    drawn = {
        tuple(pcgrad_weights(gram, torch.Generator().manual_seed(s)).tolist()) for s in (1, 1, 2, 3)
    }
    assert len(drawn) == 3


@pytest.mark.parametrize("count", [2, 3, 5])
def test_mgda_lowers_every_loss(count: int) -> None:
    jacobian = gradients(count, 8)
    found = update(mgda_weights, jacobian)
    assert (jacobian @ found >= found.square().sum() - 1e-9).all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("c", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_cagrad_solves_its_own_problem(count: int, c: float, seed: int) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    jacobian = gradients(count, seed) - 0.2
    mean = jacobian.mean(0)
    found = update(partial(cagrad_weights, c=c), jacobian)
    assert (found - mean).norm() <= c * mean.norm() * (1 + 1e-9)
    worst = (jacobian @ found).min()
    assert worst >= (jacobian @ mean).min() - 1e-9

    # max t with <g, d> >= t inside the ball, over d itself.
    j, m = jacobian.numpy(), mean.numpy()
    constraints: list[dict[str, Any]] = [
        {"type": "ineq", "fun": lambda x: j @ x[:-1] - x[-1]},
        {"type": "ineq", "fun": lambda x: c**2 * (m @ m) - ((x[:-1] - m) ** 2).sum()},
    ]
    start = [*m, (j @ m).min()]
    options = {"maxiter": 500, "ftol": 1e-14}
    solved = optimize.minimize(
        lambda x: -x[-1], start, constraints=constraints, method="SLSQP", options=options
    )
    assert worst.item() == pytest.approx(-solved.fun, abs=2e-6)
    assert worst.item() >= -solved.fun - 1e-7  # and not below what it found


def test_cagrad_without_room_is_the_mean() -> None:
    jacobian = gradients(3, 1)
    assert torch.allclose(update(partial(cagrad_weights, c=0.0), jacobian), jacobian.mean(0))
    near = update(partial(cagrad_weights, c=1e-7), jacobian)
    assert torch.allclose(near, jacobian.mean(0), atol=1e-5)
    with pytest.raises(ValueError, match=r"c must lie in \[0, 1\), got 1"):
        cagrad_weights(torch.eye(2), c=1.0)


def test_cagrad_of_a_stationary_pair_among_three_is_the_mean() -> None:
    jacobian = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]).double()
    assert torch.allclose(update(cagrad_weights, jacobian), jacobian.mean(0))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("count", [2, 3, 5])
def test_imtl_has_equal_components(count: int, seed: int) -> None:
    jacobian = gradients(count, seed)
    weights = imtl_weights(jacobian @ jacobian.T)
    parts = (jacobian / jacobian.norm(dim=1, keepdim=True)) @ (weights @ jacobian)
    assert torch.allclose(parts, parts[0].expand_as(parts), rtol=1e-8)
    assert parts[0] > 0 and weights.sum().abs().item() == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(4))
def test_imtl_is_the_formula_of_the_paper(seed: int) -> None:
    jacobian = gradients(4, seed).abs()
    units = jacobian / jacobian.norm(dim=1, keepdim=True)
    # (w_2 .. w_T) = g_1 U^T (D U^T)^-1 with the differences of the first from the others.
    differences, turns = jacobian[:1] - jacobian[1:], units[:1] - units[1:]
    rest = jacobian[0] @ turns.T @ torch.linalg.inv(differences @ turns.T)
    expected = torch.cat([1 - rest.sum().reshape(1), rest])
    found = imtl_weights(jacobian @ jacobian.T)
    assert torch.allclose(found, expected * expected.sum() * found.sum(), atol=1e-9)


def test_imtl_never_raises_every_loss() -> None:
    # By the paper's rule, weights with the sum 1, this update would go against all three.
    jacobian = torch.tensor([[1.0, 0.0, 0.1], [0.0, 1.0, 0.1], [0.02, 0.02, 0.001]]).double()
    weights = imtl_weights(jacobian @ jacobian.T)
    assert weights.sum() < 0 and (jacobian @ (weights @ jacobian) > 0).all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [2, 4])
def test_aligned_gradients_are_orthogonal_and_as_long_as_the_weakest(count: int, seed: int) -> None:
    jacobian = gradients(count, seed)
    left, values, right = torch.linalg.svd(jacobian, full_matrices=False)
    aligned = values[-1] * left @ right
    assert torch.linalg.cond(aligned).item() == pytest.approx(1.0)
    assert torch.allclose(update(aligned_mtl_weights, jacobian), aligned.sum(0), atol=1e-9)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("count", [2, 3, 6])
def test_nash_is_a_bargain(count: int, seed: int) -> None:
    jacobian = gradients(count, seed)
    gram = jacobian @ jacobian.T
    weights = nash_mtl_weights(gram)
    size = torch.linalg.matrix_norm(gram)
    assert torch.allclose(gram @ weights / size, 1 / weights, rtol=1e-8)
    assert (weights @ gram @ weights).item() == pytest.approx((count * size).item())
    # No direction of that length has a larger product of gains.
    best = (jacobian @ (weights @ jacobian)).log().sum()
    for _ in range(200):
        other = weights @ jacobian + torch.randn(11).double() * 0.3
        other *= (weights @ jacobian).norm() / other.norm()
        gains = jacobian @ other
        assert (gains <= 0).any() or gains.log().sum() <= best + 1e-9


# Against another implementation.


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [2, 3, 5])
def test_updates_are_those_of_torchjd(count: int, seed: int) -> None:
    known = pytest.importorskip("torchjd.aggregation")
    jacobian = gradients(count, seed)
    close = partial(torch.allclose, rtol=1e-7, atol=1e-9)
    assert close(update(sum_weights, jacobian), known.Sum()(jacobian))
    assert close(update(mean_weights, jacobian), known.Mean()(jacobian))
    theirs = known.AlignedMTL()(jacobian)  # of the mean, ours of the sum
    assert close(update(aligned_mtl_weights, jacobian), count * theirs)
    ours, theirs = update(imtl_weights, jacobian), known.IMTLG()(jacobian)
    assert close(ours, theirs) or close(ours, -theirs)
    shortest = known.MGDA(epsilon=1e-9, max_iters=2000)(jacobian)  # Frank and Wolfe's way
    ours = update(mgda_weights, jacobian)
    assert ours.norm() <= shortest.norm() + 1e-12
    assert torch.allclose(ours, shortest, atol=2e-2)
    if count == 2:  # of more, the orders are drawn otherwise
        assert close(update(pcgrad_weights, jacobian), known.PCGrad()(jacobian))


# And on a problem whose answer is known.


@EACH
def test_two_parabolas_meet_between_their_minima(name: str) -> None:
    """Every point between the minima is as good as none other; the sum would reach one of them."""
    minima = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).double()
    stretch = torch.tensor([1.0, 0.3]).double().unsqueeze(1)
    place = torch.tensor([0.4, 2.0]).double()
    for step in range(400):  # ever shorter steps, for a bargain is as long as the gradients are
        rate = 0.4 / (1 + step / 20)
        place = place - rate * update(METHODS[name], stretch * (place - minima))
    assert abs(place[1]) < 2e-2 and -1.0 <= place[0] <= 1.0
    if name == "sum":
        assert place[0].item() == pytest.approx(0.7 / 1.3)
