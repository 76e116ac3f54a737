"""Heads, neurons, layers and hidden dimensions that are removed in the course of a training."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ..modules import DistillationModule, LMModule
from ..modules.frozen_base import leaves_out
from .pruning import PruningCallback
from .structured_plan import StructuredPlan
from .structured_run import StructuredRun
from .structured_stages import StructuredStages, owned

__all__ = ["StructuredPruningCallback"]

_SHARDED = (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)  # no rank has whole weights


class StructuredPruningCallback(Callback):
    r"""Removes heads, inner neurons, layers and hidden dimensions, and trains on what is left.

    Unlike single weights that are zero, this makes a network smaller and faster. Say what is to be
    left: by counts (`ffn`, `heads`, `layers`, `hidden`), as a share of the parameters of the layers
    (`parameters`), or by how much faster the layers are to be (`speedup`).

    From step $t_0$ to $t_1$ more and more heads and neurons are shut, after a cubic schedule, each
    `interval` optimizer steps those that are worth the least by then; one that was shut may be
    opened again. At $t_1$ they are removed, with what the optimizer keeps of them, and training
    goes on with the smaller network. Layers and hidden dimensions are removed at once at $t_0$.
    With `start=0` and `end=0` all go before the first step, by `calibration_batches` of training
    data. What a unit is worth is, by `importance`:

    - `taylor`: $|\partial L / \partial \xi_u|$ of a gate $\xi_u$ on what it gives, in the mean over
      steps; from the gradients that are there anyway (arXiv:1905.10650).
    - `activation`: $\sum_j E|x_j| \lVert W_{:j} \rVert_2$ over what it sends to the next layer.
    - `magnitude`: the norm of the weights that read it. No better than chance in our measurements.
    - `random`: drawn, by `seed`.
    - `learned`: gates are trained with the network, and their expected size follows the target (as
      in CoFi, arXiv:2204.00408).

    A shut unit is one whose columns in the next layer are zero, so that checkpoints and exports on
    the way compute what is evaluated; their values are held in the state of the callback. Surgeries
    are written into the module's ledger. Logged are `structured_pruning/heads`, `/neurons` and
    `/parameters_share` of the layers; what became of each layer is printed and drawn.

    Args:
        ffn: inner neurons that are left in each layer: a number, or a share in `(0, 1)`.
        heads: likewise; heads that share keys and values go together.
        layers: which to keep, from 0, or how many.
        hidden: hidden dimensions that are left.
        parameters: share of the parameters of the layers that is left, in `(0, 1)`.
        speedup: of the layers on the CPU of this machine, over 1.
        importance: by what units are kept.
        allocation: `local` leaves each layer as many units, which plain transformers can load;
            `global` more where they are worth more, of each layer at least a head and 8 neurons.
        multiple_of: the number of neurons that is left is a multiple of it.
        start: share of the run before $t_0$, in `[0, 1)`.
        end: share of the run before $t_1$, at least `start`; 1 removes at the end of the fit.
        interval: optimizer steps from one choice to the next, at least 1.
        calibration_batches: of each rank, at least 1; where nothing was measured in training.
        speed_batch: rows of the batches that `speedup` is about.
        speed_length: tokens of their rows.
        gate_rate: learning rate of `learned` gates.
        multiplier_rate: that of the multipliers of their Lagrangian, as in CoFi; with 0 the gates
            are held at their expected size without one.
        seed: of `random` and `learned`.

    Raises:
        ValueError: an argument lies outside its range; before training, the target cannot be met or
            is met already, a layer is wrapped, factorized or (by `taylor`) frozen, the checkpoint
            or the network was pruned otherwise, ranks hold only parts of the weights, or the run
            has no end.
        NothingMatchedError: the architecture is not known.
        TypeError: the module is not lmkit's.

    Example:
        >>> callback = StructuredPruningCallback(ffn=0.5, heads=6)
        >>> callback.plan.kinds
        ['heads', 'ffn']
    """

    #: Under which its figures are logged.
    word = "structured_pruning"

    def __init__(
        self,
        ffn: int | float | None = None,
        heads: int | float | None = None,
        layers: Sequence[int] | int | None = None,
        hidden: int | None = None,
        parameters: float | None = None,
        speedup: float | None = None,
        importance: Literal["taylor", "activation", "magnitude", "random", "learned"] = "taylor",
        allocation: Literal["local", "global"] = "local",
        multiple_of: int = 8,
        start: float = 0.1,
        end: float = 0.5,
        interval: int = 10,
        calibration_batches: int = 32,
        speed_batch: int = 32,
        speed_length: int = 128,
        gate_rate: float = 0.1,
        multiplier_rate: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.plan = StructuredPlan(
            ffn=ffn,
            heads=heads,
            layers=layers,
            hidden=hidden,
            parameters=parameters,
            speedup=speedup,
            importance=importance,
            allocation=allocation,
            multiple_of=multiple_of,
            start=start,
            end=end,
            interval=interval,
            calibration_batches=calibration_batches,
            speed_batch=speed_batch,
            speed_length=speed_length,
            gate_rate=gate_rate,
            multiplier_rate=multiplier_rate,
            seed=seed,
        )
        self.stages = StructuredStages(self.plan, self.word)
        self._hooks: list[RemovableHandle] = []

    @property
    def state_key(self) -> str:
        """Tells those of other checkpoints apart."""
        return self._generate_state_key(**self.plan.arguments)

    @property
    def run(self) -> StructuredRun:
        """The course of it."""
        return self.stages.run

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove what goes before the first step; take what a checkpoint has from there."""
        if not isinstance(pl_module, LMModule):
            raise TypeError(
                "StructuredPruningCallback writes surgeries into the ledger of lmkit's modules, "
                f"and {type(pl_module).__name__} is none: call "
                "lmkit.surgery.structured_pruning.remove_units by hand"
            )
        self.load_state_dict({})
        if stage == "fit":
            pl_module.configure_model()
            self._check_company(trainer, pl_module)
            self.stages.set_up(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that all can be removed in time; the other callbacks are set up by now."""
        self.stages.prepare(trainer, cast(LMModule, pl_module))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, or go on where the checkpoint stands."""
        self._release()
        after_step = partial(self.stages.after_step, trainer, cast(LMModule, pl_module))
        self._hooks = [each.register_step_post_hook(after_step) for each in trainer.optimizers]
        self.stages.start(trainer, cast(LMModule, pl_module))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Measure what is read; draw gates."""
        self.run.begin_batch(batch, trainer.global_step)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Look at the gradients, and drop those of what is shut."""
        if self.run.is_over:
            return
        factor = cast(LMModule, pl_module).item_mean.factor(trainer)
        unscaled = factor
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            unscaled = factor / scaler.get_scale()
            if getattr(optimizer, "_step_supports_amp_scaling", False):
                factor = unscaled  # as the fused step itself does later
        mean = partial(trainer.strategy.reduce, reduce_op="mean")
        self.run.observe(factor, unscaled, owned(optimizer), trainer.global_step, mean)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Remove what is shut, if it is time."""
        self.run.end_batch()
        self.stages.advance(trainer, cast(LMModule, pl_module))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let gates be without noise."""
        self.run.evaluate(trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove what is shut if the run ended before its time, and say so."""
        self.stages.end(trainer, cast(LMModule, pl_module))
        self._release()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so if there was no step in which anything could be removed."""
        self.stages.end_without_steps(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Let go of optimizers and layers."""
        self._release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of optimizers and layers."""
        self._release()

    def state_dict(self) -> dict[str, Any]:
        """Return masks and held weights, when they were chosen, and the arguments."""
        return {**self.run.state_dict(), "arguments": self.plan.arguments}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them up in the fit that goes on."""
        self.run.load_state_dict(state_dict)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what was measured, joined over ranks; let saved weights be those of an evaluation."""
        if self.state_key not in checkpoint["callbacks"] or self.run.is_over:
            return
        mean = partial(trainer.strategy.reduce, reduce_op="mean")
        state = self.run.measured_state(checkpoint, trainer.global_step, mean)
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        if progress["ready"] != progress["processed"]:
            # A batch was struck down, and its window will be done again from the first.
            state.pop("window", None)
            state.get("learned", {}).pop("gradients", None)
        checkpoint["callbacks"][self.state_key] |= state

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to go on from a checkpoint that is being pruned in another way."""
        self.stages.past.check_state(trainer, self.state_key, checkpoint["callbacks"])

    def _check_company(self, trainer: Trainer, module: LMModule) -> None:
        """Check that strategy, module and the other callbacks go with it.

        Raises:
            ValueError: one does not.
        """
        others = [each for each in cast(Any, trainer).callbacks if each is not self]
        fault = ""
        if isinstance(trainer.strategy, _SHARDED):
            fault = f"needs whole weights on each rank, and {type(trainer.strategy).__name__}"
            fault += " keeps parts of them: use one device or DDP"
        elif any(isinstance(each, StructuredPruningCallback) for each in others):
            fault = "stands twice among the callbacks: give all targets to one"
        elif any(isinstance(each, PruningCallback) for each in others) and self.plan.end > 0:
            fault = (
                "changes the sizes of weights that PruningCallback has masks for: leave that out, "
                "or remove all before the first step (start=0, end=0)"
            )
        elif isinstance(module, DistillationModule) and (self.plan.layers or self.plan.hidden):
            fault = (
                "leaves layers and hidden states of a student in distillation as they are, for "
                "losses compare them: take the module's student_layers, and heads and ffn here"
            )
        elif self.plan.hidden and len(module.networks) > 1:
            fault = (
                f"leaves the hidden dimensions of a {type(module).__name__}, whose networks share "
                "their embeddings: take heads and ffn"
            )
        elif self.plan.is_learned and leaves_out(trainer):
            fault = "has no learned gates where checkpoints leave frozen weights out"
        elif self.plan.is_learned and any(hasattr(e, "_average_model") for e in others):
            fault = (
                "has no learned gates beside averages of the weights, which would be averages of "
                "different networks: leave one of them out"
            )
        if fault:
            raise ValueError(f"StructuredPruningCallback {fault}")

    def _release(self) -> None:
        self.run.close()
        while self._hooks:
            self._hooks.pop().remove()
