"""The base of every task module: network, ledger of structure, objective, optimizer, checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from typing import Any, ClassVar, Self, cast

from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from ..types import Batch, Objective, ObjectiveWrapper, StepOutput, Surgery
from .assembly import assemble, check_run, perform
from .checkpoint import read_entry, standalone, write_entry
from .checks import LossGuard, check_state, keep_arguments
from .frozen_base import name_base
from .item_mean import ItemMean
from .network import build_network
from .optimizer import check_groups, clip_gradients, optimizer_and_schedule
from .resume import seed_batch, take_up
from .scores import Scores
from .speed import Speed
from .step_log import evaluate, log_step
from .token_metrics import TokenMean

__all__ = ["LMModule"]


class LMModule(LightningModule):
    """A Hugging Face network with one objective; the base of every task module.

    A subclass names its head in `auto_class` and computes its loss in `step`; `prepare` may add to
    the batch what is computed once. What other parts use: `network`, `tokenizer`, `scores`,
    `objective_wrappers`, `operate` and `ledger`. The gradient of a step is that of the mean over
    *all* its items, of all batches and ranks.

    Args:
        model: a hub name, a folder, or a config as a dictionary with a `model_type`, from which a
            network is made from scratch. Its vocabulary is the tokenizer's unless it says.
        pretrained: whether a hub name or folder brings its weights, or only its config.
        learning_rate: the peak of the schedule.
        weight_decay: of weight matrices; biases and normalizations have none.
        warmup: optimizer steps (int) or share of the run (float below 1) of the linear warm-up.
        schedule: `"linear"`, `"cosine"` or `"constant"` after the warm-up.
        optimizer: `{"class_path": ..., "init_args": {...}}` in place of AdamW.
        dropout: of every layer in training, in `[0, 1)`; `None` leaves what the config says.
        compile: whether the layers are compiled; `None` decides by device and length of the run.
        layer_decay: factor of the learning rate from each layer to the one below, in `(0, 1]`.

    Raises:
        TypeError: an argument is not plain data, which a checkpoint could not hold.
    """

    auto_class: ClassVar[type[_BaseAutoModelClass]]
    #: Whether a token of the network sees only those before it.
    is_causal: ClassVar[bool] = False
    #: Whether rows without a label teach it something.
    uses_unlabelled: bool = False
    is_further_pass: bool = False  # over a batch that was seen: what counts batches leaves it out
    build = staticmethod(build_network)  # a subclass may make its network otherwise
    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    #: Wrapped around `step` in order: with callbacks `[A, B]` the objective is `B(A(step))`.
    objective_wrappers: list[ObjectiveWrapper]

    def __init__(
        self,
        model: str | dict[str, Any],
        pretrained: bool = True,
        learning_rate: float = 5e-5,
        weight_decay: float = 0.01,
        warmup: int | float = 0.06,
        schedule: str = "linear",
        optimizer: dict[str, Any] | None = None,
        dropout: float | None = None,
        compile: bool | None = None,
        layer_decay: float = 1.0,
    ) -> None:
        super().__init__()
        keep_arguments(self)
        self.tokenizer = None
        self.objective_wrappers = []
        self._ledger: list[dict[str, Any]] = []
        self.base = name_base(model)
        #: Whether checkpoints leave out what is frozen and stands in the base.
        self.trainable_only = False
        self.seed: int | None = None
        #: What a resumed fit is to take up: seed, and gradients of an unfinished window.
        self.pending: dict[str, Any] = {}
        self._prepared: Batch | None = None
        self.item_mean = ItemMean()
        self.task_losses: dict[str, Tensor] = {}  # of the last step, where there are several tasks
        self._guard, self._speed = LossGuard(), Speed()
        self.metrics = nn.ModuleDict()

    def step(self, batch: Batch) -> StepOutput:
        """Compute the loss of one batch; pure but for dropout."""
        raise NotImplementedError(f"{type(self).__name__} must define step(batch)")

    def prepare(self, batch: Batch) -> Batch:
        """Add to a batch what the objective needs and is computed only once a batch."""
        return batch

    def scores(self, output: StepOutput, batch: Batch) -> Scores:
        """Return what `step` says of the items of a batch, in the terms of every task.

        Raises:
            NotImplementedError: the objective has no scores that two networks could share.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what its scores are")

    def build_metrics(self) -> dict[str, Metric]:
        """Make the metrics of an evaluation by name; each is logged as `val/<name>`."""
        return {"loss": TokenMean()}

    def build_tables(self) -> dict[str, Metric]:
        """Make the metrics of a test that are no scalars, such as counts of each class."""
        return {}

    def update_metrics(
        self, metrics: Mapping[str, Metric], output: StepOutput, batch: Batch
    ) -> None:
        """Give the metrics of `build_metrics` the result of one batch."""
        metrics["loss"].update(output.loss, output.items)

    def update_tables(self, tables: Mapping[str, Metric], output: StepOutput, batch: Batch) -> None:
        """Give the metrics of `build_tables` the result of one batch."""

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Return the tables of the last test, each a list of rows; to be called on all ranks."""
        return {}

    def figures(self) -> dict[str, Any]:
        """Return the matplotlib figures of the last test; to be called on all ranks."""
        return {}

    def configure_model(self) -> None:
        """Build the network; when it is built, do nothing."""
        if hasattr(self, "network"):
            return
        assemble(self)

    @property
    def task_module(self) -> LMModule:
        """The module that is exported and used: this one, unless it trains another."""
        return self

    @classmethod
    def arguments_for(
        cls, arguments: Mapping[str, Any], model: Any, pretrained: bool | None = None
    ) -> dict[str, Any]:
        """Return what of a module's arguments to change so that it is of another model."""
        return {"model": model} | ({} if pretrained is None else {"pretrained": pretrained})

    @property
    def networks(self) -> list[PreTrainedModel]:
        """The networks that a step runs; the first is the one that is exported."""
        return [self.network]

    @property
    def ledger(self) -> list[dict[str, Any]]:
        """Every surgery done so far, in order, as plain data."""
        return deepcopy(self._ledger)

    def operate(self, surgery: Surgery) -> None:
        """Change the structure, in `Callback.setup` or before a fit; what was done is not again."""
        self.configure_model()
        perform(self, surgery)

    def setup(self, stage: str) -> None:
        """Check that the data fit the network, and see to it that checkpoints are written whole."""
        self.configure_model()
        check_run(self, stage)

    def on_fit_start(self) -> None:
        """Check that each trainable parameter is in exactly one group; compile the layers."""
        check_groups(self, self.trainer.optimizers)
        self._speed.compile(self)

    def on_train_start(self) -> None:
        """Take up the seed, and what an interrupted accumulation window had gathered."""
        self.item_mean, self._guard = ItemMean(), LossGuard()
        take_up(self)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed the dropout of this step."""
        self._prepared = None
        seed_batch(cast(int, self.seed), self.trainer, batch_idx)

    def objective(self, batch: Batch) -> StepOutput:
        """Run `step` inside all `objective_wrappers` on a prepared batch."""
        run: Objective = self.step
        for wrap in self.objective_wrappers:
            run = partial(wrap, run)
        return run(batch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss to be differentiated; asked for the same batch again, prepare it once."""
        again = self.is_further_pass = self._prepared is not None
        if self._prepared is None:
            self._guard.check_due(self)
            self._prepared = self.prepare(batch)
        output = self.objective(self._prepared)
        if not again:
            self._guard.watch(self, output.loss, batch.get("index"), batch_idx)
            log_step(self, output, batch_idx)
        return self.item_mean.scale(output, self.trainer, again)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Divide what an accumulation window has summed by its number of items."""
        self.item_mean.close(optimizer, self.trainer)

    def on_train_end(self) -> None:
        """Check the last losses."""
        self._guard.check(self)

    def teardown(self, stage: str) -> None:
        """Give the network its own attention back."""
        self._speed.tear_down(self)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update and log the validation metrics."""
        evaluate(self, batch, "val", batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Update and log the test metrics."""
        evaluate(self, batch, "test", batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Finish a validation."""
        self.finish_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Finish a test."""
        self.finish_evaluation("test")

    def continue_evaluation(self, output: StepOutput, batch: Batch, stage: str) -> None:
        """Do more with a batch of an evaluation than to update its metrics."""

    def finish_evaluation(self, stage: str) -> None:
        """Log what only all batches of an evaluation give."""

    def configure_optimizers(self) -> Any:
        """Build the optimizer over everything trainable, and its schedule per step."""
        return optimizer_and_schedule(self.hparams, self, self.trainer)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients, under a fused optimizer in bf16 too."""
        clip_gradients(self, optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what a checkpoint needs to be loaded alone, and to be resumed exactly."""
        self._guard.check(self)
        write_entry(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Replay the ledger before the weights come; refuse another base or structure."""
        read_entry(self, checkpoint)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load weights; a `ValueError` names what is missing, unknown or of another shape."""
        check_state(self, state_dict, strict)
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = "cpu",
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = True,
        **kwargs: Any,
    ) -> Self:
        """Load a checkpoint alone: its class, structure, tokenizer and weights are all in it.

        Only one that leaves frozen weights out needs its base; if that was moved, give `model`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is cut short, holds code, or is of another class.
        """
        with standalone(cls, checkpoint_path, kwargs) as (owner, arguments, said):
            how = {"strict": strict, "weights_only": weights_only, **arguments}
            inherited = super(LMModule, owner).load_from_checkpoint
            module = inherited(checkpoint_path, map_location, hparams_file, **how)
        module.hparams.update(said)
        return cast(Self, module)
