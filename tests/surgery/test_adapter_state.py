"""The weights of an adapter are found and put, whatever else wraps its layers."""

from __future__ import annotations

import pytest
import torch

from lmkit.surgery.adapter import Adapter
from lmkit.surgery.adapter_state import (
    adapter_tensors,
    as_plain_lora,
    other_tensors,
    place_of,
    put_tensors,
)
from lmkit.surgery.ia3 import IA3
from lmkit.surgery.lora import LoRA
from lmkit.surgery.prefix_tuning import PrefixTuning
from tests.surgery.adapted import build
from tests.surgery.test_folding import said, train

SURGERIES = [
    LoRA("mine", ["query"], 2, variant="dora"),
    IA3("mine", ["query"], ["output.dense"]),
    Adapter("mine", "compacter", 4, targets=["[01].output.dense"], norms=True),
    PrefixTuning("mine", length=2),
]


@pytest.mark.parametrize("surgery", SURGERIES, ids=lambda surgery: type(surgery).__name__)
def test_an_adapter_has_the_same_weights_alone_and_inside_others(surgery: object) -> None:
    alone, wrapped = build("bert"), build("bert")
    surgery(alone)
    train(alone)
    LoRA("inside", ["query", "output.dense"], 3)(wrapped)
    surgery(wrapped)
    Adapter("outside", size=2, targets=["query", "output.dense"])(wrapped)
    tensors = adapter_tensors(alone.state_dict(), "mine")
    assert tensors and not any("mine" in key or "base_layer" in key for key in tensors)
    put_tensors(wrapped, "mine", tensors)
    found = adapter_tensors(wrapped.state_dict(), "mine")
    assert {*found} == {*tensors}
    assert all(torch.equal(found[key], tensor) for key, tensor in tensors.items())
    plain = build("bert").state_dict()
    assert {*other_tensors(wrapped.state_dict())} == {*plain}


def test_weights_of_another_adapter_are_named() -> None:
    network = build("bert")
    LoRA("mine", ["query"], 2)(network)
    tensors = adapter_tensors(network.state_dict(), "mine")
    key = next(iter(tensors))
    wrong = {**tensors, key: torch.zeros(1), "other.lora_A.weight": torch.zeros(1)}
    wrong.pop([*tensors][-1])
    with pytest.raises(ValueError, match=r"is missing; other.* is unknown; .* is \(1,\) instead"):
        put_tensors(network, "mine", wrong)


@pytest.mark.parametrize("variant", ["pissa", "olora"])
def test_a_part_of_the_base_is_written_as_a_sum_on_the_whole(variant: str) -> None:
    begun, plain = build("bert"), build("bert")
    LoRA("mine", ["query"], 2, 5, variant=variant)(begun)
    train(begun)
    surgery, tensors = as_plain_lora(
        LoRA("mine", ["query"], 2, 5, variant=variant), adapter_tensors(begun.state_dict(), "mine")
    )
    assert (surgery.variant, surgery.rank, surgery.alpha) == ("lora", 4, 10)
    surgery(plain)
    put_tensors(plain, "mine", tensors)
    plain.classifier.load_state_dict(begun.classifier.state_dict())
    assert (said(plain) - said(begun)).abs().max() < 1e-5


def test_a_place_is_what_stands_before_the_adapter() -> None:
    assert place_of("a.b.lora_magnitude_vector.weight") == "a.b"
    assert place_of("a.b.ia3_l") == "a.b"
    assert place_of("a.b.weight") == ""
