"""Norms, directions and projections: against numpy text by text, limits and invariances."""

import numpy as np
import pytest
import torch

from lmkit.functional.adversarial import (
    NORMS,
    ball_norm,
    ball_size,
    peak_direction,
    project,
    relative_radius,
    text_sum,
    unit,
    weight_step,
)

SEGMENTS = torch.tensor([[1, 1, 1, 2, 2, 0], [1, 2, 2, 3, 3, 3]])


def drawn(seed=0, shape=(2, 6, 5)):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def balls(norm, segments):
    """The places of each ball, as lists of (row, columns)."""
    for row in range(2):
        if norm == "token":
            yield from ((row, [t]) for t in range(6))
        elif segments is None:
            yield row, list(range(6))
        else:
            for number in set(segments[row].tolist()):
                yield row, (segments[row] == number).nonzero().flatten().tolist()


@pytest.mark.parametrize("segments", [None, SEGMENTS], ids=["row", "packed"])
@pytest.mark.parametrize("norm", NORMS)
class TestEachBall:
    def test_norm_is_numpys(self, norm, segments):
        x = drawn()
        made = ball_norm(x, norm, segments).expand(2, 6, 1)
        for row, at in balls(norm, segments):
            part = x[row, at].numpy()
            expected = np.abs(part).max() if norm == "entry" else np.sqrt((part**2).sum())
            assert np.allclose(made[row, at].numpy(), expected, rtol=1e-14)

    def test_direction_reaches_the_maximum_of_a_linear_function(self, norm, segments):
        g = drawn()
        d = unit(g, norm, segments)
        for row, at in balls(norm, segments):
            part, way = g[row, at].numpy(), d[row, at].numpy()
            # The dual norm: of the Euclidean itself, of the largest entry the sum.
            most = np.abs(part).sum() if norm == "entry" else np.sqrt((part**2).sum())
            assert np.isclose((part * way).sum(), most, rtol=1e-14)
        size = ball_norm(d, norm, segments)
        assert torch.allclose(size, torch.ones_like(size), rtol=1e-14)

    def test_projection_is_the_nearest_point_in_the_ball(self, norm, segments):
        delta, radius = drawn(), 1.3
        made = project(delta, radius, norm, segments)
        assert bool((ball_norm(made, norm, segments) <= radius * (1 + 1e-15)).all())
        distance = (made - delta).square().sum()
        for seed in range(20):
            other = drawn(seed + 1)
            other = other * (radius / ball_norm(other, norm, segments))  # on the sphere
            assert (other - delta).square().sum() >= distance
            between = made + 0.01 * (other - made)  # in the ball, near the projection
            assert (between - delta).square().sum() >= distance

    def test_what_lies_within_stays_to_the_last_bit(self, norm, segments):
        delta = drawn() / 100
        assert torch.equal(project(delta, 1.0, norm, segments), delta)

    def test_projected_twice_is_projected_once(self, norm, segments):
        once = project(drawn().float(), 0.7, norm, segments)
        again = project(once, 0.7, norm, segments)
        assert torch.allclose(once, again, rtol=1e-6, atol=0)

    def test_a_radius_of_zero_leaves_nothing(self, norm, segments):
        assert not project(drawn(), 0.0, norm, segments).any()

    def test_other_rows_do_not_matter(self, norm, segments):
        g = drawn()
        first = None if segments is None else segments[:1]
        assert torch.equal(unit(g, norm, segments)[:1], unit(g[:1], norm, first))

    def test_zero_gradient_has_no_direction(self, norm, segments):
        g = drawn()
        g[0] = 0.0
        made = unit(g, norm, segments)
        assert not made[0].any() and made[1].any() and made.isfinite().all()

    @pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
    def test_direction_does_not_depend_on_the_scale(self, scale, norm, segments):
        # In float32 the squares of such numbers are 0 or infinite.
        g = drawn().float()
        made = unit(g * scale, norm, segments)
        assert torch.allclose(made, unit(g, norm, segments), rtol=1e-5)

    def test_what_is_no_number_counts_as_zero(self, norm, segments):
        g, clean = drawn(), drawn()
        g[0, 1, 2], g[1, 0, 0], g[1, 4, 1] = torch.nan, torch.inf, -torch.inf
        clean[0, 1, 2] = clean[1, 0, 0] = clean[1, 4, 1] = 0.0
        assert torch.equal(unit(g, norm, segments), unit(clean, norm, segments))


