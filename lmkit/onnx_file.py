"""A network as ONNX, compared with itself in ONNX Runtime."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .comparison import Outputs, compare, example_inputs, scores_of
from .functional.agreement import Agreement
from .modules import LMModule
from .onnx_int8 import quantize_onnx
from .onnx_session import open_session
from .surgery import NothingMatchedError
from .surgery.quantizable import left_out
from .surgery.quantization_conversion import fake_quantized_layers, make_float, quantized_layers
from .surgery.sites import base_name

__all__ = ["require_onnx", "write_int8", "write_onnx"]

# ONNX operators of this version are known to every runtime since ONNX Runtime 1.17. It is the first
# one in which GELU is one of them.
_OPSET = 20


def require_onnx() -> None:
    """Check that what writes and runs ONNX is there.

    Raises:
        ImportError: the extra `onnx` is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("ONNX needs the extra: pip install 'lmkit[onnx]'") from error


def write_onnx(module: LMModule, network: PreTrainedModel, path: Path) -> None:
    """Write a network as ONNX, with free batch size and length.

    Args:
        module: says which inputs its task has.
        network: on the CPU, in evaluation mode; its attention is the plain one afterwards.
        path: the file.

    Raises:
        ValueError: ONNX Runtime computes other logits.
    """
    example = example_inputs(module, network, rows=2, length=9)
    # Fused attention is taken apart into a third more operators.
    network.set_attn_implementation("eager")
    names = list(example)
    free = dict.fromkeys(range(example["input_ids"].dim()), torch.export.Dim.DYNAMIC)
    outputs = Outputs(network).train(False)
    with _quiet():
        torch.onnx.export(
            outputs,
            kwargs=example,
            f=path,
            input_names=names,
            output_names=outputs.names(example),
            dynamic_shapes=dict.fromkeys(names, free),
            opset_version=_OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    _check(module, network, path)


def write_int8(
    module: LMModule,
    network: PreTrainedModel,
    path: Path,
    exclude: Sequence[str] = (),
    texts: Sequence[str] | None = None,
) -> tuple[Agreement, list[str]]:
    """Write a network as ONNX in whole numbers of 8 bits.

    Of a network with quantized layers, or with such that learned to be, these are quantized, to the
    numbers that they have; of another one all linear layers and tables.

    Args:
        module: says which inputs its task has.
        network: on the CPU, in evaluation mode; its quantized layers are plain ones afterwards.
        path: the file.
        exclude: roles, names or patterns of layers that stay as they are.
        texts: by which ONNX Runtime is compared with the network; random words by default.

    Returns:
        How far they agree, and the names of the layers that were quantized.

    Raises:
        ValueError: weights have 4 bits, or nothing is left to be quantized.
        NothingMatchedError: something that is excluded matches nothing.
    """
    own: dict[str, Any] = fake_quantized_layers(network) | quantized_layers(network)
    for name, layer in own.items():
        if layer.scheme.bits != 8:
            raise ValueError(
                f"{name} has weights of {layer.scheme.bits} bits, and ONNX int8 has 8: export it "
                "as 'hf', or with merge=True in floating-point numbers"
            )
    example = example_inputs(module, network, rows=8, length=24, texts=texts)
    said = scores_of(network, example)
    chosen = {base_name(name) for name in own} or _matrices(network)
    gone: set[str] = set()
    for pattern in exclude:
        named = {base_name(name) for name in left_out(network, [pattern])}
        if not named & chosen:
            raise NothingMatchedError(
                f"exclude names {pattern!r}, in which there is no layer that would be quantized: "
                "leave it out"
            )
        gone |= named
    inputs = {
        base_name(name): (float(layer.input_scale), int(layer.input_zero_point))
        for name, layer in own.items()
        if getattr(layer, "input_scale", None) is not None
    }
    make_float(network, smoothed=True)
    plain = path.with_name("plain.onnx")
    write_onnx(module, network, plain)
    names = quantize_onnx(plain, path, chosen, gone, inputs)
    plain.unlink()
    return compare(said, _run(path, example), example), names


def _matrices(network: PreTrainedModel) -> set[str]:
    """Return the names of all linear layers, and of the tables that are as wide as the tokens'."""
    table: Any = network.get_input_embeddings()
    width = table.embedding_dim if isinstance(table, nn.Embedding) else None
    return {
        base_name(name)
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear | Conv1D)
        or (isinstance(layer, nn.Embedding) and layer.embedding_dim == width)
    }


@contextmanager
def _quiet() -> Iterator[None]:
    # The exporter reports at length on operators of torchvision and on its own deprecated parts.
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)


def _run(path: Path, example: dict[str, Tensor]) -> list[Tensor]:
    session = open_session(path, torch.get_num_threads())
    known = {given.name for given in session.get_inputs()}
    feed = {name: ids.numpy() for name, ids in example.items() if name in known}
    return [torch.from_numpy(found) for found in session.run(None, feed)]


def _check(module: LMModule, network: PreTrainedModel, path: Path) -> None:
    example = example_inputs(module, network, rows=3, length=14)
    real = example["attention_mask"].bool()
    for theirs, ours in zip(_run(path, example), scores_of(network, example), strict=True):
        gaps = (theirs - ours).abs()
        # What a network says of padding depends on the kernel, and nobody looks at it.
        per_token = gaps.shape[: real.dim()] == real.shape
        gap = (gaps[real] if per_token else gaps).max().item()
        if gap > 1e-4 * max(1.0, float(ours.abs().max())):
            raise ValueError(
                f"the ONNX model's logits differ from the network's by up to {gap:.2e}"
            )
