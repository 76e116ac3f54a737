"""Further passes leave no trace but their gradient: logs, metrics, dropout, hooks, checkpoints."""

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, seed_everything
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy
from transformers import BatchEncoding

from lmkit.callbacks.awp import AWPCallback
from lmkit.callbacks.extra_passes import ExtraPassCallback, run_stream
from lmkit.callbacks.fgm import FGMCallback
from lmkit.callbacks.free_lb import FreeLBCallback
from lmkit.callbacks.pgd import PGDCallback
from lmkit.surgery import NothingMatchedError
from tests.callbacks.fitted import BY_NAME, fit_task, same
from tests.callbacks.hand_loops import Plain, fit, gap, rows
from tests.cases import make_trainer, weights

ADVERSARIES = {
    "fgm": lambda: FGMCallback(0.1),
    "pgd": lambda: PGDCallback(0.1, start=0.5),
    "free_lb": lambda: FreeLBCallback(0.1),
    "awp": lambda: AWPCallback(0.02),
}
LINEAR = {name: make for name, make in ADVERSARIES.items() if name != "awp"}
EACH = pytest.mark.parametrize("adversary", ADVERSARIES.values(), ids=list(ADVERSARIES))


class Loud(Plain):
    """Logs, counts in a metric, and has hooks of its own."""

    def __init__(self):
        super().__init__()
        self.accuracy = MulticlassAccuracy(3)
        self.calls = []

    def training_step(self, batch, batch_idx):
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        logits = self.model(**inputs).logits
        loss = cross_entropy(logits, batch["labels"])
        self.log("train/loss", loss)
        self.log_dict({"train/twice": 2 * loss})
        self.accuracy(logits, batch["labels"])
        self.log("train/accuracy", self.accuracy, on_epoch=True)
        return {"loss": loss, "logits": logits}

    def on_before_backward(self, loss):
        self.calls.append("before")

    def on_after_backward(self):
        self.calls.append("after")


class Watch(Callback):
    """Keeps what is logged, the generators' state, and how often the metric was updated."""

    def __init__(self):
        self.logged, self.states, self.counts = [], [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        names = ("train/loss", "train/twice", "train/accuracy_step")
        self.logged.append([float(trainer.callback_metrics[n]) for n in names])
        self.states.append(torch.get_rng_state())
        self.counts.append(pl_module.accuracy.update_count)
        self.total = pl_module.accuracy.tp.clone()


@pytest.mark.parametrize("adversary", [ADVERSARIES[n] for n in ("fgm", "pgd", "awp")])
def test_logs_metrics_hooks_and_generators_are_those_of_plain_training(adversary):
    def run(*callbacks):
        module, watch = Loud(), Watch()
        # Weights that stay, so that the first pass of each step is that of plain training.
        module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.0)
        fit(*callbacks, watch, module=module, log_every_n_steps=1)
        return module, watch

    plain, expected = run()
    ours, seen = run(adversary())
    assert seen.logged == expected.logged and seen.counts == expected.counts == [1, 2, 3, 4]
    assert torch.equal(seen.total, expected.total)
    assert ours.calls == plain.calls == ["before", "after"] * 4
    assert all(map(torch.equal, seen.states, expected.states))


@EACH
def test_the_generators_stand_where_the_first_pass_has_left_them_whatever_a_pass_draws(adversary):
    class Draws(Loud):
        def training_step(self, batch, batch_idx):
            self.times = getattr(self, "times", 0) + 1
            result = super().training_step(batch, batch_idx)
            torch.rand(self.times)
            return result

        def on_train_batch_start(self, batch, batch_idx):
            self.times = 0

    watches = [Watch(), Watch()]
    for callbacks, watch in zip(([], [adversary()]), watches, strict=True):
        fit(*callbacks, watch, module=Draws())
    assert all(map(torch.equal, *(watch.states for watch in watches)))


@EACH
def test_the_loss_of_the_last_pass_is_logged_under_its_word(adversary):
    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            names.update(trainer.callback_metrics)

    names, callback = set(), adversary()
    fit(callback, Look(), module=Loud(), log_every_n_steps=1)
    assert f"{callback.word}/loss" in names


