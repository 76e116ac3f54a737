"""The surgery makes structure alone, once, and what it made can be undone."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, GPT2LMHeadModel, T5ForConditionalGeneration

from lmkit.surgery import NothingMatchedError, from_spec, to_spec
from lmkit.surgery.adapter import Adapter
from lmkit.surgery.folding import check_mergeable, fold, merge
from lmkit.surgery.ia3 import IA3
from lmkit.surgery.lora import LoRA
from lmkit.surgery.low_rank import (
    LowRank,
    low_rank_layers,
    make_dense,
    matrix_places,
    put_factors,
    token_table,
)
from lmkit.surgery.low_rank_layers import LowRankEmbedding, LowRankLinear
from lmkit.surgery.selection import Selection
from lmkit.surgery.tuning import freeze_base, unfreeze_base
from tests.surgery.adapted import NETWORKS, build, logits

#: Names of the last projections of the feed-forward blocks.
LAST = {"gpt2": "mlp.c_proj", "t5": "wo", "modernbert": "mlp.Wo"}


def told(network: nn.Module) -> Tensor:
    with torch.no_grad():
        return logits(network.eval())


@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "gated_t5"])
def test_each_architecture_keeps_its_widths_and_gets_its_layers_back(name: str) -> None:
    network, plain = build(name), build(name)
    before = told(network)
    kinds = {n: type(m) for n, m in network.named_modules()}
    LowRank({"all": 2})(network)
    layers = low_rank_layers(network)
    assert layers and set(layers) == set(matrix_places(plain, "all"))
    assert network.config.to_dict() == plain.config.to_dict()
    narrow = told(network)
    assert narrow.shape == before.shape and not torch.equal(narrow, before)
    fewer = sum(p.numel() for p in network.parameters())
    assert fewer < sum(p.numel() for p in plain.parameters())
    make_dense(network)
    assert {n: type(m) for n, m in network.named_modules()} == kinds
    plain.load_state_dict(network.state_dict())
    assert (told(network) - narrow).abs().max() < 1e-5
    assert torch.equal(told(plain), told(network))


def test_twice_is_once_and_a_spec_says_it_all() -> None:
    network = build("bert")
    surgery = LowRank({"ffn_input": 3, "query": 2}, {"energy": 0.5})
    spec = json.loads(json.dumps(to_spec(surgery)))
    assert from_spec(spec) == surgery and to_spec(from_spec(spec)) == spec
    surgery(network)
    state = network.state_dict()
    from_spec(spec)(network)
    assert all(torch.equal(t, state[n]) for n, t in network.state_dict().items())
    ranks = {name: layer.rank for name, layer in low_rank_layers(network).items()}
    assert sorted(ranks.values()) == [2, 2, 3, 3]
    assert all(rank == (3 if "intermediate" in name else 2) for name, rank in ranks.items())


def test_the_bias_stays_the_same_parameter_in_the_mode_of_the_layer() -> None:
    network = build("bert").train()
    bias = network.get_submodule("bert.encoder.layer.0.output.dense").bias
    LowRank({"bert.encoder.layer.0.output.dense": 2})(network)
    (layer,) = low_rank_layers(network).values()
    assert layer.bias is bias and layer.training


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ({}, "ranks must name layers"),
        ({"query": 0}, r"ranks\['query'\] must be at least 1"),
        ({"query": 1.5}, r"ranks\['query'\] must be a whole number"),
        (["query"], "ranks must be a mapping"),
    ],
)
def test_attributes_outside_their_range_are_refused(ranks: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LowRank(ranks)


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ({"query": 8}, r"rank is 8, and .*query has 16 x 16 .* = 8 on.*at most 7, or"),
        ({"ffn_input": 11}, r"intermediate\.dense has 32 x 16 .* = 10\.667 on.*at most 10"),
        ({"query": 2, "bert.encoder.layer.0.attention.self.query": 8}, "rank is 8"),
        ({"bert.encoder": 2}, "is a BertEncoder, and only plain linear layers"),
        ({"classifier": 3}, "rank is 3, and classifier has 2 x 16"),
    ],
)
def test_a_rank_that_saves_nothing_is_refused_and_nothing_changes(
    ranks: dict[str, int], message: str
) -> None:
    network = build("bert")
    with pytest.raises(ValueError, match=message):
        LowRank(ranks)(network)
    assert not low_rank_layers(network)


def test_a_vector_cannot_be_made_smaller() -> None:
    with pytest.raises(ValueError, match=r"on, factors save nothing; leave it out"):
        LowRank({"0": 1})(nn.Sequential(nn.Linear(9, 1)))


def test_names_that_match_nothing_are_told_what_is_near() -> None:
    with pytest.raises(NothingMatchedError, match=r"nearest names.*query"):
        LowRank({"qvery": 2})(build("bert"))


def test_a_factorized_layer_is_not_factorized_again() -> None:
    network = build("bert")
    LowRank({"query": 3})(network)
    with pytest.raises(ValueError, match="query is a product of rank 3 already"):
        LowRank({"query": 2})(network)
    with pytest.raises(ValueError, match="is a product of rank 3 already"):
        LowRank({"query": 3, "key": 3})(network)


def test_shared_weights_are_refused_with_the_reason() -> None:
    for network, name in (
        (GPT2LMHeadModel(NETWORKS["gpt2"][1]), "lm_head"),
        (T5ForConditionalGeneration(NETWORKS["t5"][1]), "lm_head"),
    ):
        with pytest.raises(ValueError, match=r"lm_head.*are one weight.*leave this layer out"):
            LowRank({name: 3})(network)
        table = token_table(network)
        with pytest.raises(ValueError, match=r"are one weight.*lose its tie"):
            LowRank({table: 3})(network)


def test_an_embedding_of_its_own_is_factorized() -> None:
    network = build("bert")
    table = token_table(network)
    assert table == "bert.embeddings.word_embeddings"
    before = network.get_input_embeddings().weight.detach().clone()
    LowRank({table: 4})(network)
    layer = network.get_input_embeddings()
    assert type(layer) is LowRankEmbedding and layer.padding_idx == 0
    left, values, right = torch.linalg.svd(before.double(), full_matrices=False)
    put_factors(network, {table: (left[:, :4] * values[:4], right[:4])})
    best = (left[:, :4] * values[:4]) @ right[:4]
    assert torch.allclose(layer.weight.double(), best, atol=1e-6)
    assert told(network).isfinite().all()
    with pytest.raises(NothingMatchedError, match="names no embeddings"):
        token_table(nn.Linear(2, 2))


def test_tables_that_renorm_their_rows_are_refused() -> None:
    for layer in (nn.Embedding(9, 9, max_norm=1.0), nn.Embedding(9, 9, sparse=True)):
        with pytest.raises(ValueError, match="renorms its rows or has sparse"):
            LowRank({"0": 2})(nn.Sequential(layer))


@pytest.mark.parametrize("variant", ["lora", "rslora", "dora", "adalora"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_lora_stands_on_low_rank_layers_and_both_are_merged(name: str, variant: str) -> None:
    network, plain = build(name), build(name)
    before = told(network)
    LowRank({"all": 3})(network)
    factorize_all(network)
    narrow = told(network)
    assert not torch.equal(narrow, before)
    LoRA(targets=["all"], rank=2, variant=variant)(network)
    learns = {n for n, p in network.named_parameters() if p.requires_grad}
    assert learns and not any(n.endswith((".up", ".down")) for n in learns)
    assert torch.allclose(told(network), narrow, atol=1e-6)
    stir(network, learns)
    both = told(network)
    assert (both - narrow).abs().max() > 1e-4
    merge(network)
    assert {n: type(m) for n, m in network.named_modules()} == {
        n: type(m) for n, m in plain.named_modules()
    }
    assert (told(network) - both).abs().max() < 1e-5
    assert all(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_the_layer_inside_an_adapter_is_factorized(name: str) -> None:
    network = build(name)
    Adapter("b", size=4, norms=False)(network)
    LoRA(targets=["all"], rank=2)(network)
    IA3("c")(network)
    own = dict(network.named_parameters())
    LowRank({"all": 3})(network)
    layers = low_rank_layers(network)
    assert layers and any(place.endswith("base_layer") for place in layers)
    now = dict(network.named_parameters())
    # What the adapters have stays theirs; the factors are frozen as the weights were.
    kept = {n for n in own if "lora_" in n or ".adapters." in n or "ia3_l" in n}
    assert kept and all(now[n] is own[n] for n in kept)
    assert not any(layer.up.requires_grad for layer in layers.values())
    assert told(network).isfinite().all()
    unfreeze_base(network)
    assert all(layer.up.requires_grad and layer.down.requires_grad for layer in layers.values())


def test_what_was_tuned_in_part_is_so_after_the_factors_are_gone() -> None:
    network = build("bert")
    Selection(layers=1)(network)
    flags = {n: p.requires_grad for n, p in network.named_parameters()}
    LowRank({"all": 3})(network)
    upper = [n for n, layer in low_rank_layers(network).items() if layer.up.requires_grad]
    assert upper and all("layer.1." in n for n in upper)
    make_dense(network)
    assert {n: p.requires_grad for n, p in network.named_parameters()} == flags
    unfreeze_base(network)
    assert all(p.requires_grad for p in network.parameters())
    LowRank({"all": 3})(network)
    freeze_base(network)
    assert not any(layer.up.requires_grad for layer in low_rank_layers(network).values())


@pytest.mark.parametrize("variant", ["pissa", "olora"])
def test_what_takes_a_part_of_a_weight_is_refused_on_a_product(variant: str) -> None:
    network = build("bert")
    LowRank({"query": 3})(network)
    with pytest.raises(ValueError, match="query is a LowRankLinear, which has no weight of its"):
        LoRA(targets=["query"], rank=2, variant=variant)(network)
    LoRA(targets=["value"], rank=2, variant=variant)(network)


def test_a_product_alone_is_merged_and_nothing_is_folded_into_it() -> None:
    network = build("bert")
    with pytest.raises(ValueError, match="no adapters to merge, nor low-rank layers"):
        check_mergeable(network)
    LowRank({"query": 3})(network)
    before = told(network)
    with pytest.raises(ValueError, match="the network has no adapters, and there is no weight"):
        fold(network)
    LoRA(targets=["query"], rank=2)(network)
    with pytest.raises(ValueError, match="is a low-rank product, and there is no weight to fold"):
        fold(network)
    merge(network)
    assert not low_rank_layers(network) and (told(network) - before).abs().max() < 1e-6


def test_bfloat16_and_a_base_model_without_head() -> None:
    config = {k: v for k, v in NETWORKS["bert"][1].to_diff_dict().items() if k != "model_type"}
    network = BertModel(BertConfig(**config)).to(torch.bfloat16)
    LowRank({"all": 2})(network)
    layers = low_rank_layers(network).values()
    assert all(type(layer) is LowRankLinear for layer in layers)
    assert {layer.up.dtype for layer in layers} == {torch.bfloat16}
    ids = torch.randint(5, 99, (2, 5))
    assert network(input_ids=ids)[0].dtype == torch.bfloat16


@torch.no_grad()
def factorize_all(network: nn.Module) -> None:
    """Give factorized layers other values than those they start from."""
    generator = torch.Generator().manual_seed(3)
    for layer in low_rank_layers(network).values():
        layer.up.copy_(0.2 * torch.randn(layer.up.shape, generator=generator))
        layer.down.copy_(0.2 * torch.randn(layer.down.shape, generator=generator))


@torch.no_grad()
def stir(network: nn.Module, names: set[str]) -> None:
    generator = torch.Generator().manual_seed(4)
    for name, parameter in network.named_parameters():
        if name in names:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
