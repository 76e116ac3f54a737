"""ONNX in whole numbers has those that were trained, and says what the network says."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lmkit
from lmkit.comparison import compare, example_inputs, scores_of
from lmkit.functional.quantization import quantize_weight
from lmkit.modules import (
    CausalLMModule,
    LMModule,
    MaskedLMModule,
    SequenceClassificationModule,
    TokenClassificationModule,
)
from lmkit.modules.onnx_network import OnnxNetwork
from lmkit.surgery import NothingMatchedError
from lmkit.surgery.low_rank import LowRank
from lmkit.surgery.quantization import FakeQuantize, Quantize
from lmkit.surgery.quantization_ranges import put_calibration, scale_weights
from tests import tiny
from tests.callbacks.fitted import BY_NAME, fit_task
from tests.cases import make_trainer, named

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.filterwarnings("ignore:the module has no tokenizer:UserWarning")

#: Without these instructions ONNX Runtime adds pairs of products in 16 bits, which may overflow.
needs_vnni = pytest.mark.skipif(
    not torch.cpu._is_vnni_supported(), reason="8 bits are exact on processors with VNNI alone"
)

_WIDE = {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.1}
BERT: dict[str, Any] = {**tiny.MASKED["bert"], **_WIDE, **named("a", "b", "c")}


def make(
    cls: type[LMModule] = SequenceClassificationModule, model: dict[str, Any] | None = None
) -> LMModule:
    """Make a module whose network says something."""
    torch.manual_seed(0)
    module = cls(model=dict(model or BERT))
    module.tokenizer = tiny.tokenizer("bpe" if cls is CausalLMModule else "wordpiece")
    module.configure_model()
    return module


def graph_of(folder: Path) -> Any:
    return onnx.load(folder / "model.onnx").graph


def kinds(folder: Path) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in graph_of(folder).node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


def agrees(module: LMModule, folder: Path) -> tuple[float, float]:
    """Return the cosine of ONNX Runtime's and the network's scores, and their largest gap."""
    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    network = copy.deepcopy(module.network).eval()
    example = example_inputs(module, network, rows=6, length=20)
    takes = {given.name for given in session.get_inputs()}
    found = session.run(None, {k: v.numpy() for k, v in example.items() if k in takes})
    said = scores_of(network, example)
    says = [torch.from_numpy(each) for each in found]
    gaps = [float((a - b).abs().max()) for a, b in zip(said, says, strict=True)]
    return compare(said, says, example).cosine, max(gaps)


@needs_vnni
@pytest.mark.parametrize(
    ("cls", "model", "linear"),
    [
        (SequenceClassificationModule, BERT, 14),
        (CausalLMModule, {**tiny.CAUSAL["gpt2"], "n_embd": 64}, 9),
        pytest.param(MaskedLMModule, {**tiny.MASKED["bert"], **_WIDE}, 14, marks=pytest.mark.slow),
        pytest.param(
            MaskedLMModule, {**tiny.MASKED["modernbert"], **_WIDE}, 10, marks=pytest.mark.slow
        ),
    ],
)
def test_all_matrices_become_whole_numbers_in_a_quarter_of_the_bytes(
    cls: type[LMModule], model: dict[str, Any], linear: int, tmp_path: Path
) -> None:
    module = make(cls, model)
    folder = lmkit.export(module, tmp_path / "int8", format="onnx", quantize="int8")
    counts = kinds(folder)
    assert counts["MatMulInteger"] == linear and "Gemm" not in counts
    assert counts["DynamicQuantizeLinear"] <= linear
    cosine, _ = agrees(module, folder)
    assert 0.99 < cosine < 1.0
    graph = graph_of(folder)
    sizes = {
        tensor.name: (tensor.data_type, int(np.prod(tensor.dims)))
        for tensor in graph.initializer
        if len(tensor.dims) == 2
    }
    floats = sum(n for kind, n in sizes.values() if kind == onnx.TensorProto.FLOAT)
    whole = sum(n for kind, n in sizes.values() if kind == onnx.TensorProto.INT8)
    # What is left in floating-point numbers are the steps of the tables, one a row.
    assert whole > 40 * floats > 0
    # A table that a head shares is stored once, as in the network.
    plain = sum(p.numel() for p in module.network.parameters() if p.dim() == 2)
    assert whole == plain
    assert {path.name for path in folder.iterdir()} >= {"model.onnx", "config.json"}
    assert not (folder / "plain.onnx").exists()


@needs_vnni
@pytest.mark.parametrize("method", ["tensor", "smooth", "static"])
def test_what_learned_to_be_rounded_is_what_onnx_runtime_computes(
    method: str, tmp_path: Path
) -> None:
    module = make()
    network: Any = module.network
    if method == "tensor":
        module.operate(FakeQuantize(activations="per_tensor", exclude=["layer.1.output"]))
    else:
        kind = FakeQuantize if method == "smooth" else Quantize
        inputs = "per_tensor" if method == "smooth" else "static"
        surgery = kind(activations=inputs, smooth=True, exclude=["layer.1.output"])
        layers = [n for n, m in surgery.layers(network).items() if not isinstance(m, nn.Embedding)]
        # What reads the same has the same factors.
        factors = {n: torch.linspace(0.5, 2, network.get_submodule(n).in_features) for n in layers}
        scale_weights(network, factors)
        module.operate(surgery)
        scales = {n: (torch.tensor(0.05), torch.tensor(120.0)) for n in layers}
        put_calibration(network, factors, scales if method == "static" else None)
    folder = lmkit.export(module, tmp_path / "int8", format="onnx")
    cosine, gap = agrees(module, folder)
    # But for halves that fall to the other side.
    assert cosine > 0.99999 and gap < 5e-3
    counts = kinds(folder)
    assert counts["MatMulInteger"] == 11
    dynamic, fixed = counts.get("DynamicQuantizeLinear", 0), counts.get("QuantizeLinear", 0)
    assert (dynamic, fixed) == ((0, 7) if method == "static" else (7, 0))
    graph = graph_of(folder)
    held = [onnx.numpy_helper.to_array(t) for t in graph.initializer if t.data_type == 3]
    layer = network.get_submodule("bert.encoder.layer.0.intermediate.dense")
    expected = (
        layer.weight.numpy() if method == "static" else quantize_weight(layer.weight.detach())[0]
    )
    assert sum(np.array_equal(each.T, np.asarray(expected)) for each in held) == 1
    table = network.bert.embeddings.word_embeddings
    rows = table.weight if method == "static" else quantize_weight(table.weight.detach())[0]
    assert sum(np.array_equal(each, np.asarray(rows)) for each in held) == 1


@needs_vnni
def test_layers_stay_by_name_and_what_names_none_is_told(tmp_path: Path) -> None:
    module = make()
    how: dict[str, Any] = {"format": "onnx", "quantize": "int8"}
    exclude = ["ffn_output", "classifier", "embeddings"]
    folder = lmkit.export(module, tmp_path / "some", exclude=exclude, **how)
    counts = kinds(folder)
    # Two products of attention in each layer have no weight, and the classifier becomes one too.
    assert counts["MatMulInteger"] == 2 * 5 + 1 and counts["MatMul"] == 2 * 2 + 2 + 1
    assert not any("_rows" in t.name for t in graph_of(folder).initializer)
    with pytest.raises(NothingMatchedError, match=r"exclude names 'LayerNorm', in which there"):
        lmkit.export(module, tmp_path / "no", exclude=["LayerNorm"], **how)
    with pytest.raises(NothingMatchedError, match=r"no module matches \['layr'\]; nearest names"):
        lmkit.export(module, tmp_path / "no", exclude=["layr"], **how)
    with pytest.raises(ValueError, match="no layer of the ONNX model is to be quantized"):
        lmkit.export(module, tmp_path / "no", exclude=["bert", "classifier"], **how)
    assert not (tmp_path / "no").exists()


def test_four_bits_are_refused_and_merged_all_is_float(tmp_path: Path) -> None:
    module = make()
    module.operate(Quantize(bits=4, group_size=32, activations=None))
    with pytest.raises(ValueError, match=r"has weights of 4 bits, and ONNX int8 has 8"):
        lmkit.export(module, tmp_path / "no", format="onnx")
    folder = lmkit.export(module, tmp_path / "float", format="onnx", merge=True)
    assert "MatMulInteger" not in kinds(folder)
    cosine, gap = agrees(module, folder)
    assert cosine > 0.999999 and gap < 1e-4


@pytest.mark.slow
def test_low_rank_layers_are_rounded_factor_by_factor(tmp_path: Path) -> None:
    module = make()
    module.operate(LowRank({"ffn_output": 8}))
    folder = lmkit.export(module, tmp_path / "int8", format="onnx", quantize="int8")
    assert kinds(folder)["MatMulInteger"] == 16 and agrees(module, folder)[0] > 0.99


def spoiled() -> LMModule:
    """Make a module whose pooler reads two channels for nothing, which are far larger than all."""
    module = make()
    network: Any = module.network
    with torch.no_grad():
        network.bert.encoder.layer[-1].output.LayerNorm.weight[:2] = 4000.0
        network.bert.pooler.dense.weight[:, :2] = 0.0
    return module


@pytest.mark.slow
def test_what_is_not_what_the_network_says_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    how: dict[str, Any] = {"format": "onnx", "quantize": "int8", "overwrite": True}
    module = make()
    lmkit.export(module, tmp_path / "out", **how)
    assert "says what the network says: cosine 0.99" in caplog.text
    assert "(random words)" in caplog.text
    texts = ["the quick fox", "a lazy dog jumps over old trees"]
    caplog.clear()
    lmkit.export(module, tmp_path / "out", texts=texts, **how)
    assert "(2 texts)" in caplog.text
    with pytest.warns(UserWarning, match=r"does not say what the network says: cosine 0\.\d+.*qat"):
        lmkit.export(spoiled(), tmp_path / "out", texts=texts, **how)
    with pytest.raises(ValueError, match="texts must be a list of texts"):
        lmkit.export(module, tmp_path / "out", texts=[], **how)


@needs_vnni
def test_without_the_extra_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = lmkit.export(make(), tmp_path / "out", format="onnx", quantize="int8")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install 'lmkit\[onnx\]'"):
        lmkit.export(make(), tmp_path / "no", format="onnx", quantize="int8")
    with pytest.raises(ImportError, match=r"runs in ONNX Runtime.*pip install 'lmkit\[onnx\]'"):
        lmkit.load(folder)


TASKS = ("sequence_classification", "token_classification", "question_answering", "multiple_choice")


@pytest.mark.parametrize(
    "task", [TASKS[0], *(pytest.param(task, marks=pytest.mark.slow) for task in TASKS[1:])]
)
def test_an_onnx_folder_is_loaded_to_predict_and_to_be_tested(task: str, tmp_path: Path) -> None:
    module, trainer, _ = fit_task(task, tmp_path, max_steps=3)
    expected = make_trainer().validate(module.eval(), trainer.datamodule, verbose=False)[0]
    for quantize in (None, "int8"):
        folder = lmkit.export(module, tmp_path / f"{quantize}", format="onnx", quantize=quantize)
        loaded = lmkit.load(folder)
        assert type(loaded) is type(module) and isinstance(loaded.network, OnnxNetwork)
        found = make_trainer().validate(loaded, trainer.datamodule, verbose=False)[0]
        rel = 1e-4 if quantize is None else 0.02
        assert found["val/loss"] == pytest.approx(expected["val/loss"], rel=rel)
        assert found.keys() == expected.keys()
    if task == "sequence_classification":
        ours, theirs = module("the quick fox"), loaded("the quick fox")
        assert ours["label"] == theirs["label"]
        assert theirs["score"] == pytest.approx(ours["score"], abs=0.01)
        assert loaded(["the fox", "a dog and old trees"])[1].keys() == ours.keys()


def test_an_onnx_model_is_neither_trained_nor_exported_and_has_one_text_a_row(
    tmp_path: Path,
) -> None:
    module, trainer, _ = fit_task("sequence_classification", tmp_path, max_steps=1)
    loaded = lmkit.load(lmkit.export(module, tmp_path / "out", format="onnx"))
    with pytest.raises(ValueError, match=r"is an ONNX model .* cannot be trained"):
        make_trainer(max_steps=1).fit(loaded, trainer.datamodule)
    with pytest.raises(ValueError, match="is of an ONNX model, which is an export"):
        lmkit.export(loaded, tmp_path / "no")
    ids = torch.ones(1, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="takes one text a row"):
        loaded.network(ids, torch.ones(1, 1, 4, 4, dtype=torch.int64))


def test_a_language_model_is_not_loaded_from_onnx(tmp_path: Path) -> None:
    module = BY_NAME["masked_lm"].make_module()
    module.tokenizer = tiny.tokenizer()
    folder = lmkit.export(module, tmp_path / "out", format="onnx")
    with pytest.raises(ValueError, match=r"ONNX model of a MaskedLMModule, which looks into"):
        lmkit.load(folder)


def test_the_longest_text_is_that_of_the_network(tmp_path: Path) -> None:
    model = {**tiny.MASKED["roberta"], **named("O", "B-X")}
    module = make(TokenClassificationModule, model)
    loaded = lmkit.load(lmkit.export(module, tmp_path / "out", format="onnx"))
    # Of 66 positions RoBERTa loses one for the padding's id, and one more.
    assert loaded.network.config.max_position_embeddings == 65
