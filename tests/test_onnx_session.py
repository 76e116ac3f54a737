"""A session runs a model as fast as ONNX Runtime can, and says which extra it needs."""

import sys
from pathlib import Path

import numpy as np
import pytest

from lmkit.onnx_session import open_session

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture
def model(tmp_path):
    """A sum and a normalization, which ONNX Runtime would join into one slower operator."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    ones = [helper.make_tensor(name, kind, [8], np.full(8, 0.5)) for name in ("scale", "bias")]
    nodes = [
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("LayerNormalization", ["sum", "scale", "bias"], ["out"], epsilon=1e-5),
    ]
    values = [helper.make_tensor_value_info(name, kind, [1, "rows", 8]) for name in "ab"]
    out = helper.make_tensor_value_info("out", kind, [1, "rows", 8])
    graph = helper.make_graph(nodes, "model", values, [out], ones)
    path = tmp_path / "model.onnx"
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(made, path)
    return path


def operators(session, tmp_path, feed):
    """The operators that a session has run."""
    session.run(None, feed)
    text = Path(session.end_profiling()).read_text(encoding="utf-8")
    return {
        name for name in ("SkipLayerNormalization", "LayerNormalization") if f'"{name}"' in text
    }


def test_a_sum_and_a_normalization_stay_apart(model, tmp_path, monkeypatch):
    plain = onnxruntime.SessionOptions

    def profiled():
        options = plain()
        options.enable_profiling = True
        options.profile_file_prefix = str(tmp_path / "profile")
        return options

    feed = {name: np.random.default_rng(0).normal(size=(1, 3, 8)).astype("f4") for name in "ab"}
    joined = onnxruntime.InferenceSession(str(model), profiled(), ["CPUExecutionProvider"])
    assert operators(joined, tmp_path, feed) == {"SkipLayerNormalization"}
    monkeypatch.setattr(onnxruntime, "SessionOptions", profiled)
    assert operators(open_session(model, 1), tmp_path, feed) == {"LayerNormalization"}


def test_without_onnx_runtime_the_extra_is_named(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"lmkit\[onnx\]"):
        open_session(model, 1)
