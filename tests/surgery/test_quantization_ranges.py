"""Ranges are those of real tokens, batch by batch, and factors those of all that read the same."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lmkit.surgery.low_rank import matrix_places
from lmkit.surgery.quantization import Quantize
from lmkit.surgery.quantization_ranges import (
    InputRanges,
    input_scales,
    put_calibration,
    scale_weights,
    smoothing_of,
)
from tests.surgery.adapted import build, inputs, logits


def watched(name: str) -> tuple[Any, InputRanges, dict[str, Tensor]]:
    """Run a network on two texts, and return its ranges."""
    network = build(name)
    ranges = InputRanges(network, matrix_places(network, "all"))
    batch = inputs(network)
    if network.config.is_encoder_decoder:
        batch["labels"] = batch["decoder_input_ids"]
    with ranges, torch.no_grad(), ranges.watching(batch):
        network(**{k: v for k, v in batch.items() if k != "labels"})
    return network, ranges, batch


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5", "modernbert"])
def test_ranges_are_those_of_the_real_tokens(name: str) -> None:
    network, ranges, batch = watched(name)
    seen: dict[str, Tensor] = {}

    def note(place: str) -> Any:
        def hook(module: Any, read: Any) -> None:
            seen[place] = read[0].detach()

        return hook

    for place in ranges.layers:
        network.get_submodule(place).register_forward_pre_hook(note(place))
    with torch.no_grad():
        network(**{k: v for k, v in batch.items() if k != "labels"})
    mask = batch["attention_mask"].bool()
    for place, x in seen.items():
        real = x if place in ranges.in_decoder else x[mask]
        low, high = real.flatten(0, -2).amin(0), real.flatten(0, -2).amax(0)
        assert torch.equal(ranges.total(place), torch.stack([-low, high]).double()), place
        assert ranges.counts[place] == 1.0


def test_ranges_do_not_depend_on_who_has_seen_a_batch() -> None:
    network = build("bert")
    places = matrix_places(network, "all")
    batches = [inputs(network), {k: v.flip(1) for k, v in inputs(network).items()}]
    parts = []
    for chosen in (batches, batches[:1], batches[1:]):
        ranges = InputRanges(network, places)
        with ranges, torch.no_grad():
            for batch in chosen:
                with ranges.watching(batch):
                    network(**batch)
            network(**batches[0])  # not watched
        parts.append(ranges)
    whole, *halves = parts
    for place in places:
        assert whole.counts[place] == 2
        joined = torch.maximum(halves[0].total(place), halves[1].total(place))
        assert torch.equal(whole.total(place), joined)


def test_layers_that_read_the_same_are_known() -> None:
    _, ranges, _ = watched("bert")
    first = "bert.encoder.layer.0."
    three = [f"{first}attention.self.{word}" for word in ("key", "query", "value")]
    assert ranges.readers[three[0]] == ranges.readers[three[2]] == three
    assert ranges.readers[f"{first}output.dense"] == [f"{first}output.dense"]
    _, gated, _ = watched("llama")
    both = gated.readers["model.layers.1.mlp.gate_proj"]
    assert both == ["model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj"]


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_factors_are_one_for_each_input_and_change_nothing_but_the_rounding(name: str) -> None:
    network, ranges, _ = watched(name)
    found = {place: ranges.total(place) for place in ranges.layers}
    factors = smoothing_of(network, found, ranges.readers, 0.5)
    assert factors.keys() == found.keys()
    for place, own in factors.items():
        together = ranges.readers[place]
        assert all(torch.equal(own, factors[other]) for other in together)
        weights = [network.get_submodule(other) for other in together]
        heaviest = torch.stack(
            [w.weight.abs().amax(1 if isinstance(w, Conv1D) else 0) for w in weights]
        ).amax(0)
        expected = found[place].amax(0).sqrt() / heaviest.double().sqrt()
        assert torch.allclose(own.double(), expected, rtol=1e-5)
    scaled = copy.deepcopy(network)
    scale_weights(scaled, factors)
    transient = (logits(scaled) - logits(network)).abs().max()
    Quantize(activations=None, smooth=True, embeddings=False)(scaled)
    put_calibration(scaled, factors)
    # Until it knows the factors a network says something else; then only the rounding is left.
    assert (logits(scaled) - logits(network)).abs().max() < 0.3 * transient


def test_what_shares_a_weight_is_not_smoothed() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    network[1].weight = network[0].weight
    ranges = {str(n): torch.ones(2, 4) for n in range(3)}
    readers = {"0": ["0"], "1": ["1", "2"], "2": ["1", "2"]}
    assert smoothing_of(network, ranges, readers, 0.5) == {}
    assert smoothing_of(network, ranges, {n: [n] for n in ranges}, 0.5).keys() == {"2"}


def test_steps_reach_over_what_was_read_after_smoothing() -> None:
    ranges = {"a": torch.tensor([[1.0, 8.0], [0.5, 4.0]], dtype=torch.float64)}
    scale, zero = input_scales(ranges)["a"]
    assert scale.item() == pytest.approx(12 / 255) and zero.item() == 170
    scale, zero = input_scales(ranges, {"a": torch.tensor([1.0, 8.0])})["a"]
    assert scale.item() == pytest.approx(1.5 / 255) and zero.item() == 170
    assert scale.dtype == torch.float32


def test_what_was_found_is_set() -> None:
    network = build("bert")
    Quantize(["query"], embeddings=False, activations="static", smooth=True)(network)
    name = "bert.encoder.layer.0.attention.self.query"
    scales = {name: (torch.tensor(0.5), torch.tensor(3.0))}
    put_calibration(network, {name: torch.full((16,), 2.0)}, scales)
    layer = network.get_submodule(name)
    assert layer.smooth.tolist() == [2.0] * 16
    assert layer.input_scale.item() == 0.5 and layer.input_zero_point.item() == 3.0
