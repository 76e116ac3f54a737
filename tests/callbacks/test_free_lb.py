"""FreeLB: against a loop by hand, its start, and its limits."""

import sys

import pytest
import torch

from lmkit.callbacks.free_lb import FreeLBCallback
from lmkit.functional.adversarial import ball_norm
from tests.callbacks.hand_loops import PRECISIONS, Hand, Plain, fit, gap, zeros


def by_hand(hand, epsilon, steps, size, starts=None):
    def gradient(batch, number):
        bound = hand.radius(batch, epsilon)
        delta = zeros(batch) if starts is None else starts[number].clone().requires_grad_()
        for step in range(steps):
            (hand.loss(batch, number, delta) / steps).backward()
            if step < steps - 1:
                moved = hand.climbed(batch, delta.detach(), delta.grad, size, bound)
                delta = moved.requires_grad_()

    return gradient


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_is_the_loop_by_hand(precision, window):
    hand = Hand(precision)
    net = hand.run(by_hand(hand, 0.1, 3, 0.6), window=window)
    how = {"accumulate_grad_batches": window, **PRECISIONS[precision]()}
    assert gap(net, fit(FreeLBCallback(0.1, 3, 0.6, start=0.0), **how).model) <= 1e-7


def test_it_is_the_loop_by_hand_from_the_same_random_start():
    starts = []

    class Keep(FreeLBCallback):
        def passes(self, passes):
            starts.append(self.adversary.perturbations[0].delta.detach().clone())
            super().passes(passes)

    made, hand = fit(Keep(0.1, 3, 0.6, start=0.5)), Hand()
    assert gap(hand.run(by_hand(hand, 0.1, 3, 0.6, starts)), made.model) <= 1e-7
    assert len(starts) == 4 and not torch.equal(starts[0], starts[1])


def test_the_start_is_within_its_share_of_the_bound_and_zero_where_nothing_may_move():
    class Look(FreeLBCallback):
        def passes(self, passes):
            (each,) = self.adversary.perturbations
            size = ball_norm(each.delta.detach())
            assert bool((size <= 0.5 * each.radius * (1 + 1e-6)).all())
            # Uniform noise has the norm 1 / sqrt(3) of the largest.
            assert (size / each.radius / 0.5).mean().item() == pytest.approx(3**-0.5, abs=0.1)
            assert not each.delta[~each.tokens.free.expand_as(each.delta)].any()
            looked.append(1)

    looked: list[int] = []
    fit(Look(0.1, start=0.5))
    assert looked


@pytest.mark.parametrize("window", [1, 2])
def test_one_step_from_the_text_is_plain_training_bit_for_bit(window):
    how = {"accumulate_grad_batches": window}
    assert gap(fit(**how), fit(FreeLBCallback(0.3, steps=1, start=0.0), **how)) == 0.0


@pytest.mark.parametrize("steps", [2, 3, 4])
def test_epsilon_zero_is_plain_training_bit_for_bit(steps):
    assert gap(fit(), fit(FreeLBCallback(0.0, steps))) == 0.0


@pytest.mark.parametrize("steps", [2, 4])
def test_a_perturbation_that_rounds_to_nothing_is_plain_training_bit_for_bit(steps):
    assert gap(fit(), fit(FreeLBCallback(1e-30, steps))) == 0.0


def test_other_dropout_in_each_pass_would_be_another_training(monkeypatch):
    from lmkit.callbacks.random_streams import Streams

    shared = fit(FreeLBCallback(1e-30, 3))
    monkeypatch.setattr(Streams, "restore", lambda self: None)
    assert gap(shared, fit(FreeLBCallback(1e-30, 3))) > 1e-5


@pytest.mark.skipif(sys.platform != "linux", reason="forks with gloo")
def test_two_ranks_are_one_process_on_the_joined_batch():
    one = fit(FreeLBCallback(0.1), module=Plain(0.0), size=8)
    two = fit(FreeLBCallback(0.1), module=Plain(0.0), devices=2, strategy="ddp_fork")
    assert gap(one, two) <= 1e-7 and gap(fit(module=Plain(0.0), size=8), two) > 1e-5


def test_what_lies_outside_its_range_is_refused():
    for arguments in ({"epsilon": -1.0}, {"steps": 0}, {"step_size": 0.0}, {"start": -0.1}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            FreeLBCallback(**arguments)
