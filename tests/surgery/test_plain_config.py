"""A config says the widths that it can say, and plain transformers loads what is saved then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lmkit.surgery.config_history import original_config
from lmkit.surgery.plain_config import say_in_config, unsaid
from lmkit.surgery.structured_pruning import RemoveUnits
from lmkit.surgery.units import find_units
from tests.surgery.pruned import HIDDEN, NETWORKS, build, said, same

#: Architectures whose config takes the width of a head, so that heads can go alone.
OWN_WIDTH = ("llama", "t5", "gated_t5", "vit")


def comes_back(network: Any, folder: Path) -> bool:
    """Whether plain transformers loads the network; then it has to compute the same."""
    network.save_pretrained(folder)
    try:
        again = type(network).from_pretrained(folder, dtype=network.dtype).eval()
    except (RuntimeError, ValueError):
        return False
    state = network.state_dict()
    assert all(torch.equal(t, state[n]) for n, t in again.state_dict().items())
    # Where weights lie in memory changes a rounding on some processors.
    torch.testing.assert_close(said(again), said(network), rtol=0, atol=1e-6)
    return True


@pytest.mark.parametrize("name", NETWORKS)
def test_uniform_neurons_are_said(name: str, tmp_path: Path) -> None:
    network = build(name, torch.float32)
    before = network.config.to_dict()
    RemoveUnits(same(find_units(network, ("ffn",)), 0, 7))(network)
    now = network.config.to_dict()
    changed = {key for key in now if now[key] != before.get(key)}
    assert 1 <= len(changed) <= 2 and all(now[key] == 7 for key in changed)
    assert comes_back(network, tmp_path) and unsaid(network) == []


@pytest.mark.parametrize("name", NETWORKS)
def test_uniform_heads_are_said_where_a_head_has_a_width_of_its_own(
    name: str, tmp_path: Path
) -> None:
    network = build(name, torch.float32)
    before = network.config.to_dict()
    kept = same(find_units(network, ("heads",)), 1 if name == "llama" else 2, 0)
    RemoveUnits(kept)(network)
    now = network.config.to_dict()
    assert comes_back(network, tmp_path) == (name in OWN_WIDTH)
    if name in OWN_WIDTH:
        assert network.config.num_attention_heads == 2 and unsaid(network) == []
        assert network.config.head_dim == 4
    else:
        assert now == before
        assert "2 heads of 4 and a hidden size of 16 do not go together" in unsaid(network)[0]


def test_heads_that_do_not_divide_the_hidden_size_are_none_for_llama(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(**sizes, intermediate_size=24, vocab_size=99)
    network = LlamaForCausalLM(config).eval()
    RemoveUnits(same(find_units(network, ("heads",)), 3, 0))(network)
    assert network.config.num_attention_heads == 4 and not comes_back(network, tmp_path)
    assert "3 heads of 4" in unsaid(network)[0]


def test_a_hidden_size_that_makes_another_architecture_is_not_said(tmp_path: Path) -> None:
    """ELECTRA has a layer between embeddings and hidden states, if their sizes differ."""
    network = build("electra", torch.float32)
    hidden = list(range(network.config.embedding_size))
    RemoveUnits(same(find_units(network), 2, 24), hidden=hidden)(network)
    assert network.config.hidden_size == 16 and not comes_back(network, tmp_path)


@pytest.mark.parametrize("name", HIDDEN)
def test_a_hidden_size_is_said_with_the_heads_that_make_it(name: str, tmp_path: Path) -> None:
    network = build(name, torch.float32)
    heads, units = 3, find_units(network)
    if name == "llama":  # two groups of two heads, and 12 hidden dimensions go with both
        heads = 1
    hidden = [0, 1, 2, 3, 5, 6, 8, 9, 11, 13, 14, 15]
    RemoveUnits(same(units, heads, 7), hidden=hidden)(network)
    assert comes_back(network, tmp_path / "both") and unsaid(network) == []
    assert network.config.hidden_size == 12
    assert network.config.num_attention_heads == (2 if name == "llama" else 3)
    alone = build(name, torch.float32)
    RemoveUnits({}, hidden=hidden)(alone)
    assert comes_back(alone, tmp_path / "alone") == (name in OWN_WIDTH)
    assert (alone.config.hidden_size == 12) == (name in OWN_WIDTH)
    assert (unsaid(alone) == []) == (name in OWN_WIDTH)


@pytest.mark.parametrize("name", NETWORKS)
def test_uneven_widths_are_not_said_and_the_rest_is(name: str, tmp_path: Path) -> None:
    network = build(name, torch.float32)
    units = find_units(network)
    kept = same(units, 4, 7)
    kept[next(u.name for u in units if u.kind == "heads")] = [0]
    RemoveUnits({n: k for n, k in kept.items() if n in kept and (len(k) != 4)})(network)
    assert not comes_back(network, tmp_path)
    assert "heads" in unsaid(network)[0]
    neurons = {getattr(network.config, word, None) for word in ("intermediate_size", "d_ff")}
    neurons |= {getattr(network.config, w, None) for w in ("hidden_dim", "n_inner")}
    assert 7 in neurons or network.config.encoder_ffn_dim == 7


def test_what_is_uneven_is_told() -> None:
    network = build("bert")
    units = find_units(network)
    RemoveUnits({units[1].name: [0, 1], units[3].name: [5]})(network)
    assert unsaid(network) == ["its layers have 1 or 2 or 24 neurons in a feed-forward block"]
    # When all are alike again, the config says so, and what it said at first is known still.
    RemoveUnits({u.name: [0] for u in find_units(network, ("ffn",)) if u.count > 1})(network)
    assert network.config.intermediate_size == 1 and unsaid(network) == []
    assert original_config(network)["intermediate_size"] == 24


def test_a_network_that_is_as_its_config_says_is_left_alone() -> None:
    for name in ("bert", "gpt2", "vit", "t5"):
        network = build(name)
        before = network.config.to_dict()
        say_in_config(network)
        assert network.config.to_dict() == before and unsaid(network) == []
