"""A fit factorizes once, trains all factors, and goes on from a checkpoint without its data."""

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
from torch import Tensor, nn

import lmkit
from lmkit.callbacks.calibration import gather
from lmkit.callbacks.lora import LoRACallback
from lmkit.callbacks.low_rank import LowRankCallback
from lmkit.callbacks.trainable_only import TrainableOnlyCheckpoint
from lmkit.modules import LMModule
from lmkit.surgery import NothingMatchedError
from lmkit.surgery.calibration import RowFisher, SecondMoments
from lmkit.surgery.low_rank import LowRank, low_rank_layers
from lmkit.surgery.low_rank_choice import RankRule, choose_ranks, target_layers
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
    "token_classification",
    "question_answering",
    "multiple_choice",
    "seq2seq",
)
SOME = {"targets": ["ffn_input", "ffn_output"], "rank": 3, "calibration_batches": 4}


def ranks(module: LMModule) -> dict[str, int]:
    return {name: layer.rank for name, layer in low_rank_layers(module.network).items()}


class Setup(Callback):
    """Calls a function in the set-up, after the callbacks before it."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.function(trainer, pl_module)


@pytest.mark.parametrize(
    ("task", "method"),
    [
        *((task, "activation") for task in TASKS),
        *((task, "fisher") for task in ("masked_lm", "causal_lm", "seq2seq", "multiple_choice")),
        ("replaced_token", "plain"),
    ],
)
def test_every_task_learns_with_factors_and_its_checkpoint_loads_alone(
    task: str, method: Any, tmp_path: Path
) -> None:
    callback = LowRankCallback(method=method, parameters=0.5, calibration_batches=3)
    module, trainer, look = fit_task(task, tmp_path, callback)
    factors = {f"network.{name}.{word}" for name in ranks(module) for word in ("up", "down")}
    # A row of queries and keys that one token looks at alone has no gradient.
    assert len(factors) >= 8 and len(factors - moved(module, look)) <= 2
    assert all(p.isfinite().all() for p in module.parameters()) and not look.asleep
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    torch.load(tmp_path / "last.ckpt", weights_only=True)
    loaded = lmkit.load(tmp_path / "last.ckpt")
    assert same(loaded, module) and loaded.ledger == module.ledger
    (found,) = make_trainer().validate(loaded, trainer.datamodule, verbose=False)
    assert [found] == make_trainer().validate(module, trainer.datamodule, verbose=False)


@pytest.mark.parametrize("method", ["activation", "fisher", "plain"])
def test_factors_are_those_of_the_weights_and_the_first_batches(
    method: Any, tmp_path: Path
) -> None:
    expected: dict[str, tuple[Tensor, Tensor]] = {}

    def by_hand(trainer: Trainer, module: Any) -> None:
        module.configure_model()
        names = target_layers(module.network, SOME["targets"])  # type: ignore[arg-type]
        kinds = {"activation": SecondMoments, "fisher": RowFisher}
        known = {}
        if method != "plain":
            known = gather(kinds[method](module.network, names), trainer, module, 4)
        rule = RankRule(rank=3)
        expected.update(choose_ranks(module.network, names, rule, method, known).factors)

    watch = Watch()
    callback = LowRankCallback(method=method, **SOME)  # type: ignore[arg-type]
    fit(tmp_path, Setup(by_hand), callback, watch, max_steps=1)
    assert len(expected) == 4
    for name, (up, down) in expected.items():
        assert torch.equal(watch.started[f"network.{name}.up"], up)
        assert torch.equal(watch.started[f"network.{name}.down"], down)


def test_with_all_its_energy_a_layer_starts_where_it_was(tmp_path: Path) -> None:
    place = "bert.encoder.layer.1.intermediate.dense"
    told = {}

    def narrow(trainer: Trainer, module: Any) -> None:
        module.configure_model()
        weight = module.network.get_submodule(place).weight
        with torch.no_grad():
            weight.copy_(weight[:, :5] @ torch.randn(5, 16))
        told["dense"] = logits(module.network)

    watch = Watch()
    callbacks = Setup(narrow), LowRankCallback([place], energy=1.0), watch
    module, _ = fit(tmp_path, *callbacks, max_steps=1)
    assert ranks(module) == {place: 5}
    assert (watch.logits - told["dense"]).abs().max() < 1e-5


@pytest.mark.parametrize("method", ["activation", "fisher"])
@pytest.mark.parametrize("place", [1, 2, 7, 14])
def test_resumed_is_uninterrupted_and_nothing_is_computed_again(
    method: Any, place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"accumulate_grad_batches": 3, "max_steps": 8}
    settings["data"] = {"batch_size": 4}

    def callback() -> LowRankCallback:
        return LowRankCallback(method=method, parameters=0.6, calibration_batches=3)

    task = "sequence_classification"
    whole, _, _ = fit_task(task, tmp_path, callback(), SaveAt({place}, tmp_path), **settings)
    for name in ("gather", "choose_ranks"):
        monkeypatch.delattr(f"lmkit.callbacks.low_rank.{name}")
    path = tmp_path / f"{place}.ckpt"
    resumed, _, _ = fit_task(task, tmp_path, callback(), ckpt_path=path, **settings)
    assert same(whole, resumed) and whole.ledger == resumed.ledger


@pytest.mark.parametrize("first", ["low_rank", "lora"])
def test_it_goes_with_lora_in_either_order_and_resumes(first: str, tmp_path: Path) -> None:
    def callbacks() -> list[Callback]:
        made = [LowRankCallback(parameters=0.6), LoRACallback(rank=2, targets=["all"])]
        return made if first == "low_rank" else made[::-1]

    task, settings = "sequence_classification", {"max_steps": 6}
    whole, trainer, look = fit_task(task, tmp_path, *callbacks(), SaveAt({2}, tmp_path), **settings)
    changed = moved(whole, look)
    assert changed and not any(name.endswith((".up", ".down")) for name in changed)
    assert {spec["class_path"].rpartition(".")[2] for spec in whole.ledger} == {"LowRank", "LoRA"}
    path = tmp_path / "2.ckpt"
    resumed, _, _ = fit_task(task, tmp_path, *callbacks(), ckpt_path=path, **settings)
    assert same(whole, resumed) and whole.ledger == resumed.ledger
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert same(lmkit.load(tmp_path / "last.ckpt"), whole)


def test_a_small_checkpoint_over_low_rank_layers_holds_their_factors(tmp_path: Path) -> None:
    callbacks = [LowRankCallback(rank=3), LoRACallback(rank=2), TrainableOnlyCheckpoint()]
    module, trainer = fit(tmp_path, *callbacks, max_steps=2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert any(key.endswith(".up") for key in kept["state_dict"])
    assert kept["lmkit"]["left_out"] and not any(".up" in n for n in kept["lmkit"]["left_out"])
    assert same(lmkit.load(tmp_path / "last.ckpt"), module)


def test_a_fit_of_a_loaded_module_with_the_same_callback_changes_nothing(tmp_path: Path) -> None:
    callback = LowRankCallback(**SOME)  # type: ignore[arg-type]
    module, trainer = fit(tmp_path, callback, max_steps=2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    for source in (tmp_path / "last.ckpt", lmkit.export(module, tmp_path / "out")):
        loaded, watch = lmkit.load(source), Watch()
        again = LowRankCallback(**SOME)  # type: ignore[arg-type]
        fit(tmp_path, again, watch, module=loaded, max_steps=1)
        assert loaded.ledger == module.ledger
        assert all(torch.equal(t, watch.started[n]) for n, t in weights(module).items())


@pytest.mark.parametrize("with_callback", [True, False])
def test_a_checkpoint_is_validated_with_and_without_the_callback(
    with_callback: bool, tmp_path: Path
) -> None:
    module, trainer = fit(tmp_path, LowRankCallback(**SOME), max_steps=2)  # type: ignore[arg-type]
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    data = make_data(tmp_path)
    expected = make_trainer().validate(module, data, verbose=False)
    callbacks = [LowRankCallback(**SOME)] if with_callback else []  # type: ignore[arg-type]
    fresh = make_module(tmp_path)
    found = make_trainer(*callbacks).validate(
        fresh, data, ckpt_path=tmp_path / "last.ckpt", verbose=False
    )
    assert found == expected and fresh.ledger == module.ledger


def test_without_a_checkpoint_a_validation_leaves_the_network_dense(tmp_path: Path) -> None:
    module = make_module(tmp_path)
    make_trainer(LowRankCallback()).validate(module, make_data(tmp_path), verbose=False)
    assert not ranks(module) and module.ledger == []


def test_a_run_goes_on_with_the_arguments_it_had(tmp_path: Path) -> None:
    _, trainer = fit(tmp_path, LowRankCallback(**SOME), max_steps=2)  # type: ignore[arg-type]
    trainer.save_checkpoint(tmp_path / "low.ckpt")
    _, trainer = fit(tmp_path, max_steps=2)
    trainer.save_checkpoint(tmp_path / "dense.ckpt")
    other = LowRankCallback(**{**SOME, "rank": 4})  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"was factorized with rank=3, and .* this run has rank=4:"
    ):
        fit(tmp_path, other, max_steps=4, ckpt_path=tmp_path / "low.ckpt")
    with pytest.raises(ValueError, match=r"has no low-rank layers.*start anew from an export"):
        fit(tmp_path, other, max_steps=4, ckpt_path=tmp_path / "dense.ckpt")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*gone\.ckpt"):
        fit(tmp_path, other, max_steps=4, ckpt_path=tmp_path / "gone.ckpt")


def test_where_the_checkpoint_is_not_foreseen_all_is_computed_anew_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"max_steps": 4}
    task = "sequence_classification"
    whole, _, _ = fit_task(task, tmp_path, LowRankCallback(), SaveAt({2}, tmp_path), **settings)
    monkeypatch.setattr("lmkit.modules.resume._coming_checkpoint", lambda trainer: None)
    path = tmp_path / "2.ckpt"
    resumed, _, _ = fit_task(task, tmp_path, LowRankCallback(), ckpt_path=path, **settings)
    assert same(whole, resumed)
    with pytest.raises(ValueError, match="give the callbacks the arguments they had"):
        fit_task(task, tmp_path, LowRankCallback(rank=2), ckpt_path=path, **settings)


def test_two_of_them_factorize_different_layers(tmp_path: Path) -> None:
    def callbacks() -> list[Callback]:
        return [
            LowRankCallback(["ffn_output"], rank=4),
            LowRankCallback(["query"], "plain", energy=0.5),
        ]

    task = "sequence_classification"
    whole, _, _ = fit_task(task, tmp_path, *callbacks(), SaveAt({2}, tmp_path))
    assert len(whole.ledger) == 2 and {r for n, r in ranks(whole).items() if "output" in n} == {4}
    resumed, _, _ = fit_task(task, tmp_path, *callbacks(), ckpt_path=tmp_path / "2.ckpt")
    assert same(whole, resumed)
    with pytest.raises(ValueError, match="is a product of rank 4 already"):
        fit(tmp_path, LowRankCallback(rank=4), LowRankCallback(rank=3))


@pytest.mark.parametrize("method", ["activation", "fisher"])
def test_it_learns_with_averaged_weights_in_bf16_and_accumulates(
    method: Any, tmp_path: Path
) -> None:
    module, trainer, _ = fit_task(
        "masked_lm",
        tmp_path,
        LowRankCallback(method=method, parameters=0.6),
        EMAWeightAveraging(decay=0.5),
        precision="bf16-mixed",
        accumulate_grad_batches=2,
        gradient_clip_val=0.5,
    )
    assert all(p.isfinite().all() and p.dtype == torch.float32 for p in module.parameters())
    trainer.save_checkpoint(tmp_path / "ema.ckpt")
    assert set(lmkit.load(tmp_path / "ema.ckpt").state_dict()) == set(module.state_dict())


def test_two_accumulated_batches_are_one_of_twice_the_size(tmp_path: Path) -> None:
    found = []
    for size, accumulate in ((8, 1), (4, 2)):
        module, _, _ = fit_task(
            "sequence_classification",
            tmp_path,
            # As many texts, in as many batches as that takes.
            LowRankCallback(parameters=0.6, calibration_batches=2 * accumulate),
            Setup(lambda _, module: set_dropout(module)),
            accumulate_grad_batches=accumulate,
            data={"batch_size": size},
            module={"optimizer": {"class_path": "torch.optim.SGD"}},
        )
        found.append(module)
    assert ranks(found[0]) == ranks(found[1])
    first, second = (network_product(module) for module in found)
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)


class RanksAgree(Callback):
    """Fails where two processes differ in structure or weights; writes a checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        set_dropout(pl_module)
        self.check(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.check(trainer, pl_module)
        trainer.save_checkpoint(self.path)

    def check(self, trainer: Trainer, module: Any) -> None:
        if trainer.world_size > 1:
            ours = nn.utils.parameters_to_vector(module.parameters()).detach()
            theirs = trainer.strategy.all_gather(ours)
            assert torch.equal(theirs[0], theirs[1])
            assert module.ledger == trainer.strategy.broadcast(module.ledger)


@pytest.mark.skipif(sys.platform != "linux", reason="forks with gloo")
@pytest.mark.filterwarnings("ignore:the fit ran in processes of its own")
@pytest.mark.parametrize("method", ["activation", "fisher"])
def test_two_ranks_choose_what_one_process_does(method: Any, tmp_path: Path) -> None:
    case, loaded = BY_NAME["token_classification"], []
    start = case.make_module()
    start.tokenizer = tiny.tokenizer()
    base = str(lmkit.export(start, tmp_path / "base"))
    for devices in (1, 2):
        seed_everything(5)
        how = {"learning_rate": 1e-2, "warmup": 0, "optimizer": {"class_path": "torch.optim.SGD"}}
        trainer = make_trainer(
            LowRankCallback(method=method, parameters=0.6, calibration_batches=3),
            RanksAgree(tmp_path / f"{devices}.ckpt"),
            devices=devices,
            strategy="ddp_fork" if devices > 1 else "auto",
            max_steps=3,
        )
        data = case.make_data(tmp_path, batch_size=8 // devices)
        trainer.fit(case.module(base, **how), data)
        loaded.append(lmkit.load(tmp_path / f"{devices}.ckpt"))
    assert ranks(loaded[0]) == ranks(loaded[1])
    first, second = (network_product(module) for module in loaded)
    for name in first:
        assert torch.allclose(first[name], second[name], atol=1e-5), name


@pytest.mark.skipif(sys.platform != "linux", reason="forks with gloo")
def test_what_is_refused_is_refused_on_both_ranks(tmp_path: Path) -> None:
    module = make_module(tmp_path)
    callback = LowRankCallback(["ffn_input"], energy=1.0)
    trainer = make_trainer(callback, devices=2, strategy="ddp_fork", max_steps=1)
    with pytest.raises(Exception, match=r"energy=1\.0 leaves all of the 2 layers"):
        trainer.fit(module, make_data(tmp_path))


def test_what_is_left_is_logged_and_the_layers_are_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    logger = CSVLogger(tmp_path, name="", version="log")
    callback = LowRankCallback(parameters=0.5)
    module, _ = fit(tmp_path, callback, max_steps=2, logger=logger, log_every_n_steps=1)
    logger.save()
    rows = list(csv.DictReader((tmp_path / "log" / "metrics.csv").open()))
    logged = [row for row in rows if row.get("low_rank/parameters")]
    whole = 2 * (4 * 16 * 16 + 2 * 16 * 32)
    low = sum((16 + 16 if "attention" in n else 48) * r for n, r in ranks(module).items())
    dense = 0
    for name in target_layers(make_dense(module), ["all"]):
        size = 16 * 16 if "attention" in name else 16 * 32
        dense += 0 if name in ranks(module) else size
    assert [float(row["low_rank/parameters"]) for row in logged] == [low + dense]
    assert float(logged[0]["low_rank/share"]) == pytest.approx((low + dense) / whole)
    assert 0.48 < (low + dense) / whole <= 0.5
    said = [record.message for record in caplog.records if "energy kept" in record.message]
    assert (
        len(said) == 1 and f"of {whole:,} numbers in 12 layers {low + dense:,} are left" in said[0]
    )
    assert all(f"{name} " in said[0] for name in ranks(module))
    caplog.clear()
    fit(tmp_path, callback, module=module, max_steps=1)
    assert "energy kept" not in caplog.text


def make_dense(module: LMModule) -> nn.Module:
    """Return a dense network like that of a module."""
    return type(module.network)(module.network.config)


def test_the_table_of_the_tokens_is_factorized_with_its_own_rank(tmp_path: Path) -> None:
    for method in ("activation", "fisher", "plain"):
        callback = LowRankCallback(
            [],
            method,
            embedding_rank=4,
            calibration_batches=3,  # type: ignore[arg-type]
        )
        module, trainer, look = fit_task("sequence_classification", tmp_path, callback)
        assert ranks(module) == {"bert.embeddings.word_embeddings": 4}
        assert {f"network.bert.embeddings.word_embeddings.{w}" for w in ("table", "up")} <= moved(
            module, look
        )
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        assert same(lmkit.load(tmp_path / "last.ckpt"), module)


def test_a_table_that_something_shares_is_refused(tmp_path: Path) -> None:
    for task in ("masked_lm", "causal_lm", "seq2seq"):
        with pytest.raises(ValueError, match=r"are one weight.*lose its tie.*embedding_rank"):
            fit_task(task, tmp_path, LowRankCallback(embedding_rank=4))
    with pytest.raises(ValueError, match="another network of ReplacedTokenModule shares"):
        fit_task("replaced_token", tmp_path, LowRankCallback(embedding_rank=4))
    with pytest.raises(ValueError, match=r"query\.weight and decoder.*query.weight are one weight"):
        fit_task("two_encoders", tmp_path, LowRankCallback(["query"]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 8, "energy": 0.9}, "give one of rank, energy and parameters"),
        ({"energy": 0.9, "parameters": 0.6}, "give one of rank, energy and parameters"),
        ({"energy": 1.5}, r"energy must lie in \(0, 1\]"),
        ({"parameters": 1.0}, r"parameters must lie in \(0, 1\)"),
        ({"method": "svd"}, "method must be one of activation, fisher, plain"),
        ({"targets": []}, "targets must name linear layers"),
        ({"calibration_batches": 0}, "calibration_batches must be at least 1"),
        ({"embedding_rank": -1}, "embedding_rank must be at least 0"),
        ({"rank": 0}, "rank must be at least 1"),
    ],
)
def test_settings_outside_their_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LowRankCallback(**settings)


