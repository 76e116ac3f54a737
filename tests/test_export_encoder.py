"""Encoders that are exported without their head, and what begins from them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

import lmkit
from lmkit.callbacks import ExportCallback, LoRACallback, LowRankCallback, QuantizationCallback
from lmkit.modules import (
    CausalLMModule,
    Seq2SeqModule,
    SequenceClassificationModule,
    TokenClassificationModule,
)
from lmkit.surgery.low_rank import low_rank_layers
from tests import tiny
from tests.callbacks.tuned import fit, make_data
from tests.cases import make_trainer
from tests.modules.test_multi_task import prepared
from tests.several_tasks import make_data as make_tasks_data
from tests.several_tasks import make_module as make_tasks_module
from tests.tiny_run import lmkit as command

IDS = torch.tensor([[2, 7, 9, 11, 3], [2, 8, 3, 0, 0]])
MASK = (IDS != 0).long()


def states(network: Any) -> torch.Tensor:
    """What an encoder says of two texts, without the padding."""
    with torch.no_grad():
        found = network.eval()(input_ids=IDS, attention_mask=MASK).last_hidden_state
    return found[MASK.bool()]


def assert_same_encoder(folder, module):
    found = states(AutoModel.from_pretrained(folder))
    torch.testing.assert_close(found, states(module.network.base_model), atol=1e-5, rtol=1e-4)


def test_the_encoder_alone_is_a_plain_folder_and_says_what_it_said(tmp_path):
    module, _ = fit(tmp_path, max_steps=2)
    folder = lmkit.export(module, tmp_path / "encoder", head=False)
    encoder, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    torch.testing.assert_close(states(encoder), states(module.network.base_model))
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["BertModel"]
    assert "id2label" not in config and config.get("problem_type") is None
    # The module that was exported keeps what it has.
    assert module.network.config.id2label[0] == "fox" and module.network.config.problem_type
    assert len(AutoTokenizer.from_pretrained(folder)) == len(tiny.tokenizer())
    fits = json.loads((folder / "lmkit.json").read_text())["history"]
    assert [each["module"] for each in fits] == ["SequenceClassificationModule"]
    with pytest.raises(ValueError, match="is a BertModel, which has no head: give it to a module"):
        lmkit.load(folder)


@pytest.mark.parametrize("dropped", [True, False])
def test_a_head_for_the_same_classes_is_kept_unless_it_is_dropped(dropped, tmp_path):
    module, _ = fit(tmp_path, max_steps=2)
    folder = lmkit.export(module, tmp_path / "out", head=not dropped)
    target = SequenceClassificationModule(str(folder), learning_rate=0.0, warmup=0)
    make_trainer(max_steps=1).fit(target, make_data(tmp_path))
    assert len(target.base["history"]) == 1
    assert torch.equal(
        target.network.bert.pooler.dense.weight, module.network.bert.pooler.dense.weight
    )
    same = torch.equal(target.network.classifier.weight, module.network.classifier.weight)
    assert same is not dropped


def test_a_decoder_and_another_task_begin_from_it(tmp_path):
    torch.manual_seed(0)
    module = CausalLMModule(dict(tiny.CAUSAL["gpt2"]))
    module.tokenizer = tiny.tokenizer("bpe")
    folder = lmkit.export(module, tmp_path / "decoder", head=False)
    assert not (folder / "generation_config.json").exists()
    torch.testing.assert_close(
        states(AutoModel.from_pretrained(folder)), states(module.network.base_model)
    )
    other = TokenClassificationModule(str(folder))
    other.configure_model()
    torch.testing.assert_close(states(other.network.base_model), states(module.network.base_model))


def test_low_rank_layers_stay_and_the_head_does_not(tmp_path):
    module, _ = fit(tmp_path, LowRankCallback(rank=4, calibration_batches=1), max_steps=1)
    folder = lmkit.export(module, tmp_path / "factors", head=False)
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["BertModel"]
    names = set(load_file(folder / "network.safetensors"))
    assert names and all(name.startswith("bert.") for name in names)
    target = TokenClassificationModule(str(folder))
    target.configure_model()
    assert low_rank_layers(target.network)
    torch.testing.assert_close(states(target.network.base_model), states(module.network.base_model))
    dense = lmkit.export(module, tmp_path / "dense", head=False, merge=True)
    assert_same_encoder(dense, module)


def test_adapters_are_merged_or_refused(tmp_path):
    module, _ = fit(tmp_path, LoRACallback(rank=2), max_steps=2)
    with pytest.raises(ValueError, match="merge=True"):
        lmkit.export(module, tmp_path / "none", head=False)
    folder = lmkit.export(module, tmp_path / "merged", head=False, merge=True)
    assert_same_encoder(folder, module)


def test_the_encoder_of_several_tasks_is_one_folder_with_all_that_they_share(tmp_path):
    module, _ = prepared(tmp_path, "ner", "topic")
    assert module.network.bert is module.tasks["topic"].network.bert
    folder = lmkit.export(module, tmp_path / "encoder", head=False)
    encoder, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    # The first task has no use for the pooler, the second has.
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.equal(encoder.pooler.dense.weight, module.network.bert.pooler.dense.weight)
    torch.testing.assert_close(states(encoder), states(module.network.bert))
    alone = lmkit.export(module, tmp_path / "alone", head=False, task="ner")
    _, report = AutoModel.from_pretrained(alone, output_loading_info=True)
    assert all("pooler" in name for name in report["missing_keys"])


def test_an_encoder_with_adapters_of_tasks_is_that_of_one_task(tmp_path):
    module, _ = prepared(tmp_path, "ner", "topic", task_adapters=4)
    with pytest.raises(ValueError, match=r"adapter of each task inside.*--task NAME"):
        lmkit.export(module, tmp_path / "none", head=False)
    for name, parameter in module.named_parameters():
        if "adapter" in name:
            torch.nn.init.normal_(parameter)
    folder = lmkit.export(module, tmp_path / "encoder", head=False, task="topic")
    target = SequenceClassificationModule(str(folder))
    target.configure_model()
    alone, other = (module.task_module_of(name).network.bert for name in ("topic", "ner"))
    torch.testing.assert_close(states(target.network.bert), states(alone))
    assert not torch.allclose(states(target.network.bert), states(other))


def test_the_callback_exports_the_encoder(tmp_path):
    output = tmp_path / "out"
    for _ in range(2):  # an earlier export is replaced
        fit(tmp_path, ExportCallback(str(output), head=False), max_steps=1)
    assert AutoModel.from_pretrained(output).config.model_type == "bert"
    names = ("ner", "topic")
    for _ in range(2):
        trainer = make_trainer(ExportCallback(str(output), head=False), max_steps=1)
        trainer.fit(make_tasks_module(*names), make_tasks_data(tmp_path, *names))
    assert (output / "config.json").is_file()
    with pytest.raises(ValueError, match="adapter of each task"):
        trainer = make_trainer(ExportCallback(str(output), head=False), max_steps=1)
        module = make_tasks_module(*names, task_adapters=4)
        trainer.fit(module, make_tasks_data(tmp_path, *names))


def test_what_has_no_encoder_of_its_own_is_refused(tmp_path):
    module = Seq2SeqModule(dict(tiny.SEQ2SEQ["t5"]))
    module.tokenizer = tiny.tokenizer("bpe")
    with pytest.raises(ValueError, match="T5ForConditionalGeneration has none that is apart"):
        lmkit.export(module, tmp_path / "none", head=False)
    rounded, _ = fit(tmp_path, QuantizationCallback(), max_steps=1)
    with pytest.raises(ValueError, match="quantized layers, from which no fit begins: merge=True"):
        lmkit.export(rounded, tmp_path / "none", head=False)
    folder = lmkit.export(rounded, tmp_path / "floats", head=False, merge=True)
    assert AutoModel.from_pretrained(folder).config.model_type == "bert"


@pytest.mark.parametrize(
    ("other", "match"),
    [
        ({"adapter": True}, "adapter"),
        ({"format": "onnx"}, "format"),
        ({"quantize": "int8"}, "quantize"),
    ],
)
def test_what_is_used_as_it_is_keeps_its_head(other, match, tmp_path):
    with pytest.raises(ValueError, match=f"begins from, and {match}.* something to use"):
        lmkit.export("nowhere", tmp_path / "out", head=False, **other)
    with pytest.raises(ValueError, match="something to use"):
        ExportCallback(head=False, **other)


def test_the_command_line_takes_no_head(tmp_path, capsys):
    _, trainer = fit(tmp_path, max_steps=1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    for words, architecture in (
        ("--no_head", "BertModel"),
        ("", "BertForSequenceClassification"),
        ("--head", "BertForSequenceClassification"),
    ):
        line = f"export --ckpt {tmp_path / 'last.ckpt'} --output {tmp_path / 'out'} --overwrite"
        assert command(f"{line} {words}") == 0
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert config["architectures"] == [architecture]
