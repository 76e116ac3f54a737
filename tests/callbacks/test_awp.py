"""AWP: against a loop by hand, weights that come back to the last bit, windows and ranks."""

import sys

import pytest
import torch
from lightning.pytorch import Callback

from lmkit.callbacks.awp import AWPCallback
from tests.callbacks.hand_loops import PRECISIONS, Hand, Plain, fit, gap


def by_hand(hand, gamma, clean=0.5):
    parameters = list(hand.network.parameters())

    def gradient(batch, number):
        own = torch.autograd.grad(hand.loss(batch, number), parameters)
        kept = [p.detach().clone() for p in parameters]
        with torch.no_grad():
            for p, g in zip(parameters, own, strict=True):
                if p.dim() > 1:
                    g = g.double()
                    p += (gamma * p.double().norm() * g / g.norm()).float()
        there = torch.autograd.grad(hand.loss(batch, number), parameters)
        with torch.no_grad():
            for p, before, g, h in zip(parameters, kept, own, there, strict=True):
                p.copy_(before)
                made = clean * g + (1 - clean) * h
                p.grad = made if p.grad is None else p.grad + made

    return gradient


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_is_the_loop_by_hand(precision, window):
    hand = Hand(precision)
    net = hand.run(by_hand(hand, 0.02), window=window)
    how = {"accumulate_grad_batches": window, **PRECISIONS[precision]()}
    assert gap(net, fit(AWPCallback(0.02), **how).model) <= 1e-7
    assert gap(fit(**how), fit(AWPCallback(0.02), **how)) > 1e-5


def test_without_a_clean_part_it_is_the_loop_by_hand():
    hand = Hand()
    net = hand.run(by_hand(hand, 0.02, clean=0.0))
    assert gap(net, fit(AWPCallback(0.02, clean_weight=0.0)).model) <= 1e-7


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_gamma_zero_is_plain_training_bit_for_bit(precision, window):
    how = {"accumulate_grad_batches": window}
    plain = fit(**PRECISIONS[precision](), **how)
    assert gap(plain, fit(AWPCallback(0.0), **PRECISIONS[precision](), **how)) == 0.0


def test_a_perturbation_that_rounds_to_nothing_is_plain_training_bit_for_bit():
    assert gap(fit(), fit(AWPCallback(1e-30))) == 0.0


class Weights(Callback):
    """Compares the weights before and behind the passes of each step."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.before = [p.detach().clone() for p in pl_module.parameters()]

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        now = list(pl_module.parameters())
        assert all(torch.equal(a, b) for a, b in zip(self.before, now, strict=True))


def test_the_weights_are_those_from_before_to_the_last_bit():
    fit(AWPCallback(0.1), Weights())


def test_the_weights_come_back_from_a_pass_that_fails():
    class Fails(Plain):
        calls = 0

        def training_step(self, batch, batch_idx):
            self.calls += 1
            if self.calls == 2:
                raise OSError("struck")
            return super().training_step(batch, batch_idx)

    module = Fails()
    with pytest.raises(OSError, match="struck"):
        fit(AWPCallback(0.1), module=module)
    assert gap(module, Plain()) == 0.0


def test_it_begins_after_its_share_of_the_run():
    passes = []

    class Count(Plain):
        def training_step(self, batch, batch_idx):
            passes.append(batch_idx)
            return super().training_step(batch, batch_idx)

    fit(AWPCallback(0.02, start=0.5), module=Count())
    assert [passes.count(n) for n in range(4)] == [1, 1, 2, 2]


@pytest.mark.skipif(sys.platform != "linux", reason="forks with gloo")
def test_two_ranks_are_one_process_on_the_joined_batch():
    settings = {"devices": 2, "strategy": "ddp_fork"}
    one = fit(AWPCallback(0.02), module=Plain(0.0), size=8)
    assert gap(one, fit(AWPCallback(0.02), module=Plain(0.0), size=4, **settings)) <= 1e-7
    # Of a window each batch of both ranks has a perturbation of its own.
    window = {"accumulate_grad_batches": 2}
    one = fit(AWPCallback(0.02), module=Plain(0.0), size=8, **window)
    two = fit(AWPCallback(0.02), module=Plain(0.0), size=4, **window, **settings)
    assert gap(one, two) <= 1e-7 and gap(one, fit(module=Plain(0.0), size=8, **window)) > 1e-5


def test_what_lies_outside_its_range_is_refused():
    for arguments in ({"gamma": -1.0}, {"clean_weight": 1.0}, {"start": 1.0}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            AWPCallback(**arguments)


def test_a_start_needs_an_end_of_the_run():
    with pytest.raises(ValueError, match="the run has no end"):
        fit(AWPCallback(0.02, start=0.5), max_epochs=-1)
