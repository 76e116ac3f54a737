"""Each task attends to the adapters of all, and teaches its own alone."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lmkit.surgery import from_spec, to_spec
from lmkit.surgery.adapter import KINDS
from lmkit.surgery.adapter_fusion import Fusion
from lmkit.surgery.bottleneck import AdaptedLayer
from lmkit.surgery.composition import active_adapters, use_adapters
from lmkit.surgery.norm_shift import Shifted
from lmkit.surgery.task_adapter import (
    TaskAdapter,
    keep_task,
    mixture_name,
    task_adapter_parameters,
    use_task,
)
from lmkit.surgery.task_aggregation import TaskAggregation, aggregated_tasks, ledger_of_task
from lmkit.surgery.tuning import freeze_base
from tests.surgery.adapted import NETWORKS, bert, build, inputs, logits, stir

NAMES = ("topic", "ner", "score")


def aggregated(kind: str = "pfeiffer", names: tuple[str, ...] = NAMES, **settings: Any) -> Any:
    """Return a network whose adapters and mixtures of tasks compute something."""
    network = bert()
    TaskAdapter(names, kind, size=4, **settings)(network)
    TaskAggregation(names)(network)
    stir(network, ".adapters.", ".fusions.")
    return network


def layers(network: nn.Module) -> list[AdaptedLayer]:
    return [module for module in network.modules() if isinstance(module, AdaptedLayer)]


def single_layer() -> AdaptedLayer:
    """Return one layer of width 5 in float64 with adapters and mixtures that are not small."""
    torch.manual_seed(2)
    network = nn.ModuleList([nn.ModuleDict({"fc2": nn.Linear(5, 5)})]).double()
    TaskAdapter(NAMES, size=3, scale=0.7)(network)
    TaskAggregation(NAMES)(network)
    use_task(network, NAMES, "ner")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_()
    return network[0]["fc2"]


def added(y: Tensor, adapters: list[list[Tensor]], mixture: list[Tensor]) -> Tensor:
    """Compute what is added to one token, `[5]`, from the formula."""
    query, key, value = mixture
    z = []
    for down, up, down_bias, up_bias in adapters:
        h = down.mv(y) + down_bias
        gelu = h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))
        z.append(0.7 * (up.mv(gelu) + up_bias))
    odds = [torch.exp(query.mv(y).dot(key.mv(each))) for each in z]
    parts = [odd / sum(odds) * value.mv(each) for odd, each in zip(odds, z, strict=True)]
    return parts[0] + parts[1] + parts[2]


def leaves(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone().requires_grad_() for p in module.parameters()]


def test_a_layer_and_its_gradients_are_those_of_the_formula():
    layer = single_layer()
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(2, 3, 5, dtype=torch.float64)
    found = layer(x)
    (found * direction).sum().backward()

    adapters = {name: leaves(layer.adapters[name]) for name in NAMES}
    mixture = leaves(layer.fusions["ner/all"])
    weight, bias = leaves(layer.base_layer)
    start = x.detach().clone().requires_grad_()
    rows = []
    for token in start.view(-1, 5):
        y = weight.mv(token) + bias
        rows.append(y + added(y, [adapters[name] for name in NAMES], mixture))
    expected = torch.stack(rows).view(2, 3, 5)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    (expected * direction).sum().backward()
    pairs = [(x.grad, start.grad)]
    wanted = [weight, bias, *adapters["ner"], *mixture]
    parts = (layer.base_layer, layer.adapters["ner"], layer.fusions["ner/all"])
    ours = [parameter for part in parts for parameter in part.parameters()]
    pairs += [(p.grad, theirs.grad) for p, theirs in zip(ours, wanted, strict=True)]
    for gradient, theirs in pairs:
        assert theirs.any()
        torch.testing.assert_close(gradient, theirs, rtol=1e-9, atol=1e-9)
    for name in ("topic", "score"):
        # They would have one, if they were not held.
        assert all(theirs.grad.any() for theirs in adapters[name])
        held = [*layer.adapters[name].parameters(), *layer.fusions[f"{name}/all"].parameters()]
        assert all(parameter.grad is None for parameter in held)


def test_the_gradient_of_what_it_reads_is_that_of_finite_differences():
    layer = single_layer()
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_weights_of_other_adapters_are_constant(kind):
    network = aggregated(kind)
    use_task(network, NAMES, "ner")
    free = copy.deepcopy(network)
    for module in free.modules():
        if isinstance(module, Fusion):
            module.constant = ()
    for each in (network, free):
        logits(each).square().sum().backward()
    own = {id(p) for p in task_adapter_parameters(network, "ner")}
    other = {id(p) for n in ("topic", "score") for p in task_adapter_parameters(network, n)}
    for (name, ours), theirs in zip(network.named_parameters(), free.parameters(), strict=True):
        if id(ours) in other:
            assert ours.grad is None, name
        else:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-7, msg=name)
            assert ours.grad.any() or id(ours) not in own, name
    reached = {n: p.grad for n, p in free.named_parameters() if ".adapters.topic." in n}
    assert any(g is not None and g.any() for g in reached.values())


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_no_logit_changes_and_everything_goes_on_learning(kind):
    network = bert()
    before = logits(network)
    TaskAdapter(NAMES, kind, size=4)(network)
    TaskAggregation(NAMES)(network)
    for name in NAMES:
        use_task(network, NAMES, name)
        assert torch.equal(logits(network), before)
        assert active_adapters(network) == {mixture_name(name): 1.0}
    assert all(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_each_architecture_has_them(name):
    network = build(name)
    TaskAdapter(("a", "b"), size=2)(network)
    TaskAggregation(("a", "b"))(network)
    assert [layer.adapter_names for layer in layers(network)] == [
        ("a", "b", "a/all", "b/all")
    ] * NETWORKS[name][2]
    sizes = [sum(p.numel() for p in task_adapter_parameters(network, task)) for task in "ab"]
    assert sizes == [NETWORKS[name][2] * (2 * 16 * 2 + 16 + 2 + 3 * 16**2)] * 2


@torch.no_grad()
def test_of_one_task_it_is_the_value_of_its_adapter():
    network = aggregated(names=("ner",))
    found = logits(network)
    for layer in layers(network):
        for word in ("query", "key"):
            getattr(layer.fusions["ner/all"], word).normal_()
    torch.testing.assert_close(logits(network), found)
    for layer in layers(network):
        fusion, adapter = layer.fusions["ner/all"], layer.adapters["ner"]
        adapter.up.copy_(fusion.value @ adapter.up)
        adapter.up_bias.copy_(fusion.value @ adapter.up_bias)
        layer.use({"ner": 1.0})
    torch.testing.assert_close(logits(network), found, rtol=1e-5, atol=1e-6)


def test_of_one_task_queries_and_keys_have_no_gradient():
    network = aggregated(names=("ner",))
    logits(network).square().sum().backward()
    for layer in layers(network):
        fusion = layer.fusions["ner/all"]
        assert fusion.value.grad.any()
        assert fusion.query.grad.abs().max() < 1e-6 and fusion.key.grad.abs().max() < 1e-6


@torch.no_grad()
def test_the_order_of_the_tasks_does_not_matter():
    network = aggregated()
    other = bert()
    TaskAdapter(NAMES[::-1], size=4)(other)
    TaskAggregation(NAMES[::-1])(other)
    other.load_state_dict(network.state_dict())
    for name in NAMES:
        use_task(network, NAMES, name)
        use_task(other, NAMES, name)
        torch.testing.assert_close(logits(other), logits(network), rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_norms_have_the_shift_of_the_task_alone():
    network = aggregated("houlsby")
    norms = [m for m in network.modules() if isinstance(m, Shifted)]
    assert len(norms) == 5
    for name in NAMES:
        use_task(network, NAMES, name)
        for norm in norms:
            for word, tensor in norm.tensors().items():
                own = getattr(norm.base_layer, word) + getattr(norm.adapters[name], word)
                assert torch.equal(tensor, own)


@torch.no_grad()
def test_what_is_active_can_be_taken_up_again():
    network = aggregated("houlsby")
    use_task(network, NAMES, "score")
    active, found = active_adapters(network), logits(network)
    use_task(network, NAMES, "ner")
    assert not torch.allclose(logits(network), found)
    use_adapters(network, active)
    assert torch.equal(logits(network), found)


@pytest.mark.parametrize("kind", ["pfeiffer", "houlsby"])
@torch.no_grad()
def test_one_task_is_kept_with_all_adapters_and_its_ledger_makes_it(kind):
    network = aggregated(kind)
    use_task(network, NAMES, "ner")
    found = logits(network)
    alone = copy.deepcopy(network)
    use_task(alone, NAMES, "topic")
    keep_task(alone, NAMES, "ner")
    assert torch.equal(logits(alone), found)
    for layer in layers(alone):
        assert layer.adapter_names == (*NAMES, "ner/all") and "topic/all" not in layer.origins
    ledger = [to_spec(TaskAdapter(NAMES, kind, size=4)), to_spec(TaskAggregation(NAMES))]
    kept = ledger_of_task(ledger, NAMES, "ner")
    assert kept[0] == ledger[0] and aggregated_tasks(kept) == ["ner"]
    made = bert()
    for spec in kept:
        from_spec(spec)(made)
    made.load_state_dict(alone.state_dict())
    assert torch.equal(logits(made), found)
    for each in (alone, made):
        learning = [any(p.requires_grad for p in task_adapter_parameters(each, n)) for n in NAMES]
        assert learning == [False, True, False]
        assert all(p.requires_grad for p in task_adapter_parameters(each, "ner"))


def test_a_ledger_leaves_out_what_was_taken_out():
    one, all_of_them = TaskAdapter(["ner"], size=4), TaskAdapter(NAMES, size=4)
    ledger = [to_spec(one), to_spec(all_of_them)]
    assert ledger_of_task(ledger, NAMES, "topic") == [to_spec(TaskAdapter(["topic"], size=4))]
    assert ledger_of_task(ledger, NAMES, "ner") == [to_spec(one)] * 2
    assert ledger_of_task(ledger, (), "ner") == ledger
    mixed = [*ledger, to_spec(TaskAggregation(NAMES, ["score"]))]
    assert ledger_of_task(mixed, NAMES, "score") == mixed
    assert ledger_of_task(mixed, NAMES, "topic") == [to_spec(TaskAdapter(["topic"], size=4))]


def test_it_learns_beside_a_frozen_network():
    network = bert()
    freeze_base(network, head=False)
    TaskAdapter(NAMES, size=4)(network)
    TaskAggregation(NAMES)(network)
    own = {id(p) for name in NAMES for p in task_adapter_parameters(network, name)}
    assert {id(p) for p in network.parameters() if p.requires_grad} == own
    assert any(isinstance(m, Fusion) for m in network.modules())


@torch.no_grad()
def test_twice_is_once_and_missing_tasks_are_added():
    network = aggregated()
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    TaskAdapter(NAMES, size=4)(network)
    TaskAggregation(NAMES)(network)
    after = network.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in after)
    keep_task(network, NAMES, "score")
    found = logits(network)
    TaskAggregation(NAMES[::-1])(network)
    assert network.state_dict().keys() == before.keys()
    use_task(network, NAMES, "score")
    assert torch.equal(logits(network), found)


def test_copies_and_graphs_compute_the_same():
    network = aggregated("parallel")
    use_task(network, NAMES, "ner")
    found = logits(network)
    assert torch.equal(logits(copy.deepcopy(network)), found)
    assert torch.equal(logits(pickle.loads(pickle.dumps(network))), found)
    batch = {**inputs(network), "return_dict": False}
    program = torch.export.export(network, (), batch, strict=False)
    torch.testing.assert_close(program.module()(**batch)[0], found, rtol=1e-5, atol=1e-5)


def test_bfloat16_follows_the_adapters():
    network = bert().to(torch.bfloat16)
    TaskAdapter(NAMES, size=4)(network)
    TaskAggregation(NAMES)(network)
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
    assert logits(network).isfinite().all()


@pytest.mark.parametrize(
    ("names", "tasks", "words"),
    [
        ([], None, "names must be those of at least one task"),
        (["a", "a"], None, "each once"),
        (["a", "a/all"], None, "another's mixture"),
        (["a"], [], "tasks must be some of the names"),
        (["a"], ["a", "a"], "each once"),
        (["a"], ["b"], r"some of the names \['a'\]"),
    ],
)
def test_wrong_attributes_are_refused(names, tasks, words):
    with pytest.raises(ValueError, match=words):
        TaskAggregation(names, tasks)


def test_networks_without_these_adapters_are_refused():
    with pytest.raises(ValueError, match=r"no bottleneck adapters of the tasks \['a'\].*none"):
        TaskAggregation(["a"])(bert())
    network = aggregated()
    keys = network.state_dict().keys()
    with pytest.raises(ValueError, match=r"tasks \['other'\]; it has \['topic', 'ner', 'score'\]"):
        TaskAggregation(["ner", "other"])(network)
    with pytest.raises(ValueError, match=r"'topic' attends to .* topic, ner, score already"):
        TaskAggregation(["topic", "ner"])(network)
    assert network.state_dict().keys() == keys


def test_compiled_layers_follow_the_task():
    layer = single_layer()
    compiled, x = torch.compile(layer, backend="aot_eager"), torch.randn(3, 5).double()
    for task in ("topic", "ner", "topic"):
        layer.use({mixture_name(task): 1.0})
        gradients = []
        for each in (compiled, layer):
            layer.zero_grad()
            found = each(x)
            found.square().sum().backward()
            gradients.append({n: p.grad for n, p in layer.named_parameters() if p.grad is not None})
        assert gradients[0].keys() == gradients[1].keys()
        held = [name for name in gradients[0] if "adapters." in name]
        assert held and all(name.startswith(f"adapters.{task}.") for name in held)
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradient, gradients[1][name])
