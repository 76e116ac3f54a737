"""Divergences of every kind of task, and how items with and without labels are counted."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import kl_div

from lmkit.callbacks.divergences import divergence, labelled_factors, task_of, total_items
from lmkit.modules import DistillationModule, SequenceClassificationModule
from lmkit.modules.scores import Scores
from lmkit.types import StepOutput
from tests.several_tasks import make_module

VALID = torch.tensor([True, True, False, True])


def scores(kind, logits, labels=None):
    rows = torch.arange(len(logits))
    tokens = torch.ones(len(logits), 3, dtype=torch.bool)
    return Scores(kind, logits, VALID, labels, rows, tokens, VALID.float())


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["symmetric", "forward", "jensen_shannon"])
@pytest.mark.parametrize("task", ["classes", "labels", "value"])
def test_each_kind_of_each_task_is_that_of_torch(task, kind):
    shape = (4, 1) if task == "value" else (4, 3)
    a, b = drawn(*shape), drawn(*shape, seed=1)
    made = divergence(scores(task, a), scores(task, b), kind)
    if task == "value":
        expected = (a - b).square().mean(-1)
    else:
        if task == "labels":
            a, b = (torch.stack([z, torch.zeros_like(z)], -1) for z in (a, b))
        p, q = a.log_softmax(-1), b.log_softmax(-1)

        def kl(first, second):
            each = kl_div(second, first, reduction="none", log_target=True).sum(-1)
            return each.mean(-1) if each.dim() > 1 else each

        m = ((p.exp() + q.exp()) / 2).log()
        expected = {
            "symmetric": lambda: kl(p, q) + kl(q, p),
            "forward": lambda: kl(p, q),
            "jensen_shannon": lambda: (kl(p, m) + kl(q, m)) / 2,
        }[kind]()
    assert torch.allclose(made, expected * VALID, atol=1e-6)


@pytest.mark.parametrize("task", ["classes", "labels", "value"])
def test_both_sides_learn_but_of_the_forward_kind_the_second_alone(task):
    for kind in ("symmetric", "forward", "jensen_shannon"):
        a, b = (drawn(4, 2, seed=s).requires_grad_() for s in (0, 1))
        made = divergence(scores(task, a), scores(task, b), kind).sum()
        one, other = torch.autograd.grad(made, [a, b], allow_unused=True)
        assert other.any() and (one is None or not one.any()) == (kind == "forward")


def test_items_without_a_label_are_counted_beside_the_weights_of_the_others():
    module = SequenceClassificationModule({"model_type": "bert"})
    logits = drawn(4, 3)
    # Labelled ones count by their weight, here 2.5 together; one valid item has no label.
    labels = torch.tensor([1, 2, -100, -100])
    output = StepOutput(torch.tensor(1.0), torch.tensor(2.5), logits)
    assert total_items(module, output, scores("classes", logits, labels)).item() == 3.5
    spans = torch.tensor([[1, 2], [0, 0], [-100, -100], [-100, -100]])
    assert total_items(module, output, scores("classes", logits, spans)).item() == 3.5
    values = StepOutput(torch.tensor(1.0), torch.tensor(2.0), logits)
    assert total_items(module, values, scores("value", logits)).item() == 3.0


def test_distillation_counts_them_itself():
    module = DistillationModule.__new__(DistillationModule)
    output = StepOutput(torch.tensor(1.0), torch.tensor(4.0), None)
    labels = torch.tensor([1, -100, -100, -100])
    assert total_items(module, output, scores("classes", drawn(4, 3), labels)).item() == 4.0
    assert labelled_factors(module, SimpleNamespace(unlabelled_rows=5)) == {"": 1.0}


def test_labels_weigh_as_much_as_if_they_were_alone():
    module = SequenceClassificationModule({"model_type": "bert"})
    data = SimpleNamespace(unlabelled_rows=30, row_count=lambda split: 40)
    assert labelled_factors(module, data) == {"": 4.0}
    assert (
        labelled_factors(module, None) == {"": 1.0} == labelled_factors(module, SimpleNamespace())
    )


def test_each_of_several_tasks_has_a_factor_of_its_own():
    module = make_module("topic", "ner")
    bare = SimpleNamespace(unlabelled_rows=30, row_count=lambda split: 40)
    data = SimpleNamespace(tasks={"topic": bare, "ner": SimpleNamespace(unlabelled_rows=0)})
    assert labelled_factors(module, data) == {"topic": 4.0, "ner": 1.0}
    batch = {"input_ids": torch.ones(2, 3), "task": torch.tensor([1, 1])}
    assert task_of(module, batch) == "ner" and task_of(module.tasks["ner"], batch) == ""
