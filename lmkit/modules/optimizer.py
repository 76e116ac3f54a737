"""Optimizer and schedule from plain data."""

from __future__ import annotations

import difflib
import importlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from ..functional import schedule_factor, warmup_steps
from ..surgery.depth import parameter_depths

__all__ = [
    "build_optimizer",
    "build_schedule",
    "check_groups",
    "clip_gradients",
    "optimizer_and_schedule",
    "parameter_groups",
    "planned_steps",
]


def parameter_groups(
    module: nn.Module,
    weight_decay: float,
    learning_rate: float = 0.0,
    layer_decay: float = 1.0,
    rates: Mapping[nn.Parameter, float] | None = None,
) -> list[dict[str, Any]]:
    r"""Split what is trainable into matrices, which decay, and vectors, which do not.

    Biases and the scales of normalizations have no decay, as in BERT's own optimizer. With a
    `layer_decay` $\gamma < 1$ each layer has groups of its own, and the rate
    $\eta \gamma^{D - d}$ at depth $d$ under a head at depth $D$ (ULMFiT, arXiv:1801.06146;
    ELECTRA, arXiv:2003.10555).

    Args:
        module: its parameters with `requires_grad`; one that is tied appears once.
        weight_decay: of the matrices, at least 0.
        learning_rate: $\eta$, of the head.
        layer_decay: $\gamma$, in `(0, 1]`.
        rates: of parameters that have rates of their own, whatever their depth.

    Returns:
        Groups for an optimizer, none of them empty: at most two for each depth, or one depth for
        all, and two for each other rate.

    Raises:
        ValueError: nothing is trainable, or a number lies outside its range.
    """
    if not 0.0 < layer_decay <= 1.0:
        raise ValueError(f"layer_decay must lie in (0, 1], got {layer_decay}")
    trainable = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    if not trainable:
        raise ValueError("no parameter is trainable: everything was frozen, so nothing can be fit")
    own = rates or {}
    depths = parameter_depths(module) if layer_decay < 1 else {}
    top = max(depths.values(), default=0)
    groups = []
    for depth in range(top + 1):
        rate = {"lr": learning_rate * layer_decay ** (top - depth)} if depths else {}
        here = [p for n, p in trainable if depths.get(n, 0) == depth and p not in own]
        groups += _by_decay(here, weight_decay, rate)
    for value in sorted(set(own.values())):
        here = [p for _, p in trainable if own.get(p) == value]
        groups += _by_decay(here, weight_decay, {"lr": value})
    return [group for group in groups if group["params"]]


def _by_decay(
    parameters: Sequence[nn.Parameter], weight_decay: float, rate: Mapping[str, float]
) -> list[dict[str, Any]]:
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay, **rate},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0, **rate},
    ]


def build_optimizer(
    groups: list[dict[str, Any]], learning_rate: float, optimizer: Mapping[str, Any] | None
) -> Optimizer:
    """Make AdamW, or the optimizer that `class_path` and `init_args` name.

    The default is AdamW (arXiv:1711.05101) with the betas of RoBERTa (arXiv:1907.11692), fused
    into one kernel.

    Args:
        groups: of `parameter_groups`.
        learning_rate: the peak rate; an `lr` among the `init_args` comes first.
        optimizer: e.g. `{"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9}}`.

    Raises:
        ValueError: there is no such class.
        TypeError: the class does not take these arguments.
    """
    if optimizer is None:
        return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), eps=1e-6, fused=True)
    path = str(optimizer.get("class_path", ""))
    module_name, _, name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module_name or "torch.optim"), name)
    except (ImportError, AttributeError) as error:
        near = difflib.get_close_matches(name, dir(torch.optim), n=1)
        raise ValueError(
            f"optimizer needs the class_path of an optimizer, e.g. torch.optim.SGD; got {path!r}"
            + (f", did you mean torch.optim.{near[0]}?" if near else "")
        ) from error
    arguments = {"lr": learning_rate, **optimizer.get("init_args", {})}
    try:
        built: Optimizer = cls(groups, **arguments)
    except TypeError as error:
        raise TypeError(f"optimizer {path} does not take {arguments}: {error}") from error
    return built


