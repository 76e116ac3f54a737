"""Operations of a Transformer, counted by hand for the smallest one, and known devices."""

from __future__ import annotations

import pytest

from lmkit.functional.flops import rated_flops, training_flops_per_token


def test_the_smallest_network_by_hand() -> None:
    # One layer of width 2: four maps of 2 x 2 and two of 2 x 3; a head of 2 x 5.
    layer, head = 4 * 4 + 2 * 6, 10
    # A token passes each weight once, one product and one sum each, attends to 7 others twice, and
    # goes back at twice the cost.
    forward = 2 * layer + 2 * (2 * 7 * 2) + 0.5 * 2 * head
    assert training_flops_per_token(layer, head, 1, 2, 7.0, 0.5) == 3 * forward


def test_what_is_frozen_costs_less_backwards() -> None:
    sizes = (100, 10, 2, 8, 16.0, 0.5)
    forward, attention = 2 * 100 + 2 * 10 * 0.5, 4 * 16 * 8 * 2
    frozen = training_flops_per_token(*sizes, crossed=(0.0, 0.0), trained=(0.0, 0.0))
    assert frozen == forward + attention
    # The gradient goes through all to the inputs, and stops at no weight: twice the forward, but
    # of attention, whose two inputs are no weights, three times.
    through = training_flops_per_token(*sizes, trained=(0.0, 0.0))
    assert through == 2 * forward + 3 * attention
    # The upper half and the head are trained, with nothing trained below.
    upper = training_flops_per_token(*sizes, crossed=(0.5, 1.0), trained=(0.5, 1.0))
    assert upper == 2 * forward + attention * 2 + 2 * 10 * 0.5


def test_more_of_anything_costs_more() -> None:
    base = (100, 50, 2, 8, 16.0, 0.15)
    least = training_flops_per_token(*base)
    for place, value in enumerate(base):
        more = [*base]
        more[place] = value * 2
        assert training_flops_per_token(*more) > least  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H200", 989.0),
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("Tesla T4", 65.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
    ],
)
def test_devices_are_known_by_name(name: str, teraflops: float) -> None:
    assert rated_flops(name) == teraflops * 1e12


def test_an_unknown_device_has_no_rating() -> None:
    assert rated_flops("Voodoo 2") is None and rated_flops("NVIDIA T400") is None
