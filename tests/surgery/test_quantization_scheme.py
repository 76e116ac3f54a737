"""Schemes say what they are, and layers get no more buffers than they need."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lmkit.surgery.quantization_scheme import Scheme, add_buffers, check_groups, take_sizes


@pytest.mark.parametrize(
    ("scheme", "words", "buffers"),
    [
        (Scheme(), "8 bits", set()),
        (Scheme(4, 32, "per_token"), "4 bits in groups of 32, inputs per_token", set()),
        (
            Scheme(8, 0, "static", True),
            "8 bits, inputs static, smoothed",
            {"smooth", "input_scale", "input_zero_point"},
        ),
    ],
)
def test_a_scheme_in_words_and_in_buffers(scheme: Scheme, words: str, buffers: set[str]) -> None:
    assert str(scheme) == words
    layer = nn.Linear(4, 2)
    add_buffers(layer, scheme, 4, layer.weight)
    assert set(dict(layer.named_buffers())) == buffers
    if scheme.smooth:
        assert torch.equal(layer.smooth, torch.ones(4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 16}, "bits must be 8 or 4, got 16"),
        ({"bits": "8"}, "bits must be 8 or 4, got '8'"),
        ({"group_size": 1.5}, "group_size must be a whole number"),
        ({"activations": "row"}, "activations must be one of per_token, per_tensor, static, or"),
    ],
)
def test_what_lies_outside_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scheme(**settings)


def test_only_four_bits_share_a_byte() -> None:
    assert Scheme(bits=4).packed and not Scheme(bits=8).packed


def test_groups_and_sizes() -> None:
    check_groups(Scheme(), 7)
    check_groups(Scheme(group_size=7), 14)
    made, table = nn.Embedding(1, 1), nn.Embedding(9, 4, padding_idx=2)
    take_sizes(made, table)
    assert (made.num_embeddings, made.embedding_dim, made.padding_idx) == (9, 4, 2)
