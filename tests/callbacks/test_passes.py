"""A further pass: its weight, its scale, what it leaves alone, and when ranks add up."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DDPStrategy

from lmkit.callbacks.passes import Passes


class Square(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(3.0))

    def training_step(self, batch, batch_idx):
        self.seen = batch, batch_idx
        return self.weight**2 * batch


class Alone:
    """What a strategy of one device does."""

    def __init__(self, module):
        self.module = module

    def training_step(self, *arguments):
        return self.module.training_step(*arguments)


class Ranks(DDPStrategy):
    """Notes which passes do not add up over ranks."""

    def __init__(self, module):
        self.module, self.blocked = module, []
        self.is_blocked = False

    def training_step(self, *arguments):
        self.blocked.append(self.is_blocked)
        return self.module.training_step(*arguments)

    @contextmanager
    def block_backward_sync(self):
        self.is_blocked = True
        yield
        self.is_blocked = False


def passes(module, strategy=None, scaler=None, window=1):
    trainer = SimpleNamespace(
        strategy=strategy or Alone(module),
        precision_plugin=SimpleNamespace(scaler=scaler),
        accumulate_grad_batches=window,
    )
    return Passes(trainer, module, torch.tensor(2.0), 5)


@pytest.mark.parametrize("window", [1, 4])
def test_its_gradient_is_added_with_its_weight_and_the_window_of_lightning(window):
    module = Square()
    module.weight.grad = torch.tensor(1.0)
    passes(module, window=window).backward(0.25, last=True)
    assert module.weight.grad.item() == 1.0 + 0.25 * 12.0 / window
    assert module.seen[0].item() == 2.0 and module.seen[1] == 5


def test_it_is_scaled_as_lightning_scales():
    module = Square()
    scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
    passes(module, scaler=scaler).backward(0.5, last=True)
    assert module.weight.grad.item() == 128.0 * 6.0


def test_gradients_of_some_tensors_leave_those_of_the_parameters_alone():
    module = Square()
    leaf, other = torch.zeros((), requires_grad=True), torch.zeros((), requires_grad=True)
    module.training_step = lambda batch, batch_idx: {"loss": (module.weight + leaf) ** 2}
    found = passes(module).gradients([leaf, other])
    assert found[0].item() == 6.0 and found[1] is None and module.weight.grad is None


def test_only_the_last_pass_adds_up_over_ranks():
    module = Square()
    strategy = Ranks(module)
    made = passes(module, strategy)
    made.gradients([module.weight])
    made.backward(0.5, last=False)
    made.backward(0.5, last=True)
    assert strategy.blocked == [True, True, False]
