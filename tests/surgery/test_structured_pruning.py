"""What is left of a network computes what the whole one computes with the rest gated to zero."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertModel

from lmkit.surgery import NothingMatchedError, from_spec, to_spec
from lmkit.surgery.layers import keep_layers
from lmkit.surgery.low_rank import LowRank
from lmkit.surgery.selection import Selection
from lmkit.surgery.structured_pruning import RemoveUnits, removal, remove_units
from lmkit.surgery.tuning import trainable_at_first
from lmkit.surgery.units import find_units, gated
from tests.surgery.pruned import NETWORKS, attentions, build, inputs, masks, said, same, some

KINDS = {"heads": ("heads",), "ffn": ("ffn",), "both": ("heads", "ffn")}


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_left_computes_what_the_gated_network_computes(name: str, kinds: str) -> None:
    """With padding, uneven layers, and each attention; in float64, and both kinds in float32."""
    for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        if dtype == torch.float32 and kinds != "both":
            continue
        network = build(name, dtype)
        kept = some(find_units(network), KINDS[kinds])
        pruned = copy.deepcopy(network)
        RemoveUnits(kept)(pruned)
        for way in attentions(network):
            pruned.set_attn_implementation(way)
            whole = said(network)
            with gated(network, masks(network, kept)):
                wanted = said(network)
            scale = wanted.abs().max().item()
            assert (whole - wanted).abs().max() > 1e-3 * scale, "the units do something"
            assert (said(pruned) - wanted).abs().max() <= bound * scale, way
    assert pruned.num_parameters() < network.num_parameters()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_columns_that_go_might_as_well_have_been_zero(name: str) -> None:
    """A reference without gates: a reader whose columns are zero reads nothing of a unit."""
    network = build(name)
    units = {each.name: each for each in find_units(network)}
    kept = some(list(units.values()))
    pruned = copy.deepcopy(network)
    RemoveUnits(kept)(pruned)
    for unit, indices in kept.items():
        for reader in units[unit].readers:
            weight: Any = network.get_submodule(reader).weight
            columns = (
                weight if type(network.get_submodule(reader)).__name__ == "Conv1D" else weight.mT
            )
            parts = columns.data.unflatten(0, (units[unit].count, units[unit].width))
            for gone in set(range(units[unit].count)) - set(indices):
                parts[gone] = 0
    torch.testing.assert_close(said(pruned), said(network), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", NETWORKS)
def test_done_twice_is_done_once_and_all_that_is_kept_is_nothing(name: str) -> None:
    network = build(name)
    before = said(network)
    units = find_units(network)
    RemoveUnits({each.name: list(range(each.count)) for each in units})(network)
    assert torch.equal(said(network), before)
    surgery = removal(network, some(units))
    surgery(network)
    state = {n: t.clone() for n, t in network.state_dict().items()}
    first, config = said(network), network.config.to_dict()
    for again in (surgery, RemoveUnits(surgery.kept), from_spec(to_spec(surgery))):
        again(network)
        assert all(torch.equal(t, state[n]) for n, t in network.state_dict().items())
    assert torch.equal(said(network), first) and network.config.to_dict() == config


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_left_learns_and_nothing_else_has_changed(name: str) -> None:
    network = build(name, torch.float32)
    frozen = next(n for n, _ in network.named_parameters() if "layer" in n or ".h." in n)
    network.get_parameter(frozen).requires_grad_(False)
    modes = {n: m.training for n, m in network.named_modules()}
    old = dict(network.named_parameters(remove_duplicate=False))
    remove_units(network, RemoveUnits(some(find_units(network))))
    now = dict(network.named_parameters(remove_duplicate=False))
    assert now.keys() == old.keys()
    assert [n for n, p in now.items() if not p.requires_grad] == [frozen]
    assert {n: m.training for n, m in network.named_modules()} == modes
    assert all(p.dtype == old[n].dtype and p.is_contiguous() for n, p in now.items())
    # What shared a parameter shares it still, and what was not cut is the same one.
    assert {(a, b) for a in old for b in old if old[a] is old[b]} == {
        (a, b) for a in now for b in now if now[a] is now[b]
    }
    assert all(p is old[n] for n, p in now.items() if p.shape == old[n].shape)
    (network(**inputs(network)).logits.square().mean()).backward()
    for n, p in now.items():
        assert p.grad is None if n == frozen else p.grad is not None and p.grad.any(), n


@pytest.mark.parametrize("name", NETWORKS)
def test_each_parameter_is_the_slice_that_is_said(name: str) -> None:
    network = build(name)
    old = {n: p.detach().clone() for n, p in network.named_parameters()}
    layers: Any = {"encoder": [0, 2], "decoder": [1, 2]}
    layers = layers if network.config.is_encoder_decoder else [0, 2]
    slices = remove_units(network, RemoveUnits(some(find_units(network)), layers=layers))
    now = dict(network.named_parameters(remove_duplicate=False))
    assert slices.keys() == now.keys()
    for new, piece in slices.items():
        assert torch.equal(piece.of(old[piece.name]), now[new]), new
    assert set(slices.gone) == old.keys() - {piece.name for piece in slices.values()}
    assert any(".1." in n for n in slices.gone), "what went with a layer is named"
    moved = [new for new, piece in slices.items() if new != piece.name]
    assert moved, "layers have other numbers now"


def test_an_optimizer_goes_on_with_what_it_knew() -> None:
    """One step, removal, another step: as if the gated network had made both."""
    network = build("bert")
    kept = some(find_units(network))
    gates = masks(network, kept)
    make = {"lr": 0.1, "weight_decay": 0.0}
    optimizer = torch.optim.AdamW(network.parameters(), **make)

    def step(network: nn.Module, optimizer: Any) -> None:
        optimizer.zero_grad()
        network(**inputs(network)).logits.square().sum().backward()
        optimizer.step()

    with gated(network, gates):
        step(network, optimizer)
        pruned = copy.deepcopy(network)
        names = {id(p): n for n, p in network.named_parameters()}
        known = {names[id(p)]: copy.deepcopy(state) for p, state in optimizer.state.items()}
        step(network, optimizer)
        wanted = said(network)
    for module in pruned.modules():
        module._forward_pre_hooks.clear()
    slices = remove_units(pruned, RemoveUnits(kept))
    other = torch.optim.AdamW(pruned.parameters(), **make)
    for name, parameter in pruned.named_parameters():
        piece = slices[name]
        other.state[parameter] = {
            key: piece.of(value) if value.dim() else value
            for key, value in known[piece.name].items()
        }
    step(pruned, other)
    torch.testing.assert_close(said(pruned), wanted, rtol=0, atol=1e-10)


def test_gradients_are_cut_with_their_parameters() -> None:
    network = build("gpt2")
    network(**inputs(network)).logits.square().sum().backward()
    old = {n: p.grad for n, p in network.named_parameters()}
    slices = remove_units(network, RemoveUnits(some(find_units(network))))
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter.grad, slices[name].of(old[slices[name].name]))


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_go_with_their_units(name: str) -> None:
    network = build(name)
    kept = some(find_units(network))
    two = {"encoder": [0, 2], "decoder": [1, 2]} if network.config.is_encoder_decoder else [0, 2]
    surgery = removal(network, kept, layers=two)
    one, other = copy.deepcopy(network), copy.deepcopy(network)
    surgery(one)
    RemoveUnits(kept)(other)
    keep_layers(other, two)
    assert torch.equal(said(one), said(other))
    state = {n: t.clone() for n, t in one.state_dict().items()}
    for again in (surgery, RemoveUnits(kept, layers=two)):
        again(one)
        assert all(torch.equal(t, state[n]) for n, t in one.state_dict().items())
    deeper = RemoveUnits(kept, layers=two, counts={**surgery.counts, next(iter(kept)): 99})
    with pytest.raises(ValueError, match="was pruned otherwise"):
        deeper(copy.deepcopy(network))


def test_layers_alone_may_be_of_an_architecture_whose_units_are_unknown() -> None:
    from transformers import XLNetConfig, XLNetModel

    network = XLNetModel(XLNetConfig(vocab_size=99, d_model=8, n_layer=3, n_head=2, d_inner=8))
    RemoveUnits({}, layers=[0, 2])(network)
    assert network.config.n_layer == 2 and len(network.layer) == 2
    with pytest.raises(NothingMatchedError, match="no query, key and value known for 'xlnet'"):
        RemoveUnits({"layer.0.ff": [1]})(network)


def test_what_modules_say_of_their_heads_follows() -> None:
    """Some architectures ask their attention for it; with groups, for both numbers."""
    network: Any = build("llama")
    attention = network.model.layers[0].self_attn
    attention.num_heads, attention.num_key_value_heads, attention.inner_dim = 4, 2, 16
    RemoveUnits({"model.layers.0.self_attn.o_proj": [1]})(network)
    assert (attention.num_heads, attention.num_key_value_heads, attention.inner_dim) == (2, 1, 8)
    assert attention.num_key_value_groups == 2 and attention.head_dim == 4
    RemoveUnits({"model.layers.0.mlp.down_proj": [1, 2]})(network)
    assert network.model.layers[0].mlp.intermediate_size == 2


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_a_pruned_decoder_writes_with_its_cache_as_without(name: str) -> None:
    network = build(name, torch.float32)
    RemoveUnits(some(find_units(network)))(network)
    ids = torch.arange(10, 15).unsqueeze(0)
    how = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with_cache = network.generate(ids, use_cache=True, **how)
    assert torch.equal(with_cache, network.generate(ids, use_cache=False, **how))


def test_what_was_trainable_at_first_keeps_its_mark_under_its_new_name() -> None:
    network = build("bert")
    network.get_parameter("bert.encoder.layer.2.output.dense.bias").requires_grad_(False)
    Selection(norms=True)(network)
    RemoveUnits(some(find_units(network)), layers=[0, 2])(network)
    known = trainable_at_first(network)
    assert "bert.encoder.layer.1.output.dense.weight" in known
    assert "bert.encoder.layer.1.output.dense.bias" not in known
    assert "bert.encoder.layer.0.output.dense.bias" in known


BERT = "bert.encoder.layer.0."


def test_what_cannot_be_cut_is_refused_and_nothing_has_changed() -> None:
    pytest.importorskip("peft")
    from lmkit.surgery.lora import LoRA
    from lmkit.surgery.prefix_tuning import PrefixTuning

    class Quantized(nn.Linear):
        """Stands for a layer of another library."""

    def quantize(network: Any) -> None:
        network.get_submodule(f"{BERT}intermediate").dense = Quantized(16, 24)

    heads, ffn = {f"{BERT}attention.output.dense": [1]}, {f"{BERT}output.dense": [2, 3]}
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (LoRA(targets=["query"]), heads, "query is wrapped by a .*merge the adapters first"),
        (LowRank({"ffn_input": 3}), ffn, "intermediate.dense is a product of rank 3.*dense first"),
        (PrefixTuning(), heads, "learned prefixes.*before prefix tuning"),
        (quantize, ffn, "is a Quantized .*before the network is quantized"),
        (lambda n: n, {"bert.nothing": [0]}, "no units 'bert.nothing'; names that are near"),
        (lambda n: n, {**ffn, f"{BERT}attention.output.dense": [4]}, "was pruned otherwise"),
    ]
    for change, kept, says in cases:
        network = build("bert", torch.float32)
        change(network)
        state = {n: t.clone() for n, t in network.state_dict().items()}
        config = network.config.to_dict()
        # Something that could be done stands first, and is not done either.
        both = {"bert.encoder.layer.2.output.dense": [0, 1], **kept}
        with pytest.raises(ValueError, match=says):
            RemoveUnits(both)(network)
        now = network.state_dict()
        assert now.keys() == state.keys() and network.config.to_dict() == config
        assert all(torch.equal(t, state[n]) for n, t in now.items())


def test_a_prefix_is_for_the_heads_that_the_config_says() -> None:
    pytest.importorskip("peft")
    from lmkit.surgery.prefix_tuning import PrefixTuning

    network = build("bert", torch.float32)
    RemoveUnits({f"{BERT}attention.output.dense": [1]})(network)
    with pytest.raises(ValueError, match="heads that the config says, and its layers have 1 or 4"):
        PrefixTuning()(network)
    fewer = build("llama", torch.float32)
    RemoveUnits(same(find_units(fewer), 1, 7))(fewer)
    PrefixTuning()(fewer)
    assert said(fewer).isfinite().all()


def test_what_is_wrapped_elsewhere_does_not_matter() -> None:
    pytest.importorskip("peft")
    from lmkit.surgery.lora import LoRA

    network = build("bert", torch.float32)
    LoRA(targets=["query"])(network)
    kept = some(find_units(network), ("ffn",))
    with gated(network, masks(network, kept)):
        wanted = said(network)
    RemoveUnits(kept)(network)
    torch.testing.assert_close(said(network), wanted, rtol=0, atol=1e-5)


def test_a_network_that_was_pruned_otherwise_is_refused() -> None:
    name = f"{BERT}output.dense"
    network = build("bert")
    removal(network, {name: [0, 1, 2, 3, 4]})(network)
    for other in (RemoveUnits({name: [2, 9]}), RemoveUnits({name: [0, 1]}, counts={name: 24})):
        with pytest.raises(ValueError, match=r"there are 5, and the surgery keeps 2 of.*otherwise"):
            other(network)
    # A further removal counts from what is there.
    RemoveUnits({name: [0, 1]}, counts={name: 5})(network)
    assert find_units(network)[1].count == 2
    half = {name: [0, 1], "bert.encoder.layer.1.output.dense": [0, 3]}
    with pytest.raises(ValueError, match="has only what is to be kept already"):
        RemoveUnits(half, counts=dict.fromkeys(half, 24))(network)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"kept": []}, "kept must be a mapping"),
        ({"kept": {"a": "b"}}, r"kept\['a'\] must be a list"),
        ({"kept": {"a": []}}, "at least one"),
        ({"kept": {"a": [1, 1]}}, "increasing order"),
        ({"kept": {"a": [2, 1]}}, "increasing order"),
        ({"kept": {"a": [0.5]}}, "whole number"),
        ({"kept": {"a": [-1]}}, "at least 0"),
        ({"kept": {"a": [4]}, "counts": {"a": 4}}, "has 4, and there are 4"),
        ({"kept": {}}, "names no units"),
        ({"kept": {}, "layers": [1, 0]}, "layers must be indices in increasing order"),
        ({"kept": {}, "layers": {"encoder": []}}, r"layers\['encoder'\]"),
        ({"kept": {}, "hidden": [3, 3]}, "hidden must be indices"),
    ],
)
def test_indices_that_are_none_are_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        RemoveUnits(**arguments)


def test_a_surgery_is_plain_data_and_knows_how_many_there_were() -> None:
    network = build("bert")
    kept = some(find_units(network))
    made = removal(network, kept, layers=[0, 1], hidden=[0, 1, 2, 3], chosen={"why": "a test"})
    assert made.counts[f"{BERT}output.dense"] == 24 and made.counts["layers"] == 3
    assert made.counts["hidden"] == 16
    assert from_spec(json.loads(json.dumps(to_spec(made)))) == made
    with pytest.raises(NothingMatchedError, match=r"no units 'bert\.x'"):
        removal(network, {"bert.x": [0]})
    with pytest.raises(ValueError, match="and there are 4"):
        removal(network, {f"{BERT}attention.output.dense": [4]})
    with pytest.raises(ValueError, match="numbers from 0 to 2 in increasing order"):
        removal(network, {}, layers=[3])


def test_torch_pruning_cuts_the_same_parameters(tmp_path: Path) -> None:
    """A cross-check, where that library is installed."""
    tp = pytest.importorskip("torch_pruning")
    network = build("bert", torch.float32)
    body: BertModel = copy.deepcopy(network.bert)
    ids = {"input_ids": inputs(network)["input_ids"]}
    graph = tp.DependencyGraph().build_dependency(
        body, example_inputs=ids, output_transform=lambda out: out.pooler_output.sum()
    )
    for layer in body.encoder.layer:
        gone = list(range(6, 24))
        inner = layer.intermediate.dense
        group = graph.get_pruning_group(inner, tp.prune_linear_out_channels, idxs=gone)
        group.prune()
    kept = {u.name: list(range(6)) for u in find_units(network, ("ffn",))}
    RemoveUnits(kept)(network)
    ours, theirs = network.bert.state_dict(), body.state_dict()
    assert all(torch.equal(ours[n], t) for n, t in theirs.items())
    assert same(find_units(network), 4, 6).keys() == {u.name for u in find_units(network)}
