"""Prompts are learned on every task, and nothing that is frozen moves."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging

import lmkit
from lmkit.callbacks.prompt_tuning import PromptTuningCallback
from lmkit.modules import LMModule
from lmkit.surgery.tuning import head_parameters
from tests.cases import CASES, make_trainer, weights

BY_NAME = {case.name: case for case in CASES}
#: Tasks, with the data settings that keep texts in rows of their own.
TASKS: dict[str, dict[str, Any]] = {
    "masked_lm": {"batching": "bucket", "eval_batching": "bucket"},
    "causal_lm": {"batching": "bucket", "eval_batching": "bucket"},
    "sequence_classification": {},
    "regression": {},
    "token_classification": {},
    "question_answering": {},
    "multiple_choice": {},
    "seq2seq": {},
    "two_encoders": {},
}


def fit(
    task: str, folder: Path, *callbacks: Callback, data: dict[str, Any] | None = None, **how: Any
) -> tuple[LMModule, Any, dict[str, torch.Tensor]]:
    """Fit a few steps; returns module, trainer and the weights at the start."""
    before: dict[str, torch.Tensor] = {}

    class Look(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            before.update(weights(pl_module))

    seed_everything(7)
    ckpt_path = how.pop("ckpt_path", None)
    module = BY_NAME[task].make_module()
    trainer = make_trainer(*callbacks, Look(), **{"max_steps": 4, **how})
    rows = BY_NAME[task].make_data(folder, **TASKS[task], **(data or {}))
    trainer.fit(module, rows, ckpt_path=ckpt_path)
    return module, trainer, before


def moved(module: LMModule, before: dict[str, torch.Tensor]) -> set[str]:
    now = weights(module)
    return {name for name in now if not torch.equal(now[name], before[name])}


@pytest.mark.parametrize("task", TASKS)
def test_prompt_and_head_learn_and_nothing_else_moves(task: str, tmp_path: Path) -> None:
    module, trainer, before = fit(task, tmp_path, PromptTuningCallback(length=3))
    head = {f"network.{name}" for name in head_parameters(module.network)}
    learned = moved(module, before) - {n for n in before if not n.startswith("network.")}
    (prompt,) = (name for name in learned if "soft_prompts" in name)
    # The last step of a linear schedule and a class of padding leave some weights of a head.
    assert learned - {prompt} <= head and bool(head) == bool(learned - {prompt})
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded, ours = lmkit.load(tmp_path / "last.ckpt"), weights(module)
    theirs = weights(loaded)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)
    (found,) = make_trainer().validate(loaded, trainer.datamodule, verbose=False)
    assert [found] == make_trainer().validate(module, trainer.datamodule, verbose=False)
    assert math.isfinite(found["val/loss"])


@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
def test_an_encoder_learns_and_resumes_exactly(encoder: Any, tmp_path: Path) -> None:
    class Save(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 2:
                trainer.save_checkpoint(tmp_path / "two.ckpt")

    def callback() -> PromptTuningCallback:
        return PromptTuningCallback(length=3, encoder=encoder, hidden=6)

    task = "sequence_classification"
    module, _, before = fit(task, tmp_path, callback(), Save())
    assert {name for name in before if "soft_prompts" in name} <= moved(module, before)
    again, _, _ = fit(task, tmp_path, callback(), ckpt_path=tmp_path / "two.ckpt")
    ours, theirs = weights(module), weights(again)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_it_learns_with_averaged_weights_in_bf16_and_accumulates(tmp_path: Path) -> None:
    module, _, before = fit(
        "token_classification",
        tmp_path,
        PromptTuningCallback(length=3),
        EMAWeightAveraging(decay=0.5),
        precision="bf16-mixed",
        accumulate_grad_batches=2,
        max_epochs=2,
        max_steps=-1,
    )
    assert any("soft_prompts" in name for name in moved(module, before))
    assert all(p.isfinite().all() for p in module.parameters())


def test_a_text_becomes_the_tokens_of_the_data_and_stays_in_the_checkpoint(tmp_path: Path) -> None:
    callback = PromptTuningCallback(length=4, init="text", init_text="the quick brown fox jumps")
    module, trainer, before = fit("sequence_classification", tmp_path, callback, max_steps=1)
    assert module.tokenizer is not None
    ids = module.tokenizer("the quick brown fox jumps", add_special_tokens=False)["input_ids"]
    assert module.ledger[0]["init_args"]["token_ids"] == ids
    table = before["network.bert.embeddings.word_embeddings.weight"]
    start = before["network.bert.soft_prompts.adapters.default.vectors"]
    assert torch.equal(start, table[ids[:4]])
    make_trainer(callback).validate(module, trainer.datamodule, verbose=False)
    assert len(module.ledger) == 1


def test_prompts_of_two_names_learn_together(tmp_path: Path) -> None:
    module, _, before = fit(
        "sequence_classification",
        tmp_path,
        PromptTuningCallback(length=2, name="a"),
        PromptTuningCallback(length=3, name="b", seed=1),
    )
    assert sum("soft_prompts" in name for name in moved(module, before)) == 2


@pytest.mark.parametrize("which", ["batching", "eval_batching"])
def test_packed_rows_are_refused_in_setup(which: str, tmp_path: Path) -> None:
    data = BY_NAME["masked_lm"].make_data(tmp_path, **{**TASKS["masked_lm"], which: "pack"})
    with pytest.raises(ValueError, match=f"pass {which}='bucket'"):
        make_trainer(PromptTuningCallback()).fit(BY_NAME["masked_lm"].make_module(), data)


def test_a_text_needs_a_tokenizer_and_an_init_that_reads_it() -> None:
    for settings in ({"init": "text"}, {"init_text": "some words"}):
        with pytest.raises(ValueError, match="go together"):
            PromptTuningCallback(**settings)  # type: ignore[arg-type]
    callback = PromptTuningCallback(init="text", init_text="some words")
    module = BY_NAME["sequence_classification"].make_module(config={"vocab_size": 99})
    with pytest.raises(ValueError, match="neither the module nor the data module has a tokenizer"):
        callback.setup(make_trainer(), module, "fit")


def test_any_module_of_lightning_has_its_network_tuned() -> None:
    class Plain(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            module = BY_NAME["sequence_classification"].make_module(config={"vocab_size": 99})
            module.configure_model()
            self.inside = module.network

    plain, callback = Plain(), PromptTuningCallback(length=2)
    callback.setup(make_trainer(), plain, "fit")
    callback.setup(make_trainer(), plain, "validate")
    names = [name for name, p in plain.named_parameters() if "soft_prompts" in name]
    assert names == ["inside.bert.soft_prompts.adapters.default.vectors"]
