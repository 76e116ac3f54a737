"""Ranks follow the rule, factors the method, and what saves nothing is refused or left."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lmkit.surgery import NothingMatchedError
from lmkit.surgery.low_rank import LowRank, low_rank_layers, put_factors, token_table
from lmkit.surgery.low_rank_choice import METHODS, RankRule, choose_ranks, target_layers
from tests.surgery.adapted import build

FFN = ("ffn_input", "ffn_output")


def gathered(network: nn.Module, names: list[str], method: str) -> dict[str, Tensor]:
    """Draw what the method needs of each layer."""
    generator = torch.Generator().manual_seed(1)
    made = {}
    for name in names:
        layer: Any = network.get_submodule(name)
        rows, columns = layer.weight.shape
        turned = type(layer).__name__ == "Conv1D"
        inside, outside = (rows, columns) if turned else (columns, rows)
        if isinstance(layer, nn.Embedding):
            made[name] = torch.randint(9, (rows,), generator=generator).double()
        elif method == "fisher":
            made[name] = torch.rand(outside, generator=generator, dtype=torch.float64)
        else:
            x = torch.randn(50, inside, generator=generator, dtype=torch.float64)
            made[name] = x.T @ (x * torch.logspace(1, -2, 50)[:, None])
    return made


def dense_weight(layer: Any) -> np.ndarray[Any, Any]:
    weight = layer.weight.detach().double().numpy()
    return weight.T if type(layer).__name__ == "Conv1D" else weight


def best(weight: Any, method: str, known: Any, rank: int) -> np.ndarray[Any, Any]:
    """Approximate a matrix as the papers' formulas say, in numpy."""
    left = right = None
    if method == "fisher":
        left = np.sqrt(known + 1e-6 * known.mean())
        weight = left[:, None] * weight
    elif method == "activation":
        damped = known + 1e-6 * known.diagonal().mean() * np.eye(len(known))
        right = np.linalg.cholesky(damped)
        weight = weight @ right
    u, s, v = np.linalg.svd(weight, full_matrices=False)
    made: np.ndarray[Any, Any] = (u[:, :rank] * s[:rank]) @ v[:rank]
    if left is not None:
        made = made / left[:, None]
    return made if right is None else np.linalg.solve(right.T, made.T).T


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_factors_are_those_of_the_formulas(name: str, method: str) -> None:
    network, plain = build(name), build(name)
    names = target_layers(network, FFN)
    known = gathered(network, names, method)
    made = choose_ranks(network, names, RankRule(rank=4), method, known)
    assert [layer.rank for layer in made.layers] == [4] * len(names)
    made.surgery(network)
    put_factors(network, made.factors)
    for place in names:
        layer: Any = network.get_submodule(place)
        weight = dense_weight(plain.get_submodule(place))
        expected = best(weight, method, known[place].numpy(), 4)
        assert np.abs(layer.weight.detach().numpy() - expected).max() < 1e-6
        assert layer.up.dtype == torch.float32


@pytest.mark.parametrize("method", METHODS)
def test_a_table_is_weighed_by_how_often_its_rows_are_asked_for(method: str) -> None:
    network = build("bert")
    table = token_table(network)
    names = target_layers(network, [], 4)
    known = gathered(network, names, method)
    weight = dense_weight(network.get_submodule(table))
    made = choose_ranks(network, names, RankRule(parameters=0.5), method, known, 4)
    assert names == [table] and made.surgery.ranks == {table: 4}
    up, down = made.factors[table]
    by_rows = "plain" if method == "plain" else "fisher"
    expected = best(weight, by_rows, known[table].numpy(), 4)
    assert np.abs((up @ down).numpy() - expected).max() < 1e-6


def test_energy_gives_each_layer_its_own_rank_and_leaves_flat_ones() -> None:
    network = build("bert")
    names = target_layers(network, ["query", *FFN])
    flat, steep = network.get_submodule(names[0]), network.get_submodule(names[1])
    with torch.no_grad():
        flat.weight.copy_(torch.linalg.qr(torch.randn(16, 16)).Q)
        steep.weight.copy_(torch.outer(torch.ones(32), torch.arange(16.0)) + 1e-3)
    made = choose_ranks(network, names, RankRule(energy=0.9))
    ranks = {layer.name: layer.rank for layer in made.layers}
    assert ranks[names[0]] is None and names[0] not in made.surgery.ranks
    assert ranks[names[1]] == 1
    for layer in made.layers:
        if layer.rank is None:
            assert layer.energy == 1.0
        else:
            values = np.linalg.svd(dense_weight(network.get_submodule(layer.name)))[1] ** 2
            kept = values.cumsum() / values.sum()
            assert kept[layer.rank - 1] >= 0.9 > (kept[layer.rank - 2] if layer.rank > 1 else 0)
            assert layer.energy == pytest.approx(kept[layer.rank - 1], rel=1e-9)


