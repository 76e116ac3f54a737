"""What callbacks keep that choose which weights are trained, and how a surgery is asked for."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
)

import lmkit
from lmkit.callbacks import (
    BitFitCallback,
    GradualUnfreezingCallback,
    SelectiveTuningCallback,
    SurgeryCallback,
)
from lmkit.callbacks.adapter import AdapterCallback
from lmkit.surgery.selection import Selection
from tests import tiny
from tests.callbacks.tuned import SaveAt, Watch, fit, learns, logits, make_data, make_module
from tests.cases import make_trainer, weights
from tests.test_ddp import RanksAgree

MAKERS: dict[str, Callable[[], SurgeryCallback]] = {
    "bitfit": BitFitCallback,
    "layers": lambda: SelectiveTuningCallback(["pooler"], layers=1),
    "norms": lambda: SelectiveTuningCallback(norms=True),
    "embeddings": lambda: SelectiveTuningCallback(embeddings=True),
    "patterns": lambda: SelectiveTuningCallback(["attention.self.*"]),
}
EACH = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@EACH
def test_only_what_is_chosen_moves_and_the_start_is_the_base(make: Any, tmp_path: Path) -> None:
    watch = Watch()
    module, _ = fit(tmp_path, make(), watch)
    chosen = learns(module)
    moved = {n for n, t in module.state_dict().items() if not torch.equal(t, watch.started[n])}
    assert moved == set(chosen)
    assert sorted(watch.held) == sorted(id(p) for p in module.parameters() if p.requires_grad)
    assert not watch.asleep
    plain = Watch()
    fit(tmp_path, plain, max_steps=1)
    assert torch.equal(watch.logits, plain.logits)


@EACH
def test_interrupted_and_resumed_is_uninterrupted(make: Any, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"accumulate_grad_batches": 2, "data": {"batch_size": 4}}
    whole, _ = fit(tmp_path, make(), SaveAt(5, tmp_path / "five.ckpt"), **settings)
    resumed, _ = fit(tmp_path, make(), ckpt_path=tmp_path / "five.ckpt", **settings)
    # Its structure is in the checkpoint, so the callback may be left out.
    bare, _ = fit(tmp_path, ckpt_path=tmp_path / "five.ckpt", **settings)
    for other in (resumed, bare):
        assert set(learns(other)) == set(learns(whole))
        assert all(torch.equal(t, weights(other)[n]) for n, t in weights(whole).items())


@EACH
def test_its_checkpoint_loads_alone_and_its_export_in_transformers(
    make: Any, tmp_path: Path
) -> None:
    module, trainer = fit(tmp_path, make())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = lmkit.load(tmp_path / "last.ckpt")
    assert set(learns(loaded)) == set(learns(module)) and loaded.ledger == module.ledger
    assert torch.equal(logits(loaded.network), logits(module.network))
    folder = lmkit.export(module, tmp_path / "out")
    plain = AutoModelForSequenceClassification.from_pretrained(folder)
    assert torch.allclose(logits(plain), logits(module.network), atol=1e-6)


@EACH
def test_setup_twice_is_setup_once(make: Any, tmp_path: Path) -> None:
    module, _ = fit(tmp_path, make(), max_steps=1)
    once, ledger = set(learns(module)), module.ledger
    fit(tmp_path, make(), make(), module=module, max_steps=1)
    assert set(learns(module)) == once and module.ledger == ledger and len(ledger) == 1


@EACH
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_it_trains_with_gradient_checkpoints_and_averages(
    make: Any, precision: Any, tmp_path: Path
) -> None:
    module = make_module(tmp_path)

    class Checkpointed(Callback):
        def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
            pl_module.configure_model()
            pl_module.network.gradient_checkpointing_enable()

    watch = Watch()
    extra = [] if precision == "32-true" else [EMAWeightAveraging(decay=0.5)]
    fit(tmp_path, make(), Checkpointed(), watch, *extra, module=module, precision=precision)
    moved = {n for n, t in module.state_dict().items() if not torch.equal(t, watch.started[n])}
    assert moved == set(learns(module))


@pytest.mark.skipif(sys.platform != "linux", reason="forks with gloo")
@pytest.mark.parametrize("name", ["bitfit", "layers", "embeddings"])
def test_two_ranks_are_one_process_on_the_joined_batch(name: str, tmp_path: Path) -> None:
    results = []
    for devices in (1, 2):
        torch.manual_seed(5)
        module = make_module(tmp_path, optimizer={"class_path": "torch.optim.SGD"})
        data = make_data(tmp_path, batch_size=8 // devices)
        # The fork hands weights back to the network that the parent has.
        data.prepare_data()
        data.setup("fit")
        config = {"num_labels": len(data.labels), **data.network_settings()}
        module.tokenizer = data.tokenizer
        module.network, loaded = module.build(
            module.auto_class, module.hparams["model"], True, None, config
        )
        assert loaded
        module.operate(MAKERS[name]().surgery)
        trainer = make_trainer(
            MAKERS[name](),
            RanksAgree(),
            devices=devices,
            strategy="ddp_fork" if devices > 1 else "auto",
            max_steps=3,
        )
        torch.manual_seed(5)
        trainer.fit(module, data)
        results.append(learns(module))
    for weight, tensor in results[0].items():
        assert torch.allclose(tensor, results[1][weight], atol=1e-5), weight


@pytest.mark.parametrize("make", [BitFitCallback, lambda: AdapterCallback(size=4)])
def test_what_is_trained_joins_layer_by_layer(make: Any, tmp_path: Path) -> None:
    steps: list[set[str]] = []

    class Moved(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            self.before = weights(pl_module)

        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            now = weights(pl_module)
            steps.append({n for n in now if not torch.equal(now[n], self.before[n])})

    module, _ = fit(tmp_path, make(), GradualUnfreezingCallback(0, 2), Moved(), max_steps=6)
    chosen = set(learns(module))
    lower = [{n for n in chosen if f".layer.{i}." in n} for i in (0, 1)]
    embeddings = {n for n in chosen if ".embeddings." in n}
    assert lower[0] and lower[1] and embeddings
    # An adapter's first half has no gradient before its second half has moved.
    assert steps[0] | steps[1] == chosen - lower[0] - lower[1] - embeddings
    assert steps[2] | steps[3] == chosen - lower[0] - embeddings
    assert steps[4] | steps[5] == chosen - embeddings


def test_a_start_without_anything_to_learn_is_refused(tmp_path: Path) -> None:
    # The classifier of this base is no fresh one, and is not trained.
    module, _ = fit(tmp_path, max_steps=1)
    lmkit.export(module, tmp_path / "classifier")
    settings = {"model": str(tmp_path / "classifier")}
    callbacks = [
        SelectiveTuningCallback(["layer.0.*"], head=False),
        GradualUnfreezingCallback(1, 2),
    ]
    with pytest.raises(ValueError, match=r"layers=1 nothing would learn.*layer 1 .*give layers=2"):
        fit(tmp_path, *callbacks, module=settings)
    callbacks[1] = GradualUnfreezingCallback(2, 2)
    module, _ = fit(tmp_path, *callbacks, module=settings)
    assert learns(module) and all(".layer.0." in name for name in learns(module))


def test_how_much_is_trained_is_logged_under_the_word(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="log")
    callbacks = [BitFitCallback(), SelectiveTuningCallback(layers=1)]
    module, _ = fit(tmp_path, *callbacks, logger=logger, max_steps=1)
    logger.save()
    rows = list(csv.DictReader((tmp_path / "log" / "metrics.csv").open()))
    count = sum(tensor.numel() for tensor in learns(module).values())
    whole = sum(p.numel() for p in module.network.parameters())
    for word in ("bitfit", "selective_tuning"):
        (said,) = [row for row in rows if row.get(f"{word}/trainable_parameters")]
        assert float(said[f"{word}/trainable_parameters"]) == count
        assert float(said[f"{word}/trainable_share"]) == pytest.approx(count / whole)


def test_a_module_that_is_not_ours_is_operated_on_once() -> None:
    class Foreign(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            config = {k: v for k, v in tiny.MASKED["bert"].items() if k != "model_type"}
            self.net = BertForSequenceClassification(BertConfig(**config, vocab_size=99))

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return self.net(input_ids=batch, labels=batch[:, 0] % 2).loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)

    module, done = Foreign(), []

    class Once(Selection):
        def __call__(self, network: Any) -> None:
            done.append(type(network))
            super().__call__(network)

    rows = DataLoader(torch.arange(5, 45).view(8, 5))
    for _ in range(2):
        make_trainer(SurgeryCallback(Once(biases=True)), max_steps=2).fit(module, rows)
    assert done == [BertForSequenceClassification]
    assert all(name.endswith("bias") or "classifier" in name for name in learns(module))