def test_by_default_six_tenths_of_the_parameters_are_kept() -> None:
    assert LowRankCallback().settings["parameters"] == 0.6
    assert LowRankCallback("query").settings["targets"] == ["query"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 8}, r"rank is 8, and .*query has 16 x 16 .* = 8 on"),
        ({"targets": ["ffn_input"], "energy": 1.0}, "leaves all of the 2 layers as they are"),
        ({"parameters": 0.05}, "room for 204 parameters, and one rank of each layer takes"),
        ({"embedding_rank": 16}, r"rank is 16, and .*word_embeddings has"),
    ],
)
def test_what_saves_nothing_is_refused_before_training(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    module = make_module(tmp_path)
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, LowRankCallback(**settings), module=module)
    assert module.ledger == [] and not ranks(module)


def test_targets_that_match_nothing_and_layers_that_are_low_rank_already(tmp_path: Path) -> None:
    with pytest.raises(NothingMatchedError, match=r"nearest names.*query"):
        fit(tmp_path, LowRankCallback(["quary"]))
    before = Setup(lambda trainer, module: module.operate(LowRank({"query": 2})))
    with pytest.raises(ValueError, match="query is a product of rank 2 already"):
        fit(tmp_path, before, LowRankCallback())
    module, _ = fit(tmp_path, before, LowRankCallback(["key"]), max_steps=1)
    assert len(module.ledger) == 2