@pytest.mark.parametrize("share", [0.4, 0.6, 0.8])
def test_the_share_of_parameters_is_kept_to(share: float) -> None:
    network = build("bert")
    names = target_layers(network, ["all"])
    whole = sum(network.get_submodule(name).weight.numel() for name in names)
    made = choose_ranks(network, names, RankRule(parameters=share))
    left = sum(layer.parameters for layer in made.layers)
    assert share - 48 / whole <= left / whole <= share
    made.surgery(network)
    own = low_rank_layers(network)
    dense = [name for name in names if name not in own]
    counted = sum(layer.up.numel() + layer.down.numel() for layer in own.values())
    assert counted + sum(network.get_submodule(name).weight.numel() for name in dense) == left


def test_what_the_ranks_came_from_goes_into_the_ledger() -> None:
    network = build("bert")
    made = choose_ranks(network, target_layers(network, FFN), RankRule(rank=2), chosen={"a": 1})
    assert isinstance(made.surgery, LowRank) and made.surgery.chosen == {"a": 1}
    assert not low_rank_layers(network)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give one of rank, energy and parameters, got none"),
        ({"rank": 2, "energy": 0.5}, "got rank=2 and energy=0.5"),
        ({"rank": 0}, "rank must be at least 1"),
        ({"rank": 2.0}, "rank must be a whole number"),
        ({"energy": 0.0}, r"energy must lie in \(0, 1\], got 0.0"),
        ({"energy": 1.1}, r"energy must lie in \(0, 1\]"),
        ({"energy": float("nan")}, "energy must be a finite number"),
        ({"parameters": 0.0}, r"parameters must lie in \(0, 1\)"),
        ({"parameters": 1.0}, r"parameters must lie in \(0, 1\), got 1.0"),
        ({"parameters": "0.5"}, "parameters must be a finite number"),
    ],
)
def test_a_rule_is_one_number_in_its_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RankRule(**settings)


def test_a_rank_above_the_break_even_names_the_layer_before_anything_is_decomposed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr("lmkit.surgery.low_rank_choice.decompose")
    network = build("bert")
    with pytest.raises(ValueError, match=r"rank is 9, and .*query has 16 x 16 .* = 8 on"):
        choose_ranks(network, target_layers(network, ["ffn_input", "query"]), RankRule(rank=9))
    names = target_layers(network, ["query"], 14)
    with pytest.raises(ValueError, match=r"rank is 14, and .*word_embeddings has 99 x 16"):
        choose_ranks(network, names, RankRule(energy=0.5), embedding_rank=14)


def test_what_leaves_all_layers_as_they_are_is_refused() -> None:
    network = build("bert")
    with pytest.raises(ValueError, match=r"energy=1.0 leaves all of the 4 layers.*so flat"):
        choose_ranks(network, target_layers(network, FFN), RankRule(energy=1.0))


def test_what_was_not_gathered_or_is_no_number_names_the_layer() -> None:
    network = build("bert")
    names = target_layers(network, ["query"])
    with pytest.raises(ValueError, match=r"nothing was gathered for .*query, which no batch"):
        choose_ranks(network, names, RankRule(rank=2), "activation", {})
    broken = {name: torch.full((16, 16), torch.nan) for name in names}
    with pytest.raises(ValueError, match=r"layer\.0\..*query could not be decomposed.*not finite"):
        choose_ranks(network, names, RankRule(rank=2), "activation", broken)
    with pytest.raises(ValueError, match="method must be one of activation, fisher, plain"):
        choose_ranks(network, names, RankRule(rank=2), "svd")


def test_a_weight_that_is_no_number_names_the_layer() -> None:
    network = build("bert")
    names = target_layers(network, ["query"])
    with torch.no_grad():
        network.get_submodule(names[1]).weight[0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"layer\.1\..*query has a weight with numbers that are"):
        choose_ranks(network, names, RankRule(rank=2))


def test_targets_have_to_be_there_and_dense() -> None:
    network = build("bert")
    with pytest.raises(NothingMatchedError, match="targets name no layer"):
        target_layers(network, [])
    with pytest.raises(NothingMatchedError, match="nearest names"):
        target_layers(network, ["quarry"])
    assert len(target_layers(network, ["query", "query", "all"])) == 12
    LowRank({"query": 2})(network)
    with pytest.raises(ValueError, match="query is a product of rank 2 already"):
        target_layers(network, ["all"])
    with pytest.raises(ValueError, match="are one weight"):
        target_layers(build("gpt2"), [], 4)
