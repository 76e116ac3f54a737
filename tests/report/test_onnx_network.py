"""A module whose network is a file says what the module of the file's weights says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lmkit
from lmkit.modules import LMModule
from lmkit.report.onnx_network import onnx_module
from lmkit.report.onnx_runner import OnnxRunner, onnx_file
from lmkit.report.quality import rows_for
from lmkit.report.scores import compare, say_of_rows
from tests.report.test_scores import TASKS, trained

ENCODERS = [name for name in TASKS if name != "seq2seq"]


class Played:
    """What a session of ONNX Runtime does, by a network of torch: whole logits for ids alone."""

    def __init__(self, module: LMModule) -> None:
        self.network, self.calls = module.network, list[set[str]]()

    @torch.no_grad()
    def run(self, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
        self.calls.append({name for name in inputs if inputs[name] is not None})
        given = {n: torch.from_numpy(inputs[n]) for n in ("input_ids", "attention_mask")}
        types = inputs["token_type_ids"]
        if types.any():
            given["token_type_ids"] = torch.from_numpy(types)
        output = self.network(**given)
        names = [name for name in ("logits", "start_logits", "end_logits") if name in output]
        return {name: output[name].numpy() for name in names}


@pytest.mark.parametrize("name", ENCODERS)
def test_every_task_computes_through_the_file(name: str, tmp_path: Path) -> None:
    module = trained(name, tmp_path)
    folder = lmkit.export(module, tmp_path / "out")
    played = Played(module)
    torch.manual_seed(9)  # its own weights are others, and nothing reads them
    made = onnx_module(folder, played)  # type: ignore[arg-type]
    assert type(made) is type(module)
    weight = made.network.get_input_embeddings().weight
    assert not torch.equal(weight, module.network.get_input_embeddings().weight)
    rows = rows_for(TASKS[name].make_data(tmp_path), module)
    dense, other = (say_of_rows(each, rows, "val") for each in (module, made))
    gap = compare(dense, other)
    assert played.calls and gap.divergence < 1e-10 and gap.agreement in (None, 1.0)
    real = dense.logits.isfinite()
    assert (dense.logits[real] - other.logits[real]).abs().max() < 1e-5


def test_a_folder_that_does_not_say_its_module_is_refused(tmp_path: Path) -> None:
    module = trained("sequence_classification", tmp_path)
    folder = lmkit.export(module, tmp_path / "out")
    note = folder / "lmkit.json"
    for text in ("", "{}", json.dumps({"module": "os", "settings": {}})):
        note.write_text(text)
        with pytest.raises(ValueError, match=r"ONNX file and no lmkit\.json that says which"):
            onnx_module(folder, Played(module))  # type: ignore[arg-type]


def test_which_file_of_a_folder_is_meant(tmp_path: Path) -> None:
    assert onnx_file(tmp_path) is None and onnx_file(tmp_path / "none") is None
    (tmp_path / "int8.onnx").touch()
    assert onnx_file(tmp_path) == tmp_path / "int8.onnx"
    (tmp_path / "other.onnx").touch()
    with pytest.raises(ValueError, match=r"several ONNX files \(int8\.onnx, other\.onnx\)"):
        onnx_file(tmp_path)
    (tmp_path / "model.onnx").touch()
    assert onnx_file(tmp_path) == tmp_path / "model.onnx"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sequence_classification", "masked_lm"])
def test_a_real_file_in_onnx_runtime(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    module = trained(name, tmp_path)
    folder = lmkit.export(module, tmp_path / "onnx", format="onnx")
    runner = OnnxRunner(folder, threads=1)
    example = runner.example(2, 7)
    assert example["input_ids"].shape == (2, 7) and example["attention_mask"].all()
    found = runner.run(example)["logits"]
    with torch.no_grad():
        expected = module.network(**{k: torch.from_numpy(v) for k, v in example.items()}).logits
    assert np.abs(found - expected.numpy()).max() < 1e-4
    rows = rows_for(TASKS[name].make_data(tmp_path), module)
    made = onnx_module(folder, runner)
    gap = compare(say_of_rows(module, rows, "val"), say_of_rows(made, rows, "val"))
    assert gap.agreement == 1.0 and gap.divergence < 1e-6
