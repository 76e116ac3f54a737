"""Hidden dimensions that are masked, statistics of norms too, are as good as gone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    CamembertConfig,
    CamembertForMaskedLM,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)

from lmkit.surgery.hidden_width import find_hidden, hidden_settings, masked_hidden
from lmkit.surgery.low_rank import LowRank
from lmkit.surgery.structured_pruning import RemoveUnits, remove_units
from lmkit.surgery.units import find_units, gated
from tests.surgery.pruned import HIDDEN, attentions, build, masks, precise_norms, said, some

KEPT = [0, 2, 3, 5, 8, 9, 10, 11, 14]


@pytest.mark.parametrize("name", HIDDEN)
def test_what_is_left_computes_what_the_masked_network_computes(name: str) -> None:
    for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        network = build(name, dtype)
        pruned = copy.deepcopy(network)
        kept = some(find_units(network))
        RemoveUnits(kept, hidden=KEPT)(pruned)
        narrow = copy.deepcopy(network)
        RemoveUnits({}, hidden=KEPT)(narrow)
        for way in attentions(network):
            for each in (pruned, narrow):
                each.set_attn_implementation(way)
            whole = said(network)
            with precise_norms():
                with masked_hidden(network, KEPT):
                    wanted = said(network)
                    with gated(network, masks(network, kept)):
                        both = said(network)
                gap = [(said(n) - w).abs().max() for n, w in ((narrow, wanted), (pruned, both))]
            scale = wanted.abs().max().item()
            assert (whole - wanted).abs().max() > 1e-2 * scale, "the dimensions do something"
            assert max(gap) <= bound * scale, way
            assert torch.equal(said(network), whole), "the masks are gone"


@pytest.mark.parametrize(
    ("cls", "config"),
    [(XLMRobertaForMaskedLM, XLMRobertaConfig), (CamembertForMaskedLM, CamembertConfig)],
)
def test_the_kin_of_roberta_is_known(cls: Any, config: Any) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99}
    network = cls(config(**sizes, intermediate_size=24, max_position_embeddings=66)).double().eval()
    with masked_hidden(network, KEPT):
        wanted = said(network)
    RemoveUnits({}, hidden=KEPT)(network)
    torch.testing.assert_close(said(network), wanted, rtol=0, atol=1e-10)


def test_the_norms_look_at_what_is_kept_alone() -> None:
    """By hand, for one layer of a BERT without attention: a reference without hooks."""
    sizes = {"hidden_size": 6, "num_attention_heads": 1, "intermediate_size": 5, "vocab_size": 9}
    network = BertModel(BertConfig(**sizes, num_hidden_layers=1), add_pooling_layer=False)
    network = network.double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
    kept = [0, 3, 4]
    with torch.no_grad(), masked_hidden(network, kept):
        found = network(input_ids=torch.tensor([[7]])).last_hidden_state[0, 0]

    def norm(x: torch.Tensor, layer: Any) -> torch.Tensor:
        x = x[kept] - x[kept].mean()
        x = x / (x.square().mean() + layer.eps).sqrt()
        out = torch.zeros(6, dtype=torch.float64)
        out[kept] = x * layer.weight[kept] + layer.bias[kept]
        return out

    with torch.no_grad():
        table, layer = network.embeddings, network.encoder.layer[0]
        x = table.word_embeddings.weight[7] + table.position_embeddings.weight[0]
        x = norm(x + table.token_type_embeddings.weight[0], table.LayerNorm)
        # One token attends to itself: what it gets is its value.
        value = layer.attention.self.value(x)
        x = norm(layer.attention.output.dense(value) + x, layer.attention.output.LayerNorm)
        inner = nn.functional.gelu(layer.intermediate.dense(x))
        x = norm(layer.output.dense(inner) + x, layer.output.LayerNorm)
    torch.testing.assert_close(found, x, rtol=0, atol=1e-12)


def test_a_mask_under_a_whole_norm_is_something_else() -> None:
    """The trap: zeros that the statistics still count."""
    network = build("bert")
    hidden = find_hidden(network)
    mask = torch.zeros(hidden.width, dtype=torch.float64)
    mask[KEPT] = 1
    handles = [
        module.register_forward_hook(lambda m, x, y: y * mask)
        for name, module in network.named_modules()
        if isinstance(module, nn.LayerNorm | nn.Embedding)
        or (isinstance(module, nn.Linear) and (f"{name}.weight", 0) in hidden.places)
    ]
    naive = said(network)
    for handle in handles:
        handle.remove()
    with masked_hidden(network, KEPT):
        assert (said(network) - naive).abs().max() > 1e-2


@pytest.mark.parametrize("name", HIDDEN)
def test_each_parameter_with_the_hidden_size_is_found_and_cut(name: str) -> None:
    network = build(name)
    hidden = find_hidden(network)
    assert hidden.width == 16
    old = {n: p.detach().clone() for n, p in network.named_parameters()}
    slices = remove_units(network, RemoveUnits({}, hidden=KEPT))
    cut = {(new, dim) for new, piece in slices.items() for dim, _ in piece.cuts}
    assert cut == hidden.places
    for new, parameter in network.named_parameters():
        assert torch.equal(slices[new].of(old[new]), parameter)
        assert slices[new].name == new and slices.gone == ()
    assert find_hidden(network) == hidden._replace(width=9)
    RemoveUnits({}, hidden=KEPT)(network)
    assert find_hidden(network).width == 9


def test_the_mask_is_differentiable_and_closed_dimensions_get_no_gradient() -> None:
    network = build("bert")
    with masked_hidden(network, KEPT):
        network(input_ids=torch.tensor([[7, 8]])).logits.sum().backward()
    gone = [n for n in range(16) if n not in KEPT]
    for name, dim in find_hidden(network).places:
        gradient = network.get_parameter(name).grad
        assert gradient is not None
        assert not gradient.index_select(dim, torch.tensor(gone)).any(), name
        assert gradient.index_select(dim, torch.tensor(KEPT)).any() or "key.bias" in name, name


def test_an_embedding_of_its_own_width_stays_and_one_of_the_hidden_size_goes_along() -> None:
    assert hidden_settings(build("electra").config, 9) == {"hidden_size": 9}
    both = {"hidden_size": 9, "embedding_size": 9}
    assert hidden_settings(build("wide_electra").config, 9) == both
    narrow, wide = build("electra"), build("wide_electra")
    for network in (narrow, wide):
        RemoveUnits({}, hidden=KEPT)(network)
    assert narrow.electra.embeddings.word_embeddings.embedding_dim == 8
    assert wide.electra.embeddings.word_embeddings.embedding_dim == 9


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="from 'bart': it is only known how to for bert"):
        find_hidden(build("bart"))
    network = build("bert", torch.float32)
    LowRank({"query": 2})(network)
    says = "with bert.encoder.layer.0.attention.self.query.up, which the plain architecture has not"
    with pytest.raises(ValueError, match=says):
        RemoveUnits({}, hidden=KEPT)(network)
    with pytest.raises(ValueError, match="of hidden there are 16, and the surgery keeps 1 of at"):
        RemoveUnits({}, hidden=[16])(build("bert"))
    with pytest.raises(ValueError, match="hidden must be numbers from 0 to 15, got 16"):
        masked_hidden(build("bert"), [16]).__enter__()
