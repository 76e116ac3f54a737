"""A fit trains LoRA on every task, and AdaLoRA's ranks come down to what was asked for."""

from __future__ import annotations

import csv
import inspect
import math
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from transformers import BertModel

import lmkit
from lmkit.callbacks import TrainableOnlyCheckpoint
from lmkit.callbacks.lora import LoRACallback
from lmkit.callbacks.rank_schedule import OrthogonalityPenalty
from lmkit.modules import LMModule
from lmkit.surgery.lora import LoRA
from lmkit.surgery.lora_variants import triplets
from lmkit.surgery.sites import base_name
from lmkit.surgery.tuning import head_parameters
from tests import test_ddp
from tests.callbacks.fitted import (
    BY_NAME,
    TASKS,
    SaveAt,
    fit_on_base,
    fit_task,
    moved,
    same,
)
from tests.callbacks.foreign import Foreign, foreign_rows
from tests.cases import make_trainer, weights

pytest.importorskip("peft", reason="LoRA needs the extra peft")


def ada(name: str = "default", **settings: Any) -> LoRACallback:
    """Make an AdaLoRA of 4 ranks that come down to 2, chosen anew at each step."""
    defaults: dict[str, Any] = {"rank": 2, "initial_rank": 4, "rank_interval": 1}
    return LoRACallback(name, variant="adalora", **{**defaults, **settings})


def ranks(module: LMModule, name: str = "default") -> list[int]:
    return [int(t.values.count_nonzero()) for t in triplets(module.network, name).values()]


@pytest.mark.parametrize(
    ("task", "variant"),
    [*((task, "lora") for task in TASKS), ("causal_lm", "adalora"), ("seq2seq", "adalora")],
)
def test_adapter_and_head_learn_and_nothing_else_moves(
    task: str, variant: str, tmp_path: Path
) -> None:
    callback = ada() if variant == "adalora" else LoRACallback(rank=2, targets=["all"], dropout=0.1)
    module, trainer, look = fit_task(task, tmp_path, callback)
    learned = moved(module, look)
    head = {f"network.{name}" for name in head_parameters(module.network)}
    adapter = {name for name in look.before if "lora_" in name}
    # All ranks of a matrix may have been dropped.
    sure = {name for name in adapter if "lora_E" not in name}
    assert sure <= learned <= adapter | head and bool(head) == bool(learned & head)
    assert not look.asleep
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = lmkit.load(tmp_path / "last.ckpt")
    assert same(loaded, module)
    (found,) = make_trainer().validate(loaded, trainer.datamodule, verbose=False)
    assert [found] == make_trainer().validate(module, trainer.datamodule, verbose=False)
    assert math.isfinite(found["val/loss"])


@pytest.mark.parametrize("variant", ["lora", "dora", "pissa", "adalora"])
def test_a_small_checkpoint_loads_alone_and_the_base_is_as_it_was(
    tmp_path: Path, variant: Any
) -> None:
    callbacks = LoRACallback(variant=variant, rank=2), TrainableOnlyCheckpoint()
    module, trainer, look = fit_on_base(tmp_path, *callbacks)
    plain = BertModel.from_pretrained(tmp_path / "base").state_dict()
    adapted = {f"{name}.weight" for name in ("query", "value")}
    for name, tensor in module.network.state_dict().items():
        original = base_name(name).removeprefix("bert.")
        if original in plain and not original.startswith("pooler"):
            assert torch.equal(tensor, look.before[f"network.{name}"])
            taken_apart = variant in ("pissa", "olora") and original.endswith(tuple(adapted))
            assert torch.equal(tensor, plain[original]) != taken_apart, name
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert not any("base_layer" in key or "embeddings" in key for key in kept)
    assert sum(t.nbytes for t in kept.values()) < 0.2 * sum(t.nbytes for t in plain.values())
    loaded = lmkit.load(tmp_path / "last.ckpt")
    assert same(loaded, module)