def test_a_layer_that_no_batch_passes_is_named(tmp_path: Path) -> None:
    def add(trainer: Trainer, module: Any) -> None:
        module.configure_model()
        module.network.idle = nn.Linear(16, 16)

    with pytest.raises(ValueError, match="no real token"):
        fit(tmp_path, Setup(add), LowRankCallback(["idle"]))
    with pytest.raises(ValueError, match="nothing was gathered for idle, which no batch has"):
        fit(tmp_path, Setup(add), LowRankCallback(["idle", "query"]))


def test_data_of_other_classes_are_told_before_they_are_calibrated_on(tmp_path: Path) -> None:
    module = make_module(tmp_path)
    module.configure_model()
    with pytest.raises(ValueError, match="the network was built with 2 classes"):
        fit(tmp_path, LowRankCallback(), module=module)


def test_a_module_that_is_not_ours_is_factorized_by_its_weights() -> None:
    rows = foreign_rows()
    with pytest.raises(TypeError, match="Foreign is none; take method='plain'"):
        make_trainer(LowRankCallback()).fit(Foreign(), rows)
    module, callback = Foreign(), LowRankCallback(method="plain", rank=3)
    for _ in range(2):
        make_trainer(callback, max_steps=4).fit(module, rows)
    assert len(low_rank_layers(module.net)) == 12


def set_dropout(module: Any) -> None:
    module.configure_model()
    for part in module.network.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0


def network_product(module: LMModule) -> dict[str, Tensor]:
    """Return all weights, factors multiplied out: their signs are the decomposition's."""
    layers = low_rank_layers(module.network)
    apart = tuple(f"network.{name}.{word}" for name in layers for word in ("up", "down"))
    found = {name: t for name, t in weights(module).items() if name not in apart}
    return found | {name: layer.weight.detach() for name, layer in layers.items()}
