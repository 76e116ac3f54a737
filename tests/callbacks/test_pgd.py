"""PGD: against a loop by hand, and as what it is made of."""

import sys

import pytest
import torch

from lmkit.callbacks.fgm import FGMCallback
from lmkit.callbacks.pgd import PGDCallback
from tests.callbacks.hand_loops import PRECISIONS, Hand, Plain, fit, gap, zeros


def by_hand(hand, epsilon, steps, size):
    def gradient(batch, number):
        delta, bound = zeros(batch), hand.radius(batch, epsilon)
        (0.5 * hand.loss(batch, number, delta)).backward()
        moved = hand.climbed(batch, delta.detach(), delta.grad, size, bound)
        for _ in range(steps - 1):
            moved.requires_grad_()
            (found,) = torch.autograd.grad(hand.loss(batch, number, moved), moved)
            moved = hand.climbed(batch, moved.detach(), found, size, bound)
        (0.5 * hand.loss(batch, number, moved)).backward()

    return gradient


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_is_the_loop_by_hand(precision, window):
    hand = Hand(precision)
    net = hand.run(by_hand(hand, 0.1, 3, 0.6), window=window)
    made = fit(PGDCallback(0.1, 3, 0.6), accumulate_grad_batches=window, **PRECISIONS[precision]())
    assert gap(net, made.model) <= 1e-7


def test_one_step_from_the_text_is_fgm_bit_for_bit():
    assert gap(fit(PGDCallback(0.1, 1, 1.0)), fit(FGMCallback(0.1))) == 0.0
    assert gap(fit(PGDCallback(0.1, 2, 0.5)), fit(FGMCallback(0.1))) > 1e-6


@pytest.mark.skipif(sys.platform != "linux", reason="forks with gloo")
@pytest.mark.parametrize("start", [0.0, 0.5])
def test_two_ranks_are_one_process_on_the_joined_batch(start):
    one = fit(PGDCallback(0.1, start=start), module=Plain(0.0), size=8)
    how = {"devices": 2, "strategy": "ddp_fork"}
    two = fit(PGDCallback(0.1, start=start), module=Plain(0.0), size=4, **how)
    assert gap(one, two) <= 1e-7


def test_a_random_start_makes_one_pass_more_and_another_training():
    passes = []

    class Count(Plain):
        def training_step(self, batch, batch_idx):
            passes.append(batch_idx)
            return super().training_step(batch, batch_idx)

    apart = gap(fit(PGDCallback(0.1, start=1.0), module=Count()), fit(PGDCallback(0.1)))
    assert apart > 1e-6 and passes.count(0) == 5
    # The start is a function of seed, epoch and text.
    assert gap(*(fit(PGDCallback(0.1, start=1.0)) for _ in range(2))) == 0.0


def test_the_loss_rises_with_each_step():
    seen = []

    class Watch(PGDCallback):
        def passes(self, passes):
            super().passes(passes)
            seen.append(float(self._loss))

    def last(steps):
        seen.clear()
        fit(Watch(0.2, steps, 0.4), module=Plain(0.0), limit_train_batches=1)
        return seen[0]

    losses = [last(steps) for steps in (1, 2, 3, 5)]
    assert losses == sorted(losses) and losses[-1] > losses[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps must be"),
        ({"step_size": 0.0}, "step_size must be over 0"),
        ({"start": 1.5}, r"start must lie in \[0.0, 1.0\]"),
        ({"clean_weight": 1.0}, r"clean_weight must lie in \[0, 1\)"),
        ({"norm": "batch"}, "norm must be one of sentence, token, entry"),
    ],
)
def test_what_lies_outside_its_range_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PGDCallback(**arguments)