def test_packed_texts_have_the_directions_that_each_has_alone():
    g = drawn()
    for norm in ("sentence", "entry"):
        made = unit(g, norm, SEGMENTS)
        assert torch.equal(made[:1, :3], unit(g[:1, :3], norm))
        assert torch.equal(made[1:, 3:], unit(g[1:, 3:], norm))
    assert torch.equal(peak_direction(g, SEGMENTS)[:1, 3:5], peak_direction(g[:1, 3:5]))


def test_subnormal_gradients_have_a_direction():
    g = torch.full((1, 2, 2), 1e-44)
    assert torch.allclose(unit(g), torch.full((1, 2, 2), 0.5))


def test_float32_and_bfloat16_stay_within_the_bound_to_rounding():
    for dtype in (torch.float32, torch.bfloat16):
        made = project(5 * drawn().to(dtype), 0.7)
        assert bool((ball_norm(made.double()) <= 0.7 * (1 + torch.finfo(dtype).eps)).all())


def test_half_precision_gradients_are_computed_in_float32():
    g = drawn().half()
    assert unit(g).dtype == torch.float32 and unit(drawn()).dtype == torch.float64


def test_relative_radius_is_a_share_of_the_free_tokens():
    x, free = drawn(), torch.ones(2, 6, 1, dtype=torch.bool)
    free[0, 0] = free[1, 5] = False
    x[0, 0] = torch.inf  # what stands there does not matter
    first, entry = x[0, 1:].numpy(), relative_radius(x, free, 0.1, "entry")
    assert np.isclose(relative_radius(x, free, 0.1)[0].item(), 0.1 * np.sqrt((first**2).sum()))
    assert np.isclose(entry[0].item(), 0.1 * np.sqrt((first**2).mean()))
    token = relative_radius(x, free, 0.1, "token")
    assert np.isclose(token[0, 3].item(), 0.1 * np.sqrt((x[0, 3].numpy() ** 2).sum()))


def test_relative_radius_grows_with_the_embeddings_and_not_with_padding():
    x, free = drawn().float(), torch.ones(2, 6, 1, dtype=torch.bool)
    free[:, 4:] = False
    for norm in ("sentence", "entry"):
        radius = relative_radius(x, free, 0.1, norm)
        assert torch.allclose(relative_radius(3 * x, free, 0.1, norm), 3 * radius)
        assert torch.equal(relative_radius(x[:, :4], free[:, :4], 0.1, norm), radius)


def test_a_text_without_free_tokens_has_a_radius_of_zero():
    none = torch.zeros(2, 6, 1, dtype=torch.bool)
    for norm in NORMS:
        assert not relative_radius(drawn(), none, 0.1, norm).any()
    assert ball_size(none, 5).flatten().tolist() == [5.0, 5.0]


def test_sums_of_texts_are_those_of_a_loop():
    x = drawn(shape=(2, 6))
    made = text_sum(x, SEGMENTS)
    for row in range(2):
        for t in range(6):
            same = SEGMENTS[row] == SEGMENTS[row, t]
            assert torch.isclose(made[row, t], x[row][same].sum())
    assert torch.equal(text_sum(x), x.sum(1, keepdim=True))


def test_weights_move_by_a_share_of_their_norm_along_the_gradient():
    w, g = drawn(shape=(4, 3)), drawn(1, (4, 3))
    step = weight_step(w, g, 0.02)
    assert torch.isclose(step.norm(), 0.02 * w.norm(), rtol=1e-14)
    assert torch.isclose((step * g).sum(), step.norm() * g.norm(), rtol=1e-14)
    assert torch.equal(weight_step(w, 1e-3 * g, 0.02).float(), step.float())
    assert not weight_step(w, torch.zeros_like(g), 0.02).any()
    for scale in (1e-25, 1e-18, 1e18, 1e25):
        far = weight_step(w.float(), (scale * g).float(), 0.02)
        assert torch.allclose(far, step.float(), rtol=1e-5)
    broken = g.clone()
    broken[1, 2], g[1, 2] = torch.nan, 0.0
    assert torch.allclose(weight_step(w, broken, 0.02), weight_step(w, g, 0.02), rtol=1e-14)
    assert not weight_step(w, g, 0.0).any()
    assert weight_step(w.bfloat16(), g, 0.1).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "call",
    [
        lambda: ball_norm(drawn(), "batch"),
        lambda: unit(drawn(), "batch"),
        lambda: project(drawn(), 1.0, "batch"),
        lambda: relative_radius(drawn(), torch.ones(2, 6, 1).bool(), 0.1, "batch"),
    ],
)
def test_an_unknown_norm_is_refused(call):
    with pytest.raises(ValueError, match="norm must be one of sentence, token, entry, got 'batch'"):
        call()
