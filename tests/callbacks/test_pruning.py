"""Weights become zero as planned and stay zero, whatever trains, saves, averages or joins them."""

from __future__ import annotations

import csv
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import BertForSequenceClassification

import lmkit
from lmkit.callbacks import GradualUnfreezingCallback, TrainableOnlyCheckpoint
from lmkit.callbacks.lora import LoRACallback
from lmkit.callbacks.pruning import PruningCallback
from lmkit.functional.pruning import planned_sparsity
from lmkit.surgery.base import NothingMatchedError
from lmkit.surgery.prunable import prunable_layers
from tests import tiny
from tests.callbacks.fitted import BY_NAME, SaveAt, fit_on_base, fit_task, same
from tests.callbacks.foreign import Foreign
from tests.cases import make_trainer
from tests.test_ddp import RanksAgree

TASK = "sequence_classification"
MOMENTUM = {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9, "weight_decay": 0.1}}
CRITERIA = ("magnitude", "random", "movement", "soft_movement", "wanda")


def pruning(sparsity: float | None = 0.75, criterion: Any = "magnitude", **how: Any) -> Any:
    """Prune from the first step to the sixth of eight, in each."""
    defaults: dict[str, Any] = {"start": 0.0, "end": 0.7, "interval": 1}
    return PruningCallback(sparsity, criterion, **{**defaults, **how})


def weights_of(module: LightningModule) -> dict[str, Tensor]:
    network: Any = getattr(module, "network", module)
    layers = prunable_layers(network, ["all"]).items()
    return {name: layer.weight.detach().clone() for name, layer in layers}


def zeros(module: LightningModule) -> dict[str, Tensor]:
    return {name: weight == 0 for name, weight in weights_of(module).items()}


def share(masks: dict[str, Tensor]) -> float:
    return sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())


