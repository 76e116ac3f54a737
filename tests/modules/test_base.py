"""What every module inherits: structure, ledger, objective, seeds, checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import nn
from torch.utils.data import DataLoader

import lmkit
from lmkit.modules import CausalLMModule, LMModule, MaskedLMModule
from lmkit.surgery import NothingMatchedError
from lmkit.types import Batch, Objective, StepOutput
from tests import tiny


def make(**kwargs: Any) -> MaskedLMModule:
    torch.manual_seed(0)
    return MaskedLMModule({**tiny.MASKED["bert"], "vocab_size": 99}, **kwargs)


def loader(rows: int = 16, batch_size: int = 4) -> DataLoader[Any]:
    batch = tiny.masked_batch(rows=rows, length=20)
    data = [{name: tensor[i] for name, tensor in batch.items()} for i in range(rows)]
    return DataLoader(data, batch_size)  # type: ignore[arg-type]


def trainer(*callbacks: Callback, **kwargs: Any) -> Trainer:
    settings = {"max_steps": 3, "enable_checkpointing": False} | kwargs
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **settings,
    )


def saved(folder: Path, module: LMModule, *callbacks: Callback, **kwargs: Any) -> Path:
    run = trainer(*callbacks, **kwargs)
    run.fit(module, loader())
    run.save_checkpoint(folder / "run.ckpt")
    return folder / "run.ckpt"


def pretrained_folder(folder: Path, seed: int = 0) -> str:
    torch.manual_seed(seed)
    module = MaskedLMModule({**tiny.MASKED["bert"], "vocab_size": 99})
    module.configure_model()
    module.network.save_pretrained(folder)
    return str(folder)


class Watch(Callback):
    """Keeps what it sees in each step."""

    def __init__(self) -> None:
        self.dropouts: list[bool] = []
        self.draws: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        modules = pl_module.network.modules()
        self.dropouts += [m.training for m in modules if isinstance(m, nn.Dropout)]

    def on_train_batch_end(self, *_: Any) -> None:
        self.draws.append(torch.rand(1).item())


def test_configure_model_twice_builds_once() -> None:
    module = make()
    module.configure_model()
    network = module.network
    module.configure_model()
    assert module.network is network


def test_every_dropout_is_in_train_mode_for_a_pretrained_model(tmp_path: Path) -> None:
    watch = Watch()
    module = MaskedLMModule(pretrained_folder(tmp_path))
    trainer(watch, tiny.ResidualCallback()).fit(module, loader(), loader())
    assert watch.dropouts and all(watch.dropouts)


def test_surgery_is_recorded_and_done_once_however_often_it_is_asked_for() -> None:
    module = make()
    module.operate(tiny.Residual())
    keys = set(module.state_dict())
    module.operate(tiny.Residual())
    assert set(module.state_dict()) == keys
    assert module.ledger == [
        {
            "class_path": "tests.tiny.Residual",
            "init_args": {"patterns": ["query", "value", "dense"], "rank": 2},
        }
    ]


def test_surgery_that_matches_nothing_names_the_nearest() -> None:
    with pytest.raises(NothingMatchedError, match=r"qurey.*query"):
        make().operate(tiny.Residual(patterns=("qurey",)))


def test_a_checkpoint_of_a_changed_structure_loads_alone(tmp_path: Path) -> None:
    module = make()
    path = saved(tmp_path, module, tiny.ResidualCallback())
    torch.load(path, weights_only=True)
    for loaded in (lmkit.load(path), LMModule.load_from_checkpoint(path)):
        assert isinstance(loaded, MaskedLMModule)
        assert loaded.ledger == module.ledger
        assert dict(loaded.hparams) == dict(module.hparams)
        state = loaded.state_dict()
        assert all(torch.equal(state[k], v) for k, v in module.state_dict().items())
        frozen = {n for n, p in module.named_parameters() if not p.requires_grad}
        assert {n for n, p in loaded.named_parameters() if not p.requires_grad} == frozen


def test_a_checkpoint_of_a_pretrained_model_loads_without_its_base(tmp_path: Path) -> None:
    base = tmp_path / "base"
    path = saved(tmp_path, MaskedLMModule(pretrained_folder(base)))
    for file in base.iterdir():
        file.unlink()
    loaded = lmkit.load(path)
    assert loaded.hparams["model"] == str(base) and loaded.hparams["pretrained"] is True


def test_frozen_weights_may_be_left_out_and_come_from_the_base(tmp_path: Path) -> None:
    module = MaskedLMModule(pretrained_folder(tmp_path / "base"))
    path = saved(tmp_path, module, tiny.ResidualCallback())
    checkpoint = torch.load(path, weights_only=True)
    trained = {n for n, p in module.named_parameters() if p.requires_grad}
    checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}
    torch.save(checkpoint, path)
    state = lmkit.load(path).state_dict()
    assert all(torch.equal(state[k], v) for k, v in module.state_dict().items())
    pretrained_folder(tmp_path / "base", seed=1)
    with pytest.raises(ValueError, match=r"started from the base .*base"):
        lmkit.load(path)


def test_another_base_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, MaskedLMModule(pretrained_folder(tmp_path / "a")))
    other = MaskedLMModule(pretrained_folder(tmp_path / "b", seed=1))
    with pytest.raises(ValueError, match="started from the base"):
        trainer(max_steps=5).fit(other, loader(), ckpt_path=path, weights_only=True)


def test_another_structure_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, make(), tiny.ResidualCallback(rank=2))
    with pytest.raises(ValueError, match=r"structure is .*'rank': 2.*'rank': 3"):
        trainer(tiny.ResidualCallback(rank=3), max_steps=5).fit(make(), loader(), ckpt_path=path)
    wider = MaskedLMModule({**tiny.MASKED["bert"], "vocab_size": 99, "hidden_size": 24})
    with pytest.raises(ValueError, match=r"is \(99, 16\) instead of \(99, 24\)"):
        trainer(max_steps=5).fit(wider, loader(), ckpt_path=path)
    other = CausalLMModule({**tiny.CAUSAL["gpt2"], "vocab_size": 99})
    with pytest.raises(ValueError, match="of a MaskedLMModule, and this is a CausalLMModule"):
        trainer(max_steps=5).fit(other, loader(), ckpt_path=path)


def test_a_surgery_from_a_module_that_is_not_imported_is_not_imported(tmp_path: Path) -> None:
    path = saved(tmp_path, make(), tiny.ResidualCallback())
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["lmkit"]["ledger"][0]["class_path"] = "antigravity.fly"
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=r"antigravity\.fly"):
        lmkit.load(path)


def test_a_surgery_of_the_script_itself_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny.Residual, "__module__", "__main__")
    with pytest.warns(UserWarning, match=r"__main__\.Residual, which no other program can import"):
        make().operate(tiny.Residual())


def test_hyperparameters_must_be_plain_data() -> None:
    with pytest.raises(TypeError, match="optimizer must be plain data"):
        make(optimizer={"class_path": torch.optim.SGD})


def test_validating_before_a_fit_changes_nothing_for_it() -> None:
    module = make()
    trainer().validate(module, loader(), verbose=False)
    run = trainer(val_check_interval=1, max_steps=2)
    run.fit(module, loader(), loader())
    after = trainer().validate(module, loader(), verbose=False)
    assert after[0]["val/loss"] == run.callback_metrics["val/loss"].item()


def test_text_without_a_tokenizer_is_refused_with_what_to_do() -> None:
    module = make()
    module.configure_model()
    with pytest.raises(ValueError, match="has no tokenizer to write text with"):
        module.sample(tiny.masked_batch(), 1)


def test_wrappers_are_applied_from_the_inside_and_prepare_runs_once() -> None:
    trace: list[str] = []

    class Traced(MaskedLMModule):
        def prepare(self, batch: Batch) -> Batch:
            trace.append("prepare")
            return batch

    def wrapper(name: str) -> Any:
        def wrap(objective: Objective, batch: Batch) -> StepOutput:
            trace.append(f"{name} in")
            output = objective(batch)
            trace.append(f"{name} out")
            return output

        return wrap

    class Again(Callback):
        def on_after_backward(self, trainer: Trainer, pl_module: Any) -> None:
            trainer.strategy.training_step(batch, 0)

    module = Traced({**tiny.MASKED["bert"], "vocab_size": 99})
    module.objective_wrappers += [wrapper("A"), wrapper("B")]
    batch = next(iter(loader()))
    trainer(Again(), max_steps=1).fit(module, loader())
    once = ["B in", "A in", "A out", "B out"]
    assert trace == ["prepare", *once, *once]


def test_dropout_is_a_function_of_seed_epoch_and_batch() -> None:
    def draws(seed: int) -> list[float]:
        watch = Watch()
        seed_everything(seed)
        trainer(watch, max_steps=6).fit(make(), loader())
        return watch.draws

    first = draws(1)
    assert draws(1) == first
    assert len(set(first)) == 6
    assert not set(draws(2)) & set(first)


def test_a_second_fit_prepares_its_own_batches_and_takes_its_own_seed() -> None:
    module, first, second = make(), Watch(), Watch()
    seed_everything(1)
    trainer(first, max_steps=1).fit(module, loader())
    seed_everything(2)
    seen: list[float] = []
    module.objective_wrappers.append(
        lambda objective, batch: (seen.append(float(batch["input_ids"].sum())), objective(batch))[1]
    )
    other = {name: tensor + 1 for name, tensor in next(iter(loader())).items()}
    other["labels"] = other["labels"].clamp(max=98)
    rows = [{name: tensor[i] % 99 for name, tensor in other.items()} for i in range(4)]
    trainer(second, max_steps=1).fit(module, DataLoader(rows, 4))  # type: ignore[arg-type]
    assert seen == [float(sum(int(row["input_ids"].sum()) for row in rows))]
    assert first.draws != second.draws


@pytest.mark.parametrize("seed", [0, 1])
def test_a_resumed_fit_takes_the_seed_of_its_checkpoint(seed: int, tmp_path: Path) -> None:
    seed_everything(seed)
    path = saved(tmp_path, make())
    seed_everything(2)
    module = make()
    trainer(max_steps=4).fit(module, loader(), ckpt_path=path)
    assert module.seed == seed


def test_a_loaded_module_starts_a_new_fit_with_its_own_seed_and_dropout(tmp_path: Path) -> None:
    seed_everything(1)
    path = saved(tmp_path, make())
    seed_everything(2)
    module, watch = lmkit.load(path), Watch()
    trainer(watch, max_steps=1).fit(module, loader())
    assert isinstance(module, LMModule) and module.seed == 2
    assert watch.dropouts and all(watch.dropouts)


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_touched() -> None:
    module = make(learning_rate=1e-3)
    module.configure_model()

    def poison(objective: Objective, batch: Batch) -> StepOutput:
        output = objective(batch)
        bad = module.trainer.global_step == 2
        return output._replace(loss=output.loss * float("nan")) if bad else output

    module.objective_wrappers.append(poison)
    with pytest.raises(FloatingPointError, match=r"nan at step 2 \(epoch 0, batch 2, rows \[8, 9"):
        trainer(max_steps=9).fit(module, loader())
    assert all(p.isfinite().all() for p in module.parameters())


def test_every_trainable_parameter_is_in_exactly_one_group_with_decay_for_matrices() -> None:
    module = make(weight_decay=0.3)
    run = trainer(tiny.ResidualCallback())
    run.fit(module, loader())
    (optimizer,) = run.optimizers
    grouped = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    trainable = [p for p in module.parameters() if p.requires_grad]
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(trainable) == len(grouped)
    assert all(grouped[id(p)] == (0.3 if p.ndim > 1 else 0.0) for p in trainable)


def test_a_structure_changed_too_late_is_an_error() -> None:
    class Late(Callback):
        def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
            pl_module.operate(tiny.Residual())

    with pytest.raises(RuntimeError, match=r"trainable and in 0 groups.*Callback.setup"):
        trainer(Late()).fit(make(), loader())


@pytest.mark.parametrize("kwargs", [{"precision": "bf16-mixed"}, {"precision": "32-true"}])
def test_fused_optimizer_and_clipping_go_together(kwargs: dict[str, Any]) -> None:
    norms: list[float] = []

    class Norm(Callback):
        def on_before_zero_grad(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
            grads = [p.grad for p in pl_module.parameters() if p.grad is not None]
            if grads:
                norms.append(torch.stack([g.norm() for g in grads]).norm().item())

    trainer(Norm(), gradient_clip_val=1e-3, **kwargs).fit(make(), loader())
    assert norms and max(norms) <= 1e-3 * 1.001


def test_a_window_of_batches_equals_one_large_batch_though_token_counts_differ() -> None:
    def weights(batch_size: int, accumulate: int) -> torch.Tensor:
        config = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        torch.manual_seed(0)
        module = MaskedLMModule(
            {**tiny.MASKED["bert"], "vocab_size": 99, **config},
            learning_rate=0.1,
            warmup=0,
            schedule="constant",
            optimizer={"class_path": "torch.optim.SGD"},
        )
        run = trainer(accumulate_grad_batches=accumulate, max_steps=4)
        run.fit(module, loader(batch_size=batch_size))
        return nn.utils.parameters_to_vector(module.parameters()).detach()

    assert torch.allclose(weights(8, 1), weights(4, 2), atol=1e-6)
    assert torch.allclose(weights(8, 1), weights(2, 4), atol=1e-6)


def test_optimizer_comes_from_plain_data() -> None:
    module = make(
        learning_rate=0.2,
        optimizer={"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.5}},
    )
    run = trainer()
    run.fit(module, loader())
    (optimizer,) = run.optimizers
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.defaults["momentum"] == 0.5 and optimizer.defaults["lr"] == 0.2


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ({"class_path": "torch.optim.AdamV"}, ValueError, r"torch\.optim\.Adam"),
        (
            {"class_path": "torch.optim.SGD", "init_args": {"beta": 1}},
            TypeError,
            "does not take.*beta",
        ),
    ],
)
def test_a_wrong_optimizer_is_named(
    spec: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        trainer().fit(make(optimizer=spec), loader())


def test_a_run_without_an_end_needs_a_constant_schedule() -> None:
    with pytest.raises(ValueError, match="max_steps"):
        trainer(max_steps=-1, max_epochs=-1).fit(make(), loader())
