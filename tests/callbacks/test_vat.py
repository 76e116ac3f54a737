"""VAT: against its algorithm by hand, texts without labels, limits."""

import pytest
import torch
from torch.nn.functional import kl_div

from lmkit.callbacks.vat import VATCallback
from tests.callbacks.fitted import fit_task, same
from tests.callbacks.one_step import differences, one_step

TASK = "sequence_classification"


class Watched(VATCallback):
    """Keeps the probe, and where the perturbation ends."""

    def compare(self, objective, batch, seen):
        adversary = self.view.adversary
        start = adversary.start

        def started(*how):
            start(*how)
            self.probes = [p.delta.detach().clone() for p in adversary.perturbations]

        adversary.start = started
        result = super().compare(objective, batch, seen)
        self.ends, adversary.start = list(adversary.perturbations), start
        return result


@pytest.mark.parametrize("steps", [1, 2])
def test_it_is_its_algorithm_by_hand(steps, tmp_path):
    callback = Watched(0.3, weight=2.0, steps=steps, probe=0.4)
    step = one_step(TASK, tmp_path, callback, dropout=0.2)
    (delta,), (end,) = callback.probes, callback.ends
    table = step.module.network.get_input_embeddings()

    def at(where):
        torch.manual_seed(step.seed)
        handle = table.register_forward_hook(lambda m, a, out: out + where)
        output = step.module.step(step.batch)
        handle.remove()
        return output

    clean = at(0.0)
    target = clean.logits.detach().log_softmax(-1)
    for number in range(steps):
        delta = delta.clone().requires_grad_()
        apart = kl_div(at(delta).logits.log_softmax(-1), target, reduction="sum", log_target=True)
        (g,) = torch.autograd.grad(apart, delta)
        g = g * end.tokens.free
        share = 1.0 if number == steps - 1 else 0.4
        delta = share * end.radius * g / g.square().sum((1, 2), keepdim=True).sqrt()
    assert torch.allclose(delta, end.delta, atol=1e-4 * float(end.radius.max()))
    there = at(end.delta).logits.log_softmax(-1)
    apart = kl_div(there, target, reduction="batchmean", log_target=True)
    assert differences(step, clean.loss + 2.0 * apart) < 1e-6
    assert step.logs["vat/divergence"] == pytest.approx(apart.item(), rel=1e-3)


def test_the_direction_changes_the_prediction_more_than_a_random_one(tmp_path):
    callback = Watched(0.3, probe=1.0)
    step = one_step(TASK, tmp_path, callback)
    (probe,), (end,) = callback.probes, callback.ends
    table = step.module.network.get_input_embeddings()

    def apart(delta):
        handle = table.register_forward_hook(lambda m, a, out: out + delta)
        there = step.module.step(step.batch).logits.log_softmax(-1)
        handle.remove()
        here = step.module.step(step.batch).logits.log_softmax(-1)
        return float(kl_div(there, here, reduction="batchmean", log_target=True))

    assert apart(end.delta) > 3 * apart(probe)


@pytest.mark.parametrize("arguments", [{"weight": 0.0}, {"epsilon": 0.0}])
def test_without_a_weight_or_a_bound_it_is_plain_training_bit_for_bit(arguments, tmp_path):
    plain = fit_task(TASK, tmp_path)[0]
    assert same(plain, fit_task(TASK, tmp_path, VATCallback(**arguments))[0])


def test_what_lies_outside_its_range_is_refused():
    for name, value in {"epsilon": -1.0, "weight": -1.0, "steps": 0, "probe": 0.0}.items():
        with pytest.raises(ValueError, match=name):
            VATCallback(**{name: value})
