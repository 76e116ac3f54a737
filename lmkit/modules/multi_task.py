"""Multi-task learning: one encoder, a head and a loss for each task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from ..types import Batch, StepOutput, Surgery
from .base import LMModule
from .gradient_aggregation import aggregation_from
from .optimizer import optimizer_and_schedule
from .own_callbacks import new_callbacks
from .scores import Scores
from .task_adapters import adapters_from, follow, own_weights, shared_weights
from .task_attention import TaskAttention
from .task_balance import TaskBalance, see_losses, weighting_of
from .task_batches import join_parts, parts_of
from .task_gradients import load_gradients, save_gradients
from .task_log import log_mean, step_logs
from .task_networks import configs_followed, own_settings, plain_task
from .task_run import (
    at_work,
    build_tasks,
    check_tasks,
    evaluate_part,
    find_unused,
    losses_of_ranks,
    own_rates,
    scores_of_part,
    step_parts,
)
from .task_specs import arguments_of_model, check_rate, check_weights, make_tasks
from .weighting_base import LossWeighting

__all__ = ["MultiTaskModule"]


class MultiTaskModule(LMModule):
    r"""Train several tasks on one encoder (hard sharing: Caruana 1997; MT-DNN, arXiv:1901.11504).

    $\mathcal{L} = \sum_{t \in B} w_t \mathcal{L}_t$ over the tasks $B$ of a batch, one of them or
    all, where $\mathcal{L}_t$ is the mean loss of task $t$ over its items (examples, labelled
    pieces, tokens) of all ranks. Each task is a task module of its own: classification, pairs,
    regression, tagging, question answering, multiple choice, a language model as an auxiliary task.
    All have one encoder, which is the same object, and each a head, which rests as its task does.

    `MultiTaskDataModule` makes the batches. Of one task, those of an accumulation window are of the
    same task and together the mean over all their items; of all, a window is the mean of them.

    Logs `train/loss` of each batch, `train/<task>/loss` of the last batch of each task, of a
    validation `val/<task>/<metric>` as the task's own module does, and `val/mean`, the mean over
    the tasks of their main metrics (docs/multi_task.md).

    `network` is that of the first task: surgeries, and callbacks that look for embeddings and
    layers, work on the shared encoder through it, and heads of other tasks stay as they are. An
    export is a plain folder for each task, or of the one that is asked for.

    Args:
        model: hub name, folder, or config with a `model_type`, of all tasks.
        tasks: by name the `class_path` and `init_args` of each task module, without what is of
            the whole: model, optimizer, dropout.
        weights: $w_t > 0$ by name; 1 for those that are not named.
        pretrained: whether a name or folder brings its weights.
        learning_rate: the peak of the schedule.
        weight_decay: of weight matrices; biases and normalizations have none.
        warmup: optimizer steps (int) or share of the run (float below 1).
        schedule: `"linear"`, `"cosine"` or `"constant"` after the warm-up.
        optimizer: `{"class_path": ..., "init_args": {...}}` in place of AdamW.
        dropout: of every layer in training, in `[0, 1)`; `None` leaves what the config says.
        compile: whether the layers are compiled; `None` decides by device and length of the run.
        layer_decay: factor of the learning rate from each layer to the one below, in `(0, 1]`.
        weighting: a way to find the weights instead, e.g. `"uncertainty"`: docs/loss_weighting.md.
        aggregation: of gradients on the encoder, e.g. `"pcgrad"`: docs/gradient_aggregation.md.
        task_adapters: size of an adapter of each task in each layer, or arguments of `TaskAdapter`
            and `aggregate`: docs/multi_task.md.
        task_learning_rate: of heads and of adapters of tasks, `learning_rate` by default.

    Attributes:
        tasks: the modules of the tasks by name; `task_module_of` gives one to use alone.
        task_losses: $\mathcal{L}_t$ of the last training step by task, scalars, in the graph until
            the backward pass. What is differentiated is a multiple of their weighted sum.

    Raises:
        TypeError: a task is no plain data.
        ValueError: a name, class, argument or weight is wrong; in `configure_model`, networks have
            no encoder to share; in `setup`, the data are of other tasks or kinds.

    Example:
        >>> module = MultiTaskModule({"model_type": "bert", "vocab_size": 99, "hidden_size": 8,
        ...     "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8},
        ...     {"topic": {"class_path": "SequenceClassificationModule"},
        ...      "ner": {"class_path": "TokenClassificationModule"}})
        >>> module.configure_model()
        >>> module.tasks["ner"].network.bert is module.network.bert
        True
    """

    def __init__(
        self,
        model: str | dict[str, Any],
        tasks: dict[str, Any],
        weights: dict[str, float] | None = None,
        pretrained: bool = True,
        learning_rate: float = 5e-5,
        weight_decay: float = 0.01,
        warmup: int | float = 0.06,
        schedule: str = "linear",
        optimizer: dict[str, Any] | None = None,
        dropout: float | None = None,
        compile: bool | None = None,
        layer_decay: float = 1.0,
        weighting: str | dict[str, Any] | None = None,
        aggregation: str | dict[str, Any] | None = None,
        task_adapters: int | dict[str, Any] | None = None,
        task_learning_rate: float | None = None,
    ) -> None:
        more = optimizer, dropout, compile, layer_decay
        super().__init__(model, pretrained, learning_rate, weight_decay, warmup, schedule, *more)
        made = make_tasks(tasks, model, {"pretrained": pretrained, "dropout": dropout})
        self.loss_weights = check_weights(weights, list(made))
        self.weighting: LossWeighting | None = weighting_of(self.hparams, list(made))
        self.aggregation = aggregation_from(aggregation, list(made))
        self.task_adapters = adapters_from(task_adapters, list(made))
        check_rate(task_learning_rate)
        # Not parts of this module: the encoder would be one of each.
        self._held = (made,)
        self.auto_class = next(iter(made.values())).auto_class  # type: ignore[misc]
        self.is_causal = any(task.is_causal for task in made.values())  # type: ignore[misc]
        #: Heads of the other tasks; that of the first is a part of `network`.
        self.heads = nn.ModuleDict()
        #: By task what the shared encoder has more than its own would have.
        self.grafted: dict[str, list[str]] = {}
        self.last_losses: dict[str, Tensor] = {}  # of tasks, to be logged with those of others
        #: The tasks in the order of the numbers that batches have.
        self.names = list(made)

    @property
    def tasks(self) -> dict[str, LMModule]:
        """The modules of the tasks by name."""
        return self._held[0]

    @classmethod
    def arguments_for(
        cls, arguments: Mapping[str, Any], model: Any, pretrained: bool | None = None
    ) -> dict[str, Any]:
        """Return what of the arguments to change so that all tasks are of another model."""
        return arguments_of_model(arguments, model, pretrained)

    def configure_model(self) -> None:
        """Build the networks, and let them share the encoder; when they are built, do nothing."""
        if hasattr(self, "network"):
            return
        build_tasks(self)

    def operate(self, surgery: Surgery) -> None:
        """Change the structure of the shared encoder, and tell the configs of all tasks.

        Raises:
            ValueError: it changes the width of the encoder or its vocabulary, which the heads of
                the other tasks do not follow.
        """
        self.configure_model()
        with follow(self, surgery), configs_followed(self, surgery):
            super().operate(surgery)

    def setup(self, stage: str) -> None:
        """Set up each task with its data, and check that the data are of these tasks."""
        check_tasks(self, stage)
        super().setup(stage)
        find_unused(self, stage)

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return what is trainable of the shared encoder."""
        return shared_weights(self)

    def task_parameters(self, name: str) -> list[nn.Parameter]:
        """Return what is trainable of the head and adapters of a task, without what is tied."""
        return own_weights(self, name)

    def task_module_of(self, name: str) -> LMModule:
        """Return the module of one task as if it had been trained alone, with copied weights.

        Raises:
            ValueError: there is no such task.
        """
        self.configure_model()
        return plain_task(self, name)

    def prepare(self, batch: Batch) -> Batch:
        """Add to a batch what its tasks need."""
        parts = parts_of(batch, self.names)
        return cast(Batch, join_parts({n: at_work(self, n).prepare(x) for n, x in parts.items()}))

    def step(self, batch: Batch) -> StepOutput:
        """Compute the weighted sum of the losses of the tasks in a batch.

        Args:
            batch: of one task, what its step takes and `task`, its number, int64 `[B]`; of
                several the entries of each under `<task>/<entry>`.

        Returns:
            Of one task its loss, number of items and logits; of several the loss, 1 and no logits.
        """
        outputs = step_parts(self, batch)
        losses, logs = losses_of_ranks(self, outputs), step_logs(self, outputs)
        see_losses(self, losses)
        loss = self.join_losses(losses)
        if len(outputs) == 1:
            (output,) = outputs.values()
            return StepOutput(loss, output.items, output.logits, logs)
        return StepOutput(loss, torch.ones_like(loss.detach()), None, logs)

    def join_losses(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum of the losses of tasks, a scalar."""
        if self.weighting is not None:
            return cast(Tensor, self.weighting(losses))
        weighed = [loss * self.loss_weights[name] for name, loss in losses.items()]
        return weighed[0] if len(weighed) == 1 else torch.stack(weighed).sum()

    def configure_callbacks(self) -> list[Callback]:
        """Let the weighting and the aggregation see the steps, and log attention to adapters."""
        return new_callbacks(self, [TaskBalance(), TaskAttention()])

    def configure_optimizers(self) -> Any:
        """Build the optimizer, in which what is a task's own may have another rate."""
        return optimizer_and_schedule(self.hparams, self, self.trainer, own_rates(self))

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Differentiate the loss, and aggregate the gradients of the tasks."""
        if self.aggregation is None:
            super().backward(loss, *args, **kwargs)
        else:
            self.aggregation.backward(loss, self, self.shared_parameters())

    def scores(self, output: StepOutput, batch: Batch) -> Scores:
        """Return what the one task of a batch says of it."""
        return scores_of_part(self, output, batch)

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Return those of all tasks, each under `<task>/<name>`."""
        return {f"{n}/{word}": x for n, t in self.tasks.items() for word, x in t.tables().items()}

    def figures(self) -> dict[str, Any]:
        """Return those of all tasks, each under `<task>/<name>`."""
        return {f"{n}/{word}": x for n, t in self.tasks.items() for word, x in t.figures().items()}

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Update and log the validation metrics of the batch's task."""
        evaluate_part(self, batch, "val", batch_idx)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Update and log the test metrics of the batch's task."""
        evaluate_part(self, batch, "test", batch_idx)

    def finish_evaluation(self, stage: str) -> None:
        """Log the mean of the tasks' main metrics; of tasks that have none it says nothing."""
        log_mean(self, stage)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Any:
        """Predict as the batch's task does."""
        ((name, part),) = parts_of(batch, self.names).items()
        return at_work(self, name).predict_step(part, batch_idx)

    def forward(self, task: str, *texts: Any) -> Any:
        """Predict on raw text as a task does.

        Args:
            task: its name.
            *texts: what the `forward` of its module takes.
        """
        return at_work(self, task)(*texts)

    def sample(self, batch: Batch, rows: int) -> list[dict[str, Any]]:
        """Show what the batch's task makes of its first rows; nothing if it shows nothing."""
        ((name, part),) = parts_of(batch, self.names).items()
        show = getattr(at_work(self, name), "sample", None)
        return show(part, rows) if show else []

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the classes of the other tasks, so that a checkpoint loads alone."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["lmkit"]["config"]["tasks"] = own_settings(self.tasks)
        save_gradients(self, checkpoint["lmkit"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Give the tasks what comes with a checkpoint."""
        super().on_load_checkpoint(checkpoint)
        load_gradients(self, checkpoint["lmkit"])
        for task in self.tasks.values():
            task.tokenizer = self.tokenizer

    def teardown(self, stage: str) -> None:
        """Leave the tasks as they were."""
        for task in self.tasks.values():
            task.teardown(stage)
        super().teardown(stage)
