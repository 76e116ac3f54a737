"""Units go as planned, what is left is the masked network, and a resumed fit is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor, nn

import lmkit
from lmkit.callbacks.structured_pruning import StructuredPruningCallback
from lmkit.functional.pruning import planned_sparsity
from lmkit.modules import LMModule
from lmkit.surgery.units import Units, find_units
from tests.callbacks.fitted import BY_NAME, SaveAt, fit_task, same
from tests.cases import make_trainer

TASK = "sequence_classification"
#: Three kinds of what is measured, and one that is trained.
IMPORTANCES = ("taylor", "activation", "magnitude", "learned")
MOMENTUM = {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9, "weight_decay": 0.1}}


def pruning(**how: Any) -> StructuredPruningCallback:
    """Prune from the first step to the fourth of eight, in each."""
    settings: dict[str, Any] = {"start": 0.0, "end": 0.5, "interval": 1}
    if not {"heads", "layers", "hidden", "parameters", "speedup"} & how.keys():
        settings["ffn"] = 16
    return StructuredPruningCallback(**{**settings, **how})


def counts(module: LMModule) -> dict[str, list[int]]:
    """Return how many units each layer has, by kind."""
    units = find_units(module.network)
    return {kind: [u.count for u in units if u.kind == kind] for kind in ("heads", "ffn")}


def shut(module: LMModule, units: list[Units]) -> dict[str, Tensor]:
    """Return which units have nothing but zeros where they are read, bool `[count]`."""
    found = {}
    for each in units:
        layer: Any = module.network.get_submodule(each.name)
        found[each.name] = (layer.weight == 0).all(0).view(each.count, -1).all(1)
    return found


def logits(module: LMModule) -> Tensor:
    """Return what a network says of two texts with padding, in evaluation."""
    ids = torch.randint(5, 99, (2, 9), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    mode = module.training
    with torch.no_grad():
        said: Tensor = module.eval().network(input_ids=ids, attention_mask=mask).logits
    module.train(mode)
    return said


class Course(Callback):
    """Looks after each batch at what is shut, as whatever stands before sees it."""

    def __init__(self) -> None:
        self.shut: list[dict[str, Tensor]] = []
        self.said: list[Tensor] = []
        self.groups: list[list[int]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.shut.append(shut(pl_module, find_units(pl_module.network)))
        self.said.append(logits(pl_module))
        groups = [g for each in trainer.optimizers for g in each.param_groups]
        self.groups.append([id(p) for group in groups for p in group["params"]])


@pytest.mark.parametrize("optimizer", [None, MOMENTUM], ids=["adamw", "momentum"])
@pytest.mark.parametrize("importance", ["taylor", "activation", "magnitude", "random"])
def test_units_are_shut_by_the_schedule_and_removed_at_its_end(
    importance: Any, optimizer: Any, tmp_path: Path
) -> None:
    course = Course()
    callback = pruning(ffn=0.25, heads=1, importance=importance, multiple_of=4)
    settings = {"optimizer": optimizer, "weight_decay": 0.5}
    module, _, _ = fit_task(TASK, tmp_path, course, callback, max_steps=8, module=settings)
    for step, masks in enumerate(course.shut[:4], 1):
        done = planned_sparsity(step, 0, 4, 1.0)
        for name, mask in masks.items():
            final = 1 if "attention" in name else 8
            multiple = 1 if final == 1 else 4
            planned = len(mask) - done * (len(mask) - final)
            assert 0 <= int((~mask).sum()) - planned < multiple
    assert counts(module) == {"heads": [1, 1], "ffn": [8, 8]}
    for masks in course.shut[4:]:
        assert {len(mask) for mask in masks.values()} == {1, 8}
        assert not any(bool(mask.any()) for mask in masks.values())


@pytest.mark.parametrize(
    ("task", "how"),
    [
        ("masked_lm", {"ffn": 8, "heads": 1}),
        ("causal_lm", {"ffn": 0.5, "heads": 1, "allocation": "global"}),
        ("denoising", {"heads": 1, "ffn": 8}),
        ("replaced_token", {"ffn": 16}),
        ("token_classification", {"parameters": 0.6}),
        ("question_answering", {"parameters": 0.6, "allocation": "global"}),
        ("multiple_choice", {"heads": 1}),
        ("seq2seq", {"ffn": 0.5, "importance": "activation"}),
        (TASK, {"ffn": 8, "heads": 1, "importance": "learned"}),
    ],
)
def test_what_is_removed_is_what_was_shut(task: str, how: dict[str, Any], tmp_path: Path) -> None:
    said: list[Tensor] = []
    over: list[bool] = []

    class Both(Callback):
        """Asks the network before and behind the removal, between the same two steps."""

        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            callback = next(c for c in trainer.callbacks if isinstance(c, type(pruning())))
            ids = torch.randint(5, 20, (2, 9), generator=torch.Generator().manual_seed(5))
            batch = {"input_ids": ids, "attention_mask": (torch.arange(9) < 7).expand(2, 9).long()}
            if pl_module.network.config.is_encoder_decoder:
                batch["decoder_input_ids"] = ids
            if task == "multiple_choice":
                batch = {k: v.unsqueeze(1) for k, v in batch.items()}
            if trainer.global_step == 4:
                pl_module.eval()
                with torch.no_grad():
                    if not callback.run.is_over:
                        callback.run.evaluate(4)
                    found = pl_module.network(**batch)
                pl_module.train()
                said.append(found.get("logits", found[0]))
                over.append(callback.run.is_over)

    callback = pruning(**how)
    module, trainer, _ = fit_task(task, tmp_path, Both(), callback, Both(), max_steps=8)
    assert over == [False, True] and (said[0] - said[1]).abs().max() <= 1e-5 * said[0].abs().max()
    before = BY_NAME[task].make_module()
    before.tokenizer = module.tokenizer
    before.configure_model()
    assert sum(p.numel() for p in module.parameters()) < sum(p.numel() for p in before.parameters())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    torch.load(tmp_path / "last.ckpt", weights_only=True)
    loaded = lmkit.load(tmp_path / "last.ckpt")
    assert same(loaded, module) and loaded.ledger == module.ledger


@pytest.mark.parametrize("importance", IMPORTANCES)
@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_resumed_at_any_step_is_uninterrupted(
    importance: Any, accumulate: int, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"accumulate_grad_batches": accumulate, "max_steps": 8}
    settings["data"] = {"batch_size": 8 if accumulate == 1 else 4}
    # While units are shut, at their removal, behind it; in windows and at their ends.
    behind = {1: {2, 4, 5}, 3: {7, 12}}[accumulate]
    before = {1: {4}, 3: {11}}[accumulate]  # of windows of 3 the epoch's last has 2

    def callback() -> StructuredPruningCallback:
        return pruning(heads=1, ffn=0.5, importance=importance, start=0.1)

    first, last = SaveAt(before, tmp_path / "first"), SaveAt(behind, tmp_path / "last")
    whole, _, _ = fit_task(TASK, tmp_path, first, callback(), last, **settings)
    for folder, places in (("first", before), ("last", behind)):
        for place in sorted(places):
            path = tmp_path / folder / f"{place}.ckpt"
            resumed, _, _ = fit_task(TASK, tmp_path, callback(), ckpt_path=path, **settings)
            assert same(whole, resumed), f"{folder} after batch {place}"
            assert whole.ledger == resumed.ledger


@pytest.mark.parametrize("importance", ["taylor", "activation", "learned"])
def test_struck_down_in_the_middle_of_a_window_and_resumed_is_uninterrupted(
    importance: str, tmp_path: Path
) -> None:
    class Strike(Callback):
        """Raises in the middle of a batch, and saves as Lightning's own callbacks then do."""

        seen = 0

        def on_after_backward(self, *_: Any) -> None:
            self.seen += 1
            if self.seen == 6:
                raise RuntimeError("struck")

        def on_exception(self, trainer: Trainer, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / "struck.ckpt")

    def callback() -> StructuredPruningCallback:
        return pruning(heads=1, ffn=8, importance=importance)

    settings: dict[str, Any] = {"accumulate_grad_batches": 3, "max_steps": 8}
    settings["data"] = {"batch_size": 4}
    whole, _, _ = fit_task(TASK, tmp_path, callback(), **settings)
    with pytest.raises(RuntimeError, match="struck"):
        fit_task(TASK, tmp_path, callback(), Strike(), **settings)
    path = tmp_path / "struck.ckpt"
    resumed, _, _ = fit_task(TASK, tmp_path, callback(), ckpt_path=path, **settings)
    assert same(whole, resumed) and whole.ledger == resumed.ledger


