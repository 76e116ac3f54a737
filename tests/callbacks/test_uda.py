"""UDA: against its formula by hand, confidence, sharpening, annealing, texts without labels."""

import pytest
import torch
from lightning.pytorch import Callback
from torch.nn.functional import cross_entropy, kl_div

from lmkit.callbacks import RDropCallback, VATCallback
from lmkit.callbacks.uda import VIEWS, UDACallback
from tests import tiny
from tests.callbacks.fitted import fit_task, same
from tests.callbacks.one_step import differences, one_step

TASK = "sequence_classification"


class Watched(UDACallback):
    """Puts a view of its own into each batch, as a data module would."""

    def compare(self, objective, batch, seen):
        return super().compare(objective, shown(batch), seen)


def shown(batch):
    return {
        **batch,
        "view_input_ids": batch["input_ids"].masked_fill(batch["input_ids"] > 130, 113),
    }


def by_hand(step, temperature, threshold, weight=1.0):
    """The loss of a batch with its other view, without dropout."""
    clean = step.module.step(step.batch)
    other = {**step.batch, "input_ids": shown(step.batch)["view_input_ids"]}
    there = step.module.step(other).logits.log_softmax(-1)
    z = clean.logits.detach()
    sure = z.softmax(-1).amax(-1) > threshold
    target = (z / temperature).softmax(-1)
    each = kl_div(there, target, reduction="none").sum(-1) * sure
    return clean.loss + weight * each.mean(), each.mean(), sure


@pytest.mark.parametrize(("temperature", "threshold"), [(0.4, 0.6), (1.0, 0.0)])
def test_it_is_its_formula_by_hand(temperature, threshold, tmp_path):
    callback = Watched(2.0, temperature, threshold)
    step = one_step(TASK, tmp_path, callback)
    loss, apart, sure = by_hand(step, temperature, threshold, 2.0)
    assert (step.batch["input_ids"] > 130).any()
    assert differences(step, loss) < 1e-6
    assert step.logs["uda/divergence"] == pytest.approx(apart.item(), rel=1e-4)
    assert step.logs["uda/confident"] == pytest.approx(sure.float().mean().item())
    assert bool(sure.all()) == (threshold == 0.0) and sure.any()


@pytest.mark.parametrize("signal", ["linear", "exp", "log"])
def test_labels_that_are_learned_do_not_count(signal, tmp_path):
    step = one_step(TASK, tmp_path, Watched(0.5, 1.0, 0.0, signal))
    loss, _, _ = by_hand(step, 1.0, 0.0, 0.5)
    clean = step.module.step(step.batch)
    labels = step.batch["labels"]
    likely = clean.logits.softmax(-1).gather(1, labels.unsqueeze(1)).squeeze(1)
    # At the first step of one.
    share = {"linear": 0.0, "exp": 2.718281828**-5, "log": 0.0}[signal]
    threshold = share * (1 - 1 / 3) + 1 / 3
    counts = likely <= threshold
    assert counts.any() and not counts.all()
    loss = loss - clean.loss + cross_entropy(clean.logits[counts], labels[counts])
    assert differences(step, loss) < 1e-6
    assert step.logs["uda/threshold"] == pytest.approx(threshold)


def test_where_all_labels_are_learned_they_add_nothing(tmp_path):
    class Sure(UDACallback):
        def compare(self, objective, batch, seen):
            self._is_known = True  # the loss is that of other scores
            output, _ = self._annealed(
                seen._replace(
                    scores=seen.scores._replace(
                        logits=100.0 * torch.eye(3)[batch["labels"].clamp(min=0)]
                    )
                )
            )
            assert output.loss == 0.0 and output.items == (batch["labels"] >= 0).sum()
            return super().compare(objective, batch, seen)

    fit_task(TASK, tmp_path, Sure(signal="linear"))


@pytest.mark.parametrize("task", [TASK, "token_classification", "question_answering"])
def test_a_signal_is_for_a_loss_that_is_all_cross_entropy(task, tmp_path):
    fit_task(task, tmp_path / "1", UDACallback(signal="linear"), RDropCallback())
    with pytest.raises(
        ValueError, match="another callback, a teacher or a weight has a part in it"
    ):
        fit_task(task, tmp_path / "2", RDropCallback(5.0), UDACallback(signal="linear"))


def test_a_signal_beside_a_teacher_is_refused(tmp_path):
    with pytest.raises(ValueError, match="for the whole loss, which is"):
        fit_task("distillation", tmp_path, UDACallback(signal="linear"))


