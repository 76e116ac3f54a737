"""Mixup: against a forward pass by hand through the layers, its identity, labels of every kind."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from lmkit.callbacks import CutoffCallback, FGMCallback, VATCallback
from lmkit.callbacks.mixup import MixupCallback
from lmkit.callbacks.r_drop import RDropCallback
from lmkit.functional.mixing import neighbours
from lmkit.modules import SequenceClassificationModule
from tests import tiny
from tests.callbacks.fitted import BY_NAME, fit_task, same
from tests.callbacks.one_step import differences, one_step
from tests.cases import make_trainer

TASK = "sequence_classification"


class Watched(MixupCallback):
    """Keeps what was drawn."""

    def mixed(self, objective, batch, share, layer):
        self.drawn = share, layer
        return super().mixed(objective, batch, share, layer)


def by_hand(module, batch, share, layer):
    """Run BERT layer by layer, and mix what leaves one; without dropout."""
    bert, ids, mask = module.network.bert, batch["input_ids"], batch["attention_mask"].bool()
    partner = neighbours(len(ids))
    both = mask | mask[partner]

    def mixed(h):
        h = h * mask.unsqueeze(-1)
        return share * h + (1 - share) * h[partner]

    def attends(m):
        return m[:, None, None, :].expand(-1, 1, m.shape[1], -1)

    if layer == 0:
        words = mixed(bert.embeddings.word_embeddings(ids))
        h, seen = bert.embeddings(inputs_embeds=words), both
    else:
        h, seen = bert.embeddings(input_ids=ids), mask
    for number, each in enumerate(bert.encoder.layer, 1):
        h = each(h, attention_mask=attends(seen))
        h = h if isinstance(h, torch.Tensor) else h[0]
        if number == layer:
            h, seen = mixed(h), both
    return module.network.classifier(bert.pooler(h)), partner


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_it_is_the_mixture_by_hand(layer, tmp_path):
    callback = Watched(1.0, [layer])
    step = one_step(TASK, tmp_path, callback)
    share, drawn = callback.drawn
    logits, partner = by_hand(step.module, step.batch, share, layer)
    labels = step.batch["labels"]
    loss = share * cross_entropy(logits, labels)
    loss = loss + (1 - share) * cross_entropy(logits, labels[partner])
    assert drawn == layer and 0.5 < share < 1.0
    assert differences(step, loss) < 1e-6
    assert step.logs["train/loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert step.logs["mixup/share"] == pytest.approx(share)


@pytest.mark.parametrize("layer", [0, 1])
def test_a_share_of_one_is_plain_training_bit_for_bit(layer, tmp_path, monkeypatch):
    monkeypatch.setattr("lmkit.callbacks.mixup.mixing_share", lambda key, alpha: 1.0)
    plain = fit_task(TASK, tmp_path)[0]
    assert same(plain, fit_task(TASK, tmp_path, MixupCallback(layers=[layer]))[0])


def test_of_labels_of_any_number_and_of_values_both_are_mixed(tmp_path):
    callback = Watched(1.0)
    step = one_step("regression", tmp_path, callback)
    share, _ = callback.drawn
    values = step.batch["labels"]

    def run(ids, types, mask):
        partner = neighbours(len(ids))
        # Behind its own end a text has its partner's tokens, and which text these are of.
        types = torch.where(mask.bool(), types, types[partner])
        real = mask.bool().unsqueeze(-1)
        words = step.module.network.bert.embeddings.word_embeddings(ids) * real
        both = mask | mask[partner]
        mixed = share * words + (1 - share) * words[partner]
        return partner, step.module.network(
            inputs_embeds=mixed, attention_mask=both, token_type_ids=types
        ).logits.squeeze(-1)

    partner, made = run(*(step.batch[n] for n in ("input_ids", "token_type_ids", "attention_mask")))
    loss = share * (made - values).square().mean()
    loss = loss + (1 - share) * (made - values[partner]).square().mean()
    assert differences(step, loss) < 1e-6


def test_the_network_runs_once_and_the_run_is_a_function_of_its_seed(tmp_path):
    calls = []

    class Count(MixupCallback):
        def on_train_start(self, trainer, pl_module):
            super().on_train_start(trainer, pl_module)
            pl_module.network.bert.register_forward_hook(
                lambda m, a, o: calls.append(1) if m.training else None
            )

    one = fit_task(TASK, tmp_path, Count(1.0, [0, 1, 2]))[0]
    assert len(calls) == 4 and same(one, fit_task(TASK, tmp_path, MixupCallback(1.0, [0, 1, 2]))[0])


def test_layers_and_shares_are_drawn_anew_for_each_step(tmp_path):
    drawn = []

    class Keep(MixupCallback):
        def mixed(self, objective, batch, share, layer):
            drawn.append((share, layer))
            return super().mixed(objective, batch, share, layer)

    fit_task(TASK, tmp_path, Keep(1.0, [0, 2]), max_steps=12, accumulate_grad_batches=2)
    assert drawn[::2] == drawn[1::2] and len({s for s, _ in drawn}) == 12
    assert {layer for _, layer in drawn} == {0, 2}


def test_rows_without_a_label_have_no_part(tmp_path):
    more = tmp_path / "more.csv"
    more.write_text("text\n" + "the quick brown fox\n" * 30)
    seen = []

    class Look(MixupCallback):
        def mixed(self, objective, batch, share, layer):
            result = super().mixed(objective, batch, share, layer)
            has = (batch["labels"] != -100).float()
            theirs = has[neighbours(len(has))]
            expected = share * has.sum() + (1 - share) * theirs.sum()
            assert torch.isclose(result.items, expected) and result.loss.isfinite()
            seen.append(float(has.mean()))
            return result

    with pytest.warns(UserWarning, match="have no label"):
        fit_task(TASK, tmp_path, Look(1.0), data={"unlabelled_file": str(more)}, max_steps=8)
    assert min(seen) < 1.0


def test_it_is_the_innermost_of_several_whatever_their_order(tmp_path):
    made = [
        fit_task(TASK, tmp_path / str(n), *callbacks)[0]
        for n, callbacks in enumerate(
            [(MixupCallback(1.0), RDropCallback()), (RDropCallback(), MixupCallback(1.0))]
        )
    ]
    assert same(*made)


@pytest.mark.parametrize("kind", [FGMCallback, CutoffCallback, VATCallback])
def test_what_moves_embeddings_moves_mixed_ones_whatever_their_order(kind, tmp_path):
    made = [
        fit_task(TASK, tmp_path / str(n), *callbacks)[0]
        for n, callbacks in enumerate([(MixupCallback(1.0), kind()), (kind(), MixupCallback(1.0))])
    ]
    assert same(*made)


def test_a_longer_partner_s_tokens_have_positions(tmp_path):
    """RoBERTa numbers tokens by where there is padding, for which it has a position of its own."""
    seen, longer = [], []

    class Look(MixupCallback):
        def on_train_start(self, trainer, pl_module):
            super().on_train_start(trainer, pl_module)
            table = pl_module.network.roberta.embeddings.position_embeddings
            table.register_forward_hook(lambda m, ids, out: seen.append(ids[0]))

        def mixed(self, objective, batch, share, layer):
            mask = batch["attention_mask"]
            both = (mask | mask[neighbours(len(mask))]).bool()
            there = both & (batch["index"] >= 0).unsqueeze(
                1
            )  # a row that fills a batch has no text
            result = super().mixed(objective, batch, share, layer)
            assert (seen[-1][there] > 0).all() and (seen[-1][~both] == 0).all()
            longer.append(bool((both & ~mask.bool()).any()))
            return result

    module = SequenceClassificationModule({**tiny.MASKED["roberta"]})
    make_trainer(Look(1.0), max_steps=4).fit(module, BY_NAME[TASK].make_data(tmp_path))
    assert len(seen) == 4 and any(longer)


def test_there_must_be_two_texts_in_a_batch(tmp_path):
    with pytest.raises(ValueError, match="give a batch_size over 1"):
        fit_task(TASK, tmp_path, MixupCallback(), data={"batch_size": 1})


def test_nothing_is_left_on_the_module(tmp_path):
    module = fit_task(TASK, tmp_path, MixupCallback(layers=[0, 1]))[0]
    assert not module.objective_wrappers and "forward" not in vars(module.network)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


@pytest.mark.parametrize("task", ["masked_lm", "token_classification", "distillation"])
def test_other_tasks_are_refused(task, tmp_path):
    with pytest.raises(TypeError, match="mixes examples that have one label for the whole text"):
        fit_task(task, tmp_path, MixupCallback())


def test_rows_of_several_texts_are_refused():
    with pytest.raises(ValueError, match="rows that hold one text each"):
        MixupCallback().mixed(lambda batch: None, {"segment_ids": torch.ones(1, 2)}, 0.7, 0)


def test_what_lies_outside_its_range_is_refused(tmp_path):
    with pytest.raises(ValueError, match="alpha must be over 0"):
        MixupCallback(0.0)
    for layers in ([], [-1], [0.5]):
        with pytest.raises(ValueError, match="layers must be a list of numbers from 0"):
            MixupCallback(layers=layers)
    with pytest.raises(ValueError, match="layers has 3, and the network has 2 layers"):
        fit_task(TASK, tmp_path, MixupCallback(layers=[3]))
    with pytest.raises(ValueError, match="given twice"):
        fit_task(TASK, tmp_path, MixupCallback(), MixupCallback())
