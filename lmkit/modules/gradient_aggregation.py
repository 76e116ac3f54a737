"""The gradients of several tasks made one update, while Lightning optimizes as ever."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..functional import mix
from ..functional.gradient_aggregation import (
    aligned_mtl_weights,
    cagrad_weights,
    imtl_weights,
    mean_weights,
    mgda_weights,
    nash_mtl_weights,
    pcgrad_weights,
    sum_weights,
)
from ..functional.gramian import gramian
from .method_spec import method_of
from .task_gradients import TaskGradients, keep_graphs, rest_of

__all__ = ["AGGREGATIONS", "Aggregated", "GradientAggregation", "aggregation_from"]

#: Functions from a Gramian to weights, by the names that a configuration has for them.
AGGREGATIONS: dict[str, Callable[..., Tensor]] = {
    "sum": sum_weights,
    "mean": mean_weights,
    "pcgrad": pcgrad_weights,
    "mgda": mgda_weights,
    "cagrad": cagrad_weights,
    "imtl": imtl_weights,
    "aligned_mtl": aligned_mtl_weights,
    "nash_mtl": nash_mtl_weights,
}

# Beside the streams of masks, order and dropout.
_STREAM = 0x6A09E667
_SHARDED = (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)


class Aggregated(NamedTuple):
    """What became of the gradients of one step.

    Attributes:
        tasks: those that the step had.
        gramian: of their gradients on the shared parameters, float64 `[T, T]`, in an unknown scale.
        weights: by which they were added, float64 `[T]`.
    """

    tasks: tuple[str, ...]
    gramian: Tensor
    weights: Tensor


class GradientAggregation:
    """Aggregates the gradients of tasks on what they share, in place of adding them.

    Of each task's loss the gradient is taken by itself. Over the batches of an accumulation window
    and over ranks the gradients of a task add up *before* they are aggregated, once for each
    optimizer step: so the update does not depend on how the items fell into batches and ranks.
    Parameters of one task, and loss terms that are of no task, are left as they are without
    aggregation; what no task has reached has no gradient. Clipping, loss scaling and accumulation
    are Lightning's own, and see the aggregated gradient.

    A module calls `attach` in `on_fit_start`, `begin` in `on_train_batch_start`, `watch` in its
    step, and `backward` in place of `loss.backward()`.

    Args:
        weights: from a Gramian, float64 `[T, T]`, to weights `[T]`; one with an argument
            `generator` gets one that is the same on all ranks, for (seed, step).
        tasks: all names, in the order of the Gramian.

    Example:
        >>> GradientAggregation(pcgrad_weights, ["nli", "ner"]).tasks
        ('nli', 'ner')
    """

    def __init__(self, weights: Callable[..., Tensor], tasks: Sequence[str]) -> None:
        self.tasks = tuple(tasks)
        self.weights = weights
        #: What became of the last step.
        self.last: Aggregated | None = None
        self._draws = "generator" in inspect.signature(weights).parameters
        self._window: TaskGradients | None = None
        self._restored: dict[str, Any] = {}
        self._watched: list[tuple[str, Tensor]] = []

    def attach(self, module: LightningModule) -> None:
        """Take over from DDP to add up gradients over ranks; to be called in `on_fit_start`.

        Raises:
            ValueError: the strategy shards weights, or an adversary makes passes of its own.
        """
        trainer = module.trainer
        if isinstance(trainer.strategy, _SHARDED):
            raise ValueError(
                "aggregation needs whole weights on each rank, and the strategy is "
                f"{type(trainer.strategy).__name__}: use one device or DDP, or no aggregation"
            )
        for callback in trainer.callbacks:  # type: ignore[attr-defined]  # not annotated there
            if hasattr(callback, "perturbs_embeddings"):
                raise ValueError(
                    f"{type(callback).__name__} makes passes of its own, whose gradients belong to "
                    "no task: leave it or the aggregation out"
                )
        if isinstance(trainer.strategy.model, DistributedDataParallel):
            # Its reducer would wait for hooks that gradients of single tasks do not run.
            trainer.strategy.model.require_backward_grad_sync = False
        keep_graphs()

    def begin(self, module: LightningModule, batch_idx: int) -> None:
        """Begin a batch, and an accumulation window where there is one."""
        self._watched = []
        if batch_idx % module.trainer.accumulate_grad_batches == 0:
            self._window, self._restored = None, {}

    def watch(self, losses: Mapping[str, Tensor]) -> None:
        """See the losses of the tasks of a batch, scalars in the graph of the loss.

        Raises:
            ValueError: a task is unknown.
        """
        for name, loss in losses.items():
            if name not in self.tasks:
                known = ", ".join(self.tasks)
                raise ValueError(f"losses has a task {name!r}; the tasks are {known}")
            if loss.requires_grad:
                self._watched.append((name, loss))

    def backward(
        self, loss: Tensor, module: LightningModule, shared: Sequence[nn.Parameter]
    ) -> None:
        """Differentiate the loss, and aggregate when the window is full.

        Args:
            loss: scalar, as Lightning gives it to `LightningModule.backward`: divided by the
                batches of the window, and scaled.
            module: whose gradients are set.
            shared: the parameters that tasks share; frozen ones are left out.

        Raises:
            ValueError: a gradient is not finite, and there is no loss scaler; names the task.
            RuntimeError: no task's loss was seen.
        """
        if not self._watched:
            raise RuntimeError("backward has seen no task's loss: call watch(losses) in the step")
        if self._window is None:
            self._window = TaskGradients(shared, module.parameters())
            self._window.load_state_dict(self._restored)
            self._restored = {}
        window, watched, self._watched = self._window, self._watched, []
        every = window.parameters
        values = [value for _, value in watched]
        beside = rest_of(loss, values, every)
        found: Sequence[Tensor | None] = torch.autograd.grad(
            loss, [*values, *beside], retain_graph=True, allow_unused=True
        )
        window.add("", beside, found[len(values) :])
        for number, ((name, value), factor) in enumerate(zip(watched, found, strict=False)):
            if factor is None:
                continue
            gradients = torch.autograd.grad(
                value,
                every,
                grad_outputs=factor,
                retain_graph=number + 1 < len(watched),
                allow_unused=True,
            )
            window.add(name, every, gradients)
            window.take_away(beside, every, gradients)
        if not module.trainer.fit_loop._should_accumulate():
            self._aggregate(module, window)
            self._window = None

    def state_dict(self, trainer: Trainer) -> dict[str, Any]:
        """Return the gradients of a window that is not full; to be called on all ranks."""
        return {} if self._window is None else self._window.state_dict(trainer.strategy, self.tasks)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the gradients of `state_dict`."""
        self._restored = dict(state)

    def _aggregate(self, module: LightningModule, window: TaskGradients) -> None:
        trainer = module.trainer
        window.reduce(trainer.strategy, self.tasks)
        names = [name for name in self.tasks if name in window.rows]
        self.last, weights = None, torch.ones(len(names), dtype=torch.float64)
        try:
            inner = gramian([window.rows[name] for name in names], names)
        except ValueError:
            # A scaler sees what is not finite, leaves the step out and scales less.
            if getattr(trainer.precision_plugin, "scaler", None) is None:
                raise
        else:
            weights = self._weigh(module, inner)
            self.last = Aggregated(tuple(names), inner, weights)
        window.write(dict(zip(names, weights.tolist(), strict=True)))

    def _weigh(self, module: LightningModule, inner: Tensor) -> Tensor:
        trainer = module.trainer
        options = {}
        if self._draws:
            seed = getattr(module, "seed", None) or 0
            key = mix(seed, trainer.global_step, _STREAM)
            options["generator"] = torch.Generator().manual_seed(key)
        weights = self.weights(inner, **options)
        if trainer.world_size > 1:
            # Equal on machines whose processors round otherwise, too.
            shared = trainer.strategy.reduce(weights.to(module.device), reduce_op="mean")
            weights = shared.cpu()
        return weights


def aggregation_from(
    spec: str | Mapping[str, Any] | None, tasks: Sequence[str]
) -> GradientAggregation | None:
    """Make the aggregation that plain data name.

    Args:
        spec: one of `AGGREGATIONS`; or `{"class_path": "cagrad", "init_args": {"c": 0.5}}`, where
            the path may also be that of a function from a Gramian to weights; or `None`.
        tasks: their names.

    Returns:
        The aggregation; `None` of `None`, which is Lightning's own backward.

    Raises:
        ValueError: there is no such method.
        TypeError: it does not take these arguments.

    Example:
        >>> aggregation_from({"class_path": "cagrad", "init_args": {"c": 0.5}}, ["a", "b"]).tasks
        ('a', 'b')
    """
    if spec is None:
        return None
    weights, arguments = method_of("aggregation", spec, AGGREGATIONS)
    made = partial(weights, **arguments)
    made(torch.eye(len(tasks), dtype=torch.float64))  # an argument out of range is an error now
    return GradientAggregation(made, tasks)