def test_the_optimizer_goes_on_with_its_moments(tmp_path: Path) -> None:
    kept: dict[str, dict[str, Tensor]] = {}

    class Moments(Callback):
        def __init__(self, word: str) -> None:
            self.word = word

        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            if trainer.global_step == 4:
                state = trainer.optimizers[0].state
                names = {id(p): n for n, p in pl_module.network.named_parameters()}
                kept[self.word] = {names[id(p)]: s["exp_avg"].clone() for p, s in state.items()}
                kept[f"{self.word} weights"] = {
                    n: p.detach().clone() for n, p in pl_module.network.named_parameters()
                }

    module, trainer, _ = fit_task(
        TASK, tmp_path, Moments("before"), pruning(), Moments("behind"), max_steps=8
    )
    kept_units = module.ledger[-1]["init_args"]["kept"]
    for name, moment in kept["behind"].items():
        layer, _, word = name.rpartition(".")
        old = kept["before"][name]
        if layer in kept_units and word == "weight":
            old = old[:, kept_units[layer]]
        elif "intermediate" in name:
            reader = layer.replace("intermediate.dense", "output.dense")
            old = old[kept_units[reader]]
        assert torch.equal(moment, old), name
    assert kept["behind"].keys() == kept["before"].keys()
    live = {id(p) for p in module.parameters() if p.requires_grad}
    groups = [group for each in trainer.optimizers for group in each.param_groups]
    assert sum(len(group["params"]) for group in groups) == len(live)
    assert {id(p) for group in groups for p in group["params"]} == live
    moved = dict(module.network.named_parameters())
    assert all(
        not torch.equal(moved[n], w)
        for n, w in kept["behind weights"].items()
        if "dense.weight" in n and "pooler" not in n
    )


