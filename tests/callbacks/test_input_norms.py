"""What layers read is added up over real tokens, and over the steps that were done."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM
from transformers.pytorch_utils import Conv1D

from lmkit.callbacks.input_norms import InputNorms
from lmkit.surgery.prunable import prunable_layers
from tests import tiny


def read(norms: InputNorms, batch: Any, *calls: tuple[nn.Module, Tensor]) -> dict[str, Tensor]:
    norms.begin(batch)
    for layer, inputs in calls:
        layer(inputs)
    norms.end()
    norms.commit()
    return norms.read()


def by_hand(inputs: Tensor, real: Tensor) -> Tensor:
    """Add up token by token."""
    total = torch.zeros(inputs.shape[-1], dtype=torch.float64)
    for row, is_real in zip(inputs.flatten(0, -2), real.flatten(), strict=True):
        if is_real:
            total += row.double() ** 2
    return total.sqrt()


def test_padding_and_filler_rows_are_left_out() -> None:
    norms, layer = InputNorms(), nn.Linear(5, 2)
    norms.watch({"w": layer})
    inputs, mask = torch.randn(3, 4, 5), torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
    batch = {"attention_mask": mask, "index": torch.tensor([7, 3, -1])}
    before = inputs.clone()
    found = read(norms, batch, (layer, inputs))["w"]
    real = mask.bool() & torch.tensor([[True], [True], [False]])
    assert torch.allclose(found.double(), by_hand(inputs, real), rtol=1e-6)
    assert torch.equal(inputs, before)
    # More of the same: the squares add up.
    again = read(norms, batch, (layer, inputs))["w"]
    assert torch.allclose(again, found * 2**0.5)
    norms.reset()
    assert norms.read() == {}


@pytest.mark.parametrize(
    "batch", [{}, None, torch.ones(2), {"attention_mask": torch.tensor([[1, 0]])}]
)
def test_all_rows_count_where_no_mask_is_of_them(batch: Any) -> None:
    norms, layer = InputNorms(), nn.Linear(5, 2)
    norms.watch({"w": layer})
    inputs = torch.randn(2, 3, 5)
    before = inputs.clone()
    found = read(norms, batch, (layer, inputs))["w"]
    assert torch.allclose(found.double(), by_hand(inputs, torch.ones(6)), rtol=1e-6)
    assert torch.equal(inputs, before)


def test_choices_of_a_question_are_rows() -> None:
    norms, layer = InputNorms(), Conv1D(2, 5)
    norms.watch({"w": layer})
    mask = (torch.rand(2, 3, 4) < 0.6).long()
    batch = {"attention_mask": mask, "index": torch.tensor([-1, 0])}
    inputs = torch.randn(6, 4, 5)
    mask[0] = 0
    expected = by_hand(inputs, mask)
    mask[0] = 1
    assert torch.allclose(read(norms, batch, (layer, inputs))["w"].double(), expected, rtol=1e-6)


def test_a_decoder_reads_targets_and_in_cross_attention_the_source() -> None:
    config = AutoConfig.for_model(
        **tiny.SEQ2SEQ["t5"], vocab_size=50, dropout_rate=0.0, decoder_start_token_id=0
    )
    network = AutoModelForSeq2SeqLM.from_config(config)
    layers = prunable_layers(network, ["all"])
    norms, inputs = InputNorms(), {}
    norms.watch(layers, has_encoder=True)
    for name, layer in layers.items():

        def keep(_: Any, args: Any, name: str = name) -> None:
            inputs[name] = args[0].detach()

        layer.register_forward_pre_hook(keep)
    batch = {
        "input_ids": torch.randint(2, 50, (2, 6)),
        "attention_mask": torch.tensor([[1] * 6, [1, 1, 0, 0, 0, 0]]),
        # As long as the source, so that only the names tell them apart.
        "labels": torch.tensor([[7, 8, 9, 1, -100, -100], [3, 4, 5, 6, 7, 1]]),
    }
    norms.begin(batch)
    network(**batch)
    norms.end()
    norms.commit()
    found = norms.read()
    assert found.keys() == layers.keys()
    for name, seen in inputs.items():
        source = ".decoder." not in f".{name}" or name.split(".")[-3:-1] in (
            ["EncDecAttention", "k"],
            ["EncDecAttention", "v"],
        )
        real = batch["attention_mask"] if source else batch["labels"] != -100
        assert torch.allclose(found[name].double(), by_hand(seen, real), rtol=1e-5), name


def test_nothing_is_read_outside_and_a_step_that_was_not_done_does_not_count() -> None:
    norms, layer = InputNorms(), nn.Linear(3, 2)
    norms.watch({"w": layer})
    layer(torch.ones(1, 3))
    assert norms.read() == {}
    norms.begin({})
    layer(torch.ones(1, 3))
    assert norms.read() == {} and norms.state_dict()["window"]["w"].tolist() == [1.0] * 3
    norms.end()
    layer(torch.ones(1, 3))
    norms.close()
    norms.begin({})
    layer(torch.ones(1, 3))
    assert norms.state_dict()["window"]["w"].tolist() == [1.0] * 3


def test_a_layer_that_read_nothing_has_no_norms() -> None:
    norms, layers = InputNorms(), {"a": nn.Linear(3, 2), "b": nn.Linear(3, 2)}
    norms.watch(layers)
    assert list(read(norms, {}, (layers["b"], torch.ones(1, 3)))) == ["b"]


def test_a_state_goes_on_where_it_was() -> None:
    inputs = [torch.randn(2, 3, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    norms, layer = InputNorms(), nn.Linear(3, 2)
    norms.watch({"w": layer})
    read(norms, {}, (layer, inputs[0]))
    norms.begin({})
    layer(inputs[1])
    state = norms.state_dict()
    norms.close()
    other = InputNorms()
    other.load_state_dict(state)
    other.watch({"w": layer})
    other.begin({})
    layer(inputs[2])
    other.commit()
    whole = InputNorms()
    whole.watch({"w": layer})
    read(whole, {}, (layer, inputs[0]))
    assert torch.equal(
        other.read()["w"], read(whole, {}, (layer, inputs[1]), (layer, inputs[2]))["w"]
    )


def test_sums_of_ranks_are_joined_in_one_call() -> None:
    norms, layers = InputNorms(), {"a": nn.Linear(3, 2), "b": nn.Linear(2, 2)}
    norms.watch(layers)
    calls: list[Tensor] = []

    def double(tensor: Tensor) -> Tensor:
        calls.append(tensor)
        return tensor * 4

    norms.begin({})
    layers["a"](torch.ones(1, 3))
    layers["b"](torch.full((1, 2), 3.0))
    norms.commit()
    found = norms.read(double)
    assert len(calls) == 1 and found["a"].tolist() == [2.0] * 3 and found["b"].tolist() == [6.0] * 2
    assert norms.state_dict(double)["inputs"]["b"].tolist() == [36.0] * 2


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiles")
@pytest.mark.slow
def test_compiled_layers_are_read_too() -> None:
    layer, norms = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2)), InputNorms()
    norms.watch({"first": layer[0], "second": layer[2]})
    layer.compile()
    inputs = torch.randn(6, 4)
    layer(inputs)
    norms.begin({})
    layer(inputs)
    norms.end()
    layer(inputs)
    norms.commit()
    found = norms.read()
    hidden = layer[1](layer[0](inputs)).detach()
    assert torch.allclose(found["first"], inputs.norm(dim=0), rtol=1e-5)
    assert torch.allclose(found["second"], hidden.norm(dim=0), rtol=1e-4)
