"""Random numbers as functions of a key."""

import math

import numpy as np
import pytest
import torch

from lmkit.functional import mix, permute, random, uniform
from lmkit.functional.random import draw_words


def reference_splitmix64(state: int, count: int) -> list[int]:
    """The published generator, in plain integers."""
    out = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        out.append(z ^ (z >> 31))
    return out


def finalize(key: int) -> int:
    z = (key ^ (key >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


@pytest.mark.parametrize("key", [0, 1, 12345, 2**63 - 1])
def test_uniform_is_splitmix64_seeded_by_the_hashed_key(key: int) -> None:
    words = reference_splitmix64(finalize(key), 50)
    expected = torch.tensor([(word >> 11) * 2.0**-53 for word in words], dtype=torch.float64)
    assert torch.equal(uniform(torch.tensor(key), 50), expected)


def test_splitmix64_reference_matches_the_published_first_words() -> None:
    # The first outputs for seed 1234567, as given with the public-domain C code.
    assert reference_splitmix64(1234567, 3) == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_uniform_does_not_depend_on_how_many_are_drawn_or_on_other_keys() -> None:
    keys = torch.tensor([5, 9, 2])
    assert torch.equal(uniform(keys, 20)[:, :7], uniform(keys, 7))
    assert torch.equal(uniform(keys, 7)[1], uniform(torch.tensor(9), 7))


def test_uniform_is_uniform_over_positions_and_over_keys() -> None:
    for draw in (uniform(torch.tensor(3), 100_000), uniform(torch.arange(100_000), 1).flatten()):
        counts = torch.histc(draw.float(), bins=100, min=0, max=1)
        chi2 = float(((counts - 1000) ** 2 / 1000).sum())
        assert chi2 < 99 + 5 * math.sqrt(2 * 99)
        assert draw.min() >= 0 and draw.max() < 1
        ahead = torch.corrcoef(torch.stack([draw[:-1], draw[1:]]))[0, 1]
        assert abs(ahead) < 4 / math.sqrt(100_000)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 1000, 4097])
def test_permute_is_a_bijection(n: int) -> None:
    order = permute(torch.arange(n), n, seed=11)
    assert sorted(order.tolist()) == list(range(n))


def test_permute_gives_one_element_without_the_others() -> None:
    order = permute(torch.arange(1000), 1000, seed=3)
    assert permute(torch.tensor([17, 999]), 1000, seed=3).tolist() == order[[17, 999]].tolist()


def test_permute_orders_differ_by_seed_and_are_near_uniform() -> None:
    n, orders = 8, 4000
    places = torch.stack([permute(torch.arange(n), n, seed) for seed in range(orders)])
    for column in places.T:
        counts = torch.bincount(column, minlength=n)
        assert float(((counts - orders / n) ** 2 / (orders / n)).sum()) < 7 + 5 * math.sqrt(14)


def test_permute_refuses_an_index_outside() -> None:
    with pytest.raises(ValueError, match=r"\[0, 5\)"):
        permute(torch.tensor([5]), 5, seed=0)


def test_mix_tells_order_and_sign_apart_and_is_stable() -> None:
    seen = {mix(a, b) for a in range(-20, 20) for b in range(-20, 20)}
    assert len(seen) == 1600
    assert all(0 <= value < 2**63 for value in seen)
    assert mix(42, 7) == mix(42, 7) != mix(7, 42)


def test_a_word_can_be_drawn_without_those_before_it() -> None:
    key, place = np.array([3, 2**63 - 1, -5]), np.array([0, 9, 40])
    expected = [reference_splitmix64(finalize(int(k) % 2**64), 41) for k in key]
    words = draw_words(key, place).tolist()
    assert words == [row[at] for row, at in zip(expected, place.tolist(), strict=True)]
    grid = draw_words(key[:, np.newaxis], np.arange(41))
    assert grid.tolist() == expected
    assert key.tolist() == [3, 2**63 - 1, -5]  # nothing is changed in place


def test_an_accelerator_draws_what_the_processor_draws() -> None:
    keys = torch.tensor([[5, 9, -2], [0, 2**63 - 1, 1]])
    assert torch.equal(random._uniform_on_device(keys, 50), uniform(keys, 50))
