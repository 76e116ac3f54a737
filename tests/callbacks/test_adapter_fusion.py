"""A fit reads adapters, mixes them, and says which one it listens to."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

import lmkit
from lmkit.callbacks import SurgeryCallback, TrainableOnlyCheckpoint
from lmkit.callbacks.adapter import AdapterCallback
from lmkit.callbacks.adapter_fusion import AdapterFusionCallback
from lmkit.datamodules import SequenceClassificationDataModule
from lmkit.modules import LMModule, SequenceClassificationModule
from lmkit.surgery.adapter import Adapter
from lmkit.surgery.lora import LoRA
from tests import task_files
from tests.callbacks.test_adapter import fit
from tests.cases import make_trainer, weights
from tests.surgery.adapted import stir


class Stir(Callback):
    """Gives the adapters weights that do something, in `setup`."""

    def setup(self, trainer: Trainer, pl_module: LMModule, stage: str) -> None:
        if not any(p.abs().max() > 0 for p in up(pl_module).values()):
            stir(pl_module.network, ".adapters.")


class Save(Callback):
    """Writes a checkpoint after six steps, and keeps the weights that it has."""

    def __init__(self, path: Path) -> None:
        self.path, self.state = path, {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LMModule, *_: Any) -> None:
        if trainer.global_step == 6:
            trainer.save_checkpoint(self.path)
            self.state = weights(pl_module)


def up(module: LMModule) -> dict[str, Tensor]:
    return {n: p for n, p in module.network.named_parameters() if n.endswith(("a.up", "b.up"))}


def three() -> list[Callback]:
    """Two adapters, and their fusion."""
    return [
        AdapterCallback("a", "pfeiffer", 4),
        AdapterCallback("b", "houlsby", 4),
        Stir(),
        AdapterFusionCallback(names=["a", "b"]),
    ]


def test_the_mean_attention_is_logged_on_the_stride_of_the_logger(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="log")
    module, _ = fit(tmp_path, *three(), logger=logger, log_every_n_steps=2)
    logger.save()
    rows = list(csv.DictReader((tmp_path / "log" / "metrics.csv").open()))
    seen = [
        {name: float(row[f"adapter_fusion/{name}"]) for name in "ab"}
        for row in rows
        if row.get("adapter_fusion/a")
    ]
    steps = [int(row["step"]) for row in rows if row.get("adapter_fusion/a")]
    assert steps == [1, 3, 5]
    for means in seen:
        # a stands behind the feed-forward block alone, where it shares with b; b stands alone
        # behind attention.
        assert 0.2 < means["a"] < 0.8 and means["b"] > means["a"] / 2
        assert means["a"] + 2 * means["b"] - 1 == pytest.approx(1, abs=1e-4)
    assert not any(m._forward_hooks for m in module.network.modules())


def test_without_a_logger_nobody_looks(tmp_path: Path) -> None:
    _, trainer = fit(tmp_path, *three(), logger=False, log_every_n_steps=1)
    assert not any("adapter_fusion" in name for name in trainer.callback_metrics)


def test_adapters_stay_and_the_mixture_learns(tmp_path: Path) -> None:
    kept: dict[str, Tensor] = {}

    class Keep(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LMModule) -> None:
            kept.update(weights(pl_module))

    module, trainer = fit(tmp_path, *three(), Keep())
    moved = {n for n, tensor in weights(module).items() if not torch.equal(tensor, kept[n])}
    assert not any(".adapters." in name for name in moved)
    assert sum(name.endswith(".fusions.fusion.value") for name in moved) == 4
    trainer.save_checkpoint(tmp_path / "fused.ckpt")
    loaded, ids = lmkit.load(tmp_path / "fused.ckpt"), torch.randint(5, 99, (2, 9))
    expected = module.eval().network(input_ids=ids).logits
    assert torch.equal(loaded.network(input_ids=ids).logits, expected)


def test_adapters_come_from_the_checkpoints_of_their_fits(tmp_path: Path) -> None:
    trained = {}
    for name, kind in (("topics", "houlsby"), ("tone", "pfeiffer")):
        module, trainer = fit(tmp_path, AdapterCallback("default", kind, 4))
        trainer.save_checkpoint(tmp_path / f"{name}.ckpt")
        trained[name] = weights(module)
    adapters = {name: str(tmp_path / f"{name}.ckpt") for name in trained}
    save = Save(tmp_path / "fused.ckpt")
    module, _ = fit(tmp_path, AdapterFusionCallback(adapters), save, max_steps=8)
    whole = weights(module)
    for name, theirs in trained.items():
        own = {k: v for k, v in theirs.items() if ".adapters.default." in k}
        assert own
        for key, tensor in own.items():
            assert torch.equal(whole[key.replace(".default.", f".{name}.")], tensor)
    loaded = weights(lmkit.load(save.path))
    assert all(torch.equal(tensor, save.state[key]) for key, tensor in loaded.items())
    resumed, _ = fit(tmp_path, AdapterFusionCallback(adapters), ckpt_path=save.path, max_steps=8)
    assert all(torch.equal(tensor, whole[key]) for key, tensor in weights(resumed).items())


@pytest.mark.parametrize("small", [True, False], ids=["small", "whole"])
def test_a_checkpoint_needs_no_files_of_adapters(small: bool, tmp_path: Path) -> None:
    sources = {}
    for name in ("topics", "tone"):
        _, trainer = fit(tmp_path, AdapterCallback("default", "pfeiffer", 4), max_steps=2)
        sources[name] = tmp_path / f"{name}.ckpt"
        trainer.save_checkpoint(sources[name])
    adapters = {name: str(path) for name, path in sources.items()}
    more = [TrainableOnlyCheckpoint()] if small else []
    save = Save(tmp_path / "fused.ckpt")
    module, _ = fit(tmp_path, AdapterFusionCallback(adapters), save, *more, max_steps=8)
    for path in sources.values():
        path.unlink()
    other = SequenceClassificationModule(str(tmp_path / "base"))
    data = SequenceClassificationDataModule(
        **task_files.labelled_texts(tmp_path), tokenizer=str(tmp_path / "base"), max_length=16
    )
    tester = make_trainer(AdapterFusionCallback(adapters))
    tester.validate(other, data, ckpt_path=save.path, verbose=False)
    assert all(torch.equal(tensor, save.state[key]) for key, tensor in weights(other).items())
    again = AdapterFusionCallback(adapters)
    resumed, _ = fit(tmp_path, again, *more, ckpt_path=save.path, max_steps=8)
    expected = weights(module)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in weights(resumed).items())
    with pytest.raises(FileNotFoundError, match=r"nothing at .*topics: .*topics\.ckpt.*from a ch"):
        fit(tmp_path, AdapterFusionCallback(adapters))
    with pytest.raises(FileNotFoundError, match="nothing at"):
        make_trainer(AdapterFusionCallback(adapters)).test(
            SequenceClassificationModule(str(tmp_path / "base")), data.val_dataloader()
        )


def test_only_bottleneck_adapters_are_fused(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    _, trainer = fit(tmp_path, SurgeryCallback(LoRA(rank=2)), max_steps=1)
    trainer.save_checkpoint(tmp_path / "lora.ckpt")
    callback = AdapterFusionCallback({"topics": str(tmp_path / "lora.ckpt")})
    with pytest.raises(ValueError, match=r"lora\.ckpt, which holds LoRA and no bottleneck adapter"):
        fit(tmp_path, callback)


def test_files_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one.ckpt", "two.ckpt"):
        Path(name).touch()
    import sys
    from types import ModuleType

    read = []

    def add_adapter(module: LMModule, source: str, name: str) -> None:
        read.append((source, name))
        module.operate(Adapter(name, "pfeiffer", 4))

    stand_in = ModuleType("lmkit.adapters")
    stand_in.add_adapter = add_adapter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lmkit.adapters", stand_in)
    callback = AdapterFusionCallback({"a": "one.ckpt", "b": "two.ckpt"})
    module, _ = fit(tmp_path, callback, max_steps=1)
    assert read == [("one.ckpt", "a"), ("two.ckpt", "b")]
    for _ in range(2):
        callback.setup(make_trainer(), module, "validate")
    assert len(read) == 2 and len(module.ledger) == 3


def test_without_adapters_there_is_nothing_to_fuse(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one adapter"):
        AdapterFusionCallback()
    with pytest.raises(ValueError, match=r"no bottleneck adapters \['a'\]"):
        fit(tmp_path, AdapterFusionCallback(names=["a"]))
