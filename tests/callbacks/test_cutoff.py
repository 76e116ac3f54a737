"""Cutoff: against two passes by hand, what is cut off, limits."""

import pytest
import torch
from torch.nn.functional import kl_div

from lmkit.callbacks.cutoff import CutoffCallback
from tests.callbacks.fitted import fit_task, same
from tests.callbacks.one_step import differences, one_step

TASK = "sequence_classification"


def watch(module):
    """Keep what leaves the embedding layer behind all hooks, as the next layer reads it."""
    kept = []
    table = module.network.bert.embeddings
    own = table.word_embeddings.forward

    def after(m, arguments, output):
        kept.append((arguments[0], output.detach().clone()))

    handle = table.word_embeddings.register_forward_hook(after)
    return kept, handle, own


class Watched(CutoffCallback):
    """Keeps what the network has read instead of its embeddings."""

    def compare(self, objective, batch, seen):
        self.kept, handle, _ = watch(self.module)
        result = super().compare(objective, batch, seen)
        handle.remove()
        return result


@pytest.mark.parametrize("kind", ["token", "span", "feature"])
def test_it_is_two_passes_by_hand(kind, tmp_path):
    callback = Watched(kind, 0.4, loss_weight=0.7, divergence_weight=1.5)
    step = one_step(TASK, tmp_path, callback)
    ((ids, cut),) = callback.kept
    table = step.module.network.get_input_embeddings()
    words = table(ids).detach()
    gone = (cut != words).any(-1)
    special = torch.isin(ids, torch.tensor(step.module.tokenizer.all_special_ids))
    assert gone.any() and not gone[special].any() and not cut[cut != words].any()
    if kind == "feature":
        changed = cut != words
        for row in range(len(ids)):
            which = changed[row][gone[row]]
            assert bool((which == which[0]).all()) and 5 <= int(which[0].sum()) <= 7  # of 16
    else:
        assert not cut[gone].any()
        share = gone.sum(1) / (~special).sum(1)
        assert abs(float(share.mean()) - 0.4) < 0.1
    clean = step.module.step(step.batch)
    keep = (cut == words).float()
    handle = table.register_forward_hook(lambda m, a, out: out * keep)
    less = step.module.step(step.batch)
    handle.remove()
    p, q = clean.logits.softmax(-1), less.logits.softmax(-1)
    middle = ((p + q) / 2).log()
    js = sum(kl_div(middle, x, reduction="batchmean") for x in (p, q)) / 2
    loss = clean.loss + 0.7 * less.loss + 1.5 * js
    assert differences(step, loss) < 1e-6
    assert step.logs["cutoff/divergence"] == pytest.approx(js.item(), rel=1e-3)


def test_each_epoch_cuts_off_something_else(tmp_path):
    gone = {}

    class Look(Watched):
        def compare(self, objective, batch, seen):
            result = super().compare(objective, batch, seen)
            _, cut = self.kept[0]
            epoch = self.module.current_epoch
            for row, number in enumerate(batch["index"].tolist()):
                size = int(batch["attention_mask"][row].sum())
                gone.setdefault(number, {})[epoch] = ~cut[row, :size].any(-1)
            return result

    fit_task(TASK, tmp_path, Look(ratio=0.5), max_steps=-1, max_epochs=3)
    changed = [not torch.equal(e[0], e[1]) or not torch.equal(e[1], e[2]) for e in gone.values()]
    assert set(gone) - {-1} == set(range(60)) and sum(changed) > 50


def test_without_weights_it_is_plain_training_bit_for_bit(tmp_path):
    plain = fit_task(TASK, tmp_path)[0]
    none = CutoffCallback(loss_weight=0.0, divergence_weight=0.0)
    assert same(plain, fit_task(TASK, tmp_path, none)[0])


def test_with_nothing_cut_off_both_passes_are_one(tmp_path):
    step = one_step(TASK, tmp_path, CutoffCallback(ratio=0.0))
    assert step.logs["cutoff/divergence"] < 1e-7
    assert differences(step, 2 * step.module.step(step.batch).loss) < 1e-6


def test_what_lies_outside_its_range_is_refused():
    for name, value in {
        "cutoff": "word",
        "ratio": 1.5,
        "loss_weight": -1.0,
        "divergence_weight": -1.0,
    }.items():
        with pytest.raises(ValueError, match=name):
            CutoffCallback(**{name: value})
