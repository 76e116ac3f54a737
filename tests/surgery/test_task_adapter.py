"""Adapters of tasks change nothing at first, learn alone, and can be taken out."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from lmkit.surgery import from_spec, to_spec
from lmkit.surgery.adapter import KINDS, Adapter
from lmkit.surgery.bottleneck import ACTIVATIONS
from lmkit.surgery.task_adapter import (
    TaskAdapter,
    keep_task,
    task_adapter_names,
    task_adapter_parameters,
    use_task,
)
from lmkit.surgery.task_aggregation import ledger_of_task
from lmkit.surgery.tuning import freeze_base, is_tuned_in_part
from tests.surgery.adapted import NETWORKS, bert, build, logits, stir

NAMES = ("topic", "ner", "score")


def adapted(**settings: Any) -> Any:
    """Return a network whose adapters of three tasks compute something."""
    network = bert()
    TaskAdapter(NAMES, size=4, **settings)(network)
    stir(network)
    return network


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_no_logit_changes_and_everything_goes_on_learning(kind):
    network = bert()
    before = logits(network)
    frozen = next(network.parameters())
    frozen.requires_grad_(False)  # by somebody else, before
    TaskAdapter(NAMES, kind, size=4)(network)
    for name in NAMES:
        use_task(network, NAMES, name)
        assert torch.equal(logits(network), before)
    assert [p for p in network.parameters() if not p.requires_grad] == [frozen]
    assert not is_tuned_in_part(network)


@pytest.mark.parametrize("name", NETWORKS)
def test_each_architecture_has_them(name):
    network = build(name)
    TaskAdapter(("a", "b"), size=2)(network)
    sizes = [sum(p.numel() for p in task_adapter_parameters(network, task)) for task in "ab"]
    assert sizes[0] == sizes[1] > 0


def test_frozen_leaves_only_adapters_and_head():
    network = bert()
    TaskAdapter(NAMES, size=4, freeze=True)(network)
    trained = {id(p) for p in network.parameters() if p.requires_grad}
    own = {id(p) for name in NAMES for p in task_adapter_parameters(network, name)}
    head = {id(p) for n, p in network.named_parameters() if not n.startswith("bert.")}
    assert own and trained == own | head


def test_a_network_that_is_tuned_in_part_stays_so():
    network = bert()
    freeze_base(network, head=False)
    TaskAdapter(NAMES, size=4)(network)
    own = {id(p) for name in NAMES for p in task_adapter_parameters(network, name)}
    assert {id(p) for p in network.parameters() if p.requires_grad} == own


@torch.no_grad()
def test_the_active_one_computes_the_formula_in_each_layer():
    network = adapted(scale=0.5).double()
    use_task(network, NAMES, "ner")
    found = logits(network)
    plain = copy.deepcopy(network)
    for name, layer in network.named_modules():
        if not hasattr(layer, "adapters"):
            continue
        own = layer.adapters["ner"]

        def add(_: Any, __: Any, y: torch.Tensor, own: Any = own) -> torch.Tensor:
            inner = ACTIVATIONS["gelu"](y @ own.down.T + own.down_bias)
            return y + 0.5 * (inner @ own.up.T + own.up_bias)

        plain.get_submodule(name).use({})
        plain.get_submodule(f"{name}.base_layer").register_forward_hook(add)
    torch.testing.assert_close(logits(plain), found, rtol=1e-12, atol=1e-12)
    others = []
    for name in NAMES:
        use_task(network, NAMES, name)
        others.append(logits(network))
    assert torch.equal(others[1], found)
    assert not torch.allclose(others[0], found) and not torch.allclose(others[2], found)


def test_only_the_active_one_has_a_gradient():
    network = adapted()
    for active in NAMES:
        network.zero_grad()
        use_task(network, NAMES, active)
        logits(network).square().sum().backward()
        for name in NAMES:
            gradients = [p.grad for p in task_adapter_parameters(network, name)]
            assert all((g is not None and g.any()) == (name == active) for g in gradients), name


def test_adapters_of_no_task_stay_as_they_are():
    network = adapted()
    Adapter("mine", "pfeiffer", size=2)(network)
    layers = [m for m in network.modules() if hasattr(m, "adapters")]
    layers[0].use({"mine": 0.5, "topic": 1.0})
    use_task(network, NAMES, "ner")
    assert layers[0].active_adapters == {"mine": 0.5, "ner": 1.0}


@torch.no_grad()
def test_one_task_is_kept_and_its_ledger_makes_it():
    network = adapted()
    use_task(network, NAMES, "ner")
    found = logits(network)
    alone = copy.deepcopy(network)
    use_task(alone, NAMES, "topic")
    keep_task(alone, NAMES, "ner")
    assert torch.equal(logits(alone), found)
    ledger = [to_spec(TaskAdapter(NAMES, size=4)), to_spec(Adapter("mine"))]
    mine, other = ledger_of_task(ledger, NAMES, "ner")
    assert other == ledger[1] and task_adapter_names(ledger) == list(NAMES)
    made = bert()
    from_spec(mine)(made)
    made.load_state_dict(alone.state_dict())
    assert torch.equal(logits(made), found)


def test_twice_is_once():
    network = adapted()
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    TaskAdapter(NAMES, size=4)(network)
    after = network.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in after)
    with pytest.raises(ValueError, match="'ner' already, size 4, not 5: give"):
        TaskAdapter(["ner"], size=5)(network)


@pytest.mark.parametrize(
    ("names", "settings", "words"),
    [
        ([], {}, "at least one task"),
        (["a", "a"], {}, "each once"),
        (["type"], {}, "name must be a word"),
        (["a"], {"size": 0}, "size"),
        (["a"], {"kind": "other"}, "kind must be one of"),
    ],
)
def test_wrong_attributes_are_refused(names, settings, words):
    with pytest.raises(ValueError, match=words):
        TaskAdapter(names, **settings)
