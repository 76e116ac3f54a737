"""UDA: what a network says of texts without a label should not depend on how they are put."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from ..functional.consistency import (
    SIGNALS,
    class_count,
    confidence,
    signal_threshold,
    target_likelihood,
)
from ..modules.optimizer import planned_steps
from ..modules.scores import Scores
from ..types import IGNORE_INDEX, Batch, Objective, StepOutput
from .adversary import Adversary, check_share
from .consistency import ConsistencyCallback, Seen, predicting
from .divergences import divergence
from .views import AdversarialView, BatchView, CutoffView, TokenDropoutView, View, has_view

__all__ = ["VIEWS", "UDACallback"]

#: Other views that are made where the batch has none.
VIEWS = (
    "token_dropout",
    "token_cutoff",
    "span_cutoff",
    "feature_cutoff",
    "adversarial",
    "dropout",
)


class UDACallback(ConsistencyCallback):
    r"""Lets the prediction of another view of a text follow that of the text, label or not.

    $\frac{1}{N} \sum_i [c\, \ell_i + \lambda\, [\max_c \bar p_{ic} > \tau]\,
    \mathrm{KL}(\bar q_i \| p'_i)]$ over all items of a batch (Xie et al. 2019, arXiv:1904.12848):
    $\bar p$ is the prediction of the text, without gradient, $\bar q$ the same at temperature $T$,
    and $p'$ that of the other view. Items on which the network is not sure count as 0. $c$ makes
    $\ell$ a mean over the labelled rows alone.

    The other view is what the data module puts into the batch (`view_input_ids`, ...); without one
    it is made by `view`. The paper translates there and back; random gaps do as well in many tasks
    (arXiv:2010.11966).

    With a `signal` a labelled item whose label has a probability above $\eta_t$ does not count, and
    $\ell$ is the mean over the others of a batch on all ranks (training signal annealing).

    A step takes two passes. Logs `uda/divergence`, `uda/confident` (the share of items that count)
    and with a signal `uda/threshold`. For every module of lmkit that has `scores`, best with
    `unlabelled_file`.

    Args:
        weight: $\lambda$, at least 0.
        temperature: $T$, in `(0, 1]`.
        confidence: $\tau$, in `[0, 1)`; not used in a regression.
        signal: how $\eta_t$ rises over the run, from $1 / C$ to 1: `linear`, `exp` (late, for few
            labels), `log` (early), or `None` for none.
        view: `token_dropout` puts the mask token in the place of some; `token_cutoff`,
            `span_cutoff` and `feature_cutoff` set embeddings to 0; `adversarial` moves them as
            `VATCallback` does; `dropout` is another dropout alone.
        ratio: share of each text that is replaced or cut off, in `[0, 1]`.
        epsilon: of `adversarial`, as a share of the norm of the text's embeddings.
        embedding: the name of the layers that give the embeddings, or a pattern; by default those
            that the network names.
        ignore_ids: ids of tokens that stay as they are, beside padding and special ones.

    Raises:
        ValueError: a number lies outside its range; in `setup`, see `ConsistencyCallback`, or a
            signal does not go with the module's loss; in a fit, it is set and the run has no end.
        TypeError: in `setup`, the module is not lmkit's.
        NothingMatchedError: there is no layer of embeddings.

    Example:
        >>> UDACallback(signal="exp").temperature
        0.4
    """

    word: ClassVar[str] = "uda"
    changes_embeddings: ClassVar[bool] = True
    reads_views: ClassVar[bool] = True

    def __init__(
        self,
        weight: float = 1.0,
        temperature: float = 0.4,
        confidence: float = 0.8,
        signal: Literal["linear", "exp", "log"] | None = None,
        view: Literal[
            "token_dropout",
            "token_cutoff",
            "span_cutoff",
            "feature_cutoff",
            "adversarial",
            "dropout",
        ] = "token_dropout",
        ratio: float = 0.2,
        epsilon: float = 0.02,
        embedding: str | None = None,
        ignore_ids: Sequence[int] | None = None,
    ) -> None:
        if view not in VIEWS:
            raise ValueError(f"view must be one of {', '.join(VIEWS)}, got {view!r}")
        check_share("epsilon", epsilon, 0.0)
        check_share("ratio", ratio, 0.0, 1.0)
        adversary = Adversary(epsilon) if view == "adversarial" else None
        super().__init__(adversary, embedding, ignore_ids)
        check_share("weight", weight, 0.0)
        if not 0.0 < temperature <= 1.0:
            raise ValueError(f"temperature must lie in (0, 1], got {temperature}")
        if not 0.0 <= confidence < 1.0:
            raise ValueError(f"confidence must lie in [0, 1), got {confidence}")
        if signal is not None and signal not in SIGNALS:
            raise ValueError(f"signal must be one of {', '.join(SIGNALS)}, got {signal!r}")
        self.weight, self.temperature = weight, temperature
        self.confidence, self.signal = confidence, signal
        if adversary is not None:
            self.view: View = AdversarialView(adversary)
        elif view.endswith("_cutoff"):
            kind: Any = view.removesuffix("_cutoff")
            self.view = CutoffView(kind, ratio)
        else:
            self.view = TokenDropoutView(ratio) if view == "token_dropout" else View()
        self._total, self._is_known = 1, False

    @property
    def is_idle(self) -> bool:
        """Whether it adds nothing."""
        return self.weight == 0 and self.signal is None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the labels' loss can be taken item by item, where a signal asks for it."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit" or self.signal is None:
            return
        for name in ("label_smoothing", "class_weights", "focal_gamma"):
            if pl_module.hparams.get(name):
                raise ValueError(
                    f"signal={self.signal!r} takes the cross-entropy of each item, and the module "
                    f"has {name}={pl_module.hparams[name]}: leave one of the two out"
                )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wrap the objective, and learn how long the run is."""
        super().on_train_start(trainer, pl_module)
        self.view.check(self)
        total = planned_steps(trainer)
        if self.signal is not None and total is None:
            raise ValueError(
                f"signal={self.signal!r} rises over the run, and the run has no end: set max_steps "
                "of the Trainer, or leave signal out"
            )
        self._total, self._is_known = max(1, total or 1), False

    def compare(self, objective: Objective, batch: Batch, seen: Seen) -> StepOutput:
        """Compare the prediction of the other view with that of the text."""
        view = BatchView() if has_view(batch) else self.view
        with predicting():
            other = self.module.scores(view(self, objective, batch, seen), batch)
        here = seen.scores
        target, sure = self._target(here)
        each = divergence(here._replace(logits=target), other, "forward") * sure
        logs = {"uda/confident": (sure & here.valid).sum() / here.valid.sum().clamp(min=1)}
        if self.signal is not None:
            output, threshold = self._annealed(seen)
            seen = seen._replace(output=output)
            logs["uda/threshold"] = threshold
        result = self.joined(seen, each, self.weight)
        return result._replace(logs={**result.logs, **logs})

    def _target(self, scores: Scores) -> tuple[Tensor, Tensor]:
        """Return sharpened logits without gradient, and which items are sure, bool `[N]`."""
        logits = scores.logits.detach()
        if scores.kind == "value":
            return logits, torch.ones_like(scores.valid)
        # Of yes or no the surer of the two.
        pairs = torch.stack([logits, torch.zeros_like(logits)], -1)
        sure = confidence(pairs if scores.kind == "labels" else logits)
        return logits / self.temperature, sure > self.confidence

    def _annealed(self, seen: Seen) -> tuple[StepOutput, Tensor]:
        """Return the loss of the labels without items that are learned, and the threshold."""
        scores, module = seen.scores, self.module
        if scores.kind != "classes" or scores.labels is None:
            raise ValueError("signal is for classes of which one is right")
        labels = scores.labels
        has = labels != IGNORE_INDEX
        has = (has.flatten(1).any(1) if labels.dim() > 1 else has) & scores.valid
        classes = class_count(scores.logits)
        least = classes.flatten(1).amax(1) if classes.dim() > 1 else classes
        progress = min(1.0, module.trainer.global_step / self._total)
        threshold = signal_threshold(progress, least, self.signal or "linear")
        likely = target_likelihood(scores.logits, labels, IGNORE_INDEX)
        counts = has & (likely.detach().exp() <= threshold)
        numbers = torch.stack([has.sum(), counts.sum()]).float()
        every = numbers
        if module.trainer.world_size > 1:
            every = module.trainer.strategy.reduce(numbers.clone(), reduce_op="sum")
        if not self._is_known:
            self._check_loss(seen, -likely.masked_fill(~has, 0.0).sum() / numbers[0].clamp(min=1))
        # Each rank's share of the mean over the items that count on all ranks.
        scale = every[0] / every[1].clamp(min=1)
        total = -likely.masked_fill(~counts, 0.0).sum()
        loss = scale * total / numbers[0].clamp(min=1)
        middle = threshold.masked_fill(~has, 0.0).sum() / has.sum().clamp(min=1)
        return seen.output._replace(loss=loss, items=numbers[0]), middle

    def _check_loss(self, seen: Seen, plain: Tensor) -> None:
        """Check at the first batch that what a signal anneals is all of the loss."""
        if not seen.output.items:
            return
        self._is_known = True
        loss = seen.output.loss.detach().float()
        is_all = torch.isclose(loss, plain.detach().float(), rtol=0.01, atol=1e-4)
        if self.is_outer or not is_all:
            raise ValueError(
                f"signal={self.signal!r} takes the cross-entropy of each item for the whole loss, "
                f"which is {loss:.4g} in the first batch, and the cross-entropy {plain:.4g}: "
                "another callback, a teacher or a weight has a part in it. List UDACallback before "
                "other callbacks that compare predictions, or leave signal out"
            )
