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
    MultipleChoiceDataModule,
    QuestionAnsweringDataModule,
    ReplacedTokenDataModule,
    Seq2SeqDataModule,
    SequenceClassificationDataModule,
    TokenClassificationDataModule,
)
from lmkit.modules import (
    CausalLMModule,
    DenoisingModule,
    DistillationModule,
    LMModule,
    MaskedLMModule,
    MultipleChoiceModule,
    MultiTaskModule,
    QuestionAnsweringModule,
    ReplacedTokenModule,
    Seq2SeqModule,
    SequenceClassificationModule,
    TokenClassificationModule,
)
from tests import several_tasks, task_files, taught, tiny


def named(*names: str) -> dict[str, Any]:
    """Return the entries of a config for classes of these names."""
    return {
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
    }


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
    #: Writes the data where they are no plain text, and returns the data module's arguments.
    files: Callable[[Path], dict[str, Any]] | None = None
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
    #: Whether the export is a folder for plain transformers: `plain`, `merged` if the adapters are
    #: merged, `structure` if it is one for `lmkit.load` unless it is merged, or `never`.
    export: str = "plain"
    #: Whether it changes nothing, and only looks at a run or writes something of it.
    watches: bool = False
    #: Whether it is a callback that changes the loss alone.
    loss: bool = False
    #: Makes the module of a config and settings, where its class takes no `model`.
    make: Callable[..., LMModule] | None = None
    #: Makes the data of a folder and settings, where they are of several kinds.
    make_own_data: Callable[..., LightningDataModule] | None = None
    #: The public names that this row stands for.
    covers: tuple[str, ...] = ()

    def make_module(self, **kwargs: Any) -> LMModule:
        """Make the module with a schedule short enough to move the weights."""
        settings: dict[str, Any] = {"learning_rate": 1e-2, "warmup": 0}
        settings |= self.module_settings | kwargs
        if self.make is not None:
            return self.make(settings.pop("config", {}), **settings)
        return self.module({**self.model, **settings.pop("config", {})}, **settings)

    def make_data(self, folder: Path, **kwargs: Any) -> LightningDataModule:
        """Make the data module on a text of 60 lines."""
        if not (folder / "tokenizer").exists():
            tiny.tokenizer_folder(folder / "tokenizer", self.tokenizer)
            tiny.write_text(folder / "train.txt", 60)
            tiny.write_text(folder / "val.txt", 12, seed=1)
        texts = {"train_file": str(folder / "train.txt"), "val_file": str(folder / "val.txt")}
        if self.make_own_data is not None:
            settings = {"batch_size": 8, "max_length": 16, **self.data_settings}
            return self.make_own_data(folder, **{**settings, **kwargs})
        settings: dict[str, Any] = {
            **(self.files(folder) if self.files else texts),
            "tokenizer": str(folder / "tokenizer"),
            "max_length": 16,
            "batch_size": 8,
            "seed": 3,
        }
        return self.data(**{**settings, **self.data_settings, **kwargs})


CLASSIFICATION: dict[str, Any] = {
    "module": SequenceClassificationModule,
    "model": {**tiny.MASKED["bert"], **named("fox", "moons", "trees")},
    "data": SequenceClassificationDataModule,
    "files": task_files.labelled_texts,
    "metrics": ("val/loss", "val/accuracy", "val/macro_f1", "val/mcc"),
}

