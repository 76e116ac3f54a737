"""Next-sentence and sentence-order prediction beside the masked language model."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader
from transformers import AutoModelForMaskedLM, BertForPreTraining
from transformers.models.auto.modeling_auto import MODEL_FOR_PRETRAINING_MAPPING_NAMES

import lmkit
from lmkit.datamodules import MaskedLMDataModule
from lmkit.modules import MaskedLMModule
from lmkit.modules.sentence_objective import ARCHITECTURES
from lmkit.types import Batch
from tests import tiny
from tests.cases import make_trainer
from tests.modules.language_model import make

SIZES = {**tiny.MASKED["bert"]}
NETWORKS: dict[str, dict[str, Any]] = {
    "bert": SIZES,
    "megatron-bert": {**SIZES, "model_type": "megatron-bert"},
    "ernie": {**SIZES, "model_type": "ernie", "use_task_id": False},
    "mobilebert": {
        **SIZES,
        "model_type": "mobilebert",
        "embedding_size": 16,
        "intra_bottleneck_size": 16,
    },
    "albert": {**SIZES, "model_type": "albert", "embedding_size": 8},
}


def pair_batch(rows: int = 4, filler: bool = False) -> Batch:
    batch = tiny.masked_batch(rows)
    batch["token_type_ids"] = (torch.arange(12).expand(rows, -1) > 5).long()
    batch["next_sentence_label"] = torch.arange(rows) % 2
    if filler:
        batch["next_sentence_label"][1] = -100
        batch["labels"][1] = -100
    return batch


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("filler", [False, True])
def test_loss_and_gradient_equal_those_of_transformers(name: str, filler: bool) -> None:
    module = make(MaskedLMModule, NETWORKS[name], sentence_objective="next_sentence").eval()
    batch = pair_batch(filler=filler)
    ours = module.step(batch)
    ours.loss.backward()
    gradients = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    label = "sentence_order_label" if name == "albert" else "next_sentence_label"
    names = ("input_ids", "attention_mask", "token_type_ids", "labels")
    inputs = {key: batch[key] for key in names}
    theirs = module.network(**inputs, **{label: batch["next_sentence_label"]}).loss
    theirs.backward()
    assert abs(ours.loss.item() - theirs.item()) <= 1e-6
    assert ours.items.item() == int((batch["labels"] != -100).sum())
    total = ours.logs["masked_loss"] + ours.logs["sentence_loss"]
    assert ours.loss.item() == pytest.approx(total.item())
    for key, parameter in module.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(gradients[key], parameter.grad, atol=1e-6), key


def test_the_architectures_named_are_those_that_have_the_head() -> None:
    found = []
    for name, architecture in MODEL_FOR_PRETRAINING_MAPPING_NAMES.items():
        arguments = inspect.signature(getattr(transformers, architecture).forward).parameters
        has_label = {"next_sentence_label", "sentence_order_label"} & set(arguments)
        if has_label and "attention_mask" in arguments:
            found.append(name)
    assert sorted(found) == list(ARCHITECTURES)


@pytest.mark.parametrize("name", ["roberta", "distilbert"])
def test_an_architecture_without_the_head_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"'{name}' has no .*(take one of albert, bert|head)"):
        make(MaskedLMModule, tiny.MASKED[name], sentence_objective="sentence_order")


def test_an_unknown_objective_and_a_batch_without_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="one of next_sentence, sentence_order or None, got 'nsp'"):
        MaskedLMModule(SIZES, sentence_objective="nsp")  # type: ignore[arg-type]
    module = make(MaskedLMModule, SIZES, sentence_objective="next_sentence")
    with pytest.raises(ValueError, match="no next_sentence_label; set sentence_objective of the"):
        module.step(tiny.masked_batch())


def validate(module: MaskedLMModule, rows: list[Batch], batch_size: int) -> dict[str, float]:
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    (metrics,) = trainer.validate(module, DataLoader(rows, batch_size), verbose=False)
    return dict(metrics)


def test_metrics_are_each_over_their_own_count_for_any_batch_size() -> None:
    module = make(MaskedLMModule, SIZES, sentence_objective="sentence_order")
    whole = pair_batch(11)
    rows = [{name: tensor[i] for name, tensor in whole.items()} for i in range(11)]
    filler = {**rows[0], "labels": torch.full_like(rows[0]["labels"], -100)}
    filler["next_sentence_label"] = torch.tensor(-100)
    with torch.no_grad():
        expected = module.eval().step(whole)
    for batches in ((rows, 1), (rows[::-1], 4), ([filler, *rows, filler], 3)):
        metrics = validate(module, *batches)
        assert metrics["val/loss"] == pytest.approx(expected.loss.item(), rel=1e-6)
        masked = expected.logs["masked_loss"].item()
        assert metrics["val/perplexity"] == pytest.approx(math.exp(masked), rel=1e-6)
        for name in ("masked_loss", "sentence_loss", "sentence_accuracy"):
            assert metrics[f"val/{name}"] == pytest.approx(expected.logs[name].item(), rel=1e-6)


def data(folder: Path, objective: str | None, **how: Any) -> MaskedLMDataModule:
    texts = tiny.sentences(160)
    parts = ["\n".join(texts[4 * i : 4 * i + 4]) for i in range(40)]
    (folder / "articles.txt").write_text("\n\n".join(parts) + "\n")
    settings: dict[str, Any] = {"max_length": 40, "batch_size": 8, "seed": 3, **how}
    return MaskedLMDataModule(
        train_file=str(folder / "articles.txt"),
        document="paragraph",
        tokenizer=tiny.tokenizer_folder(folder / "tokenizer"),
        cache_dir=str(folder / "cache"),
        sentence_objective=objective,  # type: ignore[arg-type]
        **settings,
    )


@pytest.mark.parametrize("objective", ["next_sentence", "sentence_order"])
@pytest.mark.parametrize("masking", ["token", "whole_word"])
def test_it_trains_and_its_export_is_plain(tmp_path: Path, objective: Any, masking: str) -> None:
    module = MaskedLMModule(SIZES, sentence_objective=objective, learning_rate=1e-2, warmup=0)
    trainer = make_trainer(max_steps=-1, max_epochs=1)
    trainer.fit(module, data(tmp_path, objective, masking=masking))
    assert {"train/sentence_loss", "train/masked_loss", "val/sentence_accuracy"} <= set(
        trainer.callback_metrics
    )
    folder = lmkit.export(module, tmp_path / "export")
    plain = BertForPreTraining.from_pretrained(folder).eval()
    batch = pair_batch()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    with torch.no_grad():
        ours, theirs = module.eval().network(**inputs), plain(**inputs)
        scores = AutoModelForMaskedLM.from_pretrained(folder).eval()(**inputs).logits
    assert torch.allclose(ours.prediction_logits, theirs.prediction_logits, atol=1e-5)
    assert torch.allclose(ours.seq_relationship_logits, theirs.seq_relationship_logits, atol=1e-5)
    assert torch.allclose(ours.prediction_logits, scores, atol=1e-5)


def test_a_checkpoint_loads_alone_with_its_head_and_fills_masks(tmp_path: Path) -> None:
    module = MaskedLMModule(SIZES, sentence_objective="next_sentence")
    trainer = make_trainer(max_steps=2)
    trainer.fit(module, data(tmp_path, "next_sentence"))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = lmkit.load(tmp_path / "a.ckpt")
    assert set(again.state_dict()) == set(module.state_dict())
    assert any("seq_relationship" in name for name in again.state_dict())
    with torch.no_grad():
        rows = again.predict_step(tiny.masked_batch(rows=1), 0)
    assert len(rows) == 1 and rows[0]["fills"]
    assert len(again.sample(pair_batch(), 2)) == 2  # type: ignore[operator]


def test_order_is_learnt_where_it_can_be_seen(tmp_path: Path) -> None:
    """Every document is an opening, then an end: the order shows in the words."""
    openings, ends = ["green rivers sing .", "small birds sing ."], ["stars jump .", "moons jump ."]
    parts = [f"{openings[i % 2]}\n{ends[i // 2 % 2]} {i}" for i in range(100)]
    settings = data(tmp_path, "sentence_order", max_length=32, mask_rate=0.02, val_fraction=0.2)
    (tmp_path / "articles.txt").write_text("\n\n".join(parts) + "\n")
    wide = {**SIZES, "initializer_range": 0.2}
    module = MaskedLMModule(
        wide, sentence_objective="sentence_order", learning_rate=5e-3, schedule="constant"
    )
    torch.manual_seed(0)
    trainer = make_trainer(max_steps=-1, max_epochs=6)
    trainer.fit(module, settings)
    assert trainer.callback_metrics["val/sentence_accuracy"] > 0.9


def test_data_for_another_objective_are_refused(tmp_path: Path) -> None:
    module = MaskedLMModule(SIZES, sentence_objective="next_sentence")
    for objective in (None, "sentence_order"):
        with pytest.raises(ValueError, match=r"model has sentence_objective='next_sentence' and"):
            make_trainer(max_steps=1).fit(module, data(tmp_path, objective))
    plain = MaskedLMModule(SIZES)
    with pytest.raises(ValueError, match=r"model has sentence_objective=None and the data 'sent"):
        make_trainer(max_steps=1).fit(plain, data(tmp_path, "sentence_order"))