def build_schedule(
    optimizer: Optimizer, schedule: str, warmup: int | float, total: int | None
) -> LambdaLR:
    """Make the schedule of `lmkit.functional.schedule_factor` for an optimizer.

    Args:
        optimizer: its rates are the peak.
        schedule: `"linear"`, `"cosine"` or `"constant"`.
        warmup: steps, or a share of the run.
        total: optimizer steps of the run, `None` if it has no end.

    Raises:
        ValueError: the run has no end, and the schedule or the warm-up needs one.
    """
    if total is None and (schedule != "constant" or 0 < warmup < 1):
        raise ValueError(
            f"schedule={schedule!r} with warmup={warmup} needs to know how long the run is; set "
            "max_steps of the Trainer, or schedule='constant' with a warmup in steps"
        )
    warm = warmup_steps(warmup, total or 0)
    return LambdaLR(optimizer, lambda step: schedule_factor(step, total or 0, warm, schedule))


def optimizer_and_schedule(
    settings: Mapping[str, Any],
    module: nn.Module,
    trainer: Trainer,
    own_rates: Mapping[nn.Parameter, float] | None = None,
) -> dict[str, Any]:
    """Build the optimizer over everything trainable, and its schedule per step, as Lightning asks.

    Args:
        settings: `learning_rate`, `weight_decay`, `warmup`, `schedule`, `optimizer`, and perhaps
            `layer_decay`.
        module: what is trained.
        trainer: knows how long.
        own_rates: of parameters that have another.
    """
    rates = settings["learning_rate"], settings.get("layer_decay", 1.0), own_rates
    groups = parameter_groups(module, settings["weight_decay"], *rates)
    optimizer = build_optimizer(groups, settings["learning_rate"], settings["optimizer"])
    total = planned_steps(trainer)
    scheduler = build_schedule(optimizer, settings["schedule"], settings["warmup"], total)
    stepwise = {"scheduler": scheduler, "interval": "step", "name": "learning_rate"}
    return {"optimizer": optimizer, "lr_scheduler": stepwise}


def check_groups(module: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Check that each trainable parameter is in exactly one group of the optimizers.

    Raises:
        RuntimeError: one is not, most often because the structure changed after they were built.
    """
    grouped = Counter(
        id(parameter)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    )
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and grouped[id(parameter)] != 1:
            raise RuntimeError(
                f"{name} is trainable and in {grouped[id(parameter)]} groups of the optimizer, "
                "and must be in one; change the structure in Callback.setup by "
                "module.operate(surgery)"
            )


def clip_gradients(
    module: LightningModule, optimizer: Optimizer, value: float | None, algorithm: str | None
) -> None:
    """Clip gradients as the Trainer says, under a fused optimizer in bf16 too.

    Lightning 2.6 refuses that pair, which is right only where a loss scaler is used.
    """
    plugin = module.trainer.precision_plugin
    if isinstance(plugin, MixedPrecision) and plugin.scaler is None and value:
        kind = GradClipAlgorithmType(algorithm or "norm")
        Precision.clip_gradients(plugin, optimizer, value, kind)
    else:
        module.clip_gradients(optimizer, value, algorithm)


def planned_steps(trainer: Trainer) -> int | None:
    """Count the optimizer steps of a fit, `None` if it has no end.

    `Trainer.estimated_stepping_batches` counts them too, but loads the data to do so, and a run
    that resumes in mid-epoch then loses its place.
    """
    bounds = []
    if trainer.max_steps >= 0:
        bounds.append(trainer.max_steps)
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        batches = _batches_per_epoch(trainer)
        if batches is not None:
            steps = math.ceil(batches / trainer.accumulate_grad_batches)
            bounds.append(steps * trainer.max_epochs)
    return min(bounds) if bounds else None


def _batches_per_epoch(trainer: Trainer) -> int | None:
    loader = trainer.fit_loop._data_source.dataloader()
    try:
        batches = len(loader)
    except TypeError:
        return None
    shared = trainer.world_size > 1 and isinstance(loader, DataLoader)
    if shared and trainer._accelerator_connector.use_distributed_sampler:
        batches = math.ceil(batches / trainer.world_size)
    overfit = trainer.overfit_batches  # type: ignore[attr-defined]  # set by a function of theirs
    limit = overfit or trainer.limit_train_batches
    if isinstance(limit, float):
        return int(batches * limit)
    return batches if limit is None else min(batches, limit)
