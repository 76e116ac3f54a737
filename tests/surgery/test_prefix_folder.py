"""A prefix is written for peft, whatever other adapters stand beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lmkit.surgery.adapter import Adapter
from lmkit.surgery.lora import LoRA
from lmkit.surgery.prefix_folder import task_of, write_prefix_folder
from lmkit.surgery.prefix_tuning import PrefixTuning
from tests.surgery.adapted import build

pytest.importorskip("peft")


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("bert", "SEQ_CLS"),
        ("tagging", "TOKEN_CLS"),
        ("questions", "QUESTION_ANS"),
        ("gpt2", "CAUSAL_LM"),
        ("llama", "CAUSAL_LM"),
        ("t5", "SEQ_2_SEQ_LM"),
        ("masked", None),
    ],
)
def test_tasks_have_the_words_of_peft(name: str, task: str | None) -> None:
    assert task_of(build(name)) == task
    assert task_of(nn.Linear(1, 1)) is None


def test_other_adapters_are_no_part_of_the_folder(tmp_path: Path) -> None:
    spec, files = PrefixTuning("mine", length=3), []
    for others in ([], [LoRA("a", ["output.dense"]), Adapter("b", targets=["output.dense"])]):
        network = build("bert")
        for surgery in (*others, spec):
            surgery(network)
        write_prefix_folder(network, spec, tmp_path, None)
        files.append(load_file(tmp_path / "adapter_model.safetensors"))
    assert {*files[0]} == {*files[1]}
    assert all(torch.equal(files[1][key], tensor) for key, tensor in files[0].items())
