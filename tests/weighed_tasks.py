"""A small module with several tasks, as parts that weigh losses and aggregate gradients see one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lmkit.modules.gradient_aggregation import aggregation_from
from lmkit.modules.item_mean import ItemMean
from lmkit.modules.loss_weighting import weighting_from
from lmkit.types import StepOutput

TASKS = ("nli", "ner", "sts")
_SCALES = {"nli": 1.0, "ner": 3.0, "sts": 0.2}

#: For each task inputs `[R, 6]` and targets `[R, 2]`.
Joined = dict[str, tuple[Tensor, Tensor]]


def batches(count: int, rows: int = 8, tasks: Sequence[str] = TASKS, seed: int = 0) -> list[Joined]:
    """Make batches in which each task has rows, or those that `tasks` names."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        made.append(
            {
                task: (
                    torch.randn(rows, 6, generator=generator),
                    _SCALES[task] * torch.randn(rows, 2, generator=generator),
                )
                for task in tasks
            }
        )
    return made


def halves(joined: Sequence[Joined]) -> list[Joined]:
    """Split each batch in two, for an accumulation window."""
    return [
        {task: (x[half::2], y[half::2]) for task, (x, y) in batch.items()}
        for batch in joined
        for half in (0, 1)
    ]


class SeveralTasks(LightningModule):
    """An encoder with a head for each task; each rank takes its rows of a joined batch."""

    def __init__(
        self, aggregation: Any = None, weighting: Any = None, rate: float = 0.1, adam: bool = False
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.encoder = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh())
        self.unused = nn.Linear(2, 2)
        self.heads = nn.ModuleDict({task: nn.Linear(4, 2) for task in TASKS})
        self.weighting = weighting_from(weighting, TASKS)
        self.aggregation = aggregation_from(aggregation, TASKS)
        self.item_mean = ItemMean()
        self.seed = 11
        self.pending: dict[str, Any] = {}
        self.task_losses: dict[str, Tensor] = {}
        #: What a test adds to the loss.
        self.term: Any = None
        self.one_graph = self.recomputes = False

    def shared_parameters(self) -> list[nn.Parameter]:
        return [*self.encoder.parameters(), *self.unused.parameters()]

    def task_parameters(self, name: str) -> list[nn.Parameter]:
        return list(self.heads[name].parameters())

    def encode(self, x: Tensor) -> Tensor:
        if self.recomputes:
            hidden: Tensor = checkpoint(self.encoder, x, use_reentrant=False)
            return hidden
        return self.encoder(x)  # type: ignore[no-any-return]

    def losses(self, batch: Joined) -> dict[str, Tensor]:
        world, rank = self.trainer.world_size, self.trainer.global_rank
        mine = {task: (x[rank::world], y[rank::world]) for task, (x, y) in batch.items()}
        if self.one_graph:
            hidden = self.encode(torch.cat([x for x, _ in mine.values()]))
            parts = dict(zip(mine, hidden.split([len(x) for x, _ in mine.values()]), strict=True))
        else:
            parts = {task: self.encode(x) for task, (x, _) in mine.items()}
        return {
            task: (self.heads[task](parts[task]).float() - y).square().mean()
            for task, (_, y) in mine.items()
            if len(y)
        }

    def on_fit_start(self) -> None:
        if self.aggregation is not None:
            self.aggregation.attach(self)

    def on_train_start(self) -> None:
        if self.pending:
            self.item_mean.window = self.pending["window"]
            named = dict(self.named_parameters())
            for name, gradient in self.pending["heads"].items():
                named[name].grad = gradient.clone()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.weighting.begin(self, batch_idx)
        if self.aggregation is not None:
            self.aggregation.begin(self, batch_idx)

    def training_step(self, batch: Joined, batch_idx: int) -> Tensor:
        self.task_losses = self.losses(batch)
        if self.aggregation is not None:
            self.aggregation.watch(self.task_losses)
        loss = self.weighting(self.task_losses)
        if self.term is not None:
            loss = loss + self.term(self, batch)
        output = StepOutput(loss, torch.tensor(float(len(self.task_losses))))
        return self.item_mean.scale(output, self.trainer, False)

    def on_before_backward(self, loss: Tensor) -> None:
        self.weighting.before_backward(self, self.task_losses)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if self.aggregation is None:
            super().backward(loss, *args, **kwargs)
        else:
            self.aggregation.backward(loss, self, self.shared_parameters())

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.weighting.close(self)
        self.item_mean.close(optimizer, self.trainer)

    def on_train_epoch_end(self) -> None:
        self.weighting.end_epoch()

    def configure_optimizers(self) -> Any:
        if self.hparams["adam"]:
            return torch.optim.Adam(self.parameters(), lr=self.hparams["rate"])
        return torch.optim.SGD(self.parameters(), lr=self.hparams["rate"], momentum=0.9)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["window"] = self.item_mean.window
        checkpoint["heads"] = {n: p.grad for n, p in self.named_parameters() if p.grad is not None}
        if self.aggregation is not None:
            checkpoint["rows"] = self.aggregation.state_dict(self.trainer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.pending = checkpoint
        if self.aggregation is not None:
            self.aggregation.load_state_dict(checkpoint["rows"])


class _Loader:
    """Gives batches in their order, and goes on behind the last one when it is resumed."""

    def __init__(self, joined: Sequence[Joined]) -> None:
        self.joined, self.given, self.start = joined, 0, 0

    def __len__(self) -> int:
        return len(self.joined)

    def __iter__(self) -> Iterator[Joined]:
        start, self.start = self.start, 0
        for number in range(start, len(self.joined)):
            self.given = number + 1
            yield self.joined[number]

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.start = state["given"]


class RanksAgree(Callback):
    """Fails the fit when the ranks' numbers differ after a step."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.world_size > 1:
            state = [value.detach().flatten().double() for value in pl_module.state_dict().values()]
            theirs = trainer.strategy.all_gather(torch.cat(state))
            assert torch.equal(theirs[0], theirs[1])


def fit(module: Any, joined: Sequence[Joined], *callbacks: Callback, **settings: Any) -> Trainer:
    """Fit on batches in their order, once."""
    resumed = settings.pop("ckpt_path", None)
    trainer = Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        **{
            "max_epochs": 1,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "use_distributed_sampler": False,
            **settings,
        },
    )
    trainer.fit(module, _Loader(joined), ckpt_path=resumed)
    return trainer


def make(seed: int = 3, **settings: Any) -> SeveralTasks:
    """Make a module with the same weights each time."""
    seed_everything(seed, verbose=False)
    return SeveralTasks(**settings)


def state(module: nn.Module) -> dict[str, Tensor]:
    """Copy all numbers of a module."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
