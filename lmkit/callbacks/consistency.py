"""What all consistency losses share: a wrapper around the objective that compares predictions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar, NamedTuple, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ..functional import mix
from ..modules import LMModule
from ..modules.scores import Scores
from ..types import Batch, Objective, StepOutput
from .adversary import Adversary
from .divergences import Divergence, divergence, labelled_factors, task_of, total_items
from .extra_passes import run_stream
from .perturbed_embedding import Move, PerturbedEmbedding, embedding_layers
from .random_streams import Streams

__all__ = ["ConsistencyCallback", "Seen", "predicting"]


class Seen(NamedTuple):
    """The first pass over a batch.

    Attributes:
        output: of the objective.
        scores: what it predicts, item by item.
        before: where the random generators stood.
    """

    output: StepOutput
    scores: Scores
    before: Streams


_predicts: ContextVar[bool] = ContextVar("predicts", default=False)
# Whether the result of a pass has another comparison in it, which counts rows without a label.
_counted: ContextVar[bool] = ContextVar("counted", default=False)


@contextmanager
def predicting() -> Iterator[None]:
    """Run an objective for its predictions alone: other comparisons in it rest inside the block."""
    token = _predicts.set(True)
    try:
        yield
    finally:
        _predicts.reset(token)


class ConsistencyCallback(Callback):
    r"""Compares several predictions of each batch; the base of consistency losses.

    Wraps the objective in a training step: $\frac{1}{N} \sum_i (c\, \ell_i + \lambda d_i)$ with the
    own losses $\ell_i$, the divergences $d_i$ of all items, also of those without a label, and $c$
    of `labelled_factors`. So batches of an accumulation window and of all ranks add up. Evaluation
    is as ever. Behind the passes torch's generators stand where the first one has left them.

    For every module of lmkit that has `scores`; rows of `unlabelled_file` take part.

    Args:
        adversary: keeps perturbations of the embeddings, if there are any.
        embedding: the name of the layers that give the embeddings, or a pattern; by default those
            that the network names.
        ignore_ids: ids of tokens that stay as they are, beside padding and special ones.

    Raises:
        TypeError: in `setup`, the module is not lmkit's.
        ValueError: in `setup`, the module has no scores to compare or optimizes by hand, or the
            callback is given twice.
    """

    #: Under which its figures are logged.
    word: ClassVar[str] = "consistency"
    #: Whether embeddings are changed.
    changes_embeddings: ClassVar[bool] = False

    def __init__(
        self,
        adversary: Adversary | None = None,
        embedding: str | None = None,
        ignore_ids: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.adversary = adversary
        self.embedding_name, self.ignore_ids = embedding, ignore_ids
        self.embedding: PerturbedEmbedding | None = None
        self._module: LMModule | None = None
        #: Begins the numbers of texts, where a batch has no index.
        self.offset = 0
        self._factors: dict[str, float] = {}
        self._factor = 1.0
        #: Whether there is another comparison inside of this one.
        self.is_outer = False

    # What a subclass is.

    @property
    def is_idle(self) -> bool:
        """Whether it would add nothing in a whole run."""
        return False

    def compare(self, objective: Objective, batch: Batch, seen: Seen) -> StepOutput:
        """Make further passes, and return the result with the divergence in it."""
        return seen.output

    # What a subclass needs.

    @property
    def module(self) -> LMModule:
        """The module that is trained."""
        if self._module is None:
            raise RuntimeError(f"{type(self).__name__} is not training")
        return self._module

    @property
    def stream(self) -> int:
        """What random numbers of this epoch are drawn by, beside the keys of tokens."""
        return run_stream(self.module, self.module.trainer)

    def run(self, objective: Objective, batch: Batch, move: Move | None = None) -> StepOutput:
        """Run the objective, perhaps with other embeddings."""
        if move is None or self.embedding is None:
            return objective(batch)
        with self.embedding.moved(move, batch, self.offset):
            return objective(batch)

    def scored(self, objective: Objective, batch: Batch, move: Move | None = None) -> Scores:
        """Run the objective, and return what it predicts."""
        with predicting():
            return self.module.scores(self.run(objective, batch, move), batch)

    def ascent(
        self,
        objective: Objective,
        batch: Batch,
        seen: Seen,
        kind: Divergence,
    ) -> list[Tensor | None]:
        """Return in which directions of the perturbations the prediction changes fastest.

        The dropout is that of the first pass, and the scale of the gradients is not known.
        """
        adversary = cast(Adversary, self.adversary)
        leaves = adversary.leaves()
        seen.before.restore()
        there = self.scored(objective, batch, adversary.move)
        here = seen.scores._replace(logits=seen.scores.logits.detach())
        total = divergence(here, there, kind).sum()
        scaler = getattr(self.module.trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            total = scaler.scale(total)  # of float16, which would lose it
        return list(torch.autograd.grad(total, leaves, allow_unused=True))

    def joined(
        self,
        seen: Seen,
        each: Tensor,
        weight: float,
        others: Sequence[tuple[StepOutput, float]] = (),
        first_weight: float = 1.0,
    ) -> StepOutput:
        """Return the sum of the own losses and the divergence, as a mean over all items.

        Args:
            seen: the first pass.
            each: the divergence of each item, `[N]`.
            weight: of the divergence.
            others: further passes whose own losses count, each with its weight.
            first_weight: of the own loss of the first pass.
        """
        first, items = seen.output, seen.output.items.detach().float()
        if not self.is_outer:
            items = total_items(self.module, first, seen.scores)
        count = items.clamp(min=1e-12)
        loss = weight * each.sum() / count
        for output, share in ((first, first_weight), *others):
            own = output.loss * (output.items.to(items) / count)
            loss = loss + own * (share * self._factor)
        mean = each.detach().sum() / seen.scores.valid.sum().clamp(min=1)
        logs = {**first.logs, f"{self.word}/divergence": mean}
        return StepOutput(loss, items, first.logits, logs)

    # What all share.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that there is something to compare."""
        if stage != "fit":
            return
        name, theirs = type(self).__name__, type(pl_module).__name__
        if not isinstance(pl_module, LMModule):
            raise TypeError(
                f"{name} compares predictions, which it asks of step(batch) and scores(output, "
                f"batch), and {theirs} is no lmkit.modules.LMModule, so it has neither: derive it "
                "from LMModule, or take FGMCallback, PGDCallback, FreeLBCallback or AWPCallback, "
                "which need only the loss of any LightningModule"
            )
        task = type(pl_module.task_module)
        if task.scores is LMModule.scores:
            raise ValueError(
                f"{name} compares predictions, and {task.__name__} does not say what these are: it "
                "has no scores(output, batch); take FGMCallback, PGDCallback, FreeLBCallback or "
                "AWPCallback, which need only the loss"
            )
        if not pl_module.automatic_optimization:
            raise ValueError(
                f"{name} is for modules that optimize automatically, and {theirs} does by hand "
                "(automatic_optimization is False): use lmkit.functional.consistency in its step"
            )
        callbacks: list[Callback] = cast(Any, trainer).callbacks
        if sum(type(each) is type(self) for each in callbacks) > 1:
            raise ValueError(f"{name} is given twice: give it once, with the sum of the weights")
        pl_module.configure_model()
        if self.changes_embeddings:
            embedding_layers(pl_module, self.embedding_name)
        pl_module.uses_unlabelled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wrap the objective; the structure of the network is settled by now."""
        self._release()
        module = cast(LMModule, pl_module)
        data = getattr(trainer, "datamodule", None)
        self._module, self._factors = module, labelled_factors(module, data)
        if self.changes_embeddings:
            how = self.embedding_name, self.ignore_ids
            self.embedding = PerturbedEmbedding(module, data, *how)
            self.embedding.attach()
        module.objective_wrappers.append(self._objective)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Number the texts of batches without an index."""
        self.offset = mix(batch_idx, trainer.global_rank)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the module as it was."""
        self._release()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the module as it was."""
        self._release()
        vars(pl_module).pop("uses_unlabelled", None)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the module as it was."""
        self._release()
        vars(pl_module).pop("uses_unlabelled", None)

    def _objective(self, objective: Objective, batch: Batch) -> StepOutput:
        if _predicts.get():
            return objective(batch)
        before = Streams.now(self.module.device)
        _counted.set(False)
        if self.adversary is None:
            output = objective(batch)
        else:
            self.adversary.begin(self.stream)
            output = self.run(objective, batch, self.adversary.record)
        self.is_outer = _counted.get()
        seen = Seen(output, self.module.scores(output, batch), before)
        self._factor = 1.0 if self.is_outer else self._factors[task_of(self.module, batch)]
        _counted.set(True)
        if self.is_idle:
            return self.joined(seen, torch.zeros(1, device=self.module.device), 0.0)
        after, again = Streams.now(self.module.device), self.module.is_further_pass
        self.module.is_further_pass = True
        try:
            result = self.compare(objective, batch, seen)
        finally:
            self.module.is_further_pass = again
        after.restore()
        if self.adversary is not None:
            self.adversary.begin(0)
        return result

    def _release(self) -> None:
        if self.embedding is not None:
            self.embedding.detach()
            self.embedding = None
        if self._module is not None:
            self._module.objective_wrappers = [
                each for each in self._module.objective_wrappers if each != self._objective
            ]
            self._module = None
        if self.adversary is not None:
            self.adversary.begin(0)
