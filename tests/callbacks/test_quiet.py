"""A quiet pass: nothing is logged, and metrics of every kind stay."""

import pytest
import torch
from lightning.pytorch import LightningModule
from torchmetrics import CatMetric, MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from lmkit.callbacks.quiet import quiet


class Counts(LightningModule):
    def __init__(self):
        super().__init__()
        self.accuracy, self.mean, self.every = MulticlassAccuracy(2), MeanMetric(), CatMetric()

    def training_step(self, value):
        self.accuracy(torch.tensor([1, 0]), torch.tensor([1, 1]))
        self.mean.update(value)
        self.every.update(torch.tensor([value]))
        self.log("train/loss", value)
        self.log_dict({"train/more": value})


def step(module, value):
    with quiet(module):
        module.training_step(value)


def test_metrics_count_what_was_there_before():
    module = Counts()
    module.log = module.log_dict = lambda *_, **__: None
    module.training_step(2.0)
    expected = {n: m.compute() for n, m in module.named_children()}
    counts = {n: m.update_count for n, m in module.named_children()}
    step(module, 9.0)
    assert {n: m.update_count for n, m in module.named_children()} == counts
    for metric in module.children():
        metric._computed = None
    assert {n: m.compute() for n, m in module.named_children()} == expected
    module.training_step(4.0)
    assert module.mean.compute() == 3.0 and module.every.compute().tolist() == [2.0, 4.0]


def test_a_metric_that_was_never_updated_is_so_still():
    module = Counts()
    step(module, 9.0)
    assert not any(m.update_called for m in module.children())


def test_methods_that_were_set_on_the_module_come_back():
    module, calls = Counts(), []
    module.log = lambda *arguments, **_: calls.append(arguments)
    own = module.log
    step(module, 1.0)
    assert module.log is own and not calls and "log_dict" not in vars(module)


def test_all_comes_back_when_a_step_fails():
    module = Counts()

    def fails(value):
        module.mean.update(value)
        raise OSError("struck")

    module.training_step = fails
    with pytest.raises(OSError, match="struck"):
        step(module, 1.0)
    assert "log" not in vars(module) and not module.mean.update_called
