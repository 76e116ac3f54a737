"""Weights that are set to zero in the course of a training, and stay zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Literal, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ..functional.pruning import parse_pattern, share_of_zeros
from ..modules import LMModule
from ..modules.optimizer import planned_steps
from ..surgery.effective_weight import wrappers
from ..surgery.prunable import check_apart, check_prunable, prunable_layers
from .pruning_plan import PruningPlan
from .pruning_run import PruningRun
from .weight_averages import averages

__all__ = ["PruningCallback"]

_SHARDED = (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)  # no rank has whole weights


class PruningCallback(Callback):
    r"""Sets weights to zero in the course of a training, and keeps them so.

    From step $t_0$ to $t_1$, every `interval` optimizer steps, the weights with the lowest scores
    are chosen, as many as the schedule asks for. That is a share of all weights, and does not
    compound. The score of a weight is, by `criterion`:

    - `magnitude`: $|W_{ij}|$.
    - `random`: drawn, by `seed`, name and place.
    - `movement`: $S_{ij} = -\eta \sum_t \frac{\partial L}{\partial W'_{ij}} W_{ij}$ over all steps
      so far: weights are kept that move away from zero (Sanh et al. 2020, arXiv:2005.07683).
    - `soft_movement`: the same with the penalty $\lambda$ on the mean of $\sigma(S)$, compared over
      all matrices. The paper fixes a threshold for $\sigma(S)$; here the target decides it.
    - `wanda`: $|W_{ij}| \, \lVert X_j \rVert_2$ with the inputs of real tokens in the last
      `calibration_steps`, compared within each output (Sun et al. 2023, arXiv:2306.11695).

    What is pruned is zero after each step, whatever momentum and weight decay make of it. Its
    gradient is dropped before the step, so it counts for no clipping, and what the optimizer keeps
    of it fades. By movement a pruned weight may come back, until the step $t_1$, with the value it
    had: scores and masks are those of the paper's straight-through estimator with `interval=1` and
    gradient descent for $S$ and $W$. Where a momentum or decay would move a pruned $W$ there, it
    stands still here.

    Masks make nothing smaller or faster. In the end the zeros are in the weights, and an export is
    plain. Masks and scores are in the checkpoints, and a fit that goes on has the same. Logged are
    `pruning/sparsity`, of what is pruned, and `pruning/sparsity_all`, of the whole network.

    Args:
        sparsity: share of zeros in the end, in `[0, 1)`; a `pattern` says it itself.
        criterion: by what weights are kept.
        scope: which scores are compared: of one output (`row`), of one matrix (`local`) or all
            (`global`); by default `row` for `wanda`, `global` for `soft_movement`, else `local`.
        pattern: `"N:M"` keeps the N best of each M consecutive inputs of an output.
        targets: roles of projections (as of `LoRACallback`), `all` of them, or patterns of names of
            linear layers or embeddings. Biases and normalizations are never pruned.
        schedule: `one_shot` at `start`, or `linear` or `cubic` from `start` to `end`.
        start: share of the run before $t_0$, in `[0, 1)`.
        end: share of the run before $t_1$, over `start` and at most 1; not used by `one_shot`.
        interval: optimizer steps from one choice to the next, at least 1.
        calibration_steps: of `wanda`, at least 1.
        score_rate: $\eta$, over 0; by `movement` it is a matter of scale alone.
        penalty: $\lambda$ of `soft_movement`, at least 0.
        seed: of `random`.

    Raises:
        ValueError: an argument lies outside its range; before training, a width is no multiple of
            M, another `PruningCallback` has the weights or ranks hold only parts of them, movement
            is asked for of frozen ones, they have more zeros than the target, the run has no end,
            or the checkpoint was pruned otherwise; at the first choice, no batch was seen.
        NothingMatchedError: in `setup`, a target matches nothing; names what is near.

    Example:
        >>> callback = PruningCallback(0.9, "movement")
        >>> callback.run.plan.target, callback.run.plan.compared
        (0.9, 'local')
    """

    def __init__(
        self,
        sparsity: float | None = None,
        criterion: Literal[
            "magnitude", "random", "movement", "soft_movement", "wanda"
        ] = "magnitude",
        scope: Literal["row", "local", "global"] | None = None,
        pattern: str | int | None = None,
        targets: Sequence[str] = ("all",),
        schedule: Literal["one_shot", "linear", "cubic"] = "cubic",
        start: float = 0.1,
        end: float = 0.7,
        interval: int = 10,
        calibration_steps: int = 8,
        score_rate: float = 1000.0,
        penalty: float = 100.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if isinstance(targets, str) or not targets:
            raise ValueError(f"targets must be a list of roles or patterns, got {targets!r}")
        self.targets = list(targets)
        pattern = None if pattern is None else "{}:{}".format(*parse_pattern(pattern))
        amount = sparsity, criterion, scope, pattern, schedule, start, end, interval
        plan = PruningPlan(*amount, calibration_steps, score_rate, penalty, seed)
        self.run = PruningRun(plan)
        self._hooks: list[RemovableHandle] = []
        self._has_spoken = False

    @property
    def state_key(self) -> str:
        """Tells callbacks for parts of a network apart, and those of other checkpoints."""
        return self._generate_state_key(**self._arguments)

    @property
    def _arguments(self) -> dict[str, Any]:
        return {"targets": self.targets, **asdict(self.run.plan)}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find what is to be pruned, or say what is near."""
        self.load_state_dict({})
        if stage != "fit":
            return
        if isinstance(trainer.strategy, _SHARDED):
            raise ValueError(
                "PruningCallback needs whole weights on each rank, and the strategy is "
                f"{type(trainer.strategy).__name__}: use one device or DDP"
            )
        pl_module.configure_model()
        own = self._layers(pl_module)
        others = (c for c in cast(Any, trainer).callbacks if isinstance(c, PruningCallback))
        for other in (each for each in others if each is not self):
            check_apart(own, other._layers(pl_module))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that movement will see gradients; the other callbacks are set up by now."""
        owned = set().union(*map(_owned, trainer.optimizers))
        self.run.check_trained(self._layers(pl_module), owned)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, or go on with the masks of the checkpoint."""
        self._release()
        layers = self._layers(pl_module)
        config = getattr(_network(pl_module), "config", None)
        both = bool(getattr(config, "is_encoder_decoder", False))
        self.run.start(layers, planned_steps(trainer), both)
        add_up = partial(trainer.strategy.reduce, reduce_op="sum")

        def after_step(*_: Any) -> None:
            # So early that no other callback sees or saves what is not masked.
            step = trainer.global_step + 1  # Lightning counts it later
            if self.run.step_done(step, add_up):
                self._changed(trainer, pl_module, step)

        self._hooks = [each.register_step_post_hook(after_step) for each in trainer.optimizers]
        if isinstance(pl_module, LMModule) and (marks := pl_module.base.get("weights")):
            # Else a checkpoint may leave frozen ones out, by a sample in which a few zeros are not.
            kept = {name: mark for name, mark in marks.items() if name not in layers}
            pl_module.base = {**pl_module.base, "weights": kept}
        if not self._has_spoken:
            self._speak(pl_module, layers)
            self._has_spoken = True
        self.run.choose(trainer.global_step, add_up)
        self._changed(trainer, pl_module, trainer.global_step)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Measure what is read, if masks are chosen by it soon."""
        self.run.read(batch, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure no more: an evaluation may follow."""
        self.run.inputs.end()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Look at the gradients, and drop those of what is pruned."""
        factor: Tensor | float = 1.0
        if self.run.masks.scores and isinstance(pl_module, LMModule):
            factor = pl_module.item_mean.factor(trainer)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            factor = factor / scaler.get_scale()  # as the fused step itself does later
        self.run.observe(factor, _owned(optimizer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the zeros in the weights; say so if the run ended before all were there."""
        self._mask(trainer, pl_module)
        self._release()
        if not self.run.is_finished:
            rank_zero_warn(
                f"PruningCallback: the run ended at step {trainer.global_step}, and a sparsity of "
                f"{self.run.plan.target:.1%} was planned for step {self.run.table.end}: of the "
                f"weights {self.run.masks.sparsity:.1%} are zero"
            )

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Let go of optimizers and layers."""
        self._release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of optimizers and layers."""
        self._release()

    def state_dict(self) -> dict[str, Any]:
        """Return masks, scores and held values, when they were chosen, and the arguments."""
        state = self.run.state_dict()
        return {**state, "arguments": self._arguments} if state else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them up in the fit that goes on."""
        self.run.load_state_dict(state_dict)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what was measured, joined over ranks."""
        if self.run.plan.criterion != "wanda" or self.state_key not in checkpoint["callbacks"]:
            return
        state = self.run.inputs.state_dict(partial(trainer.strategy.reduce, reduce_op="mean"))
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        if progress["ready"] != progress["processed"]:
            # A batch was struck down, and its window will be done again from the first.
            del state["window"]
        checkpoint["callbacks"][self.state_key] |= state

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to go on from a checkpoint that was pruned in another way."""
        known = {callback.state_key for callback in cast(Any, trainer).callbacks}
        for key, state in checkpoint["callbacks"].items():
            is_pruning = key.startswith(f"{type(self).__qualname__}{{")
            if not is_pruning or key in known or trainer.state.fn != TrainerFn.FITTING:
                continue
            before, now = state["arguments"], self._arguments
            differ = {word: before.get(word) for word in now if before.get(word) != now[word]}
            raise ValueError(
                f"the checkpoint was pruned with {differ}, and this callback has "
                f"{ {word: now[word] for word in differ} }: give the arguments it had, or start "
                "anew from an export"
            )

    def _layers(self, pl_module: LightningModule) -> dict[str, Any]:
        plan, layers = self.run.plan, prunable_layers(_network(pl_module), self.targets)
        check_prunable(layers, plan.criterion, plan.groups)
        return layers

    def _changed(self, trainer: Trainer, pl_module: LightningModule, step: int) -> None:
        """Mask the averages of the weights too, and log the figures."""
        self._mask(trainer, pl_module)
        if trainer.loggers:
            figures = {
                "pruning/sparsity": self.run.masks.sparsity,
                "pruning/sparsity_all": share_of_zeros(_network(pl_module).parameters()),
            }
            for logger in trainer.loggers:
                logger.log_metrics(figures, step=step)

    def _mask(self, trainer: Any, pl_module: LightningModule) -> None:
        self.run.masks.apply()
        for copies in averages(trainer.callbacks, pl_module):
            self.run.masks.apply_to(copies)

    def _speak(self, pl_module: LightningModule, layers: Mapping[str, Any]) -> None:
        sites = (_network(pl_module).get_submodule(n.removesuffix(".weight")) for n in layers)
        filled = any(hasattr(wrapper, "lora_A") for site in sites for wrapper in wrappers(site))
        rank_zero_info(
            f"PruningCallback: {self.run.summary}. Zeros make a model neither faster nor smaller "
            "(with 90 % of them it takes 1.00 times as long): for speed remove layers, heads or "
            "neurons as a whole (structured pruning)"
            + (". Low-rank matrices fill the zeros when they are merged" if filled else "")
        )

    def _release(self) -> None:
        self.run.close()
        while self._hooks:
            self._hooks.pop().remove()


def _network(pl_module: LightningModule) -> nn.Module:
    return pl_module.network if isinstance(pl_module, LMModule) else pl_module


def _owned(optimizer: Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}