@pytest.mark.parametrize("variant", ["dora", "pissa", "adalora"])
def test_it_learns_with_averaged_weights_in_bf16_and_accumulates(
    variant: Any, tmp_path: Path
) -> None:
    callback = LoRACallback(variant=variant, rank=2, dropout=0.1)
    module, _, look = fit_on_base(
        tmp_path,
        callback,
        EMAWeightAveraging(decay=0.5),
        precision="bf16-mixed",
        accumulate_grad_batches=2,
        gradient_clip_val=0.5,
    )
    factors = {name for name in look.before if "lora_A" in name or "lora_B" in name}
    assert factors <= moved(module, look)
    assert all(p.isfinite().all() for p in module.parameters())
    assert not module.objective_wrappers


def test_the_ranks_come_down_to_the_target_and_are_logged(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="log")
    callback = ada(targets=["all"], rank_warmup=0.2, rank_settling=0.3)
    module, _, _ = fit_on_base(tmp_path, callback, max_steps=10, logger=logger, log_every_n_steps=1)
    assert sum(ranks(module)) == 2 * len(ranks(module)) == 2 * 12
    assert len(set(ranks(module))) > 1
    logger.save()
    rows = list(csv.DictReader((tmp_path / "log" / "metrics.csv").open()))
    logged = {int(r["step"]): float(r["lora/rank"]) for r in rows if r.get("lora/rank")}
    # b(t) of 12 matrices, t_i = 2 and T - t_f = 7, from 48 to 24.
    cubic = {t: int(24 + 24 * (1 - (t - 2) / 5) ** 3) / 12 for t in range(3, 8)}
    expected = {0: 4.0} | cubic
    assert logged == {t: expected[t] for t in logged} and logged[max(logged)] == 2.0
    assert len(logged) == len(set(expected.values()))
    assert any(r.get("lora/orthogonality") for r in rows)
    assert any(r.get("lora/trainable_parameters") for r in rows)


@pytest.mark.parametrize("place", [1, 3, 6, 11])
def test_resumed_is_uninterrupted_in_every_phase_of_the_ranks(place: int, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"accumulate_grad_batches": 2, "max_steps": 8}
    settings["data"] = {"batch_size": 4}

    def callback() -> LoRACallback:
        return ada(dropout=0.1, rank_warmup=0.2, rank_settling=0.4)

    task = "sequence_classification"
    whole, _, _ = fit_task(task, tmp_path, callback(), SaveAt({place}, tmp_path), **settings)
    path = tmp_path / f"{place}.ckpt"
    saved = torch.load(path, weights_only=True)["callbacks"]
    (state,) = (state for key, state in saved.items() if "LoRACallback" in key)
    assert bool(state["sensitivity"].any()) == (place > 1)
    resumed, _, _ = fit_task(task, tmp_path, callback(), ckpt_path=path, **settings)
    assert same(whole, resumed)


def run(folder: Path, devices: int, accumulate: int, callback: LoRACallback) -> LMModule:
    case = replace(BY_NAME["token_classification"], callbacks=lambda: [callback])
    return test_ddp.run(case, folder, devices, accumulate)[0]


@pytest.mark.parametrize(
    ("variant", "devices", "accumulate"),
    [("dora", 2, 1), ("pissa", 2, 1), ("adalora", 1, 4), ("adalora", 2, 1), ("adalora", 2, 2)],
)
@pytest.mark.skipif(sys.platform != "linux", reason="forks with gloo")
def test_small_batches_and_ranks_are_one_large_batch(
    variant: Any, devices: int, accumulate: int, tmp_path: Path
) -> None:
    def callback() -> LoRACallback:
        if variant != "adalora":
            return LoRACallback(variant=variant, rank=2, targets=["all"])
        return ada(rank_warmup=0.25, rank_settling=0.25, orthogonality=20.0)

    one, several = (run(tmp_path, *how, callback()) for how in ((1, 1), (devices, accumulate)))
    first, second = weights(one), weights(several)
    for name in first:
        assert torch.allclose(first[name], second[name], atol=1e-5), name
    if variant == "adalora":
        assert ranks(one) == ranks(several) and sum(ranks(one)) == 2 * len(ranks(one))


