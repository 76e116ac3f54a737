"""SMART: predictions that are smooth around each text, and do not jump from step to step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.hooks import RemovableHandle

from ..functional.adversarial import Norm
from ..modules.optimizer import planned_steps
from ..types import Batch, Objective, StepOutput
from .adversary import Adversary, check_ascent, check_share
from .consistency import ConsistencyCallback, Seen, predicting
from .divergences import divergence
from .momentum_weights import MomentumWeights

__all__ = ["SMARTCallback"]

# Share of the run in which the average of the weights follows them faster.
_EARLY = 0.1


class SMARTCallback(ConsistencyCallback):
    r"""Keeps predictions smooth around each text, and near those of the steps before.

    $\frac{1}{N} \sum_i [\ell_i + \lambda\, \ell_s(p_i(\delta), p_i(0))
    + \mu\, \ell_s(p_i^\theta, p_i^{\bar\theta})]$ with
    $\ell_s(p, q) = \mathrm{KL}(p \| q) + \mathrm{KL}(q \| p)$ (Jiang et al. 2019,
    arXiv:1911.03437). $\delta_0 = \sigma \epsilon\, n$ with normal $n$, and $K$ times
    $\delta \leftarrow \Pi_\epsilon(\delta + \eta \epsilon\, g / \lVert g \rVert_\infty)$,
    $g = \nabla_\delta \ell_s$. $\bar\theta$ is a moving average of the weights (Bregman proximal
    point, with momentum), with $\beta$ from `decay` to `final_decay` after a tenth of the run.

    Unlike the code that was released with the paper it projects, so that $\epsilon$ bounds what is
    added; it leaves padding alone; and both sides of $\ell_s$ learn, but $\bar\theta$. All passes
    of a step have the same dropout: $\ell_s$ is 0 where nothing is moved.

    A step takes $K + 2$ passes, of which $K$ compute no gradient of the weights, and with $\mu > 0$
    a forward and memory for $\bar\theta$, which is in the checkpoints. Logs `smart/divergence` and
    `smart/proximity`. For every module of lmkit that has `scores`; of a regression the squared
    difference takes the place of $\ell_s$, and rows of `unlabelled_file` take part.

    Args:
        epsilon: $\epsilon$, at least 0, as a share of the size of the text's embeddings: of the
            root mean square of their numbers (`entry`), or of the norm.
        weight: $\lambda$, at least 0.
        steps: $K$, at least 1.
        step_size: $\eta$, over 0; the paper's is 100.
        start: $\sigma$, over 0; at 0 the divergence is at its least, and has no direction.
        bregman_weight: $\mu$, at least 0; the paper's is 1, which costs a forward more.
        decay: $\beta$ at first, in `[0, 1)`.
        final_decay: $\beta$ later, in `[0, 1)`.
        norm: what $\epsilon$ bounds: each number (`entry`, the paper's), each `token`, or the whole
            `sentence`.
        relative: whether $\epsilon$ is a share; else it is the bound itself (1e-5 in the paper).
        embedding: the name of the layers that give the embeddings, or a pattern; by default those
            that the network names.
        ignore_ids: ids of tokens that are not moved, beside padding and special ones.

    Raises:
        ValueError: a number lies outside its range; in `setup`, see `ConsistencyCallback`.
        TypeError: in `setup`, the module is not lmkit's.
        NothingMatchedError: there is no layer of embeddings.

    Example:
        >>> SMARTCallback(weight=5.0, bregman_weight=1.0).steps
        1
    """

    word: ClassVar[str] = "smart"
    changes_embeddings: ClassVar[bool] = True

    def __init__(
        self,
        epsilon: float = 0.02,
        weight: float = 1.0,
        steps: int = 1,
        step_size: float = 100.0,
        start: float = 1.0,
        bregman_weight: float = 0.0,
        decay: float = 0.99,
        final_decay: float = 0.999,
        norm: Norm = "entry",
        relative: bool = True,
        embedding: str | None = None,
        ignore_ids: Sequence[int] | None = None,
    ) -> None:
        adversary = Adversary(epsilon, relative, norm)
        super().__init__(adversary, embedding, ignore_ids)
        self._moves = adversary
        check_ascent(steps, step_size)
        for name, value in (("weight", weight), ("bregman_weight", bregman_weight)):
            check_share(name, value, 0.0)
        if not start > 0:
            raise ValueError(f"start must be over 0, got {start}")
        for name, value in (("decay", decay), ("final_decay", final_decay)):
            if not 0.0 <= value < 1.0:
                raise ValueError(f"{name} must lie in [0, 1), got {value}")
        self.weight, self.bregman_weight = weight, bregman_weight
        self.steps, self.step_size, self.start = steps, step_size, start
        self.decay, self.final_decay = decay, final_decay
        self._average: MomentumWeights | None = None
        self._pending: dict[str, Any] = {}
        self._hooks: list[RemovableHandle] = []

    @property
    def is_idle(self) -> bool:
        """Whether nothing is compared."""
        return not self._is_smooth and self.bregman_weight == 0

    @property
    def _is_smooth(self) -> bool:
        return self.weight > 0 and self._moves.epsilon > 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wrap the objective, and begin to average or go on with it."""
        super().on_train_start(trainer, pl_module)
        if self.bregman_weight == 0:
            return
        self._average = MomentumWeights(pl_module, self._pending)
        self._pending = {}
        total, average = planned_steps(trainer), self._average

        def after_step(*_: Any) -> None:
            # So early that no callback saves what is not averaged; Lightning counts the step later.
            is_early = total is None or trainer.global_step < _EARLY * total
            average.update(self.decay if is_early else self.final_decay)

        self._hooks = [each.register_step_post_hook(after_step) for each in trainer.optimizers]

    def compare(self, objective: Objective, batch: Batch, seen: Seen) -> StepOutput:
        """Compare the prediction with those of the neighbours and of the average."""
        adversary, here = self._moves, seen.scores
        each = torch.zeros(len(here.valid), device=here.logits.device)
        if self._is_smooth:
            adversary.start(self.start, "normal")
            for _ in range(self.steps):
                found = self.ascent(objective, batch, seen, "symmetric")
                adversary.climb(found, self.step_size, "peak")
            seen.before.restore()
            there = self.scored(objective, batch, adversary.move)
            each = divergence(here, there, "symmetric")
        result = self.joined(seen, each, self.weight)
        if self._average is None:
            return result
        seen.before.restore()
        with predicting():
            before = self.module.scores(self._average.run(objective, batch), batch)
        near = divergence(here, before, "symmetric")
        loss = result.loss + self.bregman_weight * near.sum() / result.items.clamp(min=1e-12)
        mean = near.detach().sum() / here.valid.sum().clamp(min=1)
        return result._replace(loss=loss, logs={**result.logs, "smart/proximity": mean})

    def state_dict(self) -> dict[str, Any]:
        """Return the average of the weights."""
        return {"average": self._average.state_dict()} if self._average is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the average up in the fit that goes on."""
        self._pending = dict(state_dict.get("average", {}))

    def _release(self) -> None:
        super()._release()
        while self._hooks:
            self._hooks.pop().remove()
