"""What every technique keeps, one row of the table at a time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn

import lmkit
from lmkit.modules import LMModule, MultiTaskModule
from tests.cases import CASES, CORE, Case, make_trainer, public_techniques, weights

# The rows begin from scratch, where it cannot leave anything out, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:TrainableOnlyCheckpoint")
EACH = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
EACH_CORE = pytest.mark.parametrize("case", CORE, ids=[case.name for case in CORE])


class SaveAt(Callback):
    """Saves a checkpoint after each of some batches, counted over epochs."""

    def __init__(self, batches: set[int], folder: Path) -> None:
        self.batches, self.folder, self.seen = batches, folder, 0

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.seen += 1
        if self.seen in self.batches:
            trainer.save_checkpoint(self.folder / f"{self.seen}.ckpt")


class Modes(Callback):
    """Collects the dropouts on trained paths that are not in train mode in a step."""

    def __init__(self) -> None:
        self.asleep: set[str] = set()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        self.asleep |= {
            name
            for name, module in pl_module.network.named_modules()
            if isinstance(module, nn.Dropout) and not module.training
        }


def fit(case: Case, folder: Path, *extra: Callback, **kwargs: Any) -> tuple[LMModule, Trainer]:
    data_settings = kwargs.pop("data", {})
    module_settings = kwargs.pop("module", {})
    ckpt_path = kwargs.pop("ckpt_path", None)
    seed_everything(7)
    module = case.make_module(**module_settings)
    trainer = make_trainer(*case.callbacks(), *extra, **kwargs)
    trainer.fit(module, case.make_data(folder, **data_settings), ckpt_path=ckpt_path)
    return module, trainer


def equal(first: LMModule, second: LMModule) -> bool:
    ours, theirs = weights(first), weights(second)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def said(module: LMModule) -> torch.Tensor:
    """Return what a network says of two texts, in evaluation mode."""
    ids = torch.randint(5, 90, (2, 9), generator=torch.Generator().manual_seed(1))
    module.eval()
    with torch.no_grad():
        logits: torch.Tensor = module.network(input_ids=ids).logits
    return logits


def test_every_public_technique_has_a_row() -> None:
    covered = [name for case in CASES for name in case.covers]
    assert set(covered) == public_techniques()
    assert len(covered) == len(set(covered))


@EACH
def test_trains(case: Case, tmp_path: Path) -> None:
    modes = Modes()
    losses: list[float] = []
    before: dict[str, torch.Tensor] = {}

    class Look(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            before.update(weights(pl_module))

        def on_train_batch_end(
            self, trainer: Trainer, pl_module: Any, outputs: Any, *_: Any
        ) -> None:
            losses.append(outputs["loss"].item())

    module, trainer = fit(case, tmp_path, modes, Look(), max_steps=-1, max_epochs=4)
    assert not modes.asleep
    third = len(losses) // 3
    assert all(map(math.isfinite, losses)) and sum(losses[-third:]) < sum(losses[:third])
    after = weights(module)
    frozen = {n for n, p in module.named_parameters() if not p.requires_grad}
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved and not moved & frozen
    assert {*case.metrics, "train/loss"} <= set(trainer.callback_metrics)


@EACH
def test_setup_twice_is_setup_once(case: Case, tmp_path: Path) -> None:
    module, _ = fit(case, tmp_path, max_steps=1)
    keys, ledger = set(module.state_dict()), module.ledger
    trainer = make_trainer(*case.callbacks(), max_steps=1)
    trainer.fit(module, case.make_data(tmp_path))
    assert set(module.state_dict()) == keys and module.ledger == ledger


#: Workers make the batches of a data module, whatever the callbacks do with them.
WITH_WORKERS = [
    pytest.param(
        case,
        workers,
        id=f"{case.name}-{workers}",
        marks=pytest.mark.slow if workers and case.callbacks() else (),
    )
    for case in CASES
    for workers in (0, 2)
]


@pytest.mark.parametrize(("case", "workers"), WITH_WORKERS)
def test_interrupted_and_resumed_is_uninterrupted(case: Case, workers: int, tmp_path: Path) -> None:
    # 3 batches of 8 rows an epoch would be few: batches of 2 rows give over ten, windows of 3.
    settings: dict[str, Any] = {
        "accumulate_grad_batches": 3,
        "max_steps": 8,
        "data": {"batch_size": 4, "num_workers": workers},
    }
    # Inside a window, at its end, and around the end of an epoch.
    places = {2, 3, 7, 13, 14} if workers == 0 else {14}
    if not case.core:
        places = {7}
    whole, trainer = fit(case, tmp_path, SaveAt(places, tmp_path), **settings)
    assert trainer.current_epoch >= 1
    for place in sorted(places):
        resumed, _ = fit(case, tmp_path, ckpt_path=tmp_path / f"{place}.ckpt", **settings)
        assert equal(whole, resumed), f"resumed after batch {place}"


@pytest.mark.parametrize("strike", ["forward", "backward"])
@pytest.mark.parametrize("place", [1, 2, 5, 15])
def test_struck_down_in_the_middle_of_a_batch_and_resumed_is_uninterrupted(
    strike: str, place: int, tmp_path: Path
) -> None:
    class Strike(Callback):
        """Raises in the middle of a batch, and saves as Lightning's own callbacks then do."""

        def __init__(self) -> None:
            self.seen = 0

        def on_before_backward(self, *_: Any) -> None:
            self.seen += 1
            if strike == "forward" and self.seen == place:
                raise RuntimeError("struck")

        def on_after_backward(self, *_: Any) -> None:
            if strike == "backward" and self.seen == place:
                raise RuntimeError("struck")

        def on_exception(self, trainer: Trainer, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / "struck.ckpt")

    settings: dict[str, Any] = {
        "accumulate_grad_batches": 3,
        "max_steps": 8,
        "data": {"batch_size": 4},
    }
    case = CASES[0]
    whole, _ = fit(case, tmp_path, **settings)
    with pytest.raises(RuntimeError, match="struck"):
        fit(case, tmp_path, Strike(), **settings)
    resumed, _ = fit(case, tmp_path, ckpt_path=tmp_path / "struck.ckpt", **settings)
    assert equal(whole, resumed)


