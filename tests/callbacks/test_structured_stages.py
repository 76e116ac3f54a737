"""What goes at once, with whom it goes, what is refused, and that ranks agree."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification

import lmkit
from lmkit.callbacks import GradualUnfreezingCallback, LowRankCallback, PruningCallback
from lmkit.callbacks.layer_times import LayerTimes
from lmkit.callbacks.lora import LoRACallback
from lmkit.callbacks.structured_stages import on_one_rank, owned
from lmkit.callbacks.trainable_only import TrainableOnlyCheckpoint
from lmkit.callbacks.unit_calibration import calibrated_units
from lmkit.modules import AttentionLoss, DistillationModule, HiddenLoss, LogitLoss, RelationLoss
from lmkit.surgery import NothingMatchedError
from lmkit.surgery.units import find_units
from tests import taught, tiny
from tests.callbacks.fitted import BY_NAME, SaveAt, fit_on_base, fit_task, same
from tests.callbacks.test_structured_pruning import TASK, counts, pruning
from tests.cases import make_trainer, weights
from tests.test_ddp import RanksAgree

AT_ONCE: dict[str, Any] = {"start": 0.0, "end": 0.0, "calibration_batches": 3}


def test_before_the_first_step_the_best_of_the_calibration_are_kept(tmp_path: Path) -> None:
    expected: dict[str, Tensor] = {}

    class Measure(Callback):
        def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
            module: Any = pl_module
            module.configure_model()
            units = find_units(module.network, ["ffn"])
            expected.update(calibrated_units(trainer, module, units, "taylor", 3))
            self.dense = weights(module)

    measure = Measure()
    module, trainer, look = fit_task(
        TASK, tmp_path, measure, pruning(ffn=8, **AT_ONCE), max_steps=2
    )
    kept = module.ledger[0]["init_args"]["kept"]
    for name, scores in expected.items():
        best = scores.topk(8).indices.sort().values
        assert kept[name] == best.tolist()
        old = measure.dense[f"network.{name}.weight"][:, best]
        assert torch.equal(look.before[f"network.{name}.weight"], old)
    held = [p for g in trainer.optimizers[0].param_groups for p in g["params"]]
    assert {id(p) for p in held} == {id(p) for p in module.parameters()}


@pytest.mark.parametrize(
    "how",
    [
        {"ffn": 0.5, "heads": 1},
        {"layers": [1], "ffn": 16},
        {"layers": 1, "importance": "activation"},
        {"hidden": 8},
        {"parameters": 0.5, "importance": "magnitude", "allocation": "global"},
    ],
)
def test_what_was_removed_at_once_is_taken_from_the_checkpoint(
    how: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _, _ = fit_task(TASK, tmp_path, pruning(**AT_ONCE, **how), SaveAt({2}, tmp_path))
    assert whole.ledger and sum(p.numel() for p in whole.parameters()) < 8_000
    for name in ("calibrated_units", "calibrated_layers", "calibrated_dimensions"):
        monkeypatch.delattr(f"lmkit.callbacks.structured_stages.{name}")
    path = tmp_path / "2.ckpt"
    resumed, _, _ = fit_task(TASK, tmp_path, pruning(**AT_ONCE, **how), ckpt_path=path)
    assert same(whole, resumed) and whole.ledger == resumed.ledger
    assert same(lmkit.load(lmkit.export(whole, tmp_path / "out")), whole)


def test_layers_and_dimensions_go_at_the_first_choice_and_units_later(tmp_path: Path) -> None:
    seen: list[tuple[int, int, int]] = []

    class Look(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            found, table = counts(pl_module)["ffn"], pl_module.network.get_input_embeddings()
            seen.append((len(found), table.weight.shape[1], found[0]))

    def callback() -> Any:
        how = {"start": 0.25, "end": 0.5, "calibration_batches": 2}
        return pruning(layers=1, hidden=8, ffn=16, **how)

    places = {1, 2, 3, 5}
    save = SaveAt(places, tmp_path)
    whole, _, _ = fit_task(TASK, tmp_path, callback(), save, Look(), max_steps=8)
    assert seen == [(2, 16, 32), *[(1, 8, 32)] * 2, *[(1, 8, 16)] * 5]
    parts = [spec["init_args"]["chosen"]["part"] for spec in whole.ledger]
    assert parts == ["layers", "hidden", "units"]
    for place in sorted(places):
        path = tmp_path / f"{place}.ckpt"
        resumed, _, _ = fit_task(TASK, tmp_path, callback(), ckpt_path=path, max_steps=8)
        assert same(whole, resumed), place


def test_a_speed_is_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def measure(network: Any, units: Any, batch: int, length: int) -> LayerTimes:
        asked.append((batch, length))
        # Of the 10 seconds of a layer 2 are a head's, and 6 those of 24 neurons.
        curves = {"heads": [(1, 8.0), (2, 10.0)], "ffn": [(8, 4.0), (32, 10.0)]}
        return LayerTimes(20.0, {u.name: curves[u.kind] for u in units}, (batch, length))

    where = "lmkit.callbacks.structured_run.measure_layer_times"
    monkeypatch.setattr(where, measure)

    def callback(speedup: float = 1.6) -> Any:
        return pruning(speedup=speedup, speed_batch=2, speed_length=16)

    whole, _, _ = fit_task(TASK, tmp_path, callback(), SaveAt({2}, tmp_path), max_steps=8)
    assert asked == [(2, 16)]
    found = counts(whole)
    heads, neurons = found["heads"][0], found["ffn"][0]
    # 7.5 of the 20 seconds have to go: a head or 8 neurons of both layers are 4.
    assert (heads, neurons) in {(2, 16), (1, 24)} and len(set(found["ffn"])) == 1
    monkeypatch.setattr(where, None)
    path = tmp_path / "2.ckpt"
    resumed, _, _ = fit_task(TASK, tmp_path, callback(), ckpt_path=path, max_steps=8)
    assert same(whole, resumed)
    monkeypatch.setattr(where, measure)
    with pytest.raises(ValueError, match=r"speedup=9 cannot be reached .* it is 5\.00 at batches"):
        fit_task(TASK, tmp_path, callback(9))


@pytest.mark.parametrize(
    "losses",
    [[LogitLoss(), HiddenLoss(), RelationLoss()], [LogitLoss(), AttentionLoss()]],
    ids=["relations", "attention"],
)
def test_a_student_loses_units_while_its_inside_is_compared(losses: Any, tmp_path: Path) -> None:
    def run(*callbacks: Callback, ckpt_path: Path | None = None) -> DistillationModule:
        seed_everything(7)
        names = {"id2label": dict(enumerate(taught.NAMES))}
        names["label2id"] = {n: i for i, n in names["id2label"].items()}  # type: ignore[misc]
        student = lmkit.modules.SequenceClassificationModule(
            {**tiny.MASKED["bert"], **names}, learning_rate=1e-2, warmup=0
        )
        module = DistillationModule(student, taught.teacher_folder(), losses=losses)
        trainer = make_trainer(*callbacks, max_steps=8)
        data = BY_NAME["distillation"].make_data(tmp_path)
        trainer.fit(module, data, ckpt_path=ckpt_path)
        return module

    whole = run(pruning(ffn=8, heads=1), SaveAt({2, 6}, tmp_path))
    assert counts(whole) == {"heads": [1, 1], "ffn": [8, 8]}
    for place in (2, 6):
        resumed = run(pruning(ffn=8, heads=1), ckpt_path=tmp_path / f"{place}.ckpt")
        assert same(whole, resumed)
    assert lmkit.load(lmkit.export(whole, tmp_path / "out")).ledger == whole.ledger
    with pytest.raises(ValueError, match="take the module's student_layers"):
        run(pruning(layers=1))


def test_what_is_left_is_logged_when_it_changes(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    how: dict[str, Any] = {"logger": logger, "max_steps": 8, "log_every_n_steps": 1}
    fit_task(TASK, tmp_path, pruning(ffn=8, heads=1), default_root_dir=tmp_path, **how)
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["structured_pruning/heads"]]
    found = [
        (int(r["step"]), float(r["structured_pruning/heads"]), r["structured_pruning/neurons"])
        for r in rows
    ]
    assert found[0] == (0, 4.0, "64.0") and found[-1] == (4, 2.0, "16.0")
    shares = [float(row["structured_pruning/parameters_share"]) for row in rows]
    assert shares[0] == 1.0 and shares == sorted(shares, reverse=True) and shares[-1] < 0.5
    assert (tmp_path / "figures/structured_pruning/units.png").is_file()


def test_frozen_weights_are_removed_and_small_checkpoints_hold_what_is_shut(tmp_path: Path) -> None:
    def callbacks(importance: str, **how: Any) -> list[Callback]:
        return [
            LoRACallback(rank=2),
            pruning(ffn=16, importance=importance, **how),
            TrainableOnlyCheckpoint(),
        ]

    with pytest.raises(ValueError, match=r"output\.dense by: it is frozen, .* importance='activa"):
        fit_on_base(tmp_path, *callbacks("taylor"), max_steps=8)
    module, trainer, _ = fit_on_base(tmp_path, *callbacks("taylor", **AT_ONCE), max_steps=2)
    assert counts(module)["ffn"] == [16, 16]
    save = SaveAt({2}, tmp_path)
    module, trainer, _ = fit_on_base(tmp_path, *callbacks("magnitude"), save, max_steps=8)
    assert counts(module)["ffn"] == [16, 16]
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert same(lmkit.load(tmp_path / "last.ckpt"), module)
    small = torch.load(tmp_path / "2.ckpt", weights_only=True)
    assert "network.bert.encoder.layer.0.output.dense.weight" in small["state_dict"]
    assert "network.bert.encoder.layer.0.intermediate.dense.weight" not in small["state_dict"]
    path = tmp_path / "2.ckpt"
    resumed, _, _ = fit_on_base(tmp_path, *callbacks("magnitude"), ckpt_path=path, max_steps=8)
    assert same(resumed, module)


def test_layers_that_unfreeze_later_are_the_same_weights_when_they_are_cut(tmp_path: Path) -> None:
    unfreeze = GradualUnfreezingCallback(1, interval=4)
    callback = pruning(ffn=16, importance="magnitude")
    module, _, look = fit_task(TASK, tmp_path, unfreeze, callback, max_steps=12)
    assert all(p.requires_grad for p in module.parameters())
    name = "network.bert.encoder.layer.0.intermediate.dense.bias"
    assert module.state_dict()[name].shape == (16,)
    assert not set(module.state_dict()[name].tolist()) <= set(look.before[name].tolist())
    frozen = GradualUnfreezingCallback(1, interval=None)
    with pytest.raises(ValueError, match=r"output\.dense by: no gradient has reached it"):
        fit_task(TASK, tmp_path, frozen, pruning(), max_steps=8)


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        (lambda: [pruning(), PruningCallback(0.5)], "sizes of weights that PruningCallback"),
        (lambda: [PruningCallback(0.5), pruning()], "sizes of weights that PruningCallback"),
        (lambda: [pruning(), pruning(ffn=8)], "stands twice among the callbacks"),
        (lambda: [LoRACallback(targets=["ffn_output"], rank=2), pruning()], "is wrapped by"),
        (
            lambda: [pruning(importance="magnitude"), LoRACallback(targets=["query"], rank=2)],
            None,
        ),
        (
            lambda: [
                pruning(heads=1, importance="magnitude"),
                LoRACallback(targets=["query"], rank=2),
            ],
            "is wrapped by",
        ),
        (
            lambda: [LowRankCallback(rank=3, calibration_batches=1), pruning()],
            "is a product of rank 3",
        ),
        (lambda: [pruning(heads=2)], "heads=2 removes nothing"),
        (lambda: [pruning(heads=3)], "heads=3 is more than the 2 that"),
        (lambda: [pruning(ffn=64)], "ffn=64 is more than the 32"),
        (lambda: [pruning(parameters=0.05)], "parameters=0.05 cannot be reached"),
        (lambda: [pruning(layers=2, **AT_ONCE)], "layers=2 removes nothing from a network of 2"),
        (lambda: [pruning(layers=[0, 5], **AT_ONCE)], "layers=.* removes nothing"),
        (lambda: [pruning(layers=[5], **AT_ONCE)], "numbers from 0 to 1"),
        (lambda: [pruning(layers=[5])], "numbers from 0 to 1"),
        (lambda: [pruning(layers=2)], "layers=2 removes nothing from a network of 2"),
        (lambda: [pruning(hidden=16, **AT_ONCE)], "hidden=16 removes nothing from 16"),
    ],
)
def test_what_does_not_go_together_is_told_before_a_step(
    callbacks: Any, message: str | None, tmp_path: Path
) -> None:
    steps: list[int] = []

    class Count(Callback):
        def on_train_batch_end(self, *_: object) -> None:
            steps.append(1)

    if message is None:
        fit_task(TASK, tmp_path, *callbacks(), max_steps=8)
        return
    with pytest.raises(ValueError, match=message):
        fit_task(TASK, tmp_path, *callbacks(), Count(), max_steps=8)
    assert not steps


def test_who_it_does_not_go_with_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learned = pruning(importance="learned")
    with pytest.raises(ValueError, match="averages of different networks"):
        fit_task(TASK, tmp_path, learned, EMAWeightAveraging())
    with pytest.raises(ValueError, match="where checkpoints leave frozen weights out"):
        fit_on_base(tmp_path, pruning(importance="learned"), TrainableOnlyCheckpoint())
    with pytest.raises(ValueError, match="whose networks share their embeddings"):
        fit_task("replaced_token", tmp_path, pruning(hidden=8))
    with pytest.raises(ValueError, match="need to know how long the run is"):
        endless: dict[str, Any] = {"max_steps": -1, "max_epochs": -1}
        fit_task(TASK, tmp_path, pruning(), module={"schedule": "constant"}, **endless)
    callback = pruning()
    trainer, strategy = make_trainer(callback), FSDPStrategy.__new__(FSDPStrategy)
    monkeypatch.setattr(trainer._accelerator_connector, "strategy", strategy)
    with pytest.raises(ValueError, match="needs whole weights on each rank, and FSDPStrategy"):
        callback.setup(trainer, BY_NAME[TASK].make_module(), "fit")


def test_modules_and_networks_of_others_are_refused(tmp_path: Path) -> None:
    class Plain(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            config = {k: v for k, v in tiny.MASKED["bert"].items() if k != "model_type"}
            self.network = BertForSequenceClassification(BertConfig(vocab_size=99, **config))

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            loss: Tensor = self.network(batch).logits.sum()
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    data = DataLoader(torch.ones(4, 3, dtype=torch.int64))
    with pytest.raises(TypeError, match="ledger of lmkit's modules, and Plain is none"):
        make_trainer(pruning()).fit(Plain(), data)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    module = lmkit.modules.CausalLMModule(
        {"model_type": "gpt_neox", **sizes, "intermediate_size": 32}
    )
    with pytest.raises(NothingMatchedError, match="known for 'gpt_neox'"):
        make_trainer(pruning(heads=1)).fit(module, BY_NAME["causal_lm"].make_data(tmp_path))


@pytest.mark.skipif(sys.platform != "linux", reason="forks with gloo")
@pytest.mark.filterwarnings("ignore:the fit ran in processes of its own")
@pytest.mark.parametrize(
    ("how", "accumulate"),
    [
        pytest.param({"ffn": 0.25, "heads": 1, "multiple_of": 1}, 1, marks=pytest.mark.slow),
        ({"ffn": 0.25, "heads": 1, "multiple_of": 1}, 2),
        pytest.param({"importance": "activation"}, 1, marks=pytest.mark.slow),
        ({"importance": "learned"}, 2),
        ({"layers": 1, "start": 0.3, "end": 0.6, "importance": "magnitude"}, 1),
    ],
    ids=["taylor", "taylor-accumulated", "activation", "learned", "layers"],
)
def test_two_ranks_are_one_process_before_and_behind_the_removal(
    how: dict[str, Any], accumulate: int, tmp_path: Path
) -> None:
    class Save(Callback):
        def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.is_global_zero:
                torch.save(pl_module.state_dict(), tmp_path / f"{trainer.world_size}.pt")

    for devices in (1, 2):
        seed_everything(5)
        momentum = {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9}}
        module = BY_NAME[TASK].make_module(optimizer=momentum)
        trainer = make_trainer(
            pruning(**{"ffn": 16, **how}),
            RanksAgree(),
            Save(),
            devices=devices,
            strategy="ddp_fork" if devices > 1 else "auto",
            max_steps=8,
            accumulate_grad_batches=accumulate if devices > 1 else 1,
            val_check_interval=2,
        )
        size = 8 // devices // (accumulate if devices > 1 else 1)
        trainer.fit(module, BY_NAME[TASK].make_data(tmp_path, batch_size=size, eval_batch_size=4))
    one, two = (torch.load(tmp_path / f"{n}.pt") for n in (1, 2))
    assert {n: t.shape for n, t in one.items()} == {n: t.shape for n, t in two.items()}
    gap = max(float((one[n] - two[n]).abs().max()) for n in one if one[n].is_floating_point())
    assert gap < 1e-5


def test_what_goes_wrong_on_one_rank_is_raised() -> None:
    class Alone:
        is_global_zero = True

        class strategy:
            @staticmethod
            def broadcast(made: Any) -> Any:
                return made

    def fail() -> None:
        raise ValueError("no")

    assert on_one_rank(Alone(), lambda: 3) == 3  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no"):
        on_one_rank(Alone(), fail)  # type: ignore[arg-type]
    weight = nn.Parameter(torch.ones(1))
    assert owned(torch.optim.SGD([weight], lr=1.0)) == {id(weight)}