@EACH
def test_nothing_is_left_on_the_module(adversary):
    before = set(Plain().state_dict())
    module = fit(adversary())
    hooks = [m for m in module.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert set(module.state_dict()) == before and not hooks
    assert "training_step" not in vars(module) and "log" not in vars(module)


@EACH
@pytest.mark.parametrize("call", [1, 2])
def test_nothing_is_left_when_a_pass_fails(call, adversary):
    class Fails(Plain):
        calls = 0

        def training_step(self, batch, batch_idx):
            self.calls += 1
            if self.calls == call:
                raise OSError("struck")
            return super().training_step(batch, batch_idx)

    module = Fails()
    with pytest.raises(OSError, match="struck"):
        fit(adversary(), module=module)
    assert "training_step" not in vars(module) and "log" not in vars(module)
    assert not any(m._forward_hooks for m in module.modules())
    # And the module can be trained again.
    fit(adversary(), module=module)


@EACH
def test_a_step_that_was_wrapped_before_is_wrapped_again_and_given_back(adversary):
    module = Plain()
    own = module.training_step
    calls = []

    def wrapper(batch, batch_idx):
        calls.append(batch_idx)
        return own(batch, batch_idx)

    module.training_step = wrapper
    fit(adversary(), module=module)
    assert vars(module)["training_step"] is wrapper and calls.count(0) >= 2


@EACH
def test_steps_of_other_signatures_and_results_are_the_same_training(adversary):
    class WithoutNumber(Plain):
        def training_step(self, batch):
            return super().training_step(batch, 0)

    class Dictionary(Plain):
        def training_step(self, batch, batch_idx):
            return {"loss": super().training_step(batch, batch_idx), "more": 1}

    class Encoding(Plain):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            return BatchEncoding(batch)

    expected = fit(adversary())
    for module in (WithoutNumber(), Dictionary(), Encoding()):
        assert gap(expected, fit(adversary(), module=module)) == 0.0


def test_a_step_without_a_loss_is_left_out():
    class Skips(Plain):
        def training_step(self, batch, batch_idx):
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

    made = [fit(callback, module=Skips()) for callback in (FGMCallback(1e-30), Callback())]
    assert gap(*made) == 0.0


@pytest.mark.parametrize("steps", [1, 3])
def test_gradient_checkpointing_changes_nothing(steps):
    module = Plain()
    module.model.gradient_checkpointing_enable({"use_reentrant": False})
    expected = fit(PGDCallback(0.1, steps, 0.5))
    assert gap(expected, fit(PGDCallback(0.1, steps, 0.5), module=module)) <= 1e-7


def test_frozen_embeddings_are_moved_too():
    def frozen():
        module = Plain()
        module.model.bert.embeddings.requires_grad_(False)
        return module

    assert gap(fit(module=frozen()), fit(FGMCallback(0.1), module=frozen())) > 1e-4


class Tables(LightningModule):
    """Reads ids that come in a tuple, with tables of its own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.places = nn.Embedding(40, 8), nn.Embedding(9, 8)
        self.head = nn.Linear(8, 3)

    def training_step(self, batch, batch_idx):
        ids, labels = batch
        states = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        return cross_entropy(self.head(states.tanh().mean(1)), labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit_tables(module, *callbacks, **settings):
    pairs = [(row["input_ids"], row["labels"]) for row in rows()]
    trainer = make_trainer(*callbacks, **{"max_steps": 4, **settings})
    trainer.fit(module, DataLoader(pairs, batch_size=4))
    return module


def test_any_network_works_if_it_is_said_where_its_embeddings_are():
    with pytest.raises(NothingMatchedError, match=r"words, places; set embedding"):
        fit_tables(Tables(), FGMCallback())
    with pytest.raises(NothingMatchedError, match="no module matches"):
        fit_tables(Tables(), FGMCallback(embedding="wrods"))
    plain, ours = fit_tables(Tables()), fit_tables(Tables(), FGMCallback(embedding="words"))
    assert gap(plain, ours) > 1e-6
    # Ids that are to be ignored stay where they are.
    every = fit_tables(Tables(), FGMCallback(embedding="words", ignore_ids=list(range(40))))
    assert gap(plain, every) <= 1e-7


def test_a_module_without_embeddings_is_refused():
    class None_(Tables):
        def __init__(self):
            super().__init__()
            self.words = self.places = None

    with pytest.raises(NothingMatchedError, match=r"no nn\.Embedding; set embedding"):
        fit_tables(None_(), FGMCallback())


@pytest.mark.parametrize("kind", ["unused", "cut off"])
def test_embeddings_that_the_loss_does_not_see_are_told(kind):
    class Blind(Plain):
        def training_step(self, batch, batch_idx):
            if kind == "cut off":
                with torch.no_grad():
                    states = self.model.bert(batch["input_ids"]).last_hidden_state
            else:
                states = torch.ones(4, 9, 16)
            return cross_entropy(self.model.classifier(states[:, 0]), batch["labels"])

    with pytest.raises(ValueError, match=r"called none of the embedding layers"):
        fit(FGMCallback(), module=Blind())


def test_a_loss_that_does_not_depend_on_them_is_told():
    class Detached(Plain):
        def training_step(self, batch, batch_idx):
            states = self.model.bert(batch["input_ids"]).last_hidden_state.detach()
            return cross_entropy(self.model.classifier(states[:, 0]), batch["labels"])

    with pytest.raises(ValueError, match="the loss does not depend on the embeddings"):
        fit(FGMCallback(), module=Detached())


def test_what_cannot_be_done_is_refused_before_training():
    class Manual(Plain):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

    class Iterates(Plain):
        def training_step(self, dataloader_iter):
            raise AssertionError

    for adversary in ADVERSARIES.values():
        with pytest.raises(ValueError, match="optimizes by hand"):
            fit(adversary(), module=Manual())
        with pytest.raises(ValueError, match="takes a dataloader_iter"):
            fit(adversary(), module=Iterates())
        with pytest.raises(ValueError, match="each decide which gradient"):
            fit(adversary(), adversary())
    with pytest.raises(ValueError, match="FGMCallback and AWPCallback each decide which gradient"):
        fit(FGMCallback(), AWPCallback())


def test_sharded_strategies_are_refused(monkeypatch):
    trainer = make_trainer()
    monkeypatch.setattr(trainer._accelerator_connector, "strategy", FSDPStrategy())
    with pytest.raises(ValueError, match="needs whole weights on each rank"):
        FGMCallback().setup(trainer, Plain(), "fit")


def test_outside_of_a_fit_nothing_is_checked_or_changed():
    for stage in ("validate", "test", "predict"):
        ExtraPassCallback().setup(make_trainer(), Plain(), stage)


# Modules of lmkit.


def reference(module, batch, epsilon):
    """The gradient of FGM on a prepared batch of an lmkit module, by hand, without dropout."""
    special = torch.tensor(module.tokenizer.all_special_ids)
    kept, delta = [], None

    def change(layer, arguments, output):
        ids = arguments[0]
        kept.append((ids, output))
        return output if delta is None else output + delta

    handle = module.network.get_input_embeddings().register_forward_hook(change)
    loss = module.step(batch).loss
    ids, words = kept[0]
    (gradient,) = torch.autograd.grad(loss, words, retain_graph=True)
    own = torch.autograd.grad(loss, list(module.parameters()), allow_unused=True)
    segments = batch.get("segment_ids", batch["attention_mask"])
    free = (segments > 0) & ~torch.isin(ids, special)
    delta = torch.zeros_like(words)
    for row in range(len(ids)):
        for number in set(segments[row].tolist()) - {0}:
            at = free[row] & (segments[row] == number)
            g, e = gradient[row, at].double(), words[row, at].detach().double()
            delta[row, at] = (epsilon * e.norm() * g / g.norm().clamp(min=1e-300)).float()
    there = torch.autograd.grad(
        module.step(batch).loss, list(module.parameters()), allow_unused=True
    )
    handle.remove()
    return [None if a is None else 0.5 * a + 0.5 * b for a, b in zip(own, there, strict=True)]


@pytest.mark.parametrize(
    "task",
    ["masked_lm", "sequence_classification", "token_classification", "question_answering"],
)
def test_of_each_task_the_gradient_is_that_by_hand_also_of_packed_rows(task, tmp_path):
    kept = {}

    class Keep(Callback):
        def on_train_start(self, trainer, pl_module):
            kept["before"] = weights(pl_module)

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            kept["batch"] = batch

    sgd = {"class_path": "torch.optim.SGD"}
    module, _, _ = fit_task(
        task,
        tmp_path,
        FGMCallback(0.1),
        Keep(),
        max_steps=1,
        module={"optimizer": sgd, "learning_rate": 1.0, "weight_decay": 0.0, "dropout": 0.0}
        | {"schedule": "constant"},
        data={"batching": "pack"} if task == "token_classification" else None,
    )
    batch = kept["batch"]
    assert ("segment_ids" in batch) == (task in ("masked_lm", "token_classification"))
    after = weights(module)
    module.load_state_dict(kept["before"])
    names = [name for name, _ in module.named_parameters()]
    for name, gradient in zip(names, reference(module, batch, 0.1), strict=True):
        if gradient is not None:
            moved = kept["before"][name] - after[name]
            assert torch.allclose(moved, gradient, atol=2e-7, rtol=1e-5), name


def test_both_sides_of_an_encoder_decoder_are_moved(tmp_path):
    class Look(FGMCallback):
        def passes(self, passes):
            super().passes(passes)
            seen.append([(p.delta.clone(), p.tokens) for p in self.adversary.perturbations])

    seen = []
    fit_task("seq2seq", tmp_path, Look(0.1), max_steps=2)
    for encoder, decoder in seen:
        for delta, tokens in (encoder, decoder):
            assert delta.any() and not delta[~tokens.free.expand_as(delta)].any()
        # The token that the decoder starts from.
        assert not decoder[1].free[:, 0].any()


def test_a_generator_that_shares_the_embeddings_is_left_alone(tmp_path):
    class Look(FGMCallback):
        def passes(self, passes):
            super().passes(passes)
            seen.append(len(self.adversary.perturbations))

    seen = []
    module, _, _ = fit_task("replaced_token", tmp_path, Look(0.1), max_steps=2)
    ours, theirs = (n.get_input_embeddings() for n in module.networks)
    assert ours is theirs and seen == [1, 1]


@EACH
def test_a_module_of_lmkit_prepares_and_logs_once_and_evaluates_plainly(adversary, tmp_path):
    case = BY_NAME["sequence_classification"]
    counts = {"prepare": 0, "step": 0}

    def run(*callbacks):
        seed_everything(7)
        module = case.make_module(learning_rate=0.0)
        prepare, step = module.prepare, module.step

        def prepared(batch):
            counts["prepare"] += module.training
            return prepare(batch)

        def stepped(batch):
            counts["step"] += module.training
            return step(batch)

        module.prepare, module.step = prepared, stepped
        trainer = make_trainer(*callbacks, max_steps=3, limit_val_batches=1, val_check_interval=1)
        trainer.fit(module, case.make_data(tmp_path))
        return {n: float(v) for n, v in trainer.callback_metrics.items()}

    expected = run()
    counts["prepare"] = counts["step"] = 0
    made = run(adversary())
    assert counts["prepare"] == 3 and counts["step"] > 3
    assert {n: v for n, v in made.items() if n.startswith("val/")} == {
        n: v for n, v in expected.items() if n.startswith("val/")
    }


def test_its_passes_are_all_of_the_objective_whatever_the_order_of_callbacks(tmp_path):
    from lmkit.callbacks.r_drop import RDropCallback

    made = [
        fit_task("sequence_classification", tmp_path / str(n), *callbacks)[0]
        for n, callbacks in enumerate(
            [(FGMCallback(0.1), RDropCallback()), (RDropCallback(), FGMCallback(0.1))]
        )
    ]
    assert same(*made)


# By AWP each batch of a window has its own perturbation, and the window is not one large batch.
@pytest.mark.parametrize("adversary", LINEAR.values(), ids=list(LINEAR))
def test_gradient_accumulation_of_lmkit_is_one_large_batch(adversary, tmp_path):
    how = {"module": {"optimizer": {"class_path": "torch.optim.SGD"}, "dropout": 0.0}}
    one = fit_task("token_classification", tmp_path, adversary(), data={"batch_size": 8}, **how)
    two = fit_task(
        "token_classification",
        tmp_path,
        adversary(),
        data={"batch_size": 4},
        accumulate_grad_batches=2,
        **how,
    )
    first, second = weights(one[0]), weights(two[0])
    assert all(torch.allclose(first[n], second[n], atol=1e-6) for n in first)


def test_the_stream_of_an_epoch_depends_on_seed_and_epoch(tmp_path, monkeypatch):
    trainer, module = make_trainer(), Plain()
    first = run_stream(module, trainer)
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert run_stream(module, trainer) != first
    module.seed = 7
    assert run_stream(module, trainer) == run_stream(Plain(), trainer)
    trainer.fit_loop.epoch_progress.current.completed = 1
    assert trainer.current_epoch == 1 and run_stream(module, trainer) != first