def test_a_layer_that_goes_leaves_no_dead_weights_or_groups(tmp_path: Path) -> None:
    callback = pruning(layers=1, ffn=16, start=0.3, end=0.6, calibration_batches=2)
    places = {1, 2, 3, 4, 6}
    settings: dict[str, Any] = {"max_steps": 8, "module": {"layer_decay": 0.8}}
    save = SaveAt(places, tmp_path)
    module, trainer, _ = fit_task(TASK, tmp_path, callback, save, **settings)
    assert module.network.config.num_hidden_layers == 1 and counts(module)["ffn"] == [16]
    held = [p for o in trainer.optimizers for g in o.param_groups for p in g["params"]]
    assert {id(p) for p in held} == {id(p) for p in module.parameters()}
    assert all(g["params"] for o in trainer.optimizers for g in o.param_groups)
    assert set(map(id, trainer.optimizers[0].state)) <= {id(p) for p in held}
    parts = [spec["init_args"]["chosen"]["part"] for spec in module.ledger]
    assert parts == ["layers", "units"]
    for place in sorted(places):
        callback = pruning(layers=1, ffn=16, start=0.3, end=0.6, calibration_batches=2)
        path = tmp_path / f"{place}.ckpt"
        resumed, _, _ = fit_task(TASK, tmp_path, callback, ckpt_path=path, **settings)
        assert same(module, resumed), place


def test_a_unit_that_was_shut_may_be_opened_until_the_end(tmp_path: Path) -> None:
    course = Course()
    settings = {"learning_rate": 3e-2}
    callback = pruning(ffn=0.25, end=1.0, multiple_of=1)
    fit_task(TASK, tmp_path, course, callback, max_steps=16, module=settings)
    pairs = zip(course.shut[:-1], course.shut[1:], strict=True)
    back = [any(bool((a[n] & ~b[n]).any()) for n in a if len(a[n]) == len(b[n])) for a, b in pairs]
    assert any(back)