def test_the_importance_of_a_window_is_that_of_one_large_batch(tmp_path: Path) -> None:
    states = []
    for accumulate in (1, 4):
        callback = ada(orthogonality=0.5)
        run(tmp_path, 1, accumulate, callback)
        assert callback.schedule is not None
        states.append(callback.schedule.state_dict())
    for key in ("sensitivity", "uncertainty"):
        one, several = (state[key] for state in states)
        assert one.any() and torch.allclose(one, several, rtol=1e-3, atol=1e-3 * float(one.max()))


def test_the_penalty_is_in_the_loss_of_training_alone(tmp_path: Path) -> None:
    losses = []
    for coefficient in (0.0, 0.5):
        callback = ada(orthogonality=coefficient)
        module, trainer, look = fit_on_base(tmp_path, callback, max_steps=1)
        losses.append(float(trainer.callback_metrics["train/loss"]))
    gaps = []
    for name, weight in look.before.items():
        if "lora_A" in name or "lora_B" in name:
            gram = weight @ weight.T if "lora_A" in name else weight.T @ weight
            gaps.append((gram - torch.eye(4)).square().sum().sqrt())
    expected = 0.5 * float(torch.stack(gaps).mean())
    assert losses[1] - losses[0] == pytest.approx(expected, abs=1e-5)
    assert len(gaps) == 8 and not module.objective_wrappers
    batch = next(iter(trainer.datamodule.val_dataloader()))
    penalty = OrthogonalityPenalty(module.network, "default", 0.5)
    none = module.step(batch)._replace(items=torch.zeros(()), loss=torch.zeros(()))
    assert penalty(lambda _: none, batch).loss == 0


def test_adapters_of_two_names_have_schedules_of_their_own(tmp_path: Path) -> None:
    callbacks = ada("a"), ada("b", rank=1, initial_rank=3, targets=["key"])
    module, _, look = fit_task("sequence_classification", tmp_path, *callbacks)
    assert {name for name in look.before if "lora_A" in name} <= moved(module, look)
    assert sum(ranks(module, "a")) == 2 * 4 and sum(ranks(module, "b")) == 1 * 2


def test_a_run_that_is_cut_short_or_has_no_end_is_said(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            trainer.should_stop = True

    with pytest.warns(UserWarning, match=r"ended at step 1, before the ranks.*has 2.50 on average"):
        fit_task("sequence_classification", tmp_path, ada(), Stop())
    with pytest.raises(ValueError, match=r"needs to know how long that is; set\s+max_steps"):
        fit_task(
            "sequence_classification",
            tmp_path,
            ada(),
            max_steps=-1,
            max_epochs=-1,
            module={"schedule": "constant"},
        )


def test_the_arguments_are_those_of_the_surgery() -> None:
    arguments = inspect.signature(LoRACallback.__init__).parameters
    own = [field.name for field in fields(LoRA)]
    assert list(arguments)[1 : 1 + len(own)] == own
    assert LoRACallback().surgery == LoRA() and LoRACallback().schedule is None
    settings: dict[str, Any] = {
        "name": "a",
        "targets": ["fc2"],
        "rank": 3,
        "alpha": 2.0,
        "dropout": 0.5,
        "variant": "adalora",
        "initial_rank": 7,
        "head": False,
    }
    assert LoRACallback(**settings).surgery == LoRA(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank_warmup": 0.6, "rank_settling": 0.4}, "leave a part of it"),
        ({"rank_settling": -0.1}, "leave a part of it"),
        ({"rank_interval": 0}, "rank_interval must be at least 1"),
        ({"beta1": 1.0}, "beta1 must lie in"),
        ({"beta2": -0.1}, "beta2 must lie in"),
        ({"orthogonality": -1.0}, "orthogonality must be at least 0"),
    ],
)
def test_settings_outside_their_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ada(**settings)


def test_a_module_that_is_not_ours_is_adapted_too() -> None:
    rows = foreign_rows()
    with pytest.raises(TypeError, match=r"Foreign is none; set\s+orthogonality=0"):
        make_trainer(ada()).fit(Foreign(), rows)
    module, callback = Foreign(), ada(orthogonality=0.0)
    for _ in range(2):
        make_trainer(callback, max_steps=4).fit(module, rows)
    kept = [int(t.values.count_nonzero()) for t in triplets(module, "default").values()]
    assert len(kept) == 4 and sum(kept) == 8
    assert module.net.classifier.weight.requires_grad
