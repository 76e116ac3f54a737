"""Random starts: distribution, dependence on keys alone, and norms."""

import math

import pytest
import torch

from lmkit.functional.adversarial import NORMS, ball_norm
from lmkit.functional.noise import ball_start, normal_noise, uniform_noise

KEYS = torch.arange(2000).reshape(40, 50)


def test_uniform_noise_is_uniform():
    noise = uniform_noise(KEYS, 16).double()
    assert noise.min() >= -1 and noise.max() < 1
    assert abs(noise.mean()) < 0.01 and abs(noise.var() - 1 / 3) < 0.005
    thirds = torch.histc(noise.float(), 3, -1, 1) / noise.numel()
    assert torch.allclose(thirds, torch.full((3,), 1 / 3), atol=0.01)


def test_normal_noise_has_the_moments_of_a_normal():
    noise = normal_noise(KEYS, 16).double()
    moments = [float((noise**n).mean()) for n in (1, 2, 3, 4)]
    assert moments == pytest.approx([0.0, 1.0, 0.0, 3.0], abs=0.08)
    assert noise.isfinite().all()


@pytest.mark.parametrize("draw", [uniform_noise, normal_noise])
def test_noise_depends_on_the_key_of_a_token_alone(draw):
    whole = draw(KEYS, 8)
    assert torch.equal(draw(KEYS[3:5, 7:], 8), whole[3:5, 7:])
    assert len(whole.flatten(0, 1).unique(dim=0)) == KEYS.numel()


@pytest.mark.parametrize("norm", NORMS)
def test_a_start_is_the_noise_over_the_root_of_how_many_numbers_share_the_bound(norm):
    free = torch.rand(3, 7, 1, generator=torch.Generator().manual_seed(1)) < 0.6
    noise, radius = uniform_noise(KEYS[:3, :7], 5), 0.4
    made = ball_start(noise, free, radius, norm)
    for row in range(3):
        count = {"sentence": free[row].sum().item() * 5, "token": 5, "entry": 1}[norm]
        expected = noise[row] * free[row] * radius / math.sqrt(count)
        assert torch.allclose(made[row], expected, rtol=1e-6)
    assert bool((ball_norm(made, norm) <= radius).all()) and not made[~free.expand_as(made)].any()


def test_starts_of_packed_texts_are_those_of_the_texts_alone():
    segments = torch.tensor([[1, 1, 2, 2, 2, 0]])
    free = torch.tensor([[1, 0, 1, 1, 0, 0]]).bool().unsqueeze(-1)
    noise = uniform_noise(KEYS[:1, :6], 4)
    made = ball_start(noise, free, 0.3, "sentence", segments)
    assert torch.allclose(made[:, :2], ball_start(noise[:, :2], free[:, :2], 0.3))
    assert torch.allclose(made[:, 2:5], ball_start(noise[:, 2:5], free[:, 2:5], 0.3))
