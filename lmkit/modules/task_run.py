"""Building and setting up several tasks, each with its own data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from ..functional.task_sampling import about_task
from ..types import Batch, StepOutput
from .fresh_weights import building
from .frozen_base import settings_of
from .item_mean import shares_of_ranks
from .scores import Scores
from .step_log import evaluate
from .task_adapters import activate, add_adapters, check_aggregated, check_recomputed
from .task_batches import parts_of
from .task_networks import heads_of, known_task, share_encoder

if TYPE_CHECKING:
    from .base import LMModule
    from .multi_task import MultiTaskModule

__all__ = [
    "at_work",
    "build_tasks",
    "check_tasks",
    "evaluate_part",
    "find_unused",
    "losses_of_ranks",
    "own_rates",
    "scores_of_part",
    "step_parts",
]


def build_tasks(module: MultiTaskModule) -> None:
    """Build the networks of all tasks, and let them share the encoder of the first."""
    _attend(module)
    for name, task in module.tasks.items():
        with about_task(name), building(name), settings_of(name):
            task.configure_model()
        module.tokenizer = module.tokenizer or task.tokenizer
    module.grafted = share_encoder(module.tasks)
    (_, first), *others = module.tasks.items()
    module.network, module.base, module._ledger = first.network, first.base, first.ledger
    module.heads = nn.ModuleDict({name: heads_of(task.network) for name, task in others})
    # Anew, behind the network: what is before it counts as its embeddings where layers have rates.
    weighting = module.weighting
    del module.weighting
    module.weighting = weighting
    module.metrics = nn.ModuleDict({name: task.metrics for name, task in module.tasks.items()})
    add_adapters(module)


def at_work(module: MultiTaskModule, name: str) -> LMModule:
    """Return the module of a task, in the mode and on the device of that of all, to be run next.

    Its adapters are the active ones from then on, where tasks have some.

    Raises:
        ValueError: there is no such task.
    """
    task = module.tasks[known_task(module, name)]
    # Neither it nor its network is a part of that module, which alone is switched and moved.
    task.training, task.network.training = module.training, module.network.training
    if task.device != module.device:
        task.to(module.device)
    activate(module, name)
    return task


def evaluate_part(module: MultiTaskModule, batch: Batch, stage: str, batch_idx: int) -> None:
    """Update and log the metrics of the task of a batch."""
    ((name, part),) = parts_of(batch, module.names).items()
    evaluate(at_work(module, name), part, stage, batch_idx, module, f"{name}/")


def scores_of_part(module: MultiTaskModule, output: StepOutput, batch: Batch) -> Scores:
    """Return what the one task of a batch says of it.

    Raises:
        ValueError: it is a batch of several.
    """
    parts = parts_of(batch, module.names)
    if len(parts) > 1:
        raise ValueError(
            "a batch of all tasks has no scores of one kind, which a technique compares: give "
            "the MultiTaskDataModule batches='one'"
        )
    ((name, part),) = parts.items()
    return module.tasks[name].scores(output, part)


def check_tasks(module: MultiTaskModule, stage: str) -> None:
    """Set up each task with its data.

    Args:
        module: attached to a Trainer.
        stage: `"fit"`, `"validate"`, `"test"` or `"predict"`.

    Raises:
        ValueError: the data are of other tasks, of another kind, or do not fit; or the base was
            trained in another way than the module says.
    """
    data = _data_of(module)
    names = list(module.tasks)
    if data:
        unknown = [name for name in data if name not in names]
        missing = [name for name in names if name not in data] if stage == "fit" else []
        if unknown or missing:
            raise ValueError(
                f"the module has the tasks {', '.join(names)}, and the data {', '.join(data)}: "
                "give both the same names"
            )
        module.names = list(data)
    for name, task in module.tasks.items():
        _check_kind(name, task, data.get(name))
    module.configure_model()
    check_aggregated(module)
    _attend(module)
    for name, task in module.tasks.items():
        if name in data or not data:
            with about_task(name):
                task.setup(stage)


def find_unused(module: MultiTaskModule, stage: str) -> None:
    """Let DDP expect that heads get no gradient when their tasks have no turn.

    Raises:
        ValueError: the strategy says that there are none.
    """
    strategy = module.trainer.strategy
    data = getattr(module.trainer, "datamodule", None)
    all_in_each = len(module.tasks) == 1 or getattr(data, "batches", "one") == "all"
    if stage != "fit" or not isinstance(strategy, DDPStrategy) or all_in_each:
        return
    given = strategy._ddp_kwargs
    if given.get("static_graph") or given.get("find_unused_parameters") is False:
        raise ValueError(
            "the strategy says that every weight has a gradient in every step, and the heads of "
            "tasks without a turn have none: give the Trainer "
            "strategy='ddp_find_unused_parameters_true', or 'ddp', where it is set by itself"
        )
    given["find_unused_parameters"] = True


def own_rates(module: MultiTaskModule) -> dict[nn.Parameter, float]:
    """Return the rates of what is trainable of heads and adapters, where the module gives one."""
    rate = module.hparams["task_learning_rate"]
    if rate is None:
        return {}
    return {weight: rate for name in module.tasks for weight in module.task_parameters(name)}


def step_parts(module: MultiTaskModule, batch: Batch) -> dict[str, StepOutput]:
    """Return what the step of each task in a batch gives."""
    parts = parts_of(batch, module.names)
    check_recomputed(module, len(parts))
    return {name: at_work(module, name).step(part) for name, part in parts.items()}


def losses_of_ranks(
    module: MultiTaskModule, outputs: Mapping[str, StepOutput]
) -> dict[str, Tensor]:
    """Return the loss of each task by name; of several, so that their mean over ranks is right."""
    losses, trainer = {name: output.loss for name, output in outputs.items()}, module._trainer
    if len(losses) == 1 or trainer is None or trainer.world_size == 1 or not module.training:
        return losses
    items = torch.stack([output.items.detach().float() for output in outputs.values()])
    shares = shares_of_ranks(items, trainer).unbind()
    return {n: x * s.to(x) for (n, x), s in zip(losses.items(), shares, strict=True)}


def _attend(module: MultiTaskModule) -> None:
    """Tell the modules of the tasks of the Trainer, their data, the model and the tokenizer."""
    data = _data_of(module)
    for name, task in module.tasks.items():
        if isinstance(task.hparams["model"], str):
            # The base may have been moved since the module was made.
            task.hparams.update({word: module.hparams[word] for word in ("model", "pretrained")})
        # Of data of several tasks each knows a Trainer that has its own module and data.
        task._trainer = data[name].trainer if name in data else module._trainer
        task.uses_unlabelled = task.uses_unlabelled or module.uses_unlabelled
        task.tokenizer = module.tokenizer or task.tokenizer


def _data_of(module: MultiTaskModule) -> dict[str, Any]:
    data = module._trainer and getattr(module._trainer, "datamodule", None)
    return dict(getattr(data, "tasks", {}))


def _check_kind(name: str, task: Any, data: Any) -> None:
    """Check that data are of the kind of a task, where both are of kinds that lmkit has."""
    ours, theirs = _words(task, "Module"), _words(data, "DataModule")
    if ours and theirs and not ours & theirs:
        raise ValueError(
            f"task {name!r}: a {type(task).__name__} cannot learn from a {type(data).__name__}; "
            "give it the data module of the same word"
        )


def _words(part: Any, suffix: str) -> set[str]:
    """Return the words of lmkit's own classes that a part is of."""
    names = [c.__name__ for c in type(part).__mro__ if c.__module__.startswith("lmkit.")]
    words = {name.removesuffix(suffix) for name in names if name.endswith(suffix)}
    return words - {"LM", "Task"}