@EACH
def test_its_checkpoint_is_plain_data_and_loads_alone(case: Case, tmp_path: Path) -> None:
    module, trainer = fit(case, tmp_path)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    torch.load(tmp_path / "last.ckpt", weights_only=True)
    loaded = lmkit.load(tmp_path / "last.ckpt")
    assert type(loaded) is case.module and equal(module, loaded)
    assert loaded.tokenizer is not None
    data = case.make_data(tmp_path)
    first = make_trainer().validate(loaded, data, verbose=False)
    assert first == make_trainer().validate(module, data, verbose=False)


@EACH_CORE
def test_validate_from_a_checkpoint_needs_no_callback(case: Case, tmp_path: Path) -> None:
    module, trainer = fit(case, tmp_path)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    data = case.make_data(tmp_path)
    expected = make_trainer().validate(module, data, verbose=False)
    fresh = case.make_module()
    assert (
        make_trainer().validate(fresh, data, ckpt_path=tmp_path / "last.ckpt", verbose=False)
        == expected
    )


@EACH
def test_its_export_gives_the_same_logits_in_plain_transformers(case: Case, tmp_path: Path) -> None:
    module, _ = fit(case, tmp_path)
    if case.export == "structure":
        with pytest.raises(ValueError, match="cannot express this structure"):
            lmkit.export(module, tmp_path / "out", plain=True)
        loaded = lmkit.load(lmkit.export(module, tmp_path / "own"))
        if case.name == "quantization":  # as whole numbers, by another surgery
            assert torch.equal(said(loaded), said(module)) and len(loaded.ledger) == 1
        else:
            assert equal(module, loaded) and loaded.ledger == module.ledger
        with pytest.raises(OSError, match="no file named"):
            module.auto_class.from_pretrained(tmp_path / "own")
    elif case.export != "plain":
        with pytest.raises(ValueError, match=r"cannot express.*Residual|merge=True"):
            lmkit.export(module, tmp_path / "out")
    if case.export == "never":
        with pytest.raises(ValueError, match=r"no adapters|not every active adapter can be"):
            lmkit.export(module, tmp_path / "out", merge=True)
        assert not (tmp_path / "out").exists()
        return
    merge = case.export in ("merged", "structure")
    folder = lmkit.export(module, tmp_path / "out", merge=merge)
    folder = folder / "ner" if case.module is MultiTaskModule else folder  # one for each task
    plain = module.auto_class.from_pretrained(folder).eval()
    ids = torch.randint(5, plain.config.vocab_size, (2, 9))
    module.eval()
    with torch.no_grad():
        if case.name == "multiple_choice":
            ids = ids.unsqueeze(1).repeat(1, 3, 1)
        inputs = {"input_ids": ids}
        if plain.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = ids
        theirs, ours = plain(**inputs), module.network(**inputs)
        names = [name for name in theirs if "logits" in name]
        gap = max((theirs[name] - ours[name]).abs().max() for name in names)
    assert names and gap <= 1e-5


@EACH
def test_trains_in_bf16(case: Case, tmp_path: Path) -> None:
    module, _ = fit(case, tmp_path, precision="bf16-mixed", gradient_clip_val=1.0)
    assert all(p.isfinite().all() and p.dtype == torch.float32 for p in module.parameters())


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.linear], ids=[c.name for c in CASES if c.linear]
)
def test_two_accumulated_batches_are_one_of_twice_the_size(case: Case, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "max_steps": 4,
        "module": {"optimizer": {"class_path": "torch.optim.SGD"}},
    }

    class NoDropout(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            for module in pl_module.network.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0

    # Half batches of a plan are the halves of its batches.
    one, _ = fit(case, tmp_path, NoDropout(), data={"batch_size": 8}, **settings)
    two, _ = fit(
        case, tmp_path, NoDropout(), data={"batch_size": 4}, accumulate_grad_batches=2, **settings
    )
    first, second = weights(one), weights(two)
    assert all(torch.allclose(first[k], second[k], atol=1e-6) for k in first)


@EACH_CORE
def test_works_with_averaged_weights(case: Case, tmp_path: Path) -> None:
    module, trainer = fit(case, tmp_path, EMAWeightAveraging(decay=0.5))
    trainer.save_checkpoint(tmp_path / "ema.ckpt")
    assert set(lmkit.load(tmp_path / "ema.ckpt").state_dict()) == set(module.state_dict())