SEVERAL_TASKS: dict[str, Any] = {
    "module": MultiTaskModule,
    "make": several_tasks.make_case_module,
    # The tests switch dropout off in `network`, which is that of the first task.
    "module_settings": {"dropout": 0.0},
    "make_own_data": several_tasks.make_case_data,
    "metrics": ("val/ner/loss", "val/ner/f1", "val/topic/accuracy", "val/mean"),
    "covers": ("MultiTaskModule", "MultiTaskDataModule"),
}

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
        "sequence_classification",
        core=True,
        **CLASSIFICATION,
        covers=("SequenceClassificationModule", "SequenceClassificationDataModule"),
    ),
    Case(
        "text_augmentation",
        core=True,
        **{**CLASSIFICATION, "data_settings": {"transforms": ["RandomDeletion", "RandomSwap"]}},
    ),
    Case(
        "distillation",
        core=True,
        **{**CLASSIFICATION, "module": DistillationModule},
        make=taught.distilled,
        covers=(
            "DistillationModule",
            "AttentionLoss",
            "FlowLoss",
            "HiddenLoss",
            "LogitLoss",
            "RelationLoss",
        ),
    ),
    Case("multi_task", core=True, **SEVERAL_TASKS),
    Case(
        "gradient_aggregation",
        **{
            **SEVERAL_TASKS,
            "module_settings": {"dropout": 0.0, "aggregation": "pcgrad"},
            "data_settings": {"batches": "all", "sampling": "temperature"},
            "covers": ("GradientConflictCallback",),
        },
        linear=False,  # a window is the mean of its batches, each a sum over tasks
    ),
    Case(
        "regression",
        module=SequenceClassificationModule,
        model={**tiny.MASKED["bert"], "num_labels": 1},
        data=SequenceClassificationDataModule,
        files=task_files.scored_pairs,
        data_settings={"task": "regression", "max_length": 40},
        metrics=("val/loss", "val/mse", "val/pearson", "val/spearman"),
    ),
    Case(
        "token_classification",
        core=True,
        module=TokenClassificationModule,
        model={**tiny.MASKED["bert"], **named("O", "B-X", "I-X")},
        data=TokenClassificationDataModule,
        files=task_files.tagged_words,
        metrics=("val/loss", "val/accuracy", "val/f1", "val/precision", "val/recall"),
        covers=("TokenClassificationModule", "TokenClassificationDataModule"),
    ),
    Case(
        "question_answering",
        core=True,
        module=QuestionAnsweringModule,
        data=QuestionAnsweringDataModule,
        files=task_files.questions,
        data_settings={"max_length": 48, "doc_stride": 8, "max_question_length": 10},
        metrics=("val/loss", "val/exact_match", "val/f1"),
        covers=("QuestionAnsweringModule", "QuestionAnsweringDataModule"),
    ),
    Case(
        "multiple_choice",
        core=True,
        module=MultipleChoiceModule,
        data=MultipleChoiceDataModule,
        files=task_files.choices,
        data_settings={"max_length": 48},
        metrics=("val/loss", "val/accuracy"),
        covers=("MultipleChoiceModule", "MultipleChoiceDataModule"),
    ),
    Case(
        "seq2seq",
        core=True,
        module=Seq2SeqModule,
        model=tiny.SEQ2SEQ["t5"],
        # T5 draws some of its dropout in functions, which the DDP test cannot switch off.
        module_settings={"metrics": ["chrf"], "beams": 2, "max_new_tokens": 8, "dropout": 0.0},
        data=Seq2SeqDataModule,
        data_settings={"max_target_length": 16},
        tokenizer="bpe",
        files=task_files.text_pairs,
        metrics=("val/loss", "val/perplexity", "val/accuracy", "val/chrf"),
        covers=("Seq2SeqModule", "Seq2SeqDataModule"),
    ),
    Case(
        "two_encoders",
        core=True,
        module=Seq2SeqModule,
        model={
            "model_type": "encoder-decoder",
            "encoder": tiny.MASKED["bert"],
            "decoder": tiny.MASKED["bert"],
            "tie_encoder_decoder": True,
        },
        data=Seq2SeqDataModule,
        data_settings={"max_target_length": 16},
        files=task_files.text_pairs,
    ),
    Case(
        "surgery",
        core=True,
        callbacks=lambda: [tiny.ResidualCallback()],
        export="never",
    ),
    Case(
        "lora",
        core=True,
        callbacks=lambda: [callbacks.LoRACallback("low", rank=2, dropout=0.1)],
        export="merged",
        covers=("LoRACallback",),
    ),
    Case(
        "adalora",
        core=True,
        callbacks=lambda: [
            callbacks.LoRACallback(
                "budget", variant="adalora", rank=2, initial_rank=4, rank_interval=1
            )
        ],
        export="merged",
    ),
    Case(
        "ia3",
        core=True,
        callbacks=lambda: [callbacks.IA3Callback("factors")],
        export="merged",
        covers=("IA3Callback",),
    ),
    Case(
        "adapter",
        core=True,
        callbacks=lambda: [callbacks.AdapterCallback("bottleneck", size=4)],
        export="never",
        covers=("AdapterCallback",),
    ),
    Case(
        "adapter_fusion",
        callbacks=lambda: [
            callbacks.AdapterCallback("first", "pfeiffer", size=4),
            callbacks.AdapterCallback("second", "pfeiffer", size=4),
            callbacks.AdapterFusionCallback(names=["first", "second"]),
        ],
        export="never",
        covers=("AdapterFusionCallback",),
    ),
    # A random network with a head of its vocabulary learns nothing by virtual tokens alone.
    Case(
        "prompt_tuning",
        core=True,
        **CLASSIFICATION,
        callbacks=lambda: [callbacks.PromptTuningCallback(length=3)],
        export="never",
        covers=("PromptTuningCallback",),
    ),
    Case(
        "prefix_tuning",
        core=True,
        **CLASSIFICATION,
        callbacks=lambda: [callbacks.PrefixTuningCallback(length=3)],
        export="never",
        covers=("PrefixTuningCallback",),
    ),
    Case(
        "low_rank",
        callbacks=lambda: [
            callbacks.LowRankCallback(parameters=0.6, calibration_batches=99),
        ],
        export="structure",
        covers=("LowRankCallback",),
    ),
    Case(
        "bitfit",
        core=True,
        callbacks=lambda: [callbacks.BitFitCallback()],
        covers=("BitFitCallback", "SurgeryCallback"),
    ),
    Case(
        "selective_tuning",
        callbacks=lambda: [callbacks.SelectiveTuningCallback(layers=1, norms=True)],
        covers=("SelectiveTuningCallback",),
    ),
    Case(
        "trainable_only",
        callbacks=lambda: [callbacks.BitFitCallback(), callbacks.TrainableOnlyCheckpoint()],
        covers=("TrainableOnlyCheckpoint",),
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
        watches=True,
        callbacks=lambda: [callbacks.EfficiencyCallback()],
        covers=("EfficiencyCallback",),
    ),
    Case(
        "provenance",
        watches=True,
        callbacks=lambda: [callbacks.ProvenanceCallback()],
        covers=("ProvenanceCallback",),
    ),
    Case(
        "gradual_unfreezing",
        callbacks=lambda: [callbacks.GradualUnfreezingCallback(1, interval=None)],
        covers=("GradualUnfreezingCallback",),
    ),
    Case(
        "pruning",
        callbacks=lambda: [callbacks.PruningCallback(0.5, start=0.0, interval=1)],
        covers=("PruningCallback",),
    ),
    # What layers read is rounded in tests of their own: a half may fall to either side of it.
    Case(
        "quantization",
        callbacks=lambda: [callbacks.QuantizationCallback(activations=None)],
        export="structure",
        covers=("QuantizationCallback",),
    ),
    Case(
        "structured_pruning",
        callbacks=lambda: [
            callbacks.StructuredPruningCallback(
                ffn=0.5, importance="activation", start=0.0, end=0.5, interval=1
            )
        ],
        covers=("StructuredPruningCallback",),
    ),
    Case(
        "fgm",
        loss=True,
        core=True,
        callbacks=lambda: [callbacks.FGMCallback()],
        covers=("FGMCallback",),
    ),
    Case(
        "pgd",
        loss=True,
        callbacks=lambda: [callbacks.PGDCallback(steps=2, start=0.5)],
        covers=("PGDCallback",),
    ),
    Case(
        "free_lb",
        loss=True,
        core=True,
        **CLASSIFICATION,
        callbacks=lambda: [callbacks.FreeLBCallback()],
        covers=("FreeLBCallback",),
    ),
    # The weights of each batch of a window are moved for themselves.
    Case(
        "awp",
        loss=True,
        linear=False,
        callbacks=lambda: [callbacks.AWPCallback()],
        covers=("AWPCallback",),
    ),
    Case(
        "smart",
        loss=True,
        core=True,
        callbacks=lambda: [callbacks.SMARTCallback(bregman_weight=1.0)],
        covers=("SMARTCallback",),
    ),
    Case(
        "vat",
        loss=True,
        callbacks=lambda: [callbacks.VATCallback()],
        covers=("VATCallback",),
    ),
    Case(
        "r_drop",
        loss=True,
        core=True,
        **CLASSIFICATION,
        callbacks=lambda: [callbacks.RDropCallback()],
        covers=("RDropCallback",),
    ),
    Case(
        "mixup",
        loss=True,
        **CLASSIFICATION,
        callbacks=lambda: [callbacks.MixupCallback(layers=[0, 1])],
        covers=("MixupCallback",),
    ),
    Case(
        "cutoff",
        loss=True,
        callbacks=lambda: [callbacks.CutoffCallback()],
        covers=("CutoffCallback",),
    ),
    Case(
        "uda",
        loss=True,
        core=True,
        **CLASSIFICATION,
        callbacks=lambda: [callbacks.UDACallback(temperature=1.0, confidence=0.0)],
        covers=("UDACallback",),
    ),
    Case(
        "figures",
        watches=True,
        callbacks=lambda: [callbacks.FiguresCallback()],
        covers=("FiguresCallback",),
    ),
    Case(
        "samples",
        watches=True,
        callbacks=lambda: [callbacks.SamplesCallback()],
        covers=("SamplesCallback",),
    ),
    Case(
        "loss_plot",
        watches=True,
        callbacks=lambda: [callbacks.LossPlotCallback()],
        covers=("LossPlotCallback",),
    ),
    Case(
        "export",
        watches=True,
        callbacks=lambda: [callbacks.ExportCallback("exported")],
        covers=("ExportCallback",),
    ),
    Case(
        "checkpoint",
        watches=True,
        callbacks=lambda: [callbacks.CheckpointCallback(dirpath="kept")],
        covers=("CheckpointCallback",),
    ),
    Case(
        "predictions",
        watches=True,
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
