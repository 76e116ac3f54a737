"""A network that lets ONNX Runtime compute, so that a task module evaluates an exported file."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils.generic import ModelOutput

from ..loading import noted_module
from ..modules import LMModule
from ..modules.history import NOTE
from ..tokenization import load_tokenizer
from .onnx_runner import OnnxRunner

__all__ = ["onnx_module"]


def onnx_module(folder: Path, runner: OnnxRunner) -> LMModule:
    """Build the module that an ONNX file was exported from, with the file in place of its network.

    What it says it says through the file: its step, metrics and predictions are as ever. The
    weights of its own network are random, and nothing reads them.

    Args:
        folder: of `lmkit.export(..., format="onnx")`.
        runner: of its file.

    Raises:
        ValueError: the folder does not say which module it was made from.
    """
    noted = noted_module(folder / NOTE)
    if noted is None:
        raise ValueError(
            f"{folder} has an ONNX file and no {NOTE} that says which module of lmkit it was made "
            "from: export it with lmkit.export(module, folder, format='onnx')"
        )
    cls, settings = noted
    module: LMModule = cls(model=str(folder), pretrained=False, **settings)
    module.tokenizer = load_tokenizer(str(folder))
    module.configure_model()
    _replace(module, runner)
    return module.eval()


def _replace(module: LMModule, runner: OnnxRunner) -> None:
    network: Any = module.network
    body: Any = network.base_model

    def head(logits: Tensor) -> tuple[Tensor]:
        return (logits,)

    @wraps(type(network).forward)
    def run(*arguments: Any, **inputs: Any) -> ModelOutput:
        inputs = _inputs(network, arguments, inputs)
        found = {name: torch.from_numpy(value) for name, value in runner.run(inputs).items()}
        if "logits" in found:
            # A language model's head is asked at some positions: a hook behind the body cuts the
            # others off, and of logits that are there already it cuts the same.
            found["logits"] = body(found["logits"])[0]
        return ModelOutput(**found)

    # Set on the objects, whose weights nothing reads from now on.
    body.forward, network.forward = head, run


def _inputs(network: Any, arguments: tuple[Any, ...], inputs: Mapping[str, Any]) -> dict[str, Any]:
    names = list(inspect.signature(type(network).forward).parameters)[1:]
    given = {**dict(zip(names, arguments, strict=False)), **inputs}
    ids = given["input_ids"]
    made = {name: t.numpy() for name, t in given.items() if isinstance(t, Tensor)}
    made.setdefault("attention_mask", torch.ones_like(ids).numpy())
    made.setdefault("token_type_ids", torch.zeros_like(ids).numpy())
    return made