def test_options_of_other_views_are_checked_too():
    with pytest.raises(ValueError, match="epsilon must be at least 0"):
        UDACallback(epsilon=-1.0)
    with pytest.raises(ValueError, match="ratio must lie in"):
        UDACallback(view="dropout", ratio=7.0)


@pytest.mark.parametrize("count", [2, 3])
def test_of_several_comparisons_one_counts_texts_without_a_label(count, tmp_path):
    more = tmp_path / "more.csv"
    more.write_text("text\n" + "\n".join(tiny.sentences(60, seed=5)) + "\n")
    how = {"module": {"dropout": 0.0, "learning_rate": 0.0}, "log_every_n_steps": 1, "max_steps": 3}
    how["data"] = {"unlabelled_file": str(more), "batch_size": 8}
    kinds = [
        lambda: UDACallback(1e-9, view="dropout"),
        lambda: RDropCallback(0.0),
        lambda: VATCallback(1e-9),
    ]
    losses = []

    class Keep(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            losses.append(float(trainer.logged_metrics["train/loss"]))

    fit_task(TASK, tmp_path / "1", kinds[0](), Keep(), **how)
    fit_task(TASK, tmp_path / "2", *(make() for make in kinds[:count]), Keep(), **how)
    assert losses[:3] == pytest.approx(losses[3:], rel=1e-5)


def test_texts_without_a_label_teach_and_labels_keep_their_weight(tmp_path):
    more = tmp_path / "more.csv"
    more.write_text("text\n" + "\n".join(tiny.sentences(60, seed=5)) + "\n")
    callback = Watched(2.0, 1.0, 0.0)
    step = one_step(TASK, tmp_path, callback, unlabelled_file=str(more))
    clean = step.module.step(step.batch)
    has = step.batch["labels"] != -100
    assert has.any() and not has.all()
    _, apart, _ = by_hand(step, 1.0, 0.0)
    # 60 of 120 rows have a label: each counts twice in a mean over all rows.
    own = cross_entropy(clean.logits[has], step.batch["labels"][has], reduction="sum")
    loss = 2 * own / len(has) + 2.0 * apart
    assert differences(step, loss) < 1e-6


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("task", [TASK, "regression", "token_classification", "causal_lm"])
def test_each_view_is_made_of_each_task(view, task, tmp_path):
    callback = UDACallback(view=view, confidence=0.0, ratio=0.3)
    step = one_step(task, tmp_path, callback, dropout=0.2)
    assert step.logs["uda/divergence"] > 0.0
    assert all(g.isfinite().all() for g in step.gradients.values())


def test_without_weight_it_is_plain_training_bit_for_bit(tmp_path):
    plain = fit_task(TASK, tmp_path)[0]
    assert same(plain, fit_task(TASK, tmp_path, UDACallback(weight=0.0))[0])


def test_the_same_view_at_temperature_one_adds_nothing(tmp_path):
    step = one_step(TASK, tmp_path, UDACallback(temperature=1.0, view="dropout", confidence=0.0))
    assert abs(step.logs["uda/divergence"]) < 1e-7
    assert differences(step, step.module.step(step.batch).loss) < 1e-6


def test_what_lies_outside_its_range_is_refused():
    for name, value in {
        "weight": -1.0,
        "temperature": 0.0,
        "confidence": 1.0,
        "signal": "cosine",
        "view": "back",
        "epsilon": -1.0,
        "ratio": 2.0,
    }.items():
        more = {"view": "adversarial"} if name == "epsilon" else {}
        with pytest.raises(ValueError, match=name):
            UDACallback(**{name: value, **more})


def test_a_signal_needs_plain_cross_entropies_and_an_end(tmp_path):
    how = {"module": {"label_smoothing": 0.1}}
    with pytest.raises(ValueError, match=r"the module has label_smoothing=0\.1"):
        fit_task(TASK, tmp_path, UDACallback(signal="exp"), **how)
    with pytest.raises(ValueError, match="signal is for classes of which one is right"):
        fit_task("regression", tmp_path, UDACallback(signal="exp"))
    with pytest.raises(ValueError, match="the run has no end"):
        endless = {"max_steps": -1, "max_epochs": -1, "module": {"schedule": "constant"}}
        fit_task(TASK, tmp_path, UDACallback(signal="exp"), **endless)


def test_a_tokenizer_without_a_mask_and_an_unknown_token_is_told(tmp_path):
    class Bare(UDACallback):
        def on_train_start(self, trainer, pl_module):
            pl_module.tokenizer.mask_token = pl_module.tokenizer.unk_token = None
            super().on_train_start(trainer, pl_module)

    with pytest.raises(ValueError, match="the tokenizer has neither: take view='token_cutoff'"):
        fit_task(TASK, tmp_path, Bare())
