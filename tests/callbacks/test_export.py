"""The end of a fit leaves an export of the right weights."""

from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification

import lmkit
from lmkit.callbacks import CheckpointCallback, ExportCallback
from lmkit.surgery.adapter import Adapter
from lmkit.surgery.lora import LoRA
from lmkit.surgery.quantized_layers import QuantizedLinear
from tests import tiny as tiny_models
from tests.adapter_modules import make, said
from tests.cases import make_trainer


@pytest.fixture
def exported(monkeypatch, tiny):
    calls = []
    monkeypatch.setattr("lmkit.callbacks.export.LMModule", tiny)
    monkeypatch.setattr(
        "lmkit.callbacks.export.export",
        lambda source, output, format, overwrite, **_: calls.append((source, output, format)),
    )
    monkeypatch.setattr("lmkit.callbacks.export.check_export", lambda module, *how: None)
    return calls


def test_the_best_checkpoint_is_exported(fit, exported, tmp_path):
    fit(ExportCallback(), CheckpointCallback())
    best = str(tmp_path / "checkpoints" / "best-step=5.ckpt")
    assert exported == [(best, tmp_path / "export", "hf")]


def test_without_a_best_checkpoint_the_module_is_exported(fit, exported):
    _, module = fit(ExportCallback(), CheckpointCallback(), limit_val_batches=0)
    assert exported[0][0] is module


def test_last_means_the_module_as_it_is(fit, exported, tmp_path):
    _, module = fit(ExportCallback(str(tmp_path / "o"), "onnx", "last"), CheckpointCallback())
    assert exported == [(module, tmp_path / "o", "onnx")]


def test_a_fit_that_failed_exports_nothing(fit, exported, tiny):
    with pytest.raises(OSError, match="No space"):
        fit(ExportCallback(), module=tiny(explode_at=1))
    assert exported == []


def test_a_folder_of_something_else_is_refused_before_the_training(fit, tmp_path, exported):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="which is no export"):
        fit(ExportCallback())
    assert (tmp_path / "export" / "thesis.txt").exists()


def test_an_earlier_export_is_replaced(fit, tmp_path, exported):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "config.json").write_text("{}")
    fit(ExportCallback())
    assert len(exported) == 1


def test_onnx_without_its_extra_is_refused_before_the_training(fit, exported, monkeypatch):
    monkeypatch.setattr("lmkit.callbacks.export.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"lmkit\[onnx\]"):
        fit(ExportCallback(format="onnx"))


def test_a_module_of_somebody_else_is_refused_before_the_training(fit):
    with pytest.raises(TypeError, match="needs a module of lmkit, got TinyModule"):
        fit(ExportCallback())


@pytest.mark.parametrize(
    "wrong", [{"format": "tf"}, {"weights": "first"}, {"quantize": "int3"}, {"dtype": "float8"}]
)
def test_unknown_words_are_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        ExportCallback(**wrong)


def test_adapters_are_merged_or_refused_before_the_training(tmp_path):
    pytest.importorskip("peft")
    module = make(tmp_path, LoRA("a", ["query"]))
    trainer = make_trainer()
    with pytest.raises(ValueError, match="merge=True"):
        ExportCallback("out").on_fit_start(trainer, module)
    expected = said(module.network)
    for settings in ({"merge": True}, {"adapter": True}):
        callback = ExportCallback("out", **settings)
        callback.on_fit_start(trainer, module)
        callback.on_fit_end(trainer, module)
        if "merge" in settings:
            network = AutoModelForSequenceClassification.from_pretrained("out")
            assert (said(network) - expected).abs().max() < 1e-5
    assert not Path("out/config.json").exists() and Path("out/adapter_config.json").exists()
    module.operate(Adapter("b", targets=["output.dense"]))
    with pytest.raises(ValueError, match="'b' is a bottleneck adapter"):
        ExportCallback("out", merge=True).on_fit_start(trainer, module)
    with pytest.raises(ValueError, match="adapter writes one adapter alone"):
        ExportCallback("out", merge=True, adapter=True)


def test_an_export_is_quantized_and_of_half_the_bytes(tmp_path):
    module = make(tmp_path)
    module.tokenizer = tiny_models.tokenizer("wordpiece")
    ExportCallback("plain").on_fit_end(make_trainer(), module)
    ExportCallback("half", dtype="bfloat16").on_fit_end(make_trainer(), module)
    ExportCallback("whole", quantize="int8", exclude=["value"]).on_fit_end(make_trainer(), module)
    plain, half = (Path(name, "model.safetensors").stat().st_size for name in ("plain", "half"))
    assert half < 0.6 * plain
    network = lmkit.load("whole").network
    rounded = {
        n.split(".")[-1] for n, m in network.named_modules() if isinstance(m, QuantizedLinear)
    }
    assert "query" in rounded and "value" not in rounded


def test_options_that_exclude_each_other_are_refused_at_once():
    with pytest.raises(ValueError, match="exclude each other"):
        ExportCallback(quantize="int8", dtype="bfloat16")
    with pytest.raises(ValueError, match="for ONNX give quantize='int8'"):
        ExportCallback(format="onnx", quantize="torchao")
