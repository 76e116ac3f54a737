"""The models of a report, each opened from what it was given as."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..exporting import export
from ..loading import load
from ..modules import LMModule, MultipleChoiceModule
from ..surgery.composition import adapters_of
from ..surgery.parameter_counts import ParameterCounts, parameter_counts
from .onnx_network import onnx_module
from .onnx_runner import OnnxRunner, onnx_file

__all__ = ["Contender", "count_macs", "disk_bytes", "example_inputs", "open_contender"]

# What weights are kept in, the first that a folder has; and what is read beside them.
_WEIGHTS = ("*.onnx*", "network.safetensors", "*.safetensors", "*.bin")
_BESIDE = ("*.json", "*.txt", "*.model", "*.jinja")


@dataclass
class Contender:
    """A model that is measured.

    Attributes:
        name: in the report.
        folder: of its export.
        module: on the processor, in evaluation mode; of an ONNX file one that runs that.
        runner: of an ONNX file.
        notes: what a reader of its figures should know.
    """

    name: str
    folder: Path
    module: LMModule
    runner: OnnxRunner | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """What runs it."""
        return "torch" if self.runner is None else "onnx"

    def call(self, rows: int, length: int) -> Callable[[], Any]:
        """Return what runs it once on random tokens."""
        if self.runner is not None:
            return partial(self.runner.run, self.runner.example(rows, length))
        network, inputs = self.module.network, example_inputs(self.module, rows, length)

        @torch.inference_mode()
        def run() -> Any:
            return network(**inputs)

        return run

    def counts(self) -> ParameterCounts | None:
        """Return the numbers of its parameters, of an ONNX file none of those that are trained."""
        if self.runner is None:
            return parameter_counts(self.module.network)
        try:
            from onnx import load_model, numpy_helper
        except ImportError:
            return None
        tensors = [
            numpy_helper.to_array(t) for t in load_model(str(self.runner.file)).graph.initializer
        ]
        # What is counted in whole numbers of 64 bits are shapes and places.
        weights = [t for t in tensors if t.dtype.kind == "f" or t.dtype.itemsize == 1]
        nonzero = sum(int((t != 0).sum()) for t in weights)
        return ParameterCounts(sum(t.size for t in weights), 0, nonzero, 0)

    def macs(self, rows: int, length: int) -> int | None:
        """Return the multiplications of one run; `None` of an ONNX file."""
        if self.runner is not None:
            return None
        return count_macs(self.module.network, example_inputs(self.module, rows, length))


def open_contender(name: str, given: Any, scratch: Path, threads: int) -> Contender:
    """Open a model as it is deployed: from its export, which is written if there is none.

    Args:
        name: in the report.
        given: a module, a checkpoint, the folder of an export or of an ONNX file, or a hub name.
        scratch: folder for exports.
        threads: of an ONNX file's session.

    Raises:
        TypeError: it is none of these.
        ValueError, FileNotFoundError: there is no such model, or it cannot be exported.
    """
    if not isinstance(given, LMModule | str | os.PathLike):
        raise TypeError(
            f"models[{name!r}] must be a module of lmkit, or the path of a checkpoint or an "
            f"export, got a {type(given).__name__}"
        )
    notes: list[str] = []
    if not isinstance(given, LMModule):
        place = Path(given)
        if onnx_file(place) is not None:
            runner = OnnxRunner(place, threads)
            return Contender(name, place, onnx_module(place, runner), runner)
        if place.is_dir():
            return Contender(name, place, load(place))
        given = load(given)
    given.configure_model()
    if merge := bool(adapters_of(given.network)):
        notes.append("its adapters are merged")
    folder = export(given, scratch / f"model-{len(list(scratch.iterdir()))}", merge=merge)
    return Contender(name, folder, load(folder), notes=notes)


def example_inputs(module: LMModule, rows: int, length: int) -> dict[str, Tensor]:
    """Make inputs of random tokens, without padding; of choices one for each row.

    An encoder-decoder reads and writes as many tokens.
    """
    draw = torch.Generator().manual_seed(0)
    table: Any = module.network.get_input_embeddings()
    ids = torch.randint(table.num_embeddings, (rows, length), generator=draw)
    if isinstance(module.task_module, MultipleChoiceModule):
        ids = ids.unsqueeze(1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if module.network.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    return inputs


def count_macs(network: nn.Module, inputs: dict[str, Tensor]) -> int:
    """Count the multiplications of matrix products in one forward pass, as PyTorch performs it.

    Args:
        network: in evaluation mode.
        inputs: its arguments.

    Returns:
        Multiply-accumulate operations, half of the floating-point operations.

    Example:
        >>> count_macs(nn.Linear(3, 5), {"input": torch.ones(2, 3)})
        30
    """
    counter = FlopCounterMode(display=False)
    # The fused attention of a CPU is not counted; the one that is made of products is.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        network(**inputs)
    return int(counter.get_total_flops()) // 2


def disk_bytes(folder: Path) -> int:
    """Return the bytes of what is read to use a model: weights, config and tokenizer.

    Of weights that are there in several formats, those count that are read.
    """
    weights: set[Path] = next(
        (found for pattern in _WEIGHTS if (found := set(folder.glob(pattern)))), set()
    )
    beside = {path for pattern in _BESIDE for path in folder.glob(pattern)}
    return sum(path.stat().st_size for path in weights | beside if path.is_file())
