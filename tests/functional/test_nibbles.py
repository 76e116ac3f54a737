"""Two numbers in a byte come back as they were."""

from __future__ import annotations

import pytest
import torch

from lmkit.functional.nibbles import pack_nibbles, unpack_nibbles


@pytest.mark.parametrize("shape", [(1, 1), (3, 16), (2, 5, 7), (4,), (0, 4)])
def test_numbers_come_back(shape: tuple[int, ...]) -> None:
    whole = torch.randint(-8, 8, shape, dtype=torch.int8)
    packed = pack_nibbles(whole)
    assert packed.dtype == torch.int8
    assert packed.shape == (*shape[:-1], (shape[-1] + 1) // 2)
    assert torch.equal(unpack_nibbles(packed, shape[-1]), whole)


def test_each_pair_of_numbers_has_a_byte_of_its_own() -> None:
    numbers = torch.arange(-8, 8, dtype=torch.int8)
    pairs = torch.cartesian_prod(numbers, numbers)
    packed = pack_nibbles(pairs)
    assert len(packed.unique()) == 256 and torch.equal(unpack_nibbles(packed, 2), pairs)
    # The first of a pair stands in the lower half.
    assert [byte & 15 for byte in packed.flatten().tolist()] == [n & 15 for n, _ in pairs.tolist()]
