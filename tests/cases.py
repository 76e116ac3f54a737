"""THE table: one row per public technique; the contract, composition and DDP tests read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer

from lmkit import callbacks, datamodules, modules
from lmkit.datamodules import (
    CausalLMDataModule,
    DenoisingDataModule,
    MaskedLMDataModule,
    ReplacedTokenDataModule,
)
from lmkit.modules import (
    CausalLMModule,
    DenoisingModule,
    LMModule,
    MaskedLMModule,
    ReplacedTokenModule,
)
from tests import tiny


@dataclass(frozen=True)
class Case:
    """One technique with the smallest run that shows it.

    A module brings its data module; a callback is shown on the masked language model.
    """

    name: str
    module: type[LMModule] = MaskedLMModule
    model: dict[str, Any] = field(default_factory=lambda: tiny.MASKED["bert"])
    data: type[LightningDataModule] = MaskedLMDataModule
    tokenizer: str = "wordpiece"
    #: Settings of the module and of the data beyond the table's own.
    module_settings: dict[str, Any] = field(default_factory=dict)
    data_settings: dict[str, Any] = field(default_factory=dict)
    #: What a validation logs.
    metrics: tuple[str, ...] = ("val/loss", "val/perplexity", "val/accuracy")
    #: Whether it changes the loss or the weights, and so is put through the costlier tests.
    core: bool = False
    callbacks: Callable[[], list[Callback]] = list
    #: Whether two half batches give the gradient of the whole one.
    linear: bool = True
    #: Whether the export is a folder for plain transformers.
    plain_export: bool = True
    #: The public names that this row stands for.
    covers: tuple[str, ...] = ()

    def make_module(self, **kwargs: Any) -> LMModule:
        """Make the module with a schedule short enough to move the weights."""
        settings: dict[str, Any] = {"learning_rate": 1e-2, "warmup": 0}
        settings |= self.module_settings | kwargs
        return self.module({**self.model, **settings.pop("config", {})}, **settings)

    def make_data(self, folder: Path, **kwargs: Any) -> LightningDataModule:
        """Make the data module on a text of 60 lines."""
        if not (folder / "tokenizer").exists():
            tiny.tokenizer_folder(folder / "tokenizer", self.tokenizer)
            tiny.write_text(folder / "train.txt", 60)
            tiny.write_text(folder / "val.txt", 12, seed=1)
        settings: dict[str, Any] = {
            "train_file": str(folder / "train.txt"),
            "val_file": str(folder / "val.txt"),
            "tokenizer": str(folder / "tokenizer"),
            "max_length": 16,
            "batch_size": 8,
            "seed": 3,
        }
        return self.data(**{**settings, **self.data_settings, **kwargs})


CASES = [
    Case(
        "masked_lm",
        core=True,
        covers=("MaskedLMModule", "MaskedLMDataModule", "LMModule", "LMDataModule"),
    ),
    Case(
        "causal_lm",
        core=True,
        module=CausalLMModule,
        model=tiny.CAUSAL["gpt2"],
        data=CausalLMDataModule,
        tokenizer="bpe",
        covers=("CausalLMModule", "CausalLMDataModule"),
    ),
    Case(
        "denoising",
        core=True,
        module=DenoisingModule,
        model=tiny.SEQ2SEQ["t5"],
        data=DenoisingDataModule,
        tokenizer="sentinels",
        covers=("DenoisingModule", "DenoisingDataModule"),
    ),
    Case(
        "replaced_token",
        core=True,
        module=ReplacedTokenModule,
        model=tiny.MASKED["electra"],
        data=ReplacedTokenDataModule,
        metrics=(
            "val/loss",
            "val/generator_perplexity",
            "val/discriminator_accuracy",
            "val/f1",
        ),
        covers=("ReplacedTokenModule", "ReplacedTokenDataModule"),
    ),
    Case(
        "surgery",
        core=True,
        callbacks=lambda: [tiny.ResidualCallback()],
        plain_export=False,
    ),
    Case("chunks", data_settings={"batching": "chunk", "eval_batching": "chunk"}),
    # Which rows make a batch depends on its size there.
    Case("buckets", data_settings={"batching": "bucket"}, linear=False),
    Case("whole_words", data_settings={"masking": "whole_word"}),
    Case("spans", data_settings={"masking": "span"}),
    Case(
        "sentence_order",
        module_settings={"sentence_objective": "sentence_order"},
        data_settings={
            "sentence_objective": "sentence_order",
            "document": "file",
            "max_length": 40,
        },
        linear=False,
    ),
    Case(
        "packed_causal",
        module=CausalLMModule,
        model=tiny.CAUSAL["llama"],
        data=CausalLMDataModule,
        tokenizer="bpe",
        data_settings={"batching": "pack", "eval_batching": "bucket"},
    ),
    Case(
        "efficiency",
        callbacks=lambda: [callbacks.EfficiencyCallback()],
        covers=("EfficiencyCallback",),
    ),
    Case(
        "provenance",
        callbacks=lambda: [callbacks.ProvenanceCallback()],
        covers=("ProvenanceCallback",),
    ),
    Case("samples", callbacks=lambda: [callbacks.SamplesCallback()], covers=("SamplesCallback",)),
    Case(
        "loss_plot",
        callbacks=lambda: [callbacks.LossPlotCallback()],
        covers=("LossPlotCallback",),
    ),
    Case(
        "export",
        callbacks=lambda: [callbacks.ExportCallback("exported")],
        covers=("ExportCallback",),
    ),
    Case(
        "checkpoint",
        callbacks=lambda: [callbacks.CheckpointCallback(dirpath="kept")],
        covers=("CheckpointCallback",),
    ),
    Case(
        "predictions",
        callbacks=lambda: [callbacks.PredictionsCallback()],
        covers=("PredictionsCallback",),
    ),
]


#: What the costlier tests go through; a callback that changes no loss is kept to by these.
CORE = [case for case in CASES if case.core]


def public_techniques() -> set[str]:
    """Names that the three packages make public."""
    return {name for package in (modules, datamodules, callbacks) for name in package.__all__}


def make_trainer(*extra: Callback, **kwargs: Any) -> Trainer:
    """Make a quiet Trainer of six steps on the CPU."""
    settings: dict[str, Any] = {
        "max_steps": 6,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
    }
    settings |= kwargs
    if any(isinstance(callback, callbacks.CheckpointCallback) for callback in extra):
        settings["enable_checkpointing"] = True
    return Trainer(accelerator="cpu", callbacks=list(extra), **settings)


def weights(module: LMModule) -> dict[str, torch.Tensor]:
    """Copy all weights by name."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
