"""Layers are found with all that share their weights, and what cannot be rounded is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lmkit.surgery import NothingMatchedError
from lmkit.surgery.quantizable import left_out, quantizable_layers
from tests.surgery.adapted import build


def names(network: nn.Module, *targets: str, **how: object) -> list[str]:
    return list(quantizable_layers(network, targets or ["all"], **how))  # type: ignore[arg-type]


def test_all_means_the_projections_of_all_layers_and_the_tables_of_the_tokens() -> None:
    network = build("bert")
    found = names(network)
    assert len(found) == 13 and found[0] == "bert.embeddings.word_embeddings"
    assert not any("classifier" in name or "position" in name for name in found)
    assert names(network, embeddings=False) == found[1:]
    assert names(network, "query", "classifier", embeddings=False) == [
        "bert.encoder.layer.0.attention.self.query",
        "bert.encoder.layer.1.attention.self.query",
        "classifier",
    ]


@pytest.mark.parametrize(
    ("name", "shared"),
    [
        ("masked", ["bert.embeddings.word_embeddings", "cls.predictions.decoder"]),
        ("gpt2", ["transformer.wte", "lm_head"]),
        ("t5", ["shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head"]),
    ],
)
def test_what_shares_a_weight_is_one_with_it(name: str, shared: list[str]) -> None:
    network = build(name)
    there = [each for each in shared if each in dict(network.named_modules())]
    assert set(there) <= set(names(network))
    # Named by one of them, all are; excluded by one of them, none is.
    assert set(there) <= set(names(network, shared[-1], embeddings=False))
    assert not set(there) & set(names(network, exclude=[shared[-1]]))
    assert not set(there) & set(names(network, embeddings=False))


def test_a_table_that_its_architecture_scales_is_left_out() -> None:
    network = build("bart")
    assert not any("embed" in name or name == "lm_head" for name in names(network))
    assert len(names(network)) == 4 * 2 + 6 * 4


def test_parts_roles_and_patterns_are_left_out() -> None:
    network = build("bert")
    everything = set(names(network))
    first = {name for name in everything if ".layer.0." in name}
    assert everything - set(names(network, exclude=["layer.0"])) == first
    assert len(everything - set(names(network, exclude=["ffn_output", "key"]))) == 4
    assert "bert.embeddings.word_embeddings" not in names(network, exclude=["embeddings"])
    assert left_out(network, ["bert.encoder.layer.1.intermediate"]) >= {
        "bert.encoder.layer.1.intermediate.dense"
    }


def test_what_excludes_nothing_is_refused() -> None:
    network = build("bert")
    with pytest.raises(NothingMatchedError, match=r"exclude names 'LayerNorm', in which there is"):
        names(network, exclude=["LayerNorm"])
    with pytest.raises(NothingMatchedError, match=r"no module matches \['layr.0'\]; nearest names"):
        names(network, exclude=["layr.0"])
    with pytest.raises(NothingMatchedError, match="leaves nothing to quantize"):
        names(network, exclude=["bert"])
    with pytest.raises(NothingMatchedError, match="there is nothing to quantize"):
        quantizable_layers(nn.Linear(2, 2), [])


def test_layers_that_are_none_of_the_known_are_refused() -> None:
    class Other(nn.Linear):
        """Computes something else with its weight."""

    network = nn.Sequential(nn.Linear(4, 4), Other(4, 4))
    with pytest.raises(ValueError, match=r"1 is a Other, and only plain linear layers and tables"):
        names(network, "0", "1", embeddings=False)
    network[1].weight = network[0].weight
    with pytest.raises(ValueError, match=r"1, which shares the weight of 0, is a Other"):
        names(network, "0", embeddings=False)
    eight = nn.Sequential(nn.Linear(4, 4))
    eight[0].weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"0 has a weight of torch.int8: load it in floating"):
        names(eight, "0", embeddings=False)
