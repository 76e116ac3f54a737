"""Mixtures of two examples: against a loop, limits and the distribution of shares."""

import pytest
import torch

from lmkit.functional import mix
from lmkit.functional.mixing import mixed, mixing_share, neighbours


@pytest.mark.parametrize("rows", [1, 2, 5, 8])
def test_each_row_is_the_partner_of_its_partner(rows):
    partner = neighbours(rows)
    assert torch.equal(partner[partner], torch.arange(rows))
    alone = (partner == torch.arange(rows)).sum().item()
    assert alone == rows % 2


def test_pairs_of_a_batch_are_those_of_its_halves():
    assert torch.equal(neighbours(8)[4:] - 4, neighbours(4))


def test_mixtures_are_those_of_a_loop():
    x = torch.randn(4, 3, 2, dtype=torch.float64)
    partner = torch.tensor([2, 0, 3, 1])
    made = mixed(x, partner, 0.7)
    for row in range(4):
        expected = 0.7 * x[row].numpy() + 0.3 * x[partner[row]].numpy()
        assert torch.allclose(made[row], torch.from_numpy(expected), rtol=1e-14)


def test_a_share_of_one_is_the_identity():
    x = torch.randn(4, 3, 2)
    assert mixed(x, neighbours(4), 1.0, torch.zeros(4, 3).bool()) is x


def test_a_mixture_with_itself_is_itself():
    x = torch.randn(4, 3, dtype=torch.float64)
    assert torch.allclose(mixed(x, torch.arange(4), 0.6), x, rtol=1e-14)


def test_padding_counts_as_nothing():
    x = torch.ones(2, 3, 2)
    x[1, 2] = torch.nan
    real = torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()
    made = mixed(x, neighbours(2), 0.75, real)
    assert made[:, :2].eq(1).all() and made[0, 2].eq(0.75).all() and made[1, 2].eq(0.25).all()


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_have_the_moments_of_the_larger_part_of_a_beta(alpha):
    shares = torch.tensor([mixing_share(mix(3, n), alpha) for n in range(4000)]).double()
    assert shares.min() >= 0.5 and shares.max() <= 1
    # E[(2 max(b, 1-b) - 1)^2] = E[(2b - 1)^2] = 1 / (2 a + 1)
    assert ((2 * shares - 1) ** 2).mean().item() == pytest.approx(1 / (2 * alpha + 1), abs=0.02)


def test_the_same_key_gives_the_same_share():
    assert mixing_share(5, 0.4) == mixing_share(5, 0.4) != mixing_share(6, 0.4)
