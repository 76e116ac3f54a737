"""FGM: against a loop by hand, in any precision, over windows and ranks; and its limits."""

import sys

import pytest
import torch

from lmkit.callbacks.fgm import FGMCallback
from tests.callbacks.hand_loops import PRECISIONS, Hand, Plain, fit, gap, zeros


def by_hand(hand, epsilon, clean=0.5, norm="sentence"):
    def gradient(batch, number):
        delta, bound = zeros(batch), hand.radius(batch, epsilon, norm)
        (clean * hand.loss(batch, number, delta)).backward()
        moved = hand.climbed(batch, delta.detach(), delta.grad, 1.0, bound)
        ((1 - clean) * hand.loss(batch, number, moved)).backward()

    return gradient


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_is_the_loop_by_hand(precision, window):
    hand = Hand(precision)
    net = hand.run(by_hand(hand, 0.1), window=window)
    how = {"accumulate_grad_batches": window}
    made = fit(FGMCallback(0.1), **PRECISIONS[precision](), **how)
    assert gap(net, made.model) <= 1e-7
    # And it is another training than the plain one.
    assert gap(fit(**PRECISIONS[precision](), **how), made) > 1e-4


@pytest.mark.parametrize(("clean", "norm"), [(0.3, "sentence"), (0.5, "token")])
def test_weight_and_norm_are_those_of_the_loop_by_hand(clean, norm):
    hand = Hand()
    net = hand.run(by_hand(hand, 0.1, clean, norm))
    assert gap(net, fit(FGMCallback(0.1, clean, norm)).model) <= 1e-7


def test_without_a_clean_part_it_trains_on_the_moved_texts_alone():
    hand = Hand()

    def gradient(batch, number):
        delta = zeros(batch)
        (found,) = torch.autograd.grad(hand.loss(batch, number, delta), delta)
        bound = hand.radius(batch, 0.1)
        hand.loss(batch, number, hand.climbed(batch, delta.detach(), found, 1.0, bound)).backward()

    assert gap(hand.run(gradient), fit(FGMCallback(0.1, clean_weight=0.0)).model) <= 1e-7


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_epsilon_zero_is_plain_training_bit_for_bit_with_dropout(precision, window):
    how = {"accumulate_grad_batches": window, "gradient_clip_val": 1.0}
    plain = fit(**PRECISIONS[precision](), **how)
    assert gap(plain, fit(FGMCallback(0.0), **PRECISIONS[precision](), **how)) == 0.0


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_perturbation_that_rounds_to_nothing_is_plain_training_bit_for_bit(precision):
    # All passes are made here: their dropout, their scale and their weights are those of plain.
    plain = fit(**PRECISIONS[precision]())
    assert gap(plain, fit(FGMCallback(1e-30), **PRECISIONS[precision]())) == 0.0


@pytest.mark.skipif(sys.platform != "linux", reason="forks with gloo")
def test_two_ranks_are_one_process_on_the_joined_batch():
    one = fit(FGMCallback(0.1), module=Plain(0.0), size=8)
    settings = {"devices": 2, "strategy": "ddp_fork"}
    two = fit(FGMCallback(0.1), module=Plain(0.0), size=4, **settings)
    assert gap(one, two) <= 1e-7 and gap(fit(module=Plain(0.0), size=8), two) > 1e-4
    # The halves of a rank's batch, one after the other.
    both = fit(FGMCallback(0.1), module=Plain(0.0), size=2, accumulate_grad_batches=2, **settings)
    assert gap(one, both) <= 1e-7


def test_a_negative_epsilon_is_refused():
    with pytest.raises(ValueError, match=r"epsilon must be at least 0, got -0\.1"):
        FGMCallback(-0.1)
