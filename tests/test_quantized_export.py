"""Folders of whole numbers, of torchao's tensors and of half the bytes come back as they were."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

import lmkit
from lmkit.callbacks.lora import LoRACallback
from lmkit.callbacks.quantization import QuantizationCallback
from lmkit.cli import main
from lmkit.modules import (
    CausalLMModule,
    LMModule,
    MaskedLMModule,
    Seq2SeqModule,
    SequenceClassificationModule,
)
from lmkit.surgery.quantization import FakeQuantize, Quantize
from lmkit.surgery.quantization_conversion import convert, quantized_layers
from tests import tiny
from tests.callbacks.fitted import fit_task
from tests.callbacks.tuned import fit, make_data
from tests.cases import make_trainer, named

pytestmark = pytest.mark.filterwarnings("ignore:the module has no tokenizer:UserWarning")

_WIDE = {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.1}
MODELS: dict[str, tuple[type[LMModule], dict[str, Any]]] = {
    "classes": (
        SequenceClassificationModule,
        {**tiny.MASKED["bert"], **_WIDE, **named("a", "b", "c")},
    ),
    "masked": (MaskedLMModule, {**tiny.MASKED["bert"], **_WIDE}),
    "modern": (MaskedLMModule, {**tiny.MASKED["modernbert"], **_WIDE}),
    "gpt2": (CausalLMModule, {**tiny.CAUSAL["gpt2"], "n_embd": 64}),
    "llama": (CausalLMModule, {**tiny.CAUSAL["llama"], **_WIDE}),
    "t5": (Seq2SeqModule, {**tiny.SEQ2SEQ["t5"], "d_model": 64}),
}
SURGERIES = {
    "learned": FakeQuantize(),
    "four": Quantize(bits=4, group_size=16, activations=None),
    "static": Quantize(activations="static", smooth=True),
}


def make(name: str = "classes") -> LMModule:
    torch.manual_seed(0)
    cls, model = MODELS[name]
    module = cls(model=dict(model))
    module.tokenizer = tiny.tokenizer("wordpiece" if "vocab" in name or "m" in name else "bpe")
    module.configure_model()
    return module


def said(network: Any) -> torch.Tensor:
    ids = torch.randint(5, 90, (2, 9), generator=torch.Generator().manual_seed(1))
    decoder = {"decoder_input_ids": ids} if network.config.is_encoder_decoder else {}
    network.eval()
    with torch.no_grad():
        logits: torch.Tensor = network(input_ids=ids, **decoder).logits
    return logits


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("surgery", SURGERIES)
def test_quantized_networks_come_back_with_no_difference(
    name: str, surgery: str, tmp_path: Path
) -> None:
    module = make(name)
    module.operate(SURGERIES[surgery])
    folder = lmkit.export(module, tmp_path / "out")
    loaded = lmkit.load(folder)
    assert torch.equal(said(loaded.network), said(module.network))
    assert quantized_layers(loaded.network) and type(loaded) is type(module)
    assert [spec["class_path"] for spec in loaded.ledger] == ["lmkit.surgery.quantization.Quantize"]
    # Once more, and it is as it was.
    again = lmkit.load(lmkit.export(loaded, tmp_path / "again"))
    assert torch.equal(said(again.network), said(module.network))
    assert again.ledger == loaded.ledger
    with pytest.raises(OSError, match="no file named"):
        module.auto_class.from_pretrained(folder)


@pytest.mark.parametrize("name", MODELS)
def test_int8_is_a_quarter_of_the_bytes_and_says_nearly_the_same(name: str, tmp_path: Path) -> None:
    module = make(name)
    folder = lmkit.export(module, tmp_path / "int8", quantize="int8")
    plain = lmkit.export(module, tmp_path / "plain")
    loaded = lmkit.load(folder)
    gap = (said(loaded.network) - said(module.network)).norm() / said(module.network).norm()
    assert 0 < gap < 0.05
    ours, theirs = (
        sum(path.stat().st_size for path in place.glob("*.safetensors"))
        for place in (folder, plain)
    )
    # Beside the numbers a header names each of them, which counts in so small a network.
    headers = 140 * len(loaded.state_dict())
    assert ours - headers < 0.45 * theirs
    assert not quantized_layers(module.network) and module.ledger == []


def test_merged_the_folder_is_plain_and_has_the_rounded_weights(tmp_path: Path) -> None:
    module = make()
    module.operate(FakeQuantize(activations=None))
    with pytest.raises(ValueError, match=r"cannot express this.*changed by Quantize.*merge=True"):
        lmkit.export(module, tmp_path / "no", plain=True)
    folder = lmkit.export(module, tmp_path / "out", merge=True, plain=True)
    back = SequenceClassificationModule.auto_class.from_pretrained(folder)
    assert torch.equal(said(back), said(module.network))
    # What is read is no longer rounded there, and that is told.
    module = make()
    module.operate(FakeQuantize())
    folder = lmkit.export(module, tmp_path / "more", merge=True)
    gap = said(SequenceClassificationModule.auto_class.from_pretrained(folder)) - said(
        module.network
    )
    assert 0 < gap.abs().max() < 0.05 * said(module.network).abs().max()


def test_adapters_beside_whole_numbers_are_merged_first(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    callbacks: list[Callback] = [QuantizationCallback(), LoRACallback(rank=2)]
    module, _ = fit(tmp_path, *callbacks, max_steps=2)
    with pytest.raises(ValueError, match="which plain transformers does not know: merge=True"):
        lmkit.export(module, tmp_path / "no")
    loaded = lmkit.load(lmkit.export(module, tmp_path / "out", merge=True, quantize="int8"))
    assert quantized_layers(loaded.network) and len(loaded.ledger) == 1


def test_a_folder_of_whole_numbers_predicts_and_is_tested_but_not_trained_again(
    tmp_path: Path,
) -> None:
    module, trainer, _ = fit_task("sequence_classification", tmp_path, QuantizationCallback())
    folder = lmkit.export(module, tmp_path / "out")
    loaded = lmkit.load(folder)
    assert loaded("the quick fox") == module.eval()("the quick fox")
    expected = make_trainer().validate(module, trainer.datamodule, verbose=False)
    assert make_trainer().validate(loaded, trainer.datamodule, verbose=False) == expected
    tuned = SequenceClassificationModule(str(folder), learning_rate=1e-2, warmup=0)
    data = make_data(tmp_path, tokenizer=str(folder))
    with pytest.raises(ValueError, match=r"is quantized already.*whole numbers do not learn"):
        make_trainer(QuantizationCallback(), max_steps=1).fit(tuned, data)
    # What stands beside them may learn: here adapters, on a base of a quarter of the bytes.
    pytest.importorskip("peft")
    tuned = SequenceClassificationModule(str(folder), learning_rate=1e-2, warmup=0)
    trainer = make_trainer(LoRACallback(rank=2), max_steps=2)
    trainer.fit(tuned, data)
    trainer.save_checkpoint(tmp_path / "adapted.ckpt")
    again = lmkit.load(tmp_path / "adapted.ckpt")
    assert quantized_layers(again.network) and len(again.ledger) == 2
    assert torch.equal(said(again.network), said(tuned.network))
    merged = lmkit.load(lmkit.export(tuned, tmp_path / "merged", merge=True))
    name = "bert.encoder.layer.0.attention.self.query"
    layer: Any = tuned.network.get_submodule(name)
    expected = layer.base_layer.rounded() + layer.get_delta_weight("default")
    assert (merged.network.get_submodule(name).weight - expected).abs().max() < 1e-6


def test_bf16_is_half_the_bytes_and_plain(tmp_path: Path) -> None:
    module = make()
    folder = lmkit.export(module, tmp_path / "half", dtype="bfloat16", plain=True)
    plain = lmkit.export(module, tmp_path / "whole", dtype="float32")
    half, whole = ((place / "model.safetensors").stat().st_size for place in (folder, plain))
    assert 0.45 < half / whole < 0.55
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    back = SequenceClassificationModule.auto_class.from_pretrained(folder)
    assert back.dtype == torch.bfloat16
    loaded = lmkit.load(folder)
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    gap = (said(loaded.network) - said(module.network)).abs().max()
    assert 0 < gap < 0.02 * said(module.network).abs().max()
    assert module.network.dtype == torch.float32


def test_torchaos_tensors_are_loaded_by_plain_transformers(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    module = make()
    folder = lmkit.export(module, tmp_path / "out", quantize="torchao", exclude=["layer.0.output"])
    back = SequenceClassificationModule.auto_class.from_pretrained(folder)
    gap = (said(back) - said(module.network)).norm() / said(module.network).norm()
    assert 0 < gap < 0.05
    with pytest.raises(ValueError, match="quantized weights of another library, for plain trans"):
        lmkit.load(folder)
    module.operate(FakeQuantize())
    folder = lmkit.export(module, tmp_path / "learned", quantize="torchao")
    back = SequenceClassificationModule.auto_class.from_pretrained(folder)
    assert (said(back) - said(module.network)).abs().max() < 1e-5
    # A head that shares the table leaves both as they are.
    masked = lmkit.export(make("masked"), tmp_path / "masked", quantize="torchao")
    assert MaskedLMModule.auto_class.from_pretrained(masked)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "int4"}, "quantize must be one of int8, torchao, got 'int4'"),
        ({"dtype": "float16"}, "dtype must be one of float32, bfloat16, got 'float16'"),
        ({"quantize": "int8", "adapter": True}, "quantize is about whole models"),
        ({"dtype": "bfloat16", "adapter": True}, "dtype is about whole models"),
        ({"dtype": "bfloat16", "format": "onnx"}, "dtype='bfloat16' is for folders"),
        ({"dtype": "bfloat16", "quantize": "int8"}, "exclude each other: give one"),
        ({"quantize": "torchao", "format": "onnx"}, "quantize='torchao' is for folders"),
        ({"exclude": ["query"]}, "exclude and texts are for what is quantized"),
        ({"texts": ["a"]}, "exclude and texts are for what is quantized"),
        ({"quantize": "int8", "plain": True}, "cannot express this structure"),
    ],
)
def test_what_contradicts_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        lmkit.export(make(), tmp_path / "no", **options)
    assert not (tmp_path / "no").exists()


def test_what_is_quantized_is_not_quantized_again(tmp_path: Path) -> None:
    module = make()
    module.operate(Quantize())
    for options in ({"quantize": "int8"}, {"exclude": ["query"]}):
        with pytest.raises(ValueError, match="is quantized already, and is written so: leave"):
            lmkit.export(module, tmp_path / "no", **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="for floating-point weights, and these are whole numb"):
        lmkit.export(module, tmp_path / "no", dtype="bfloat16")
    loaded = lmkit.load(lmkit.export(module, tmp_path / "out", merge=True, quantize="int8"))
    assert quantized_layers(loaded.network)


def test_without_torchao_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make()
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(ImportError, match=r"pip install 'lmkit\[compress\]'"):
        lmkit.export(module, tmp_path / "no", quantize="torchao")
    # The others need nothing.
    assert lmkit.export(module, tmp_path / "out", quantize="int8").is_dir()


def test_the_command_writes_whole_numbers_and_halves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module, trainer = fit(tmp_path, max_steps=1)
    trainer.save_checkpoint("a.ckpt")
    Path("texts.txt").write_text("the quick fox\na lazy dog\n")
    start = ["export", "--ckpt", "a.ckpt", "--output"]
    assert main([*start, "int8", "--quantize", "int8", "--exclude", "key", "ffn_output"]) == 0
    assert len(quantized_layers(lmkit.load("int8").network)) == 13 - 4
    assert main([*start, "half", "--dtype", "bfloat16", "--texts", "texts.txt"]) == 0
    assert json.loads(Path("half/config.json").read_text())["dtype"] == "bfloat16"
    assert main([*start, "no", "--quantize", "int8", "--exclude", "kee"]) == 1
    assert "no module matches ['kee']" in capsys.readouterr().err
    for wrong in (["--quantize", "int4"], ["--quantize", "int8", "--dtype", "bfloat16"]):
        assert main([*start, "no", *wrong]) == 2
    assert main([*start, "no", "--quantize", "int8", "--texts", "gone.txt"]) == 2
    assert "no text could be read from gone.txt" in capsys.readouterr().err
    assert not Path("no").exists() and module.ledger == []


def test_a_converted_module_says_what_it_said(tmp_path: Path) -> None:
    module, _ = fit(tmp_path, QuantizationCallback(), max_steps=2)
    before = said(module.network)
    convert(module.network)
    assert torch.equal(said(module.network), before)
