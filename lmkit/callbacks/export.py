"""Exports the model at the end of a fit, ready to use without lmkit."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from ..dashboard import is_dry_run, run_directory
from ..exporting import check_export, check_options, export
from ..modules import LMModule
from ..modules.multi_task import MultiTaskModule
from ..surgery.torchao_tensors import require_torchao

__all__ = ["ExportCallback"]

# By one of which a folder is known as an export.
_FILES = ("config.json", "model.onnx", "adapter_config.json", "adapter.safetensors")


class ExportCallback(Callback):
    """Calls `lmkit.export` when a fit has ended.

    A fit that was stopped by an error or by hand exports nothing. An earlier export in the same
    folder is replaced. Only global rank 0 writes.

    Args:
        output: the folder; `<run>/export` by default.
        format: `hf` for a Hugging Face folder, `onnx` for ONNX.
        weights: `best` for the best checkpoint, if there is one, or `last` for the weights as
            the training left them.
        merge: compute the active adapters into the base's weights, and low-rank layers into dense
            ones.
        adapter: write the only or only active adapter alone, with its head.
        plain: refuse a structure that plain `transformers` cannot load.
        quantize: `int8` or `torchao`, as `lmkit.export` has it.
        exclude: roles, names or patterns of layers that are not quantized.
        dtype: `bfloat16` for a folder of half the bytes.
        head: whether the head is written, or the encoder alone.

    Raises:
        ValueError: an option is none of these, or options exclude each other; at the start of a
            fit, the module has adapters or a structure that could not be exported so.
        TypeError: at the start of a fit, the module is not lmkit's.
        FileExistsError: at the start of a fit, `output` holds something other than an export.
        ImportError: at the start of a fit, what ONNX or torchao needs is not installed.

    Example:
        >>> ExportCallback(format="onnx").weights
        'best'
    """

    def __init__(
        self,
        output: str | None = None,
        format: Literal["hf", "onnx"] = "hf",
        weights: Literal["best", "last"] = "best",
        merge: bool = False,
        adapter: bool = False,
        plain: bool = False,
        quantize: Literal["int8", "torchao"] | None = None,
        exclude: Sequence[str] = (),
        dtype: Literal["float32", "bfloat16"] | None = None,
        head: bool = True,
    ) -> None:
        super().__init__()
        check_options(format, merge, adapter, plain, quantize, dtype, head)
        if weights not in ("best", "last"):
            raise ValueError(f"weights must be 'best' or 'last', got {weights!r}")
        self.output = output
        self.format = format
        self.weights = weights
        self.merge = merge
        self.adapter = adapter
        self.plain = plain
        self.quantize = quantize
        self.exclude = tuple(exclude)
        self.dtype = dtype
        self.head = head

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out before hours of training whether the export can be written after them."""
        if stage != "fit" or is_dry_run(trainer):
            return
        if not isinstance(pl_module, LMModule):
            raise TypeError(
                f"ExportCallback needs a module of lmkit, got {type(pl_module).__name__}; leave "
                "the callback out"
            )
        output = self._folder(trainer)
        there = list(output.iterdir()) if output.exists() else []
        several = isinstance(pl_module, MultiTaskModule) and self.head
        folders = there if several else [output]
        is_export = all(any((each / name).is_file() for name in _FILES) for each in folders)
        if there and not is_export:
            raise FileExistsError(
                f"ExportCallback would replace {output}, which is no export; give another output"
            )
        missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if not find_spec(name)]
        if self.format == "onnx" and missing:
            raise ImportError(
                f"ExportCallback(format='onnx') needs {', '.join(missing)}: "
                "pip install 'lmkit[onnx]'"
            )
        if self.quantize == "torchao":
            require_torchao()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out whether adapters and structure, which are there by now, can be exported."""
        if not is_dry_run(trainer) and self.format == "hf" and not self.adapter:
            check_export(cast(LMModule, pl_module), self.merge, self.plain, self.head)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export; the checkpoints are complete by now."""
        if not trainer.is_global_zero or is_dry_run(trainer):
            return
        best = getattr(trainer.checkpoint_callback, "best_model_path", "")
        module = cast(LMModule, pl_module)
        source = best if self.weights == "best" and best and Path(best).exists() else module
        export(
            source,
            self._folder(trainer),
            format=self.format,
            overwrite=True,
            merge=self.merge,
            adapter=self.adapter,
            plain=self.plain,
            quantize=self.quantize,
            exclude=self.exclude,
            dtype=self.dtype,
            head=self.head,
        )

    def _folder(self, trainer: Trainer) -> Path:
        return Path(self.output) if self.output else run_directory(trainer) / "export"
