"""What can be pruned is found by role or name, in whatever wraps it; the rest is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM
from transformers.pytorch_utils import Conv1D

from lmkit.surgery.base import NothingMatchedError
from lmkit.surgery.prunable import check_apart, check_prunable, prunable_layers
from tests import tiny


def network(config: dict[str, Any], auto: Any = AutoModel) -> nn.Module:
    made: nn.Module = auto.from_config(
        AutoConfig.for_model(**{**config, "vocab_size": 96, "pad_token_id": 0})
    )
    return made


@pytest.mark.parametrize("name", [*tiny.MASKED, *tiny.CAUSAL, *tiny.SEQ2SEQ])
def test_all_are_the_projections_of_the_layers_and_nothing_else(name: str) -> None:
    made = network({**tiny.MASKED, **tiny.CAUSAL, **tiny.SEQ2SEQ}[name])
    layers = prunable_layers(made, ["all"])
    inside = [
        f"{where}.weight"
        for where, module in made.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and any(part.isdigit() for part in where.split("."))
    ]
    assert sorted(layers) == sorted(inside)
    parameters = dict(made.named_parameters())
    assert all(parameters[where] is layer.weight for where, layer in layers.items())
    check_prunable(layers, "wanda", (2, 4))


def test_heads_and_embeddings_are_found_only_by_name() -> None:
    made = network(tiny.MASKED["bert"], AutoModelForMaskedLM)
    assert not [n for n in prunable_layers(made, ["all"]) if "embeddings" in n or "cls" in n]
    embeddings = prunable_layers(made, ["word_embeddings", "position_embeddings"])
    assert list(embeddings) == [
        "bert.embeddings.word_embeddings.weight",
        "bert.embeddings.position_embeddings.weight",
    ]
    assert list(prunable_layers(made, ["decoder"])) == ["cls.predictions.decoder.weight"]


def test_a_tied_weight_is_found_once() -> None:
    made = network(tiny.CAUSAL["gpt2"], AutoModelForCausalLM)
    layers = prunable_layers(made, ["wte", "lm_head"])
    assert list(layers) == ["transformer.wte.weight"]


def test_a_wrapped_layer_has_the_name_that_it_had() -> None:
    made = network(tiny.MASKED["bert"])
    before = {n: layer.weight for n, layer in prunable_layers(made, ["all"]).items()}
    tiny.Residual(("query", "intermediate.dense"))(made)
    after = {n: layer.weight for n, layer in prunable_layers(made, ["all"]).items()}
    assert list(before) == list(after) and all(after[n] is w for n, w in before.items())


def test_what_matches_nothing_is_told_with_what_is_near() -> None:
    made = network(tiny.MASKED["bert"])
    with pytest.raises(NothingMatchedError, match=r"no module matches \['qury'\].*'query'"):
        prunable_layers(made, ["all", "qury"])
    with pytest.raises(NothingMatchedError, match=r"'LayerNorm' matches .* \(LayerNorm\), and no"):
        prunable_layers(made, ["LayerNorm"])
    with pytest.raises(NothingMatchedError, match="'all' stands for query, key"):
        prunable_layers(nn.Sequential(nn.Linear(2, 2)), ["all"])


def test_a_width_that_the_pattern_does_not_divide_is_refused() -> None:
    layers = {"a.weight": nn.Linear(8, 3), "b.weight": Conv1D(8, 6)}
    check_prunable(layers, "magnitude", (1, 2))
    with pytest.raises(ValueError, match=r"b.weight has 6 inputs.*4 of the pattern '2:4'"):
        check_prunable(layers, "magnitude", (2, 4))


def test_what_is_no_matrix_of_floats_or_reads_nothing_is_refused() -> None:
    layer: Any = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"w is torch.int8 of the shape \(4, 4\)"):
        check_prunable({"w": layer}, "magnitude")
    layer.weight = nn.Parameter(torch.ones(16))
    with pytest.raises(ValueError, match=r"shape \(16,\)"):
        check_prunable({"w": layer}, "magnitude")
    with pytest.raises(ValueError, match="w is an embedding, which reads no inputs"):
        check_prunable({"w": nn.Embedding(4, 4)}, "wanda")
    check_prunable({"w": nn.Embedding(4, 4)}, "magnitude")


def test_two_choices_with_a_weight_in_common_are_refused() -> None:
    made = network(tiny.MASKED["bert"])
    check_apart(prunable_layers(made, ["query"]), prunable_layers(made, ["key", "value"]))
    with pytest.raises(ValueError, match=r"prune 2 of the same weights, e.g. encoder.layer.0"):
        check_apart(prunable_layers(made, ["query"]), prunable_layers(made, ["all"]))
