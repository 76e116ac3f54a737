"""What consistency losses share: refusals, traces, windows and ranks, texts without labels."""

import sys

import pytest
import torch
from lightning.pytorch import Callback, seed_everything

from lmkit.callbacks.consistency import ConsistencyCallback, predicting
from lmkit.callbacks.cutoff import CutoffCallback
from lmkit.callbacks.r_drop import RDropCallback
from lmkit.callbacks.smart import SMARTCallback
from lmkit.callbacks.uda import UDACallback
from lmkit.callbacks.vat import VATCallback
from lmkit.surgery import NothingMatchedError
from tests import tiny
from tests.callbacks.fitted import BY_NAME, fit_task
from tests.callbacks.hand_loops import PRECISIONS, Plain, fit
from tests.cases import make_trainer, weights

TASK = "sequence_classification"
MADE = {
    "r_drop": RDropCallback,
    "smart": lambda: SMARTCallback(bregman_weight=1.0),
    "vat": VATCallback,
    "cutoff": CutoffCallback,
    "uda": lambda: UDACallback(confidence=0.0, temperature=1.0),
}
EACH = pytest.mark.parametrize("make", MADE.values(), ids=list(MADE))


@EACH
@pytest.mark.parametrize(
    "task",
    [
        "masked_lm",
        "causal_lm",
        "denoising",
        "regression",
        "token_classification",
        "question_answering",
        "multiple_choice",
        "seq2seq",
        "two_encoders",
        "distillation",
        "sentence_order",
    ],
)
def test_each_task_trains_with_it(task, make, tmp_path):
    callback = make()
    how = {} if task == "distillation" else {"module": {"dropout": 0.2}}
    module, trainer, look = fit_task(task, tmp_path, callback, max_steps=2, **how)
    assert {f"{callback.word}/divergence", "train/loss"} <= set(trainer.callback_metrics)
    after = weights(module)
    assert all(w.isfinite().all() for w in after.values())
    assert any(not torch.equal(after[n], look.before[n]) for n in after)


@EACH
def test_nothing_is_left_and_evaluation_and_generators_are_those_of_plain_training(make, tmp_path):
    class Watch(Callback):
        def on_train_batch_end(self, *_):
            states.append(torch.get_rng_state())

    def run(*callbacks):
        states.clear()
        how = {"limit_val_batches": 1, "val_check_interval": 1, "max_steps": 3}
        module, trainer, _ = fit_task(
            TASK, tmp_path, *callbacks, Watch(), module={"learning_rate": 0.0}, **how
        )
        found = {n: float(v) for n, v in trainer.callback_metrics.items() if n.startswith("val/")}
        return module, found, list(states)

    states: list[torch.Tensor] = []
    _, expected, plain = run()
    module, found, ours = run(make())
    assert found == expected and all(map(torch.equal, plain, ours))
    assert not module.objective_wrappers and module.uses_unlabelled is False
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


@EACH
def test_nothing_is_left_when_a_step_fails(make, tmp_path):
    class Fails(Callback):
        def on_before_backward(self, *_):
            raise OSError("struck")

    kept = {}

    class Keep(Callback):
        def on_train_start(self, trainer, pl_module):
            kept["module"] = pl_module
            assert pl_module.objective_wrappers

    with pytest.raises(OSError, match="struck"):
        fit_task(TASK, tmp_path, make(), Keep(), Fails())
    module = kept["module"]
    assert not module.objective_wrappers and module.uses_unlabelled is False
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


