"""Further passes over a batch after its backward: what all label-loss adversaries share."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor

from ..functional import mix
from ..modules import LMModule
from ..types import Batch, Objective, StepOutput
from .passes import Passes
from .perturbed_embedding import PerturbedEmbedding, Tokens, embedding_layers
from .random_streams import Streams

__all__ = ["ExtraPassCallback"]

# Beside the streams of masks, order and samples.
_STREAM = 0x7F4A7C15
_SHARDED = (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)


class _Step(NamedTuple):
    """The step that is made, for its further passes."""

    batch: Any
    number: int
    offset: int
    device: torch.device


class ExtraPassCallback(Callback):
    """Makes further passes after the backward of each step; the base of label-loss adversaries.

    A subclass says what the embeddings become in each pass (`move`), and makes the passes
    (`passes`). What Lightning has done is pass 0. All passes of a step draw the same dropout, and
    behind them torch's generators stand where pass 0 has left them. The callback acts in training
    steps alone; it adds nothing to a checkpoint, and its hooks are gone when the training ends.

    On a LightningModule that is not lmkit's it wraps `training_step`, which has to compute the same
    loss when it is called again with the same batch.

    Args:
        embedding: the name of the layers that give the embeddings, or a pattern; by default those
            that the network names.
        ignore_ids: ids of tokens that are not perturbed, beside padding and special ones.

    Raises:
        ValueError: in `setup`, the module optimizes by hand or takes a `dataloader_iter`, the
            strategy shards weights, or there is another such callback.
        NothingMatchedError: there is no layer of embeddings.
    """

    #: Under which its figures are logged.
    word: ClassVar[str] = "extra_passes"
    #: Whether embeddings are changed.
    perturbs_embeddings: ClassVar[bool] = True

    def __init__(
        self, embedding: str | None = None, ignore_ids: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.embedding_name, self.ignore_ids = embedding, ignore_ids
        self.embedding: PerturbedEmbedding | None = None
        #: The factor of the gradient of pass 0.
        self.first_weight = 1.0
        self._attached = self._acts = self._is_again = self._is_due = False
        self._before: Streams | None = None
        self._step: _Step | None = None
        self._loss = torch.zeros(())
        self._own_step: Any = None

    # What a subclass is.

    @property
    def is_idle(self) -> bool:
        """Whether all passes of a run would be equal, so that none is made."""
        return False

    def acts(self, trainer: Trainer) -> bool:
        """Whether there are further passes in this step; the same on each rank."""
        return True

    def begin(self, stream: int) -> None:
        """Forget the last step.

        Args:
            stream: what random numbers of this step are drawn by, beside the keys of tokens.
        """

    def move(self, number: int, tokens: Tokens, embedded: Tensor, again: bool) -> Tensor:
        """Return what the embeddings become.

        Args:
            number: of the call of a layer in this pass, from 0.
            tokens: what it reads.
            embedded: `[R, T, H]`.
            again: whether this is a further pass.
        """
        return embedded

    def passes(self, passes: Passes) -> None:
        """Make the further passes of a step; the last one adds up over ranks."""

    # What all share.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that further passes can be made."""
        if stage != "fit":
            return
        name = type(self).__name__
        if not pl_module.automatic_optimization:
            raise ValueError(
                f"{name} makes its passes behind Lightning's own backward, and "
                f"{type(pl_module).__name__} optimizes by hand (automatic_optimization is False): "
                "optimize automatically, or use lmkit.functional.adversarial in your loop"
            )
        if is_param_in_hook_signature(pl_module.training_step, "dataloader_iter", explicit=True):
            raise ValueError(
                f"{name} needs each batch twice, and training_step of {type(pl_module).__name__} "
                "takes a dataloader_iter: let it take batch and batch_idx"
            )
        if isinstance(trainer.strategy, _SHARDED):
            raise ValueError(
                f"{name} needs whole weights on each rank, and the strategy is "
                f"{type(trainer.strategy).__name__}: use one device or DDP"
            )
        callbacks: list[Callback] = cast(Any, trainer).callbacks
        others = [c for c in callbacks if isinstance(c, ExtraPassCallback)]
        if len(others) > 1:
            raise ValueError(
                f"{' and '.join(type(each).__name__ for each in others)} each decide which "
                "gradient a step has: give one of them, once"
            )
        if isinstance(pl_module, LMModule) and self.perturbs_embeddings:
            pl_module.configure_model()
            embedding_layers(pl_module, self.embedding_name)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hook into the embedding layers; the structure of the module is settled by now."""
        self._release(pl_module)
        if self.perturbs_embeddings and not self.is_idle:
            data = getattr(trainer, "datamodule", None)
            how = self.embedding_name, self.ignore_ids
            self.embedding = PerturbedEmbedding(pl_module, data, *how)
            self.embedding.attach()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the batch for the further passes."""
        if not self._attached and not self.is_idle:
            self._attach(pl_module)
        self._acts = self._attached and self.acts(trainer)
        self._is_again = self._is_due = False
        self.begin(run_stream(pl_module, trainer))
        offset = mix(batch_idx, trainer.global_rank)
        self._step = _Step(batch, batch_idx, offset, pl_module.device)

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Weigh the gradient of pass 0; the loss that is logged stays what it is."""
        if self._is_due and self.first_weight != 1.0:
            weight = self.first_weight
            loss.register_hook(lambda gradient: gradient * weight)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the further passes."""
        step = self._step
        if not self._is_due or step is None:
            return
        after = Streams.now(pl_module.device)
        self._is_due, self._is_again = False, True
        if self.embedding is not None and not self.embedding.calls:
            raise ValueError(
                f"{type(self).__name__}: the training step called none of the embedding layers; "
                "set embedding to the name of one that it does call"
            )
        try:
            self.passes(Passes(trainer, pl_module, step.batch, step.number))
        finally:
            self._is_again = False
            after.restore()
        if trainer._logger_connector.should_update_logs:
            pl_module.log(f"{self.word}/loss", self._loss, batch_size=1)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Let go of the batch."""
        self._step = None
        self.begin(0)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the module as it was."""
        self._release(pl_module)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the module as it was."""
        self._release(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the module as it was."""
        self._release(pl_module)

    def _attach(self, module: LightningModule) -> None:
        """Wrap the step, behind all who do so when the training starts: a pass is all of it."""
        if isinstance(module, LMModule):
            module.objective_wrappers.append(self._objective)
        else:
            self._wrap(module)
        self._attached = True

    def _objective(self, objective: Objective, batch: Batch) -> StepOutput:
        with self._entered(batch):
            output = objective(batch)
        self._loss = output.loss.detach()
        return output

    def _wrap(self, module: LightningModule) -> None:
        own = module.training_step
        self._own_step = vars(module).get("training_step")

        @functools.wraps(own)
        def training_step(*args: Any, **kwargs: Any) -> Any:
            batch = next(iter([*args, *kwargs.values()]), None)
            with self._entered(batch):
                output: Any = own(*args, **kwargs)
            loss = output.get("loss") if isinstance(output, dict) else output
            self._loss = loss.detach() if isinstance(loss, Tensor) else self._loss
            return output

        # Lightning asks how many arguments a step takes, and looks behind one wrapper alone.
        training_step.__wrapped__ = getattr(own, "__wrapped__", own)
        object.__setattr__(module, "training_step", training_step)

    @contextmanager
    def _entered(self, batch: Any) -> Iterator[None]:
        """Begin a pass: note where the generators stand, or put them back to there."""
        step, again = self._step, self._is_again
        if not self._acts or step is None:
            yield
            return
        if self._before is None or not again:
            self._before, self._is_due = Streams.now(step.device), True
        else:
            self._before.restore()
        if self.embedding is None:
            yield
            return
        move = functools.partial(self.move, again=again)
        with self.embedding.moved(move, batch, step.offset):
            yield

    def _release(self, module: LightningModule) -> None:
        if self.embedding is not None:
            self.embedding.detach()
            self.embedding = None
        if not self._attached:
            return
        if isinstance(module, LMModule):
            module.objective_wrappers = [
                each for each in module.objective_wrappers if each != self._objective
            ]
        else:
            vars(module).pop("training_step", None)
            if self._own_step is not None:
                object.__setattr__(module, "training_step", self._own_step)
        self._attached = self._acts = self._is_again = self._is_due = False
        self._before = self._step = self._own_step = None


def run_stream(module: LightningModule, trainer: Trainer) -> int:
    """Return what the random numbers of an epoch are drawn by, beside the keys of tokens."""
    seed = getattr(module, "seed", None)
    if seed is None:
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
    return mix(_STREAM, seed, trainer.current_epoch)
