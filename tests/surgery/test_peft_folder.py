"""A folder of peft's holds what the surgery made, and comes back as it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lmkit.surgery.adapter_state import adapter_tensors
from lmkit.surgery.ia3 import IA3
from lmkit.surgery.lora import LoRA
from lmkit.surgery.peft_folder import read_peft_folder, write_peft_folder
from tests.surgery.adapted import build
from tests.surgery.test_folding import train

peft = pytest.importorskip("peft")


@pytest.mark.parametrize("variant", ["lora", "rslora", "dora", "adalora"])
def test_what_is_written_is_read(variant: str, tmp_path: Path) -> None:
    network = build("bert")
    spec = LoRA("mine", ["query"], 3, 5.0, 0.1, variant)
    spec(network)
    train(network)
    write_peft_folder(network, spec, tmp_path, "some/base", ["classifier"])
    surgery, tensors, others, base = read_peft_folder(tmp_path)
    own = adapter_tensors(network.state_dict(), "mine")
    assert {*tensors} == {*own} and base == "some/base"
    assert all(torch.equal(tensors[key], tensor) for key, tensor in own.items())
    assert {*others} == {"classifier.weight", "classifier.bias"}
    assert isinstance(surgery, LoRA)
    for word in ("rank", "ranks", "alpha", "dropout", "variant"):
        assert getattr(surgery, word) == getattr(spec, word)
    config = peft.PeftConfig.from_pretrained(str(tmp_path))
    assert config.task_type == "SEQ_CLS" and config.modules_to_save == ["classifier"]


def test_gains_are_told_apart_by_their_shapes(tmp_path: Path) -> None:
    network = build("gpt2")
    spec = IA3("mine", ["c_attn"], ["mlp.c_proj"])
    spec(network)
    write_peft_folder(network, spec, tmp_path, None)
    surgery, *_ = read_peft_folder(tmp_path)
    assert isinstance(surgery, IA3)
    assert surgery.targets == tuple(f"transformer.h.{n}.attn.c_attn" for n in (0, 1))
    assert surgery.inputs == tuple(f"transformer.h.{n}.mlp.c_proj" for n in (0, 1))
    assert peft.PeftConfig.from_pretrained(str(tmp_path)).fan_in_fan_out


@pytest.mark.parametrize(
    ("targets", "saved", "reason"),
    [
        (["classifier"], ["classifier"], "classifier was trained as a whole and is adapted"),
        (["query"], ["dense"], r"and would take .*dense for one of dense"),
    ],
)
def test_modules_that_peft_would_mix_up_are_refused(
    targets: list[str], saved: list[str], reason: str, tmp_path: Path
) -> None:
    network: Any = build("bert")
    spec = LoRA("mine", targets, 2)
    spec(network)
    with pytest.raises(ValueError, match=reason):
        write_peft_folder(network, spec, tmp_path, None, saved)
