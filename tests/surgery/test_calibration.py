"""What is gathered is what one gets by hand, over real tokens and text by text."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lmkit.surgery.calibration import RowFisher, SecondMoments, real_positions
from lmkit.surgery.lora import LoRA
from lmkit.surgery.low_rank import matrix_places, token_table
from lmkit.types import Batch
from tests.surgery.adapted import build, inputs


def batch_of(network: PreTrainedModel) -> Batch:
    """Return what `inputs` returns, with classes and targets; the second row is padded."""
    made: Batch = dict(inputs(network))
    made["labels"] = torch.tensor([1, 0])
    if network.config.is_encoder_decoder:
        made["labels"] = made["decoder_input_ids"].clone()
        made["labels"][0, 3:] = -100
    return made


def run(network: PreTrainedModel, batch: Batch) -> Tensor:
    """Return the sum of the losses of the items."""
    logits = network(**{k: v for k, v in batch.items() if k != "labels"})[0]
    flat = logits.reshape(-1, logits.shape[-1]), batch["labels"].flatten()
    return nn.functional.cross_entropy(*flat, reduction="sum")


def without_padding(batch: Batch, row: int) -> Batch:
    """Return one row, cut to its length."""
    one = {name: tensor[row : row + 1] for name, tensor in batch.items()}
    real = int(one["attention_mask"].sum())
    return {n: t if n == "labels" else t[:, :real] for n, t in one.items()}


def test_moments_are_those_of_the_texts_without_padding() -> None:
    network = build("bert")
    batch = batch_of(network)
    table = token_table(network)
    names = [*matrix_places(network, "all"), "bert.pooler.dense", table]
    with SecondMoments(network, names) as padded, torch.no_grad(), padded.watching(batch):
        run(network, batch)
    with SecondMoments(network, names) as alone, torch.no_grad():
        for row in range(2):
            with alone.watching(without_padding(batch, row)):
                run(network, without_padding(batch, row))
            run(network, batch)  # not watched
    for name in names:
        assert padded.counts[name] == alone.counts[name] == (2 if "pooler" in name else 12), name
        assert torch.allclose(padded.total(name), alone.total(name), atol=1e-5), name
    assert padded.total(table).sum() == 12 and padded.total(table).shape == (99,)
    assert not any(m._forward_pre_hooks for m in network.modules())


def test_moments_are_sums_of_outer_products() -> None:
    layer, x = nn.Linear(5, 3), torch.randn(2, 4, 5)
    network = nn.ModuleDict({"only": layer})
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0]])
    with SecondMoments(network, ["only"]) as moments:
        for _ in range(2):
            with moments.watching({"attention_mask": mask}):
                layer(x)
    real = x[mask.bool()].double()
    expected = 2 * sum(torch.outer(row, row) for row in real)
    assert torch.allclose(moments.total("only"), torch.as_tensor(expected), rtol=1e-14)
    assert moments.total("only").dtype == torch.float64 and moments.counts["only"] == 12


def test_layers_of_a_decoder_count_the_tokens_of_the_target() -> None:
    for name in ("t5", "bart"):
        network = build(name)
        batch = batch_of(network)
        places = matrix_places(network, "all")
        with SecondMoments(network, places) as moments, torch.no_grad(), moments.watching(batch):
            run(network, batch)
        text, target = 12, 3 + 7
        crossed = ("EncDecAttention.k", "EncDecAttention.v")
        crossed += ("encoder_attn.k_proj", "encoder_attn.v_proj")
        for place in places:
            of_text = ".decoder." not in f".{place}" or place.endswith(crossed)
            assert moments.counts[place] == (text if of_text else target), place


def test_what_sees_no_padding_counts_whole() -> None:
    batch = {"attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]])}
    assert real_positions(batch, torch.Size([1, 4])) is None
    assert real_positions({}, torch.Size([2, 3])) is None
    choices = {"attention_mask": torch.tensor([[[1, 1], [0, 0]]])}
    for shape in ([2, 2], [1, 2, 2]):
        found = real_positions(choices, torch.Size(shape))
        assert found is not None and found.tolist() == [True, True, False, False]
    pooled = real_positions(choices, torch.Size([2]))
    assert pooled is not None and pooled.tolist() == [True, False]


@pytest.mark.parametrize("name", ["bert", "t5", "gpt2"])
def test_fisher_is_the_mean_square_of_the_gradients_of_each_text(name: str) -> None:
    network = build(name)
    batch = batch_of(network)
    if name == "gpt2":  # a causal model's items are tokens
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    places = [*matrix_places(network, "all")]
    if name == "bert":
        places += ["classifier", token_table(network)]
    with RowFisher(network, places) as fisher, fisher.watching(batch):
        fisher.accumulate(run(network, batch))
    assert all(p.grad is None for p in network.parameters())
    expected = dict.fromkeys(places, torch.zeros(1))
    for row in range(2):
        network.zero_grad()
        run(network, {n: t[row : row + 1] for n, t in batch.items()}).backward()
        for place in places:
            layer: Any = network.get_submodule(place)
            turned = type(layer).__name__ == "Conv1D"
            square = layer.weight.grad.square().sum(0 if turned else 1)
            expected[place] = expected[place] + square
    for place in places:
        assert fisher.counts[place] == 2
        total = fisher.total(place).float()
        assert torch.allclose(total, expected[place], rtol=1e-4, atol=1e-9), place


def test_fisher_of_the_choices_of_one_question_is_one_example() -> None:
    network = build("choices")
    batch = batch_of(network)
    with RowFisher(network, ["bert.pooler.dense"]) as fisher, fisher.watching(batch):
        fisher.accumulate(run(network, batch))
    total = torch.zeros(16)
    for row in range(2):
        network.zero_grad()
        run(network, {n: t[row : row + 1] for n, t in batch.items()}).backward()
        gradient = network.bert.pooler.dense.weight.grad
        assert isinstance(gradient, Tensor)
        total += gradient.square().sum(1)
    assert fisher.counts["bert.pooler.dense"] == 2
    assert torch.allclose(fisher.total("bert.pooler.dense").float(), total, rtol=1e-4)


def test_texts_that_share_a_row_are_apart() -> None:
    network = nn.ModuleDict({"table": nn.Embedding(9, 4), "layer": nn.Linear(4, 3)})
    ids = torch.tensor([[5, 3, 5, 3, 0], [7, 7, 7, 1, 2]])
    segments = torch.tensor([[1, 1, 2, 2, 0], [1, 1, 1, 1, 1]])
    apart = [ids[0, :2], ids[0, 2:4], ids[1]]

    def loss(tokens: Tensor, real: Tensor) -> Tensor:
        made: Tensor = network["layer"](network["table"](tokens)).square().sum(-1)
        return (made * real).sum()

    batch = {"input_ids": ids, "segment_ids": segments}
    with RowFisher(network, ["table", "layer"]) as shared, shared.watching(batch):
        shared.accumulate(loss(ids, segments > 0))
    with RowFisher(network, ["table", "layer"]) as alone:
        for text in apart:
            with alone.watching({"input_ids": text[None]}):
                alone.accumulate(loss(text[None], torch.ones(len(text))))
    for name in ("table", "layer"):
        assert shared.counts[name] == alone.counts[name] == 3
        assert shared.total(name).any()
        assert torch.allclose(shared.total(name), alone.total(name), rtol=1e-5)


def test_frozen_layers_have_a_fisher_information_and_stay_frozen() -> None:
    network, free = build("bert"), build("bert")
    network.requires_grad_(False)
    found = []
    for each in (network, free):
        batch = batch_of(each)
        place = "bert.encoder.layer.0.output.dense"
        with RowFisher(each, [place]) as fisher, fisher.watching(batch):
            fisher.accumulate(run(each, batch))
        found.append(fisher.total("bert.encoder.layer.0.output.dense"))
    assert found[0].any() and torch.allclose(*found)
    assert not any(p.requires_grad for p in network.parameters())


def test_a_layer_that_no_loss_reaches_has_none() -> None:
    network = nn.ModuleDict({"used": nn.Linear(2, 2), "idle": nn.Linear(2, 2)})
    batch = {"input_ids": torch.zeros(3, 1)}
    with RowFisher(network, ["used", "idle"]) as fisher, fisher.watching(batch):
        fisher.accumulate(network["used"](torch.ones(3, 2)).sum())
    assert fisher.counts == {"used": 3.0, "idle": 0.0}
    assert not fisher.total("idle").any() and fisher.total("idle").shape == (2,)


def test_it_looks_at_the_layer_inside_an_adapter() -> None:
    network = build("bert")
    LoRA(targets=["query"], rank=2)(network)
    (place, *_) = matrix_places(network, "query")
    batch = batch_of(network)
    with SecondMoments(network, [place]) as moments, torch.no_grad(), moments.watching(batch):
        run(network, batch)
    assert place.endswith("base_layer") and moments.counts[place] == 12