@EACH
def test_half_precision_gives_nearly_the_gradient_of_float32(make, tmp_path):
    kept = {}

    class Keep(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            kept["gradient"] = torch.cat([p.grad.flatten() for p in pl_module.parameters()])

    def gradient(precision):
        module = {"dropout": 0.0, "config": {"initializer_range": 0.3}}
        module["optimizer"] = {"class_path": "torch.optim.SGD"}
        fit_task(
            TASK, tmp_path, make(), Keep(), max_steps=1, module=module, **PRECISIONS[precision]()
        )
        return kept["gradient"]

    exact = gradient("fp32")
    for precision in ("bf16", "fp16"):
        assert torch.cosine_similarity(exact, gradient(precision), dim=0) > 0.98


@EACH
@pytest.mark.parametrize("task", [TASK, "token_classification", "masked_lm"])
def test_two_accumulated_batches_are_one_of_twice_the_size(task, make, tmp_path):
    how = {"module": {"optimizer": {"class_path": "torch.optim.SGD"}, "dropout": 0.0}}
    one = fit_task(task, tmp_path, make(), data={"batch_size": 8}, **how)[0]
    small = {"data": {"batch_size": 4}, "accumulate_grad_batches": 2}
    two = fit_task(task, tmp_path, make(), **small, **how)[0]
    first, second = weights(one), weights(two)
    assert all(torch.allclose(first[n], second[n], atol=1e-6) for n in first)


@pytest.mark.skipif(sys.platform != "linux", reason="forks with gloo")
@pytest.mark.parametrize("make", [MADE[n] for n in ("r_drop", "smart", "vat", "cutoff", "uda")])
def test_two_ranks_are_one_process_on_the_joined_batch_without_all_labels(make, tmp_path):
    case = BY_NAME[TASK]
    more = tmp_path / "more.csv"
    more.write_text("text\n" + "\n".join(f"the quick brown fox {n % 7}" for n in range(20)) + "\n")

    def run(devices):
        seed_everything(5)
        module = case.make_module(optimizer={"class_path": "torch.optim.SGD"}, dropout=0.0)
        module.tokenizer = tiny.tokenizer()
        module.configure_model()
        trainer = make_trainer(
            make(), devices=devices, strategy="ddp_fork" if devices > 1 else "auto", max_steps=3
        )
        data = case.make_data(tmp_path, batch_size=8 // devices, unlabelled_file=str(more))
        trainer.fit(module, data)
        return weights(module)

    one, two = run(1), run(2)
    assert all(torch.allclose(one[n], two[n], atol=1e-6) for n in one)


def test_predictions_alone_are_asked_for_without_further_comparisons(tmp_path):
    calls = []

    class Count(RDropCallback):
        def compare(self, objective, batch, seen):
            calls.append("r_drop")
            return super().compare(objective, batch, seen)

    # The first pass of SMART is the objective; its neighbours are only asked what they predict.
    fit_task(TASK, tmp_path, Count(), SMARTCallback(steps=2, bregman_weight=1.0), max_steps=3)
    assert len(calls) == 3


def test_predicting_ends_with_its_block(tmp_path):
    calls = []

    class Look(ConsistencyCallback):
        def compare(self, objective, batch, seen):
            calls.append("inside")
            with predicting():
                objective(batch)
            return seen.output

    fit_task(TASK, tmp_path, Look(), max_steps=2)
    assert calls == ["inside"] * 2


@EACH
def test_a_module_that_is_not_lmkits_is_told_what_is_missing(make):
    with pytest.raises(TypeError, match=r"Plain is no lmkit.modules.LMModule, so it has neither"):
        fit(make(), module=Plain())


@EACH
def test_a_task_without_scores_is_told_what_is_missing(make, tmp_path):
    with pytest.raises(ValueError, match=r"it has no scores\(output, batch\); take FGMCallback"):
        fit_task("replaced_token", tmp_path, make())


@EACH
def test_twice_and_by_hand_are_refused(make, tmp_path):
    # Lightning itself refuses two that keep a state.
    with pytest.raises((ValueError, RuntimeError), match=r"is given twice|more than one stateful"):
        fit_task(TASK, tmp_path, make(), make())
    module = BY_NAME[TASK].make_module()
    module.automatic_optimization = False
    with pytest.raises(ValueError, match="for modules that optimize automatically"):
        make_trainer(make()).fit(module, BY_NAME[TASK].make_data(tmp_path))


def test_embeddings_that_are_not_found_are_told(tmp_path):
    with pytest.raises(NothingMatchedError, match="no module matches"):
        fit_task(TASK, tmp_path, VATCallback(embedding="wrods"))


def test_it_trains_nothing_outside_of_a_fit(tmp_path):
    with pytest.raises(RuntimeError, match="RDropCallback is not training"):
        _ = RDropCallback().module
    case = BY_NAME[TASK]
    trainer = make_trainer(RDropCallback())
    trainer.validate(case.make_module(), case.make_data(tmp_path), verbose=False)
