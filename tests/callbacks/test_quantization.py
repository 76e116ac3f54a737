"""A fit learns to be rounded and goes on as it was; after it weights become whole numbers."""

from __future__ import annotations

import copy
import csv
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

import lmkit
from lmkit.callbacks.calibration import training_batches
from lmkit.callbacks.checkpoint import CheckpointCallback
from lmkit.callbacks.export import ExportCallback
from lmkit.callbacks.lora import LoRACallback
from lmkit.callbacks.low_rank import LowRankCallback
from lmkit.callbacks.pruning import PruningCallback
from lmkit.callbacks.quantization import QuantizationCallback
from lmkit.callbacks.trainable_only import TrainableOnlyCheckpoint
from lmkit.modules import LMModule
from lmkit.surgery import NothingMatchedError
from lmkit.surgery.quantization_conversion import (
    convert,
    fake_quantized_layers,
    quantized_layers,
)
from tests import tiny
from tests.callbacks.fitted import BY_NAME, SaveAt, fit_task, moved, same
from tests.callbacks.foreign import Foreign, foreign_rows
from tests.callbacks.tuned import Watch, fit, logits, make_data, make_module
from tests.cases import make_trainer, weights

TASKS = (
    "masked_lm",
    "causal_lm",
    "denoising",
    "replaced_token",
    "sequence_classification",
    "regression",
    "token_classification",
    "question_answering",
    "multiple_choice",
    "seq2seq",
    "distillation",
)
AFTER = ("dynamic", "weight_only", "static")


def whole(module: LMModule) -> nn.Module:
    """Return a copy of a network in whole numbers, in evaluation mode."""
    network = copy.deepcopy(module.network).eval()
    convert(network)
    return network


def validated(module: LMModule, trainer: Trainer) -> Any:
    return make_trainer().validate(module, trainer.datamodule, verbose=False)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_learns_to_be_rounded_and_its_checkpoint_loads_alone(
    task: str, tmp_path: Path
) -> None:
    callback = QuantizationCallback(smooth=0.5, sensitivity=1, calibration_batches=2)
    module, trainer, look = fit_task(task, tmp_path, callback)
    layers = fake_quantized_layers(module.network)
    assert len(layers) >= 8 and not look.asleep
    learned = moved(module, look)
    known = {
        base
        for base in (f"network.{name}.weight" for name in layers)
        if base in module.state_dict()
    }
    # Of queries and keys one row may have no gradient, and tied weights are named once.
    assert len(known - learned) <= 4
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    torch.load(tmp_path / "last.ckpt", weights_only=True)
    loaded = lmkit.load(tmp_path / "last.ckpt")
    assert same(loaded, module) and loaded.ledger == module.ledger
    found = validated(loaded, trainer)
    convert(loaded.network)
    # What was trained is what whole numbers compute, to the last digit of each metric.
    assert validated(loaded, trainer) == found and quantized_layers(loaded.network)


@pytest.mark.parametrize("method", AFTER)
@pytest.mark.parametrize("task", ["masked_lm", "replaced_token", "seq2seq", "token_classification"])
def test_after_a_fit_weights_are_whole_numbers_and_the_checkpoint_loads_alone(
    task: str, method: Any, tmp_path: Path
) -> None:
    callback = QuantizationCallback(method, calibration_batches=2)
    module, trainer, look = fit_task(task, tmp_path, callback)
    assert len(quantized_layers(module.network)) >= 10 and not look.asleep
    assert [spec["class_path"].rpartition(".")[2] for spec in module.ledger] == ["Quantize"]
    found = validated(module, trainer)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = lmkit.load(tmp_path / "last.ckpt")
    assert same(loaded, module) and validated(loaded, trainer) == found
    plain, trainer, _ = fit_task(task, tmp_path)
    (before,), (after,) = validated(plain, trainer), found
    assert after["val/loss"] == pytest.approx(before["val/loss"], rel=0.1)
    assert after["val/loss"] != before["val/loss"]