def test_evaluations_and_checkpoints_on_the_way_see_what_is_shut(tmp_path: Path) -> None:
    for importance in ("taylor", "learned"):
        said: dict[str, Any] = {}

        class Look(Callback):
            def on_validation_end(
                self, trainer: Trainer, pl_module: LightningModule, said: dict[str, Any] = said
            ) -> None:
                if trainer.global_step == 3 and not said:
                    said["logits"] = logits(pl_module)  # type: ignore[arg-type]
                    said["loss"] = float(trainer.callback_metrics["val/loss"])
                    trainer.save_checkpoint(tmp_path / "middle.ckpt")

        callback = pruning(ffn=8, heads=1, importance=importance)
        how: dict[str, Any] = {"max_steps": 8, "val_check_interval": 3}
        _, trainer, _ = fit_task(TASK, tmp_path, callback, Look(), **how)
        loaded = lmkit.load(tmp_path / "middle.ckpt")
        assert (logits(loaded) - said["logits"]).abs().max() < 1e-6
        masks = shut(loaded, find_units(loaded.network))
        assert sum(int(mask.sum()) for mask in masks.values()) > 10
        (found,) = make_trainer().validate(loaded, trainer.datamodule, verbose=False)
        assert found["val/loss"] == pytest.approx(said["loss"], rel=1e-5)
        # So does an export, which is a plain folder as long as nothing is removed.
        folder = lmkit.export(loaded, tmp_path / f"plain-{importance}", plain=True)
        plain = loaded.auto_class.from_pretrained(folder).eval()
        ids = torch.arange(5, 14)[None]
        with torch.no_grad():
            gap = plain(ids).logits - loaded.eval().network(ids).logits
        assert gap.abs().max() < 1e-6


