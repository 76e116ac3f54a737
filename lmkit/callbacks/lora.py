"""Low-rank matrices beside frozen ones, trained in their place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from ..modules import LMModule
from ..modules.optimizer import planned_steps
from ..surgery.arguments import check_finite
from ..surgery.lora import LoRA
from .rank_schedule import OrthogonalityPenalty, RankSchedule
from .surgery import SurgeryCallback

__all__ = ["LoRACallback"]


class LoRACallback(SurgeryCallback):
    r"""Trains low-rank matrices and the head of the task; all else is frozen.

    A linear layer computes $W x + s \, B A \, \mathrm{drop}(x)$ with $A$ of $r$ rows and $B$ of $r$
    columns, in all $r (d_{in} + d_{out})$ weights that learn. By `variant`:

    - `lora`: $s = \alpha / r$, and $B$ starts at zero (Hu et al. 2021, arXiv:2106.09685).
    - `rslora`: $s = \alpha / \sqrt r$, for large ranks (Kalajdzievski 2023, arXiv:2312.03732).
    - `dora`: the lengths of the rows of $W$ are trained apart from their directions (Liu et al.
      2024, arXiv:2402.09353); $d_{out}$ weights more, and slower.
    - `pissa`, `olora`: $B A$ starts as the principal part of $W$, of its singular value or QR
      decomposition, and the rest is frozen (arXiv:2404.02948, arXiv:2406.01775).
    - `adalora`: $\frac{\alpha}{r_0} P \Lambda Q$, whose ranks are shared out among the layers while
      it learns, by the importance of what they hold (Zhang et al. 2023, arXiv:2303.10512).

    Of AdaLoRA, all $r_0$ ranks learn for the share `rank_warmup` of the run; then the budget falls
    along a cubic to $r$ ranks for each layer on average, and for the share `rank_settling` at the
    end the chosen ranks stay. The budget follows the planned length of the run: one that is stopped
    early keeps more ranks. $\gamma R(P, Q)$ is added to the loss of any task of lmkit. The ranks
    that are kept are logged as `lora/rank`, a mean over layers, and $R$ as `lora/orthogonality`.

    A rate of 5 to 20 times that of full tuning is usual.

    Args:
        name: of the adapter; several with names of their own may stand on one base.
        targets: roles (`query`, `key`, `value`, `attention_output`, `ffn_input`, `ffn_output`),
            `all` of them, or patterns of names of linear layers.
        rank: $r$, at least 1; of `adalora` the one that is left on average.
        alpha: $\alpha$, over 0.
        dropout: of the input of $A$, in `[0, 1)`.
        variant: what is added, and where it starts.
        initial_rank: $r_0$ of `adalora`, at least `rank`; 0 for half as much again.
        head: whether the head of the task is trained too. What was drawn at random always is.
        rank_warmup: share of the run in which `adalora` has all its ranks.
        rank_settling: share of the run, at its end, in which `adalora` has its final ranks.
        rank_interval: steps from one choice of the ranks to the next, at least 1.
        beta1: of the moving average of a weight's importance, in `[0, 1)`.
        beta2: of the moving average of its deviation, in `[0, 1)`.
        orthogonality: $\gamma$, at least 0.

    Raises:
        ImportError: in `setup`, peft is not installed.
        ValueError: an argument lies outside its range; in `setup`, another adapter has the name,
            the variant cannot stand in a layer, or the rank is too large for one; in a fit,
            `adalora` does not know how long it is.
        TypeError: in `setup`, `adalora` has a penalty and the module is not lmkit's.
        NothingMatchedError: in `setup`, a target matches nothing; names what is near.

    Example:
        >>> LoRACallback(rank=4, targets=["all"]).surgery.rank
        4
    """

    word = "lora"
    surgery: LoRA

    def __init__(
        self,
        name: str = "default",
        targets: Sequence[str] = ("query", "value"),
        rank: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        variant: Literal["lora", "rslora", "dora", "pissa", "olora", "adalora"] = "lora",
        initial_rank: int = 0,
        head: bool = True,
        rank_warmup: float = 0.1,
        rank_settling: float = 0.3,
        rank_interval: int = 10,
        beta1: float = 0.85,
        beta2: float = 0.85,
        orthogonality: float = 0.1,
    ) -> None:
        super().__init__(LoRA(name, targets, rank, alpha, dropout, variant, initial_rank, head))
        check_finite("orthogonality", orthogonality)
        if orthogonality < 0:
            raise ValueError(f"orthogonality must be at least 0, got {orthogonality}")
        how = rank_warmup, rank_settling, rank_interval, beta1, beta2
        schedule = RankSchedule(self.surgery, *how)
        self.orthogonality = orthogonality
        self.schedule = schedule if variant == "adalora" else None
        self._rank = 0.0

    @property
    def state_key(self) -> str:
        """Tells adapters of several names apart."""
        return self._generate_state_key(name=self.surgery.name)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the surgery be performed, once; in a fit, add the penalty to the loss."""
        penalized = self.schedule is not None and self.orthogonality > 0
        if penalized and not isinstance(pl_module, LMModule):
            raise TypeError(
                "LoRACallback with variant='adalora' adds a penalty to the loss of lmkit's "
                f"modules, and {type(pl_module).__name__} is none; set orthogonality=0, and add "
                "lmkit.functional.rank_allocation.orthogonality to your loss yourself"
            )
        super().setup(trainer, pl_module, stage)
        if self.schedule is not None:
            self.schedule.load_state_dict({})
        if penalized and stage == "fit":
            module = cast(LMModule, pl_module)
            self._take_penalty(module)
            name = self.surgery.name
            penalty = OrthogonalityPenalty(module.network, name, self.orthogonality)
            module.objective_wrappers.append(penalty)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how much is trained, and begin the schedule of the ranks."""
        super().on_train_start(trainer, pl_module)
        if self.schedule is None:
            return
        total = planned_steps(trainer)
        if total is None:
            raise ValueError(
                "variant='adalora' lowers its ranks over the run, and needs to know how long that "
                "is; set max_steps of the Trainer"
            )
        self.schedule.start(getattr(pl_module, "network", pl_module), total)
        self._rank = 0.0
        if trainer.global_step == 0:
            self._log_rank(trainer, self.schedule.initial)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Compute the importance of the weights, while weights and gradients belong together."""
        if self.schedule is not None:
            ours = isinstance(pl_module, LMModule)
            factor = cast(LMModule, pl_module).item_mean.factor(trainer) if ours else 1.0
            self.schedule.observe(factor)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Drop the ranks that there is no room for, if there was a step."""
        if self.schedule is not None:
            kept = self.schedule.act(trainer.global_step)
            if kept is not None:
                self._log_rank(trainer, kept)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so if the run ended before its ranks were chosen."""
        if self.schedule is not None and self._rank > self.surgery.rank:
            rank_zero_warn(
                f"LoRACallback: the run ended at step {trainer.global_step}, before the ranks were "
                f"lowered to {self.surgery.rank}: a layer has {self._rank:.2f} on average"
            )

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Take the penalty away."""
        self._take_penalty(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the penalty away."""
        self._take_penalty(pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the moving averages of AdaLoRA's importance to the states of the callbacks."""
        # By `state_dict` it would be among what Lightning refuses two of, of one name, before the
        # surgery can say what to do.
        if self.schedule is not None and (state := self.schedule.state_dict()):
            checkpoint["callbacks"][self.state_key] = dict(state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them up in the fit that goes on."""
        if self.schedule is not None:
            self.schedule.load_state_dict(state_dict)

    def _take_penalty(self, pl_module: LightningModule) -> None:
        if isinstance(pl_module, LMModule):
            pl_module.objective_wrappers[:] = [
                wrapper
                for wrapper in pl_module.objective_wrappers
                if getattr(wrapper, "name", None) != self.surgery.name
                or not isinstance(wrapper, OrthogonalityPenalty)
            ]

    def _log_rank(self, trainer: Trainer, kept: int) -> None:
        schedule = cast(RankSchedule, self.schedule)
        rank = kept * self.surgery.rank / schedule.target
        if rank == self._rank:
            return
        self._rank = rank
        for logger in trainer.loggers:
            logger.log_metrics({f"{self.word}/rank": rank}, step=trainer.global_step)
