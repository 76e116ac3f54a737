"""SMART: against its algorithm by hand, the average of the weights, limits, resumption."""

import copy

import pytest
import torch
from lightning.pytorch import Callback
from torch.nn.functional import kl_div

from lmkit.callbacks.smart import SMARTCallback
from lmkit.functional.adversarial import ball_norm
from tests.callbacks.fitted import fit_task, same
from tests.callbacks.one_step import differences, one_step

TASK = "sequence_classification"


class Watched(SMARTCallback):
    """Keeps where each perturbation starts, and where it ends."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        start = self._moves.start

        def started(*how):
            start(*how)
            self.begun = [p.delta.detach().clone() for p in self._moves.perturbations]

        self._moves.start = started

    def compare(self, objective, batch, seen):
        result = super().compare(objective, batch, seen)
        self.ends = list(self._moves.perturbations)
        return result


def both_ways(first, second):
    p, q = first.log_softmax(-1), second.log_softmax(-1)
    one, other = (kl_div(a, b, reduction="none", log_target=True) for a, b in ((p, q), (q, p)))
    return (one + other).sum(-1)


def moved(step, delta, dropout_seed=None):
    """Run a step of the module at moved embeddings."""
    if dropout_seed is not None:
        torch.manual_seed(dropout_seed)
    table = step.module.network.get_input_embeddings()
    handle = table.register_forward_hook(lambda m, a, out: out + delta)
    output = step.module.step(step.batch)
    handle.remove()
    return output


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("norm", ["entry", "sentence"])
def test_it_is_its_algorithm_by_hand(norm, steps, tmp_path):
    epsilon, rate = 0.3, 3.0
    callback = Watched(epsilon, weight=2.0, steps=steps, step_size=rate, norm=norm)
    step = one_step(TASK, tmp_path, callback, dropout=0.2)
    (delta,), (end,) = callback.begun, callback.ends
    bound, free = end.radius, end.tokens.free
    torch.manual_seed(step.seed)
    clean = step.module.step(step.batch)
    for _ in range(steps):
        delta = delta.clone().requires_grad_()
        there = moved(step, delta, step.seed)
        apart = both_ways(there.logits, clean.logits.detach()).sum()
        (g,) = torch.autograd.grad(apart, delta)
        g = g * free
        delta = delta.detach() + rate * bound * g / g.abs().amax((1, 2), keepdim=True)
        if norm == "entry":
            delta = delta.clamp(-bound, bound)
        else:
            size = delta.square().sum((1, 2), keepdim=True).sqrt()
            delta = delta * (bound / size).clamp(max=1)
    # One rounding of a gradient may turn a number that the bound cuts.
    assert torch.allclose(delta, end.delta, atol=1e-4 * float(bound.max()))
    there = moved(step, end.delta, step.seed)
    loss = clean.loss + 2.0 * both_ways(there.logits, clean.logits).mean()
    assert differences(step, loss) < 1e-6
    assert step.logs["train/loss"] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("norm", ["entry", "sentence", "token"])
@pytest.mark.parametrize("task", [TASK, "masked_lm", "causal_lm"])
def test_what_is_added_stays_within_the_bound_and_off_special_tokens(task, norm, tmp_path):
    callback = Watched(0.05, norm=norm)
    step = one_step(task, tmp_path, callback)
    (end,) = callback.ends
    size = ball_norm(end.delta, norm, end.tokens.segments)
    assert bool((size <= end.radius * (1 + 1e-6)).all()) and end.delta.any()
    assert not end.delta[~end.tokens.free.expand_as(end.delta)].any()
    special = torch.tensor(step.module.tokenizer.all_special_ids)
    free = end.tokens.free.squeeze(-1)
    assert not free[torch.isin(step.batch["input_ids"], special)].any()


def test_the_absolute_bound_is_the_bound(tmp_path):
    callback = Watched(1e-3, relative=False)
    one_step(TASK, tmp_path, callback)
    assert callback.ends[0].delta.abs().max().item() == pytest.approx(1e-3)


@pytest.mark.parametrize("arguments", [{"weight": 0.0}, {"epsilon": 0.0}])
def test_without_a_weight_or_a_bound_it_is_plain_training_bit_for_bit(arguments, tmp_path):
    plain = fit_task(TASK, tmp_path)[0]
    assert same(plain, fit_task(TASK, tmp_path, SMARTCallback(**arguments))[0])


def test_with_a_bound_that_rounds_to_nothing_both_predictions_are_one(tmp_path):
    # The dropout of all passes is that of the first: what is left to differ is nothing.
    step = one_step(TASK, tmp_path, SMARTCallback(1e-30), dropout=0.3)
    assert step.logs["smart/divergence"] == 0.0


def test_the_average_is_that_of_a_loop_and_its_divergence_begins_at_zero(tmp_path):
    class Look(Callback):
        def on_train_start(self, trainer, pl_module):
            self.mean = {n: p.detach().clone() for n, p in pl_module.named_parameters()}

        def on_train_batch_end(self, trainer, pl_module, *_):
            near.append(float(trainer.callback_metrics["smart/proximity"]))
            if trainer.global_step > self.done:
                self.done = trainer.global_step
                beta = 0.8 if self.done <= 2 else 0.95  # a tenth of 20 steps
                for name, p in pl_module.named_parameters():
                    self.mean[name] = beta * self.mean[name] + (1 - beta) * p.detach()

    near: list[float] = []
    look, callback = Look(), SMARTCallback(bregman_weight=1.0, decay=0.8, final_decay=0.95)
    look.done = 0
    fit_task(
        TASK, tmp_path, callback, look, max_steps=20, accumulate_grad_batches=2, log_every_n_steps=1
    )
    made = callback.state_dict()["average"]
    assert made.keys() == look.mean.keys()
    assert all(torch.allclose(made[n], look.mean[n], atol=1e-6) for n in made)
    assert near[0] == near[1] == 0.0 and min(near[2:]) > 0.0


def test_the_proximity_is_that_to_a_copy_with_the_averaged_weights(tmp_path):
    kept = {}

    class Look(SMARTCallback):
        def compare(self, objective, batch, seen):
            result = super().compare(objective, batch, seen)
            if self.module.global_step == 3:
                copied = copy.deepcopy(self.module.network)
                state = {
                    n.removeprefix("network."): t for n, t in self.state_dict()["average"].items()
                }
                copied.load_state_dict({**copied.state_dict(), **state})
                inputs = {n: batch[n] for n in ("input_ids", "attention_mask")}
                kept["expected"] = both_ways(copied(**inputs).logits, seen.output.logits).mean()
                kept["made"] = result.logs["smart/proximity"]
                kept["grown"] = result.loss - seen.output.loss
            return result

    callback = Look(weight=0.0, bregman_weight=3.0)
    fit_task(TASK, tmp_path, callback, module={"dropout": 0.0})
    assert kept["made"].item() == pytest.approx(kept["expected"].item(), rel=1e-4) != 0.0
    assert kept["grown"].item() == pytest.approx(3 * kept["expected"].item(), rel=1e-3)


def test_what_lies_outside_its_range_is_refused():
    for name, value in {
        "epsilon": -1.0,
        "weight": -1.0,
        "steps": 0,
        "step_size": 0.0,
        "start": 0.0,
        "bregman_weight": -1.0,
        "decay": 1.0,
        "final_decay": -0.1,
        "norm": "batch",
    }.items():
        with pytest.raises(ValueError, match=name):
            SMARTCallback(**{name: value})