def held_in(path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds of its pruning."""
    states = torch.load(path, weights_only=True)["callbacks"]
    (state,) = (state for key, state in states.items() if key.startswith("PruningCallback{"))
    return dict(state)


class Zeros(Callback):
    """Looks at the weights after each batch, as whatever stands before the pruning sees them."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.steps.append(zeros(pl_module))


@pytest.mark.parametrize("optimizer", [None, MOMENTUM], ids=["adamw", "momentum"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_what_is_pruned_is_zero_after_each_step_and_the_sparsity_is_that_of_the_schedule(
    criterion: str, optimizer: Any, tmp_path: Path
) -> None:
    look = Zeros()
    settings = {"optimizer": optimizer, "weight_decay": 0.5, "learning_rate": 1e-2}
    fit_task(TASK, tmp_path, look, pruning(0.75, criterion), max_steps=12, module=settings)
    for step, masks in enumerate(look.steps, 1):
        planned = planned_sparsity(step, 0, 8, 0.75)
        for mask in masks.values() if criterion != "soft_movement" else ():
            scopes = len(mask) if criterion == "wanda" else 1
            assert abs(int(mask.sum()) - planned * mask.numel()) <= 0.5 * scopes + 1e-6
        if criterion == "soft_movement":
            total = sum(mask.numel() for mask in masks.values())
            assert abs(share(masks) - planned) <= 0.5 / total + 1e-9
    # None comes back; by movement some do, as long as they are chosen.
    pairs = list(zip(look.steps, look.steps[1:], strict=False))
    back = [any((old[n] & ~new[n]).any() for n in old) for old, new in pairs]
    assert not any(back[7:])
    assert any(back) == ("movement" in criterion)


def test_every_group_has_its_zeros_and_the_pattern_holds_to_the_end(tmp_path: Path) -> None:
    for criterion in ("magnitude", "movement", "wanda"):
        module, _, _ = fit_task(
            TASK, tmp_path, pruning(None, criterion, pattern="2:4"), max_steps=8
        )
        for name, weight in weights_of(module).items():
            groups = (weight == 0).view(len(weight), -1, 4).sum(-1)
            assert (groups == 2).all(), name


def test_turned_weights_have_their_groups_along_the_inputs(tmp_path: Path) -> None:
    module, _, _ = fit_task("causal_lm", tmp_path, pruning(None, pattern="2:4"), max_steps=4)
    found = weights_of(module)
    assert any("c_attn" in name for name in found)
    for weight in found.values():
        assert ((weight.T == 0).reshape(weight.shape[1], -1, 4).sum(-1) == 2).all()


def test_one_shot_before_the_first_step_takes_the_smallest_of_each_or_of_all(
    tmp_path: Path,
) -> None:
    for scope in ("local", "global"):
        callback = pruning(0.5, schedule="one_shot", scope=scope)
        module, _, look = fit_task(TASK, tmp_path, callback, max_steps=2)
        found = zeros(module)
        # The look stands behind the pruning, and sees the weights that the fit begins with.
        begun = {n: look.before[f"network.{n}"] == 0 for n in found}
        assert all(torch.equal(begun[n], mask) for n, mask in found.items())
        shares = [float(mask.float().mean()) for mask in found.values()]
        assert share(found) == 0.5 and (len(set(shares)) == 1) == (scope == "local")


def test_heads_embeddings_norms_and_biases_are_left_alone(tmp_path: Path) -> None:
    module, _, _ = fit_task("masked_lm", tmp_path, pruning(0.9))
    pruned = prunable_layers(module.network, ["all"])
    for name, parameter in module.network.named_parameters():
        # Fresh biases begin at zero, and unknown words keep theirs at first.
        if parameter.dim() == 2 and name not in pruned:
            assert float((parameter == 0).float().mean()) < 0.02, name
    module, _, _ = fit_task(
        "masked_lm", tmp_path, pruning(0.9, targets=["word_embeddings", "query"])
    )
    assert module.network.get_input_embeddings().weight.eq(0).float().mean() == pytest.approx(
        0.9, abs=1e-3
    )


@pytest.mark.parametrize("criterion", ["magnitude", "movement", "wanda"])
def test_masks_survive_a_save_a_resume_and_three_more_epochs(
    criterion: str, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"max_steps": -1, "module": {"weight_decay": 0.5}}
    data = {"batch_size": 16}
    module, trainer, _ = fit_task(
        TASK, tmp_path, pruning(0.75, criterion), data=data, **settings, max_epochs=2
    )
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    before, state = zeros(module), held_in(tmp_path / "two.ckpt")
    assert all(torch.equal(before[n], mask) for n, mask in state["pruned"].items())
    assert share(before) == pytest.approx(0.75, abs=0.01)
    callback = pruning(0.75, criterion)
    longer, trainer, _ = fit_task(
        TASK,
        tmp_path,
        callback,
        data=data,
        **settings,
        max_epochs=5,
        ckpt_path=tmp_path / "two.ckpt",
    )
    assert trainer.current_epoch == 5
    after = zeros(longer)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not same(module, longer)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_resumed_is_uninterrupted_wherever_it_was_killed(criterion: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"accumulate_grad_batches": 3, "max_steps": 8}
    settings["data"] = {"batch_size": 4}
    places = {2, 7, 8, 12, 17}

    def callback() -> PruningCallback:
        made: PruningCallback = pruning(0.75, criterion, interval=2, calibration_steps=2)
        return made

    save = SaveAt(places, tmp_path)
    # What saves stands before the pruning.
    whole, trainer, _ = fit_task(TASK, tmp_path, save, callback(), **settings)
    trainer.save_checkpoint(tmp_path / "whole.ckpt")
    expected = held_in(tmp_path / "whole.ckpt")
    for place in sorted(places):
        path = tmp_path / f"{place}.ckpt"
        resumed, trainer, _ = fit_task(TASK, tmp_path, callback(), ckpt_path=path, **settings)
        assert same(whole, resumed), place
        trainer.save_checkpoint(tmp_path / "again.ckpt")
        found = held_in(tmp_path / "again.ckpt")
        assert found["updated"] == expected["updated"] == 6
        assert all(torch.equal(expected["pruned"][n], m) for n, m in found["pruned"].items())


@pytest.mark.parametrize("criterion", ["movement", "wanda"])
@pytest.mark.parametrize("strike", ["on_before_backward", "on_before_optimizer_step"])
def test_struck_down_in_a_batch_and_resumed_is_uninterrupted(
    strike: str, criterion: str, tmp_path: Path
) -> None:
    class Strike(Callback):
        """Raises in the middle of a batch, and saves as Lightning's own callbacks then do."""

        def __init__(self) -> None:
            self.seen = 0

        def _strike(self, *_: Any) -> None:
            self.seen += 1
            if self.seen == (3 if strike == "on_before_optimizer_step" else 8):
                raise RuntimeError("struck")

        def on_exception(self, trainer: Trainer, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / "struck.ckpt")

    setattr(Strike, strike, Strike._strike)
    settings: dict[str, Any] = {"accumulate_grad_batches": 3, "max_steps": 8}
    settings["data"] = {"batch_size": 4}

    def callback() -> PruningCallback:
        made: PruningCallback = pruning(0.75, criterion, interval=2, calibration_steps=2)
        return made

    whole, _, _ = fit_task(TASK, tmp_path, callback(), **settings)
    with pytest.raises(RuntimeError, match="struck"):
        fit_task(TASK, tmp_path, callback(), Strike(), **settings)
    path = tmp_path / "struck.ckpt"
    resumed, _, _ = fit_task(TASK, tmp_path, callback(), ckpt_path=path, **settings)
    assert same(whole, resumed)


class SameMasks(RanksAgree):
    """Fails the fit too when the ranks' masks differ."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *args)
        (callback,) = (c for c in trainer.callbacks if isinstance(c, PruningCallback))  # type: ignore[attr-defined]
        masks = torch.cat([mask.flatten() for mask in callback.run.masks.pruned.values()])
        if trainer.world_size > 1:
            theirs = trainer.strategy.all_gather(masks.float())
            assert torch.equal(theirs[0], theirs[1])


def run(folder: Path, criterion: str, devices: int, accumulate: int) -> dict[str, Any]:
    """Fit on eight rows a step, and return what is held of the pruning before the masks settle."""
    seed_everything(5)
    module = BY_NAME["token_classification"].make_module(optimizer=MOMENTUM)
    module.tokenizer = tiny.tokenizer()
    module.configure_model()
    callback = pruning(0.6, criterion, interval=2, end=1.0, calibration_steps=2)
    trainer = make_trainer(
        callback,
        SameMasks(),
        SaveAt({3 * accumulate}, folder),
        devices=devices,
        strategy="ddp_fork" if devices > 1 else "auto",
        max_steps=4,
        accumulate_grad_batches=accumulate,
        limit_val_batches=0,
    )
    rows = 8 // devices // accumulate
    trainer.fit(module, BY_NAME["token_classification"].make_data(folder, batch_size=rows))
    # A row of 16 has 10 of them.
    assert share(zeros(module)) == pytest.approx(0.6, abs=0.5 / 16)
    return held_in(folder / f"{3 * accumulate}.ckpt")


@pytest.mark.skipif(sys.platform != "linux", reason="forks with gloo")
@pytest.mark.parametrize("criterion", ["movement", "soft_movement", "wanda"])
def test_small_batches_and_ranks_choose_by_what_one_large_batch_says(
    criterion: str, tmp_path: Path
) -> None:
    one = run(tmp_path, criterion, 1, 1)
    for devices, accumulate in ((1, 4), (2, 1), (2, 2)):
        several = run(tmp_path, criterion, devices, accumulate)
        if criterion == "wanda":
            # What ranks hold is their mean, and is added up when masks are chosen.
            pairs = [(one["inputs"][n], s * devices) for n, s in several["inputs"].items()]
        else:
            pairs = [(one["scores"][n], scores) for n, scores in several["scores"].items()]
        assert all(first.any() for first, _ in pairs)
        largest = max(float(first.abs().max()) for first, _ in pairs)
        for first, second in pairs:
            assert torch.allclose(first, second, rtol=1e-3, atol=1e-4 * largest)


def test_a_window_of_small_batches_has_the_scores_of_a_large_one_in_bf16(tmp_path: Path) -> None:
    for criterion in ("movement", "wanda"):
        module, _, _ = fit_task(
            TASK,
            tmp_path,
            pruning(0.75, criterion),
            precision="bf16-mixed",
            accumulate_grad_batches=2,
            gradient_clip_val=0.5,
            max_steps=8,
        )
        assert share(zeros(module)) == pytest.approx(0.75, abs=0.01)
        assert all(p.isfinite().all() and p.dtype == torch.float32 for p in module.parameters())


@pytest.mark.parametrize("fused", [False, True])
def test_a_loss_scaler_leaves_the_scores_as_they_are(fused: bool, tmp_path: Path) -> None:
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"fused": fused}}
    found = []
    for scaled in (False, True):
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        plugins = [MixedPrecision("16-mixed", "cpu", scaler)] if scaled else None
        callback, save = pruning(0.5, "movement", end=1.0), SaveAt({3}, tmp_path)
        module = {"optimizer": optimizer}
        fit_task(TASK, tmp_path, callback, save, module=module, plugins=plugins)
        scores = held_in(tmp_path / "3.ckpt")["scores"]
        found.append(torch.cat([each.flatten() for each in scores.values()]))
    # In float16 the gradients have eleven bits.
    assert float((found[0] - found[1]).norm() / found[0].norm()) < 0.05


class Decaying(Foreign):
    """With momentum and decay, which move what is zero."""

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.5)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_module_that_is_not_ours_is_pruned_and_resumes(criterion: str, tmp_path: Path) -> None:
    rows = DataLoader(torch.arange(5, 85).view(16, 5), batch_size=2)

    def fit(*callbacks: Callback, **how: Any) -> Decaying:
        module = Decaying()
        trainer = make_trainer(*callbacks, max_steps=8, accumulate_grad_batches=2, max_epochs=4)
        seed_everything(1)
        for part in module.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
        trainer.fit(module, rows, **how)
        return module

    # Lightning goes on with the right batch only at the end of an epoch.
    whole = fit(pruning(0.75, criterion), SaveAt({8}, tmp_path))
    assert share(zeros(whole)) == pytest.approx(0.75, abs=0.01)
    resumed = fit(pruning(0.75, criterion), ckpt_path=tmp_path / "8.ckpt")
    pairs = zip(whole.parameters(), resumed.parameters(), strict=True)
    assert all(torch.equal(first, second) for first, second in pairs)


def test_a_module_with_its_own_loop_is_pruned_too() -> None:
    class Manual(Decaying):
        automatic_optimization = False

        def training_step(self, batch: Tensor, batch_idx: int) -> None:  # type: ignore[override]
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    look, module = Zeros(), Manual()
    rows = DataLoader(torch.arange(5, 85).view(16, 5), batch_size=2)
    make_trainer(look, pruning(0.75, "movement"), max_steps=8).fit(module, rows)
    planned = [planned_sparsity(step, 0, 6, 0.75) for step in range(1, 9)]
    assert [share(masks) for masks in look.steps] == pytest.approx(planned, abs=0.002)


def test_a_second_fit_begins_anew_and_leaves_nothing_behind(tmp_path: Path) -> None:
    callback = pruning(0.5)
    module, trainer, _ = fit_task(TASK, tmp_path, callback)
    before = zeros(module)
    again = make_trainer(callback, max_steps=3)
    again.fit(module, trainer.datamodule)
    assert all(torch.equal(before[n], mask) for n, mask in zeros(module).items())
    (optimizer,) = again.optimizers
    assert not optimizer._optimizer_step_post_hooks
    # And a fit without the callback lets them grow.
    make_trainer(max_steps=1).fit(module, trainer.datamodule)
    assert share(zeros(module)) < 0.4


def test_it_prunes_what_lora_leaves_frozen_and_a_small_checkpoint_has_the_zeros(
    tmp_path: Path,
) -> None:
    for order in (0, 1):
        both = [pruning(0.5), LoRACallback(rank=2)]
        callbacks = both if order else both[::-1]
        module, trainer, look = fit_on_base(tmp_path, *callbacks, TrainableOnlyCheckpoint())
        names = weights_of(module)
        assert not any("base_layer" in name for name in names) and share(zeros(module)) == 0.5
        kept = {name.removesuffix(".weight"): weight != 0 for name, weight in names.items()}
        for name, before in look.before.items():
            if "query.base_layer.weight" in name:
                where = name.removeprefix("network.").removesuffix(".base_layer.weight")
                now = module.state_dict()[name]
                assert torch.equal(now[kept[where]], before[kept[where]])
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        assert same(lmkit.load(tmp_path / "last.ckpt"), module)


def test_a_frozen_weight_is_kept_even_if_its_zeros_are_in_no_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of a weight with more than 4096 values a hash sees some; here it sees none.
    monkeypatch.setattr("lmkit.modules.frozen_base._sampled", lambda weight: b"")
    callbacks = LoRACallback(rank=2), pruning(0.01), TrainableOnlyCheckpoint()
    module, trainer, _ = fit_on_base(tmp_path, *callbacks)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert not any("embeddings" in key for key in state)
    for name, weight in weights_of(module).items():
        name = f"network.{name}"
        site = name.removesuffix(".weight")
        saved = state.get(name, state.get(f"{site}.base_layer.weight"))
        assert saved is not None and torch.equal(saved, weight)


def test_movement_of_frozen_weights_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'movement' needs gradients, and .* is frozen, as LoRA"):
        fit_on_base(tmp_path, pruning(0.5, "movement"), LoRACallback(rank=2))
    # What is to be unfrozen later is in the optimizer.
    late = pruning(0.5, "movement", start=0.5, end=1.0)
    module, _, _ = fit_on_base(
        tmp_path, late, GradualUnfreezingCallback(0, interval=1), max_steps=6
    )
    assert share(zeros(module)) == 0.5


@pytest.mark.parametrize("first", [True, False])
def test_averages_of_the_weights_have_the_zeros_too(first: bool, tmp_path: Path) -> None:
    both = [pruning(0.75, end=1.0), EMAWeightAveraging(decay=0.9)]
    save = SaveAt({4}, tmp_path)
    module, _, _ = fit_task(
        TASK, tmp_path, *(both if first else both[::-1]), save, max_steps=8, val_check_interval=2
    )
    assert share(zeros(module)) == pytest.approx(0.75, abs=0.002)
    saved = torch.load(tmp_path / "4.ckpt", weights_only=True)
    for name, mask in held_in(tmp_path / "4.ckpt")["pruned"].items():
        for part in ("state_dict", "current_model_state"):
            assert torch.equal(saved[part][f"network.{name}"] == 0, mask)
    assert any(
        not torch.equal(saved["state_dict"][key], saved["current_model_state"][key])
        for key in saved["state_dict"]
    )


def test_the_zeros_are_in_the_export_and_figures_are_logged(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="log")
    callback = pruning(0.75, interval=3)
    module, _, _ = fit_task(
        TASK, tmp_path, callback, logger=logger, max_steps=8, log_every_n_steps=1
    )
    folder = lmkit.export(module, tmp_path / "out")
    plain = BertForSequenceClassification.from_pretrained(folder)
    state = plain.state_dict()
    assert all(torch.equal(state[name] == 0, mask) for name, mask in zeros(module).items())
    assert share(zeros(module)) == 0.75
    logger.save()
    rows = list(csv.DictReader((tmp_path / "log" / "metrics.csv").open()))
    logged = {int(r["step"]): float(r["pruning/sparsity"]) for r in rows if r["pruning/sparsity"]}
    expected = {t: planned_sparsity(t, 0, 6, 0.75) for t in (0, 3, 6)}
    assert logged == pytest.approx(expected, abs=0.002)
    over_all = [float(r["pruning/sparsity_all"]) for r in rows if r["pruning/sparsity_all"]]
    total = sum(p.numel() for p in module.network.parameters())
    nothing = sum(int((p == 0).sum()) for p in module.network.parameters())
    assert over_all[-1] == pytest.approx(nothing / total, abs=0.01) and over_all[0] < 0.1


def test_it_says_once_that_zeros_bring_no_speed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    callback = pruning(0.9)
    with caplog.at_level(logging.INFO):
        module, trainer, _ = fit_task(TASK, tmp_path, callback)
        make_trainer(callback, max_steps=1).fit(module, trainer.datamodule)
    said = [r.message for r in caplog.records if "neither faster nor smaller" in r.message]
    assert len(said) == 1 and "1.00 times as long" in said[0] and "structured pruning" in said[0]
    assert "90.0% of" in said[0] and "merged" not in said[0]
    caplog.clear()
    with caplog.at_level(logging.INFO):
        fit_on_base(tmp_path, LoRACallback(rank=2), pruning(0.5))
    assert any("fill the zeros when they are merged" in r.message for r in caplog.records)


@pytest.mark.parametrize("task", ["seq2seq", "masked_lm", "multiple_choice", "replaced_token"])
def test_inputs_are_measured_on_every_kind_of_batch(task: str, tmp_path: Path) -> None:
    module, _, _ = fit_task(task, tmp_path, pruning(0.5, "wanda"))
    for weight in weights_of(module).values():
        assert ((weight == 0).sum(-1) == weight.shape[-1] // 2).all()


def test_two_callbacks_have_their_own_weights(tmp_path: Path) -> None:
    attention = ["query", "key", "value", "attention_output"]
    callbacks = [
        pruning(0.75, targets=attention),
        pruning(None, "movement", pattern="1:2", targets=["ffn_input", "ffn_output"]),
    ]
    save = SaveAt({2}, tmp_path)
    module, _, _ = fit_task(TASK, tmp_path, *callbacks, save, max_steps=6)
    for name, mask in zeros(module).items():
        assert float(mask.float().mean()) == (0.75 if "attention" in name else 0.5)
    again = [
        pruning(0.75, targets=attention),
        pruning(None, "movement", pattern="1:2", targets=["ffn_input", "ffn_output"]),
    ]
    resumed, _, _ = fit_task(TASK, tmp_path, *again, max_steps=6, ckpt_path=tmp_path / "2.ckpt")
    assert same(module, resumed)
    with pytest.raises(ValueError, match="two callbacks would prune 4 of the same weights"):
        fit_task(TASK, tmp_path, pruning(0.5, targets=["query", "value"]), pruning(0.9))
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `Pruning"):
        fit_task(TASK, tmp_path, pruning(0.5), pruning(0.5))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (pruning(0.9), r"pruned with \{'sparsity': 0.75\}.*callback has\s+\{'sparsity': 0.9\}"),
        (pruning(0.75, targets=["query"]), r"\{'targets': \['all'\]\}.*\{'targets': \['query'\]\}"),
        (pruning(0.75, "random", seed=1), r"'criterion': 'magnitude', 'seed': 0\}"),
    ],
)
def test_a_checkpoint_of_other_arguments_is_refused(
    other: PruningCallback, message: str, tmp_path: Path
) -> None:
    module, trainer, _ = fit_task(TASK, tmp_path, pruning(0.75), SaveAt({2}, tmp_path))
    path = tmp_path / "2.ckpt"
    with pytest.raises(ValueError, match=message):
        fit_task(TASK, tmp_path, other, ckpt_path=path)
    # To look at it is no harm.
    make_trainer(other).validate(module, trainer.datamodule, ckpt_path=path, verbose=False)


def test_what_was_only_looked_at_is_not_taken_up(tmp_path: Path) -> None:
    callback = pruning(0.5)
    module, trainer, _ = fit_task(TASK, tmp_path, callback, SaveAt({4}, tmp_path))
    other = pruning(0.5)
    looking = make_trainer(other)
    looking.validate(module, trainer.datamodule, ckpt_path=tmp_path / "4.ckpt", verbose=False)
    fresh = BY_NAME[TASK].make_module()
    make_trainer(other, max_steps=4).fit(fresh, BY_NAME[TASK].make_data(tmp_path))
    assert other.run.masks.initial == 0.0


def test_weights_with_more_zeros_than_asked_for_are_refused(tmp_path: Path) -> None:
    module, trainer, _ = fit_task(TASK, tmp_path, pruning(0.75))
    with pytest.raises(ValueError, match=r"pruned already, to 75.0% zeros.*ask for more"):
        make_trainer(pruning(0.5), max_steps=2).fit(module, trainer.datamodule)
    before = zeros(module)
    make_trainer(pruning(0.9), max_steps=4).fit(module, trainer.datamodule)
    after = zeros(module)
    assert share(after) == pytest.approx(0.9, abs=0.002)
    assert not any((before[name] & ~after[name]).any() for name in before)


@pytest.mark.parametrize(
    ("callback", "error", "message"),
    [
        (pruning(0.5, targets=["qury"]), NothingMatchedError, r"matches \['qury'\].*query"),
        (pruning(0.5, targets=["LayerNorm"]), NothingMatchedError, "no linear layer"),
        (pruning(None, pattern="1:3"), ValueError, "has 16 inputs, which is no multiple of the 3"),
        (pruning(0.5, "wanda", schedule="one_shot"), ValueError, "'wanda' has seen no inputs"),
        (pruning(0.5, "movement", schedule="one_shot"), ValueError, "has seen no step"),
        (pruning(0.5, "wanda", targets=["word_embeddings"]), ValueError, "is an embedding"),
    ],
)
def test_what_cannot_be_is_said_before_training(
    callback: PruningCallback, error: type[Exception], message: str, tmp_path: Path
) -> None:
    look = Zeros()
    with pytest.raises(error, match=message):
        fit_task(TASK, tmp_path, callback, look)
    assert not look.steps


@pytest.mark.parametrize("targets", ["all", []])
def test_targets_are_a_list(targets: Any) -> None:
    with pytest.raises(ValueError, match="targets must be a list of roles or patterns"):
        PruningCallback(0.5, targets=targets)


def test_ranks_that_hold_parts_of_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(callback := pruning(0.5))
    strategy = FSDPStrategy.__new__(FSDPStrategy)
    monkeypatch.setattr(trainer._accelerator_connector, "strategy", strategy)
    with pytest.raises(ValueError, match="whole weights on each rank, and the strategy is FSDP"):
        callback.setup(trainer, Decaying(), "fit")


def test_a_run_that_is_cut_short_or_has_no_end_is_said(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            trainer.should_stop = True

    with pytest.warns(UserWarning, match=r"ended at step 1, and a sparsity of 75.0% was planned"):
        fit_task(TASK, tmp_path, pruning(0.75), Stop(), max_steps=8)
    with pytest.raises(ValueError, match="needs to know how long the run is; set max_steps"):
        endless = {"max_steps": -1, "max_epochs": -1, "module": {"schedule": "constant"}}
        fit_task(TASK, tmp_path, pruning(0.75), **endless)
