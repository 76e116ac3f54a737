"""Random numbers as pure functions of a key, so that a resumed run draws what the first one drew.

A generator has a state, and a state has to be saved, restored and kept in step over workers and
ranks. Here a draw depends only on integers such as (seed, epoch, row): nothing is saved, and no
worker count, batch size or rank changes it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["draw_words", "mix", "mix_each", "permute", "uniform"]

# The increment and multipliers of SplitMix64 (Steele, Lea and Flood 2014,
# doi:10.1145/2660193.2660195).
_GAMMA = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
_WORD = (1 << 64) - 1
_ROUNDS = 6
_ONE, _HALF = np.uint64(1), np.uint64(32)
_COUNTER, _FACTORS = np.uint64(_GAMMA), (np.uint64(_FIRST), np.uint64(_SECOND))
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)

Words = npt.NDArray[np.uint64]


def mix(*values: int) -> int:
    """Hash integers into one of 63 bits, the same in every process and on every machine.

    Args:
        *values: integers of any size and sign; their order matters.

    Returns:
        An integer in `[0, 2**63)`: fit for `torch.manual_seed` and for an int64 tensor.

    Example:
        >>> mix(42, 0) != mix(42, 1) != mix(1, 42)
        True
    """
    return _absorb(values) >> 1


def mix_each(*values: int, last: Tensor) -> Tensor:
    """Hash the same integers with each of several last ones: `mix(*values, x)` for each `x`.

    Args:
        *values: integers of any size and sign.
        last: int64 of any shape, on the CPU.

    Returns:
        int64 of the shape of `last`, in `[0, 2**63)`.

    Example:
        >>> mix_each(42, 0, last=torch.tensor([7, -1])).tolist() == [mix(42, 0, 7), mix(42, 0, -1)]
        True
    """
    start = np.uint64((_absorb(values) + _GAMMA) & _WORD)
    words = _finalize_words(np.array(last.numpy(), ndmin=1).view(np.uint64) + start)
    return torch.from_numpy((words >> _ONE).view(np.int64).reshape(tuple(last.shape)))


def uniform(key: Tensor, n: int) -> Tensor:
    """Draw `n` uniform numbers for each key.

    Args:
        key: int64, any shape `[...]`, e.g. one key per row made with `mix`.
        n: how many numbers each key gets; the first `n` are the same whatever `n` is.

    Returns:
        float64 of shape `[..., n]` in `[0, 1)`, on the device of `key`.

    Example:
        >>> key = torch.tensor([3, 4])
        >>> torch.equal(uniform(key, 5)[1], uniform(key[1], 8)[:5])
        True
    """
    if key.device.type != "cpu":
        return _uniform_on_device(key, n)
    words = draw_words(key.numpy()[..., np.newaxis], np.arange(n))
    words >>= np.uint64(11)
    # As signed numbers, which a processor turns into floats faster; the sign bit is clear.
    return torch.from_numpy(words.view(np.int64) * 2.0**-53)


def draw_words(key: npt.NDArray[np.int64], place: npt.NDArray[np.int64]) -> Words:
    """Draw the random word at a place of each key's stream, without those before it.

    `uniform` is the upper 53 bits of these words; a key's words at different places differ.

    Args:
        key: int64 of any shape.
        place: int64 from 0, of a shape that broadcasts with that of `key`.

    Returns:
        uint64 of the common shape.

    Example:
        >>> key, place = np.array([3, 4]), np.array([7, 7])
        >>> float(draw_words(key, place)[1] >> np.uint64(11)) * 2.0**-53 == float(
        ...     uniform(torch.tensor(4), 8)[7])
        True
    """
    start = _finalize_words(np.array(key, np.int64, ndmin=1).view(np.uint64))
    counter = (np.asarray(place, np.int64).view(np.uint64) + _ONE) * _COUNTER
    words = _finalize_words(start + counter)
    return words.reshape(np.broadcast_shapes(np.shape(key), np.shape(place)))


def permute(index: Tensor, n: int, seed: int) -> Tensor:
    r"""Send each index to its place in a shuffled order of `range(n)`, in constant memory.

    A Feistel network over the smallest number of bits that holds `n`, walked on while it lands
    outside (Black and Rogaway 2002, doi:10.1007/3-540-45760-7_9): a bijection of
    `range(n)` whose element can be had without the others, so that the order of a corpus of any
    size costs nothing to store and a run can be resumed in its middle.

    Args:
        index: int64 of any shape on the CPU, each in `[0, n)`.
        n: size of the range, at least 1.
        seed: picks the order; use `mix(seed, epoch)` for an order per epoch.

    Returns:
        int64 of the shape of `index`, each in `[0, n)`.

    Raises:
        ValueError: an index lies outside the range.

    Example:
        >>> sorted(permute(torch.arange(10), 10, seed=1).tolist()) == list(range(10))
        True
    """
    if index.numel() and (int(index.min()) < 0 or int(index.max()) >= n):
        low, high = int(index.min()), int(index.max())
        raise ValueError(f"index must lie in [0, {n}), got values from {low} to {high}")
    bits = max(2, (n - 1).bit_length())
    keys = [np.uint64(mix(seed, n, turn)) for turn in range(_ROUNDS)]
    place = _feistel(index.numpy().astype(np.uint64), bits, keys)
    outside = place >= n
    while outside.any():
        place[outside] = _feistel(place[outside], bits, keys)
        outside = place >= n
    return torch.from_numpy(place.astype(np.int64))


def _feistel(index: Words, bits: int, keys: list[np.uint64]) -> Words:
    # In numpy, whose calls on a batch's few numbers take a fraction of torch's.
    low, high = np.uint64(bits // 2), np.uint64(bits - bits // 2)
    left, right = index >> high, index & ((_ONE << high) - _ONE)
    for key in keys:
        word = (right + key) * np.uint64(_FIRST)
        word = (word ^ (word >> _HALF)) * np.uint64(_SECOND)
        left, right = right, left ^ ((word >> _HALF) & ((_ONE << low) - _ONE))
        low, high = high, low
    return (left << high) | right


def _absorb(values: tuple[int, ...]) -> int:
    state = 0
    for value in values:
        state = _finalize((state + _GAMMA + (value & _WORD)) & _WORD)
    return state


def _finalize(word: int) -> int:
    word = ((word ^ (word >> 30)) * _FIRST) & _WORD
    word = ((word ^ (word >> 27)) * _SECOND) & _WORD
    return word ^ (word >> 31)


def _finalize_words(words: Words) -> Words:
    """Hash in place: in numpy, whose calls on a batch's few numbers take a fraction of torch's."""
    words ^= words >> _SHIFTS[0]
    words *= _FACTORS[0]
    words ^= words >> _SHIFTS[1]
    words *= _FACTORS[1]
    words ^= words >> _SHIFTS[2]
    return words


def _uniform_on_device(key: Tensor, n: int) -> Tensor:
    counter = torch.arange(1, n + 1, dtype=torch.int64, device=key.device) * _signed(_GAMMA)
    bits = _finalize_tensor(_finalize_tensor(key).unsqueeze(-1) + counter)
    return _shift(bits, 11).double() * 2.0**-53


def _finalize_tensor(word: Tensor) -> Tensor:
    word = (word ^ _shift(word, 30)) * _signed(_FIRST)
    word = (word ^ _shift(word, 27)) * _signed(_SECOND)
    return word ^ _shift(word, 31)


def _shift(word: Tensor, places: int) -> Tensor:
    # torch shifts int64 arithmetically: the copies of the sign bit have to go.
    return (word >> places) & ((1 << (64 - places)) - 1)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word
