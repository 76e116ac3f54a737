"""A network as ONNX, compared with itself in ONNX Runtime."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from .modules import (
    LMModule,
    MultipleChoiceModule,
    QuestionAnsweringModule,
    SequenceClassificationModule,
)
from .modules.network_inputs import knows_types
from .modules.sentence_objective import token_logits

__all__ = ["require_onnx", "write_onnx"]

# ONNX operators of this version are known to every runtime since ONNX Runtime 1.16.
_OPSET = 18


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
        network: on the CPU, in evaluation mode.
        path: the file.

    Raises:
        ValueError: ONNX Runtime computes other logits.
    """
    example = _example(module, network, rows=2, length=9)
    names = list(example)
    free = dict.fromkeys(range(example["input_ids"].dim()), torch.export.Dim.DYNAMIC)
    outputs = _Outputs(network).train(False)
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
    _compare(module, network, path)


def _example(
    module: LMModule, network: PreTrainedModel, rows: int, length: int
) -> dict[str, torch.Tensor]:
    """Make inputs as the network takes them, one row of them padded."""
    shape = (
        (rows, 3, length)
        if isinstance(module.task_module, MultipleChoiceModule)
        else (rows, length)
    )
    ids = torch.randint(network.config.vocab_size, shape)
    mask = torch.ones_like(ids)
    mask[0, ..., length - 4 :] = 0
    example = {"input_ids": ids, "attention_mask": mask}
    of_pairs = (SequenceClassificationModule, QuestionAnsweringModule, MultipleChoiceModule)
    if isinstance(module, of_pairs) and knows_types(network):
        types = torch.zeros_like(ids)
        types[..., length // 2 :] = 1
        example["token_type_ids"] = types * mask
    return example


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


class _Outputs(torch.nn.Module):
    """Ids, mask and perhaps types in, logits out: no dictionary and no cache, unknown to ONNX."""

    def __init__(self, network: PreTrainedModel) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        output = self._run(input_ids, attention_mask, token_type_ids)
        if "start_logits" in output:
            return output["start_logits"], output["end_logits"]
        return token_logits(output)

    def names(self, example: dict[str, torch.Tensor]) -> list[str]:
        """Return the names of what `forward` returns."""
        with torch.no_grad():
            made = self(**example)
        return ["start_logits", "end_logits"] if isinstance(made, tuple) else ["logits"]

    def _run(
        self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor | None
    ) -> ModelOutput:
        known = inspect.signature(self.network.forward).parameters
        extra: dict[str, Any] = {"use_cache": False} if "use_cache" in known else {}
        if types is not None:
            extra["token_type_ids"] = types
        return cast(ModelOutput, self.network(input_ids=ids, attention_mask=mask, **extra))


def _compare(module: LMModule, network: PreTrainedModel, path: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    example = _example(module, network, rows=3, length=14)
    found = session.run(None, {name: ids.numpy() for name, ids in example.items()})
    outputs = _Outputs(network).train(False)
    with torch.no_grad():
        made = outputs(**example)
    real = example["attention_mask"].bool()
    for theirs, ours in zip(found, made if isinstance(made, tuple) else (made,), strict=True):
        gaps = (torch.from_numpy(theirs) - ours).abs()
        # What a network says of padding depends on the kernel, and nobody looks at it.
        per_token = gaps.shape[: real.dim()] == real.shape
        gap = (gaps[real] if per_token else gaps).max().item()
        if gap > 1e-4 * max(1.0, float(ours.abs().max())):
            raise ValueError(
                f"the ONNX model's logits differ from the network's by up to {gap:.2e}"
            )