def test_the_end_of_a_run_removes_and_an_early_end_says_so(tmp_path: Path) -> None:
    module, _, _ = fit_task(TASK, tmp_path, pruning(end=1.0), max_steps=5)
    assert counts(module)["ffn"] == [16, 16]

    class Stop(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            trainer.should_stop = trainer.global_step == 3

    for importance, expected in (("taylor", 24), ("learned", 16)):
        callback = pruning(ffn=8, end=1.0, importance=importance)
        with pytest.warns(UserWarning, match="the run ended at step 3, .* by step 8"):
            stopped, trainer, _ = fit_task(TASK, tmp_path, callback, Stop(), max_steps=8)
        assert stopped.ledger and counts(stopped)["ffn"][0] <= expected
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        assert same(lmkit.load(tmp_path / "last.ckpt"), stopped)


def test_a_run_without_steps_says_that_nothing_was_removed(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"nothing was removed.*start=0, end=0"):
        module, _, _ = fit_task(TASK, tmp_path, pruning(), max_steps=0)
    assert module.ledger == []


def test_a_second_fit_with_the_same_arguments_changes_no_structure(tmp_path: Path) -> None:
    module, trainer, _ = fit_task(TASK, tmp_path, pruning(heads=1, ffn=16), max_steps=8)
    ledger = module.ledger
    again = make_trainer(pruning(heads=1, ffn=16), max_steps=2)
    again.fit(module, BY_NAME[TASK].make_data(tmp_path))
    assert module.ledger == ledger and counts(module) == {"heads": [1, 1], "ffn": [16, 16]}
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    other = pruning(heads=1, ffn=8)
    with pytest.raises(ValueError, match=r"the network was pruned with ffn=16, .* has ffn=8"):
        make_trainer(other, max_steps=2).fit(module, BY_NAME[TASK].make_data(tmp_path))
    with pytest.raises(ValueError, match=r"the checkpoint was pruned with ffn=16, .* has ffn=8"):
        fit_task(TASK, tmp_path, other, ckpt_path=tmp_path / "last.ckpt")
    loaded = lmkit.load(lmkit.export(module, tmp_path / "small"))
    assert same(loaded, module)
    # From an export one may go on to less.
    make_trainer(other, max_steps=4).fit(loaded, BY_NAME[TASK].make_data(tmp_path))
    assert counts(loaded) == {"heads": [1, 1], "ffn": [8, 8]}


def test_a_checkpoint_on_the_way_goes_on_only_with_the_same_arguments(tmp_path: Path) -> None:
    fit_task(TASK, tmp_path, pruning(ffn=8), SaveAt({2}, tmp_path), max_steps=8)
    with pytest.raises(ValueError, match="the checkpoint was pruned with ffn=8"):
        fit_task(TASK, tmp_path, pruning(ffn=16), ckpt_path=tmp_path / "2.ckpt", max_steps=8)
    # Validation needs neither the callback nor its arguments.
    module = lmkit.load(tmp_path / "2.ckpt")
    data = BY_NAME[TASK].make_data(tmp_path)
    first = make_trainer().validate(module, data, verbose=False)
    again = make_trainer(pruning(ffn=16)).validate(
        BY_NAME[TASK].make_module(), data, ckpt_path=tmp_path / "2.ckpt", verbose=False
    )
    assert first == again


@pytest.mark.parametrize("importance", ["taylor", "learned"])
def test_two_accumulated_batches_are_one_of_twice_the_size(importance: str, tmp_path: Path) -> None:
    class NoDropout(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            for module in pl_module.network.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0

    settings: dict[str, Any] = {"max_steps": 8, "module": {"optimizer": MOMENTUM}}
    made = []
    for size, accumulate in ((8, 1), (4, 2)):
        callback = pruning(ffn=0.25, heads=1, multiple_of=1, importance=importance)
        data = {"batch_size": size}
        how = {"accumulate_grad_batches": accumulate, "data": data, **settings}
        module, _, _ = fit_task(TASK, tmp_path, NoDropout(), callback, **how)
        made.append(module)
    assert made[0].ledger == made[1].ledger
    first, second = (dict(module.named_parameters()) for module in made)
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)


@pytest.mark.parametrize("importance", ["taylor", "activation", "learned"])
def test_it_trains_in_bf16_with_checkpointed_layers_and_clipping(
    importance: str, tmp_path: Path
) -> None:
    class Recompute(Callback):
        def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
            pl_module.network.gradient_checkpointing_enable({"use_reentrant": False})

    callback = pruning(ffn=8, heads=1, importance=importance)
    how: dict[str, Any] = {"precision": "bf16-mixed", "gradient_clip_val": 1.0, "max_steps": 8}
    module, _, _ = fit_task(TASK, tmp_path, Recompute(), callback, **how)
    assert counts(module) == {"heads": [1, 1], "ffn": [8, 8]}
    assert all(p.isfinite().all() and p.dtype == torch.float32 for p in module.parameters())


@pytest.mark.parametrize("order", ["before", "behind"])
def test_averages_of_the_weights_are_cut_too_and_resumed(order: str, tmp_path: Path) -> None:
    def callbacks() -> list[Callback]:
        made = [EMAWeightAveraging(decay=0.5), pruning(ffn=8, heads=1)]
        return made if order == "before" else made[::-1]

    def start() -> LMModule:
        seed_everything(7)
        module = BY_NAME[TASK].make_module()
        module.configure_model()
        return module

    data, places = BY_NAME[TASK].make_data(tmp_path), {3, 6}
    whole, save = start(), SaveAt(places, tmp_path)
    trainer = make_trainer(*callbacks(), save, max_steps=8, val_check_interval=2)
    trainer.fit(whole, data)
    assert counts(whole) == {"heads": [1, 1], "ffn": [8, 8]}
    kept = torch.load(tmp_path / "6.ckpt", weights_only=True)
    shapes = [
        {k: t.shape for k, t in kept[w].items()} for w in ("state_dict", "current_model_state")
    ]
    assert shapes[0] == shapes[1] == {k: t.shape for k, t in whole.state_dict().items()}
    middle = lmkit.load(tmp_path / "3.ckpt")  # has the averages of the weights, with zeros
    assert sum(int(m.sum()) for m in shut(middle, find_units(middle.network)).values()) > 10
    for place in sorted(places):
        resumed = start()
        again = make_trainer(*callbacks(), max_steps=8, val_check_interval=2)
        again.fit(resumed, data, ckpt_path=tmp_path / f"{place}.ckpt", weights_only=True)
        assert same(whole, resumed), place
