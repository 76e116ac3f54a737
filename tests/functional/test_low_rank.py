"""Factors lose what the formulas say, and ranks go where they keep the most."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lmkit.functional.low_rank import (
    decompose,
    largest_rank,
    rank_by_energy,
    ranks_within,
    retained_energy,
    row_weights,
    whitener,
)

SHAPES = [(6, 9), (9, 6), (7, 7)]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(width: int, count: int = 200) -> Tensor:
    """Draw inputs whose directions are far from equally strong, `[count, width]`."""
    return draw(count, width, seed=1) * torch.logspace(1, -2, width) @ draw(width, width, seed=2)


def second_moment(x: Tensor) -> Tensor:
    return x.T @ x / len(x)


def output_error(weight: Tensor, product: Tensor, x: Tensor) -> float:
    """Mean of the squared length of the error of what a layer gives."""
    gap = x.numpy() @ (weight - product).numpy().T
    return float((gap**2).sum(1).mean())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weighted", ["plain", "rows", "root", "both"])
def test_all_ranks_together_are_the_matrix(shape: tuple[int, int], weighted: str) -> None:
    weight = draw(*shape)
    rows = row_weights(draw(*shape, seed=3).square()) if weighted in ("rows", "both") else None
    root = whitener(second_moment(inputs(shape[1]))) if weighted in ("root", "both") else None
    up, down, values = decompose(weight, rows, root)
    # Of the largest singular value, by which the rounding of a decomposition is measured.
    limit = (2e-15 if weighted == "plain" else 1e-12) * float(torch.linalg.svdvals(weight)[0])
    assert (up @ down - weight).abs().max() < limit
    assert values.shape == (min(shape),) and bool((values.diff() <= 0).all())
    single = decompose(weight.float(), rows, root)
    assert (single.up @ single.down - weight).abs().max() < 1.1e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_lost_is_the_energy_of_the_ranks_that_are_left_out(shape: tuple[int, int]) -> None:
    weight = draw(*shape)
    reference = np.linalg.svd(weight.numpy(), compute_uv=False)
    up, down, values = decompose(weight)
    assert np.allclose(values, reference, rtol=1e-12)
    for rank in range(min(shape) + 1):
        lost = float((weight - up[:, :rank] @ down[:rank]).square().sum())
        assert lost == pytest.approx((reference[rank:] ** 2).sum(), abs=1e-12)


def test_the_weighted_error_is_the_energy_that_is_left_out_too() -> None:
    weight, x = draw(6, 9), inputs(9)
    moment, fisher = second_moment(x), draw(6, 9, seed=3).square()
    d, root = row_weights(fisher, damping=1e-12), whitener(moment, damping=1e-12)
    by_input, by_row = decompose(weight, root=root), decompose(weight, rows=d)
    for rank in range(1, 6):
        product = by_input.up[:, :rank] @ by_input.down[:rank]
        tail = float((by_input.values[rank:] ** 2).sum())
        assert output_error(weight, product, x) == pytest.approx(tail, rel=1e-6)
        gap = (weight - by_row.up[:, :rank] @ by_row.down[:rank]).numpy()
        lost = (fisher.numpy().sum(1)[:, None] * gap**2).sum()
        assert lost == pytest.approx(float((by_row.values[rank:] ** 2).sum()), rel=1e-6)


@pytest.mark.parametrize("count", [4, 200])
def test_the_whitened_factors_lose_no_more_on_the_data_at_any_rank(count: int) -> None:
    weight, x = draw(8, 12), inputs(12, count)
    plain, whitened = decompose(weight), decompose(weight, root=whitener(second_moment(x)))
    gains = []
    for rank in range(1, 9):
        ours, theirs = (
            output_error(weight, made.up[:, :rank] @ made.down[:rank], x)
            for made in (whitened, plain)
        )
        assert ours <= theirs + 1e-9
        gains.append(theirs - ours)
    assert max(gains) > 0.1


def test_no_other_factors_lose_less_of_what_the_layer_gives() -> None:
    weight, x = draw(5, 6), inputs(6)
    made = decompose(weight, root=whitener(second_moment(x), damping=1e-12))
    up, down = made.up[:, :2].clone(), made.down[:2].clone()
    best = output_error(weight, up @ down, x)
    for seed in range(20):
        for size in (1e-3, 1e-1):
            other = up + size * draw(5, 2, seed=seed), down + size * draw(2, 6, seed=seed + 50)
            assert output_error(weight, other[0] @ other[1], x) >= best * (1 - 1e-9)
    up.requires_grad_(), down.requires_grad_()
    error = ((x @ (weight - up @ down).T) ** 2).sum(1).mean()
    for gradient in torch.autograd.grad(error, (up, down)):
        assert gradient.abs().max() < 1e-6 * best


def test_equal_weights_of_rows_and_white_inputs_change_nothing() -> None:
    weight = draw(6, 9)
    plain = decompose(weight)
    same = decompose(weight, row_weights(torch.full((6, 9), 3.0)), whitener(2 * torch.eye(9)))
    for rank in range(1, 7):
        first, second = (m.up[:, :rank] @ m.down[:rank] for m in (plain, same))
        assert torch.allclose(first, second, atol=1e-12)


def test_each_column_is_as_long_as_its_row() -> None:
    weight, x = draw(6, 9), inputs(9)
    rows = row_weights(draw(6, 9, seed=3).square())
    for made in (decompose(weight), decompose(weight, rows, whitener(second_moment(x)))):
        assert torch.allclose(made.up.norm(dim=0), made.down.norm(dim=1), rtol=1e-10)
    plain = decompose(weight)
    assert torch.allclose(plain.up.norm(dim=0), plain.values.sqrt(), rtol=1e-12)


def test_signs_do_not_depend_on_the_machine() -> None:
    weight, turned = draw(6, 9), torch.diag(torch.tensor([1.0, -1.0] * 3).double())
    made, other = decompose(weight), decompose(turned @ weight)
    assert torch.allclose(made.down, other.down, atol=1e-12)
    assert torch.allclose(turned @ made.up, other.up, atol=1e-12)
    assert all(row[row.abs().argmax()] > 0 for row in made.down)


def test_ranks_without_weight_can_still_learn() -> None:
    made = decompose(torch.zeros(3, 4))
    assert not made.up.any() and made.down.isfinite().all() and bool(made.down.any())


def test_the_root_has_the_damped_moment_as_its_square() -> None:
    moment = second_moment(inputs(5, 3))  # of rank 3
    root = whitener(moment, 1e-3)
    damped = moment + 1e-3 * moment.diagonal().mean() * torch.eye(5)
    assert torch.equal(root, root.tril()) and torch.allclose(root @ root.T, damped, rtol=1e-12)


def test_a_moment_that_rounding_made_indefinite_is_repaired() -> None:
    vectors = torch.linalg.qr(draw(4, 4)).Q
    values = torch.tensor([3.0, 1.0, 1e-9, -0.1], dtype=torch.float64)
    moment = vectors @ torch.diag(values) @ vectors.T
    with pytest.raises(RuntimeError):
        torch.linalg.cholesky(moment)
    root = whitener(moment, 1e-4)
    found = torch.linalg.eigvalsh(root @ root.T)
    least = 1e-4 * float(values.mean())
    assert torch.allclose(found, torch.tensor([least, least, 1.0, 3.0]).double(), rtol=1e-6)
    assert torch.equal(whitener(torch.zeros(2, 2)), torch.eye(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="not finite"):
        whitener(torch.full((2, 2), math.nan))


def test_rows_that_no_gradient_reaches_keep_a_weight() -> None:
    fisher = torch.tensor([[4.0, 5.0], [0.0, 0.0]])
    weights = row_weights(fisher)
    assert weights[0] == pytest.approx(3.0, rel=1e-5)
    assert weights[1] == pytest.approx(math.sqrt(1e-6 * 4.5), rel=1e-12)
    assert torch.equal(weights, row_weights(fisher.sum(1)))
    assert row_weights(torch.zeros(3)).tolist() == [1.0, 1.0, 1.0]
    made = decompose(draw(2, 5), rows=weights)
    assert made.up.isfinite().all() and made.down.isfinite().all()
    for wrong in (math.inf, -1.0):
        with pytest.raises(ValueError, match="finite and at least 0"):
            row_weights(torch.tensor([1.0, wrong]))


@pytest.mark.parametrize("shape", [(384, 384), (384, 1536), (1, 1), (2, 2), (5, 7), (1, 9)])
def test_one_rank_more_than_the_largest_saves_nothing(shape: tuple[int, int]) -> None:
    rank = largest_rank(*shape)
    assert rank * sum(shape) < math.prod(shape) <= (rank + 1) * sum(shape)


def test_energy_and_rank_are_inverse() -> None:
    values = torch.tensor([4.0, 2.0, 2.0, 1.0])
    shares = [16 / 25, 20 / 25, 24 / 25, 1.0]
    for rank, share in enumerate(shares, 1):
        assert retained_energy(values, rank) == pytest.approx(share, rel=1e-15)
        assert rank_by_energy(values, share) == rank
        assert rank_by_energy(values, share - 1e-6) == rank
    assert rank_by_energy(values, 1e-9) == 1
    assert rank_by_energy(torch.zeros(3), 0.5) == 1
    assert rank_by_energy(torch.tensor([1.0, 0.0]), 1.0) == 1


def parameters(shapes: list[tuple[int, int]], ranks: list[int | None]) -> int:
    pairs = zip(shapes, ranks, strict=True)
    return sum(o * i if rank is None else rank * (o + i) for (o, i), rank in pairs)


def kept(spectra: list[Tensor], ranks: list[int | None]) -> float:
    pairs = zip(spectra, ranks, strict=True)
    return sum(1.0 if rank is None else retained_energy(values, rank) for values, rank in pairs)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.4, 0.6, 0.8])
def test_the_greedy_choice_is_nearly_the_best_of_all(seed: int, share: float) -> None:
    shapes = [(6, 9), (8, 8), (12, 5)]
    spectra = [
        torch.linalg.svdvals(draw(*s, seed=seed + n).mul(torch.logspace(0, -n, s[1])))
        for n, s in enumerate(shapes)
    ]
    budget = int(share * sum(map(math.prod, shapes)))
    ranks = ranks_within(spectra, shapes, budget, floor=0.0)
    assert parameters(shapes, ranks) <= budget
    options = [[*range(1, largest_rank(*shape) + 1), None] for shape in shapes]
    best = max(
        kept(spectra, list(choice))
        for choice in itertools.product(*options)
        if parameters(shapes, list(choice)) <= budget
    )
    # What is left over is less than one step of any of them.
    assert kept(spectra, ranks) >= best - 0.12
    room = budget - parameters(shapes, ranks)
    for (o, i), rank in zip(shapes, ranks, strict=True):
        if rank is not None:
            assert room < (o + i if rank < largest_rank(o, i) else o * i - rank * (o + i))


def test_no_layer_is_left_with_less_than_the_floor() -> None:
    flat, steep = torch.ones(40), torch.logspace(0, -8, 40)
    shapes = [(40, 40)] * 2
    budget = int(0.6 * 2 * 1600)
    bare, floored = (ranks_within([flat, steep], shapes, budget, f) for f in (0.0, 0.75))
    assert bare == [None, 4]
    assert floored == [15, 9]  # 0.75 of 0.6 of 1600, in ranks of 80
    assert parameters(shapes, floored) <= budget


def test_with_room_for_all_nothing_is_factorized() -> None:
    shapes = [(6, 9), (8, 8)]
    spectra = [torch.linalg.svdvals(draw(*shape)) for shape in shapes]
    assert ranks_within(spectra, shapes, 54 + 64) == [None, None]


def test_the_scale_of_a_layer_does_not_matter() -> None:
    shapes = [(12, 12)] * 3
    spectra = [torch.linalg.svdvals(draw(12, 12, seed=n)) for n in range(3)]
    scaled = [values * scale for values, scale in zip(spectra, (1e-3, 1.0, 1e3), strict=True)]
    assert ranks_within(spectra, shapes, 260) == ranks_within(scaled, shapes, 260)


def test_too_little_room_is_said_with_what_it_takes() -> None:
    with pytest.raises(ValueError, match=r"room for 27 parameters, and one rank of each.*28"):
        ranks_within([torch.ones(6), torch.ones(6)], [(6, 9), (7, 6)], 27)
    assert ranks_within([torch.ones(6), torch.ones(6)], [(6, 9), (7, 6)], 28) == [1, 1]
