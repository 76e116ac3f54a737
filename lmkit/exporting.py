"""`lmkit.export`: a model to use without lmkit, as a Hugging Face folder or as ONNX."""

from __future__ import annotations

import copy
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import PreTrainedModel

from .loading import load
from .modules import LMModule
from .modules.network import usable_positions
from .modules.sentence_objective import token_logits

__all__ = ["FORMATS", "export"]

#: What a model can be exported as.
FORMATS = ("hf", "onnx")

# ONNX operators of this version are known to every runtime since ONNX Runtime 1.16.
_OPSET = 18


def export(
    module: LMModule | str | os.PathLike[str],
    output: str | os.PathLike[str],
    format: str = "hf",
    overwrite: bool = False,
) -> Path:
    """Write a trained model for use.

    The folder appears whole or not at all. `"hf"` is a folder for plain `transformers`:
    `transformers.pipeline(task, model=output)` loads it. `"onnx"` holds `model.onnx` beside config
    and tokenizer, with free batch size and length, and its logits are compared with the network's
    in ONNX Runtime before it is handed over.

    Args:
        module: a module, or what `lmkit.load` takes.
        output: the folder to make.
        format: `"hf"` or `"onnx"` (needs the extra `onnx`).
        overwrite: replace a folder that is there already.

    Returns:
        The folder.

    Raises:
        ValueError: an unknown format, or a structure that `transformers` cannot express.
        FileExistsError: the folder is there and not empty.
        ImportError: the extra `onnx` is not installed.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    target = Path(output)
    if target.exists() and not overwrite and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} is there already; give another output or overwrite it")
    if format == "onnx":
        _require_onnx()
    if not isinstance(module, LMModule):
        module = load(module)
    module.configure_model()
    network = _plain(module)
    if format == "onnx" and network.config.is_encoder_decoder:
        raise ValueError(
            "format='onnx' is for encoders and decoders, and this is an encoder-decoder; export it "
            "as 'hf'"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        folder = Path(scratch) / "export"
        if format == "hf":
            network.save_pretrained(folder)
        else:
            folder.mkdir()
            network.config.save_pretrained(folder)
            _write_onnx(network, folder / "model.onnx")
        if module.tokenizer is not None:
            tokenizer = copy.deepcopy(module.tokenizer)
            longest = usable_positions(network)
            if longest is not None and tokenizer.model_max_length > longest:
                # So that `truncation=True` cuts a text to what the network has positions for.
                tokenizer.model_max_length = longest
            tokenizer.save_pretrained(folder)
        if target.exists():
            shutil.rmtree(target) if target.is_dir() else target.unlink()
        folder.replace(target)
    return target


def _plain(module: LMModule) -> PreTrainedModel:
    """Return the network as stock transformers knows it, on the CPU and in evaluation mode."""
    expected = type(module.network)(copy.deepcopy(module.network.config)).state_dict()
    if set(expected) != set(module.network.state_dict()):
        raise ValueError(
            "plain transformers cannot express this structure, which was changed by "
            f"{[spec['class_path'] for spec in module.ledger]}"
        )
    network: PreTrainedModel = copy.deepcopy(module.network).cpu().eval()
    return network


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("ONNX needs the extra: pip install 'lmkit[onnx]'") from error


def _write_onnx(network: PreTrainedModel, path: Path) -> None:
    names = ("input_ids", "attention_mask")
    ids = torch.randint(0, network.config.vocab_size, (2, 9))
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with _quiet():
        torch.onnx.export(
            _LogitsOnly(network).train(False),
            kwargs=example,
            f=path,
            input_names=list(names),
            output_names=["logits"],
            dynamic_shapes=dict.fromkeys(names, free),
            opset_version=_OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    _compare(network, path)


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


class _LogitsOnly(torch.nn.Module):
    """Ids and mask in, logits out: no dictionary and no cache, which ONNX has no word for."""

    def __init__(self, network: PreTrainedModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        extra = {} if not hasattr(self.network, "generate") else {"use_cache": False}
        output = self.network(input_ids=input_ids, attention_mask=attention_mask, **extra)
        return token_logits(output)


def _compare(network: PreTrainedModel, path: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    ids = torch.randint(0, network.config.vocab_size, (3, 14))
    mask = torch.ones_like(ids)
    mask[0, 9:] = 0
    (logits,) = session.run(["logits"], {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
    with torch.no_grad():
        expected = token_logits(network(input_ids=ids, attention_mask=mask))
    real = mask.bool()
    gap = (torch.from_numpy(logits)[real] - expected[real]).abs().max().item()
    if gap > 1e-3:
        raise ValueError(f"the ONNX model's logits differ from the network's by up to {gap:.2e}")
