"""R-Drop: against two passes by hand, its limits, and every task."""

import pytest
import torch
from torch.nn.functional import kl_div

from lmkit.callbacks.r_drop import RDropCallback
from tests.callbacks.fitted import fit_task, same
from tests.callbacks.one_step import differences, one_step


def both_ways(first, second):
    p, q = first.log_softmax(-1), second.log_softmax(-1)
    one, other = (kl_div(a, b, reduction="batchmean", log_target=True) for a, b in ((p, q), (q, p)))
    return one + other


@pytest.mark.parametrize("alpha", [0.0, 2.0])
def test_it_is_two_passes_by_hand(alpha, tmp_path):
    step = one_step("sequence_classification", tmp_path, RDropCallback(alpha), dropout=0.3)
    torch.manual_seed(step.seed)
    first, second = step.module.step(step.batch), step.module.step(step.batch)
    apart = both_ways(first.logits, second.logits)
    loss = (first.loss + second.loss) / 2 + alpha / 2 * apart
    assert differences(step, loss) < 1e-6
    assert step.logs["train/loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert step.logs["r_drop/divergence"] == pytest.approx(apart.item(), rel=1e-4)
    assert apart > 0.001


def test_it_is_a_mean_over_labelled_tokens(tmp_path):
    step = one_step("token_classification", tmp_path, RDropCallback(1.0), dropout=0.3)
    torch.manual_seed(step.seed)
    first, second = step.module.step(step.batch), step.module.step(step.batch)
    at = step.batch["labels"] != -100
    apart = both_ways(first.logits[at], second.logits[at])
    assert differences(step, (first.loss + second.loss) / 2 + apart / 2) < 1e-6


def test_without_dropout_it_is_plain_training_bit_for_bit(tmp_path):
    how = {"module": {"dropout": 0.0}}
    plain = fit_task("sequence_classification", tmp_path, **how)[0]
    assert same(plain, fit_task("sequence_classification", tmp_path, RDropCallback(3.0), **how)[0])


def test_of_values_the_squared_difference_is_taken(tmp_path):
    step = one_step("regression", tmp_path, RDropCallback(2.0), dropout=0.3)
    torch.manual_seed(step.seed)
    first, second = step.module.step(step.batch), step.module.step(step.batch)
    apart = (first.logits - second.logits).square().mean()
    assert differences(step, (first.loss + second.loss) / 2 + apart) < 1e-6


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match="alpha must be at least"):
        RDropCallback(-1.0)