def test_ranges_are_those_of_the_first_training_batches(tmp_path: Path) -> None:
    module, _ = fit(tmp_path, QuantizationCallback("static", calibration_batches=99), max_steps=2)
    plain, trainer = fit(tmp_path, max_steps=2)
    name = "bert.encoder.layer.0.intermediate.dense"
    layer = module.network.get_submodule(name)
    lows, highs = [], []

    def see(_: Any, read: Any) -> None:
        seen.append(read[0])

    plain.network.get_submodule(name).register_forward_pre_hook(see)
    plain.eval()
    for batch in training_batches(trainer, 99):
        seen: list[Tensor] = []
        with torch.no_grad():
            plain.step(batch)
        real = seen[0][batch["attention_mask"].bool()]
        lows.append(real.amin(0))
        highs.append(real.amax(0))
    low, high = torch.stack(lows).amin(), torch.stack(highs).amax()
    step = (high.clamp_min(0) - low.clamp_max(0)) / 255
    assert layer.input_scale.item() == pytest.approx(step.item(), rel=1e-5)
    assert layer.input_zero_point.item() == pytest.approx((-low / step).round().item(), abs=1)


@pytest.mark.parametrize("settings", [{}, {"activations": "per_tensor", "smooth": 0.5}])
@pytest.mark.parametrize("place", [1, 2, 7, 14])
def test_resumed_is_uninterrupted_and_nothing_is_decided_again(
    settings: dict[str, Any], place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how: dict[str, Any] = {"accumulate_grad_batches": 3, "max_steps": 8, "data": {"batch_size": 4}}

    def callback() -> QuantizationCallback:
        return QuantizationCallback(sensitivity=2, calibration_batches=2, **settings)

    task = "sequence_classification"
    first, _, _ = fit_task(task, tmp_path, callback(), SaveAt({place}, tmp_path), **how)
    monkeypatch.delattr("lmkit.callbacks.quantization_plan.scan")
    monkeypatch.delattr("lmkit.callbacks.quantization_plan.gather_ranges")
    path = tmp_path / f"{place}.ckpt"
    resumed, _, _ = fit_task(task, tmp_path, callback(), ckpt_path=path, **how)
    assert same(first, resumed) and first.ledger == resumed.ledger


def test_a_run_goes_on_with_the_arguments_it_had(tmp_path: Path) -> None:
    _, trainer = fit(tmp_path, QuantizationCallback(), max_steps=2)
    trainer.save_checkpoint(tmp_path / "rounded.ckpt")
    _, trainer = fit(tmp_path, max_steps=2)
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    other = QuantizationCallback(activations=None)
    with pytest.raises(
        ValueError, match=r"with activations='per_token', and .* has activations=None: give"
    ):
        fit(tmp_path, other, max_steps=4, ckpt_path=tmp_path / "rounded.ckpt")
    with pytest.raises(
        ValueError, match=r"was not trained to be quantized.*start anew from an exp"
    ):
        fit(tmp_path, other, max_steps=4, ckpt_path=tmp_path / "plain.ckpt")


@pytest.mark.parametrize("with_callback", [True, False])
def test_a_checkpoint_is_validated_with_and_without_the_callback(
    with_callback: bool, tmp_path: Path
) -> None:
    module, trainer = fit(tmp_path, QuantizationCallback(), max_steps=2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    callbacks = [QuantizationCallback()] if with_callback else []
    fresh = make_module(tmp_path)
    found = make_trainer(*callbacks).validate(
        fresh, make_data(tmp_path), ckpt_path=tmp_path / "last.ckpt", verbose=False
    )
    assert found == validated(module, trainer) and fresh.ledger == module.ledger


def test_a_fit_of_a_loaded_module_with_the_same_callback_changes_nothing(tmp_path: Path) -> None:
    module, trainer = fit(tmp_path, QuantizationCallback(smooth=0.5), max_steps=2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded, watch = lmkit.load(tmp_path / "last.ckpt"), Watch()
    fit(tmp_path, QuantizationCallback(smooth=0.5), watch, module=loaded, max_steps=1)
    assert loaded.ledger == module.ledger
    assert all(torch.equal(t, watch.started[n]) for n, t in weights(module).items())


class Awake(Callback):
    """Notes whether a part of the network is in train mode while it is used."""

    def __init__(self) -> None:
        self.seen: set[bool] = set()

    def look(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.seen.add(any(part.training for part in pl_module.network.modules()))

    on_validation_batch_start = on_test_batch_start = on_predict_batch_start = look


@pytest.mark.parametrize("method", ["dynamic", "weight_only"])
@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_what_needs_no_data_is_done_when_a_network_is_used(
    method: Any, stage: str, tmp_path: Path
) -> None:
    plain, trainer = fit(tmp_path, max_steps=2)
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    expected = fit(tmp_path, QuantizationCallback(method), max_steps=2)[0]
    # Rows to predict on do not say which classes there are.
    paths = [None] if stage == "predict" else [None, tmp_path / "plain.ckpt"]
    for ckpt_path in paths:
        module = make_module(tmp_path) if ckpt_path else copy.deepcopy(plain)
        data = make_data(tmp_path, predict_file=str(tmp_path / "ask.txt"))
        (tmp_path / "ask.txt").write_text("the quick fox\n")
        awake = Awake()
        run = getattr(make_trainer(QuantizationCallback(method), awake), stage)
        run(module, data, ckpt_path=ckpt_path)
        assert same(module, expected) and module.ledger == expected.ledger
        assert awake.seen == {False}


def test_what_needs_data_takes_those_of_the_data_module_or_says_where_they_come_from(
    tmp_path: Path,
) -> None:
    module, data = make_module(tmp_path), make_data(tmp_path)
    make_trainer().validate(module, data, verbose=False)
    rows = data.val_dataloader()
    for settings in ({"method": "static"}, {"method": "dynamic", "smooth": 0.5}):
        callback = QuantizationCallback(**settings)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"looks at training batches.*max_steps=0 is enough"):
            make_trainer(callback).test(module, rows, verbose=False)
        assert module.ledger == []
        by_test, by_fit = copy.deepcopy(module), copy.deepcopy(module)
        awake = Awake()
        make_trainer(callback, awake).test(by_test, make_data(tmp_path), verbose=False)
        make_trainer(callback, max_steps=0).fit(by_fit, make_data(tmp_path))
        assert same(by_test, by_fit) and quantized_layers(by_fit.network)
        assert awake.seen == {False}


def test_the_best_checkpoint_of_before_is_quantized_when_it_is_tested(tmp_path: Path) -> None:
    callback = QuantizationCallback("static", calibration_batches=3)
    save = SaveAt({1}, tmp_path)
    seed_everything(7)
    module, data = make_module(tmp_path), make_data(tmp_path)
    trainer = make_trainer(callback, save, max_steps=4)
    trainer.fit(module, data)
    last = weights(module)
    (found,) = trainer.test(module, data, ckpt_path=tmp_path / "1.ckpt", verbose=False)
    assert quantized_layers(module.network) and len(module.ledger) == 1
    assert any(not torch.equal(last[name], t) for name, t in weights(module).items())
    # It is what the first step alone would have become.
    plain = lmkit.load(tmp_path / "1.ckpt")
    trainer = make_trainer(QuantizationCallback("static", calibration_batches=3), max_steps=0)
    trainer.fit(plain, data)
    assert same(module, plain)
    assert trainer.test(plain, data, verbose=False) == [found]


def test_whole_numbers_are_written_beside_the_other_checkpoints(tmp_path: Path) -> None:
    for steps in (0, 2):
        keep = CheckpointCallback(dirpath=str(tmp_path / f"kept{steps}"))
        callback = QuantizationCallback("static", calibration_batches=2)
        module, trainer = fit(tmp_path, callback, keep, max_steps=steps)
        path = tmp_path / f"kept{steps}" / "quantized.ckpt"
        assert same(lmkit.load(path), module) and quantized_layers(module.network)
        assert "optimizer_states" not in torch.load(path, weights_only=True)
        if steps:
            last = lmkit.load(tmp_path / "kept2" / "last.ckpt")
            assert last.ledger == [] and not quantized_layers(last.network)
        (found,) = make_trainer(callback).test(
            make_module(tmp_path), make_data(tmp_path), ckpt_path=path, verbose=False
        )
        assert found == trainer.test(module, make_data(tmp_path), verbose=False)[0]


def test_whole_numbers_are_not_trained(tmp_path: Path) -> None:
    module, trainer = fit(tmp_path, QuantizationCallback("dynamic"), max_steps=2)
    trainer.save_checkpoint(tmp_path / "whole.ckpt")
    message = r"quantized already.*whole numbers do not learn"
    with pytest.raises(ValueError, match=f"the network is {message}.*before the fit had ended"):
        fit(tmp_path, QuantizationCallback("dynamic"), module=module, max_steps=4)
    with pytest.raises(ValueError, match=f"the checkpoint to go on from is {message}"):
        path = tmp_path / "whole.ckpt"
        fit(tmp_path, QuantizationCallback("dynamic"), max_steps=4, ckpt_path=path)
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, QuantizationCallback(), module=module, max_steps=4)
    with pytest.raises(
        ValueError, match=r"is quantized already, with 8 bits.*this asks for 8 bits"
    ):
        make_trainer(QuantizationCallback("weight_only")).test(module, trainer.datamodule)


@pytest.mark.parametrize("first", ["quantization", "lora"])
def test_it_goes_with_lora_in_either_order_and_resumes(first: str, tmp_path: Path) -> None:
    def callbacks() -> list[Callback]:
        made = [QuantizationCallback(), LoRACallback(rank=2, targets=["all"])]
        return made if first == "quantization" else made[::-1]

    task, settings = "sequence_classification", {"max_steps": 6}
    module, trainer, look = fit_task(
        task, tmp_path, *callbacks(), SaveAt({2}, tmp_path), **settings
    )
    changed = moved(module, look)
    assert changed and all("lora" in name or "classifier" in name for name in changed)
    path = tmp_path / "2.ckpt"
    resumed, _, _ = fit_task(task, tmp_path, *callbacks(), ckpt_path=path, **settings)
    assert same(module, resumed) and module.ledger == resumed.ledger
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert same(lmkit.load(tmp_path / "last.ckpt"), module)
    # Merged, the adapters are added to the rounded weights beside which they have learned.
    merged = lmkit.load(lmkit.export(module, tmp_path / "out", merge=True))
    name = "bert.encoder.layer.0.attention.self.query"
    layer: Any = module.network.get_submodule(name)
    delta = layer.get_delta_weight("default")
    expected = layer.base_layer.rounded() + delta
    assert (merged.network.get_submodule(name).weight - expected).abs().max() < 1e-6
    with pytest.raises(ValueError, match="has the adapters default"):
        lmkit.export(module, tmp_path / "no")


def test_pruned_weights_stay_zero_in_whole_numbers(tmp_path: Path) -> None:
    callbacks = QuantizationCallback(), PruningCallback(0.5, start=0.0, interval=1)
    module, _, _ = fit_task("sequence_classification", tmp_path, *callbacks)
    layers = quantized_layers(whole(module))
    for name, layer in layers.items():
        if not isinstance(layer, nn.Embedding):
            zeros = module.network.get_submodule(name).weight == 0
            assert zeros.float().mean() == pytest.approx(0.5, abs=0.01)
            assert not layer.whole()[zeros].any()


@pytest.mark.parametrize("first", ["quantization", "low_rank"])
def test_low_rank_layers_are_refused(first: str, tmp_path: Path) -> None:
    made = [QuantizationCallback(), LowRankCallback(parameters=0.6)]
    callbacks = made if first == "quantization" else made[::-1]
    with pytest.raises(ValueError, match=r"is a product of rank|is a FakeQuantizedLinear"):
        fit(tmp_path, *callbacks, max_steps=2)


def test_it_learns_with_averaged_weights_in_bf16_and_accumulates(tmp_path: Path) -> None:
    module, trainer, _ = fit_task(
        "masked_lm",
        tmp_path,
        QuantizationCallback(),
        EMAWeightAveraging(decay=0.5),
        precision="bf16-mixed",
        accumulate_grad_batches=2,
        gradient_clip_val=0.5,
    )
    assert all(p.isfinite().all() and p.dtype == torch.float32 for p in module.parameters())
    trainer.save_checkpoint(tmp_path / "ema.ckpt")
    assert set(lmkit.load(tmp_path / "ema.ckpt").state_dict()) == set(module.state_dict())
    converted = whole(module)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(logits(converted), logits(module.network))


def test_a_small_checkpoint_over_rounded_layers(tmp_path: Path) -> None:
    callbacks = [QuantizationCallback(), LoRACallback(rank=2), TrainableOnlyCheckpoint()]
    module, trainer = fit(tmp_path, *callbacks, max_steps=2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["lmkit"]["left_out"]
    assert same(lmkit.load(tmp_path / "last.ckpt"), module)


class RanksAgree(Callback):
    """Fails where two processes differ in structure or weights; writes a checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        for part in pl_module.network.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.world_size > 1:
            own = [t.detach().double().flatten() for t in pl_module.state_dict().values()]
            theirs = trainer.strategy.all_gather(torch.cat(own))
            assert torch.equal(theirs[0], theirs[1])
            assert pl_module.ledger == trainer.strategy.broadcast(pl_module.ledger)
        trainer.save_checkpoint(self.path)


@pytest.mark.skipif(sys.platform != "linux", reason="forks with gloo")
@pytest.mark.filterwarnings("ignore:the fit ran in processes of its own")
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("qat", {"activations": None, "sensitivity": 3}),
        ("qat", {"activations": "per_token", "smooth": 0.5}),
        ("static", {"smooth": 0.5, "sensitivity": 3}),
    ],
)
def test_two_ranks_choose_what_one_process_does(
    method: Any, settings: dict[str, Any], tmp_path: Path
) -> None:
    case, loaded = BY_NAME["token_classification"], []
    start = case.make_module()
    start.tokenizer = tiny.tokenizer()
    base = str(lmkit.export(start, tmp_path / "base"))
    for devices in (1, 2):
        seed_everything(5)
        how = {"learning_rate": 1e-2, "warmup": 0, "optimizer": {"class_path": "torch.optim.SGD"}}
        trainer = make_trainer(
            QuantizationCallback(method, **settings),
            RanksAgree(tmp_path / f"{devices}.ckpt"),
            devices=devices,
            strategy="ddp_fork" if devices > 1 else "auto",
            max_steps=3,
        )
        data = case.make_data(tmp_path, batch_size=8 // devices)
        trainer.fit(case.module(base, **how), data)
        loaded.append(lmkit.load(tmp_path / f"{devices}.ckpt"))
    ours, theirs = (weights(module) for module in loaded)
    assert ours.keys() == theirs.keys()
    for name in ours:
        # Of whole numbers one in a hundred may fall to the other side.
        whole = ours[name].dtype == torch.int8
        gaps = (ours[name].double() - theirs[name].double()).abs()
        assert gaps.max() <= (1 if whole else 1e-4), name
        assert not whole or (gaps > 0).double().mean() < 0.01, name


def test_the_worst_layers_are_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    logger = CSVLogger(tmp_path, name="", version="log")
    callback = QuantizationCallback(sensitivity=3, calibration_batches=2)
    module, _ = fit(tmp_path, callback, max_steps=2, logger=logger, log_every_n_steps=1)
    logger.save()
    (row,) = [
        row
        for row in csv.DictReader((tmp_path / "log" / "metrics.csv").open())
        if row.get("quantization/layers")
    ]
    start = "quantization/sensitivity/"
    scores = {k.removeprefix(start): float(v) for k, v in row.items() if k.startswith(start)}
    everything = scores.pop("all")
    assert len(scores) == 13 and row["quantization/layers"] == "10.0" and everything > 0
    worst = sorted(scores, key=lambda name: -scores[name])[:3]
    assert not set(worst) & set(fake_quantized_layers(module.network))
    assert len(fake_quantized_layers(module.network)) == 10
    assert module.ledger[0]["init_args"]["exclude"] == worst
    (said,) = [record.message for record in caplog.records if "divergence" in record.message]
    assert [line.split()[0] for line in said.splitlines() if "left out" in line] == worst
    assert "QuantizationCallback: 10 layers round while they learn (8 bits, inputs per_tok" in said


def test_an_export_is_written_in_whole_numbers(tmp_path: Path) -> None:
    export = ExportCallback(str(tmp_path / "small"), weights="last")
    for method in ("qat", "static"):
        module, _ = fit(tmp_path, QuantizationCallback(method), export, max_steps=2)
        loaded = lmkit.load(tmp_path / "small")
        assert quantized_layers(loaded.network)
        assert torch.equal(logits(loaded.network), logits(module.network))
    # A callback that asks for what plain transformers loads is told before the training.
    plain = ExportCallback(str(tmp_path / "plain"), plain=True)
    with pytest.raises(ValueError, match=r"cannot express this structure.*changed by Quantize"):
        fit(tmp_path, QuantizationCallback(), plain, max_steps=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "int8"}, "method must be one of qat, dynamic, weight_only, static"),
        ({"bits": 2}, "bits must be 8 or 4, got 2"),
        ({"method": "dynamic", "activations": None}, "method='dynamic' rounds what layers read"),
        ({"activations": "static"}, "activations must be one of None, per_token, per_tensor"),
        ({"targets": [], "embeddings": False}, "targets must name linear layers"),
        ({"sensitivity": -1}, "sensitivity must be at least 0"),
        ({"sensitivity": 1.0}, r"sensitivity must be a share in \[0, 1\)"),
        ({"sensitivity": True}, "sensitivity must be a whole number"),
        ({"smooth": 2.0}, r"smooth must lie in \[0, 1\]"),
        ({"smooth": 0.5, "activations": None}, "smooth eases the rounding of what layers read"),
        ({"method": "weight_only", "smooth": 0.5}, "smooth eases the rounding"),
        ({"calibration_batches": 0}, "calibration_batches must be at least 1"),
        ({"group_size": -2}, "group_size must be at least 0"),
    ],
)
def test_settings_outside_their_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantizationCallback(**settings)


def test_what_cannot_be_done_is_refused_before_training(tmp_path: Path) -> None:
    for settings, error, message in (
        ({"targets": ["quary"]}, NothingMatchedError, r"nearest names.*query"),
        ({"exclude": ["classifier"]}, NothingMatchedError, "in which there is no layer"),
        ({"sensitivity": 13}, ValueError, "would leave all 13 layers out"),
        ({"bits": 4}, ValueError, "cannot be quantized: group_size is 32, which does not divide"),
    ):
        module = make_module(tmp_path)
        with pytest.raises(error, match=message):
            fit(tmp_path, QuantizationCallback(**settings), module=module)  # type: ignore[arg-type]
        assert module.ledger == [] and not fake_quantized_layers(module.network)


def test_no_batches_to_calibrate_on_are_told(tmp_path: Path) -> None:
    for settings, message in (
        ({"method": "static"}, r"the 0 training batches.*take method='dynamic' without smooth"),
        ({"method": "dynamic", "sensitivity": 2}, "there are no training batches with anything"),
    ):
        with pytest.raises(ValueError, match=message):
            callback = QuantizationCallback(**settings)  # type: ignore[arg-type]
            fit(tmp_path, callback, max_steps=1, limit_train_batches=0)


def test_a_module_that_is_not_ours_is_quantized_where_no_data_are_needed() -> None:
    rows = foreign_rows()
    with pytest.raises(TypeError, match="Foreign is none: leave these out"):
        make_trainer(QuantizationCallback(sensitivity=1)).fit(Foreign(), rows)
    module, callback = Foreign(), QuantizationCallback()
    for _ in range(2):
        make_trainer(callback, max_steps=4).fit(module, rows)
    assert len(fake_quantized_layers(module.net)) == 13
    after = Foreign()
    make_trainer(QuantizationCallback("weight_only"), max_steps=2).fit(after, rows)
    assert len(quantized_layers(after.net)) == 13
