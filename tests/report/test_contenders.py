"""Models are opened as they are deployed, and counted as they compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

import lmkit
from lmkit.callbacks import LoRACallback, LowRankCallback
from lmkit.report.contenders import count_macs, disk_bytes, example_inputs, open_contender
from lmkit.surgery.low_rank import LowRank
from tests.callbacks.tuned import fit
from tests.report.test_scores import TASKS, trained

WIDTH, INNER, LAYERS, HEADS = 16, 32, 2, 2


def bert(**settings: Any) -> BertForSequenceClassification:
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=99,
            hidden_size=WIDTH,
            intermediate_size=INNER,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_labels=3,
            **settings,
        )
    ).eval()


def ids(rows: int, length: int) -> dict[str, torch.Tensor]:
    made = torch.randint(99, (rows, length))
    return {"input_ids": made, "attention_mask": torch.ones_like(made)}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("rows", "length"), [(1, 32), (3, 7)])
def test_multiplications_are_those_of_the_formula(attention: str, rows: int, length: int) -> None:
    # Of a token the four matrices of attention, two of the feed-forward part, and two products with
    # all tokens; of a text the pooler and the classes.
    token = LAYERS * (4 * WIDTH * WIDTH + 2 * WIDTH * INNER + 2 * length * WIDTH)
    expected = rows * (length * token + WIDTH * WIDTH + 3 * WIDTH)
    network = bert(attn_implementation=attention)
    assert count_macs(network, ids(rows, length)) == expected


def test_padding_counts_as_it_is_computed_and_lookups_do_not() -> None:
    network, batch = bert(), ids(2, 9)
    whole = count_macs(network, batch)
    batch["attention_mask"][0, 3:] = 0
    assert count_macs(network, batch) == whole
    assert count_macs(nn.Embedding(9, 4), {"input": torch.tensor([[1, 2]])}) == 0


def test_a_causal_model_has_its_head_and_its_gated_layers() -> None:
    config = LlamaConfig(
        vocab_size=99,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
    )
    network, length = LlamaForCausalLM(config).eval(), 11
    token = LAYERS * (4 * WIDTH * WIDTH + 3 * WIDTH * INNER + 2 * length * WIDTH) + 99 * WIDTH
    assert count_macs(network, {**ids(1, length), "use_cache": False}) == length * token


def test_what_is_made_smaller_computes_less() -> None:
    network, rank = bert(), 3
    before = count_macs(network, ids(2, 9))
    LowRank({"ffn_input": rank})(network)
    saved = 2 * 9 * LAYERS * (WIDTH * INNER - rank * (WIDTH + INNER))
    assert before - count_macs(network, ids(2, 9)) == saved > 0


@pytest.mark.parametrize("name", TASKS)
def test_every_task_runs_on_the_example(name: str, tmp_path: Path) -> None:
    module = trained(name, tmp_path)
    contender = open_contender("it", module, tmp_path, 1)
    assert contender.kind == "torch" and contender.module is not module
    example = example_inputs(contender.module, 2, 5)
    assert example["input_ids"].shape == ((2, 1, 5) if name == "multiple_choice" else (2, 5))
    output = contender.call(2, 5)()
    assert output[0].isfinite().all() and not output[0].requires_grad
    assert contender.macs(2, 5) > contender.macs(1, 5) > 0


def test_modules_checkpoints_and_folders_are_one(tmp_path: Path) -> None:
    module, trainer = fit(tmp_path, max_steps=1)
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    folder = lmkit.export(module, tmp_path / "folder")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    opened = [
        open_contender(str(n), given, scratch, 1)
        for n, given in enumerate((module, tmp_path / "it.ckpt", folder, str(folder)))
    ]
    states = [each.module.network.state_dict() for each in opened]
    assert all(torch.equal(t, s[k]) for s in states for k, t in states[0].items())
    assert opened[2].folder == folder and opened[0].folder != opened[1].folder
    sizes = [disk_bytes(each.folder) for each in opened]
    assert max(sizes) - min(sizes) < 500  # what it was made of is noted by its name
    assert len({each.counts() for each in opened}) == 1
    assert module.network.training  # the one that was given is left alone


def test_adapters_are_merged_and_that_is_noted(tmp_path: Path) -> None:
    module, _ = fit(tmp_path, LoRACallback(rank=2), max_steps=1)
    contender = open_contender("low", module, tmp_path / "base", 1)
    assert contender.notes == ["its adapters are merged"]
    low, _ = fit(tmp_path, LowRankCallback(parameters=0.6, calibration_batches=2), max_steps=1)
    factors = open_contender("factors", low, tmp_path / "base", 1)
    assert factors.notes == []
    assert factors.macs(2, 9) < contender.macs(2, 9)  # type: ignore[operator]


def test_only_what_is_read_counts_on_the_disk(tmp_path: Path) -> None:
    def write(name: str, size: int) -> None:
        (tmp_path / name).write_bytes(b"x" * size)

    write("config.json", 10)
    write("tokenizer.json", 100)
    write("README.md", 10_000)
    write("pytorch_model.bin", 7_000)
    assert disk_bytes(tmp_path) == 7_110
    write("model-1.safetensors", 500)
    write("model-2.safetensors", 600)
    assert disk_bytes(tmp_path) == 1_210
    write("model.onnx", 20)
    write("model.onnx.data", 30)
    assert disk_bytes(tmp_path) == 160


@pytest.mark.parametrize("given", [3, None, nn.Linear(1, 1)])
def test_anything_else_is_refused(given: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"models\['it'\] must be a module of lmkit, or the path"):
        open_contender("it", given, tmp_path, 1)


def test_numbers_of_an_onnx_file_are_those_of_its_weights(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    from lmkit.report.contenders import Contender

    weights = {
        "float": np.array([[1.0, 0.0], [2.0, 3.0]], np.float32),
        "int8": np.array([1, 0, 0, -4, 5], np.int8),
        "shape": np.array([7, 7, 7], np.int64),
    }
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "it",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(w, name) for name, w in weights.items()],
    )
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    runner = type("R", (), {"file": tmp_path / "model.onnx"})()
    contender = Contender("it", tmp_path, None, runner)  # type: ignore[arg-type]
    counts = contender.counts()
    assert counts is not None and (counts.total, counts.nonzero) == (9, 6)
    assert contender.macs(1, 2) is None and contender.kind == "onnx"
    save_file({"w": torch.ones(1)}, tmp_path / "model.safetensors")
    assert disk_bytes(tmp_path) == (tmp_path / "model.onnx").stat().st_size
