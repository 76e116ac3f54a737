"""A plain LightningModule, and loops without Lightning that adversarial callbacks are held to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Sampler
from transformers import BertConfig, BertForSequenceClassification

from lmkit.functional.adversarial import project, relative_radius, unit

SPECIAL = (0, 2, 3)
#: Settings of a Trainer, and what a loop by hand does the same by: type of autocast, scaler.
PRECISIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "fp32": dict,
    "bf16": lambda: {"precision": "bf16-mixed"},
    "fp16": lambda: {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))]},
}
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Plain(LightningModule):
    """A classifier that knows nothing of lmkit."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = BertForSequenceClassification(
            BertConfig(
                vocab_size=40,
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=32,
                max_position_embeddings=16,
                hidden_dropout_prob=dropout,
                attention_probs_dropout_prob=dropout,
                initializer_range=0.3,
                pad_token_id=0,
                cls_token_id=2,
                sep_token_id=3,
                attn_implementation="eager",
                num_labels=3,
            )
        ).train()
        # Above one half the next number of float32 is 6e-8 away, of which the roundings of four
        # steps, which differ by processor, make more than is allowed.
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.clamp_(-0.45, 0.45)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return cross_entropy(self.model(**inputs).logits.float(), batch["labels"])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def rows(count: int = 16, length: int = 9) -> list[dict[str, Tensor]]:
    """Make texts of different lengths between two special tokens, padded."""
    draw = torch.Generator().manual_seed(0)
    made = []
    for number in range(count):
        ids = torch.randint(5, 40, (length,), generator=draw)
        end = 4 + number % (length - 4)
        ids[0], ids[end], ids[end + 1 :] = 2, 3, 0
        mask = (torch.arange(length) <= end).long()
        label, index = torch.tensor(number % 3), torch.tensor(number)
        made.append({"input_ids": ids, "attention_mask": mask, "labels": label, "index": index})
    return made


class OwnRows(Sampler[int]):
    """Gives each rank its share of the rows in order; Lightning would shuffle them."""

    def _mine(self) -> range:
        is_shared = distributed.is_initialized()
        rank, size = (distributed.get_rank(), distributed.get_world_size()) if is_shared else (0, 1)
        return range(rank, 16, size)

    def __iter__(self) -> Iterator[int]:
        return iter(self._mine())

    def __len__(self) -> int:
        return len(self._mine())


class Reseed(Callback):
    """Lets each step draw from a seed of its own, before the adversary looks."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(batch_idx)


def fit(
    *callbacks: Callback, module: LightningModule | None = None, size: int = 4, **settings: Any
) -> Any:
    """Train on all batches once."""
    module = Plain() if module is None else module
    trainer = Trainer(
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        callbacks=[Reseed(), *callbacks],
        **{"logger": False, "max_epochs": 1, **settings},
    )
    trainer.fit(module, DataLoader(rows(), batch_size=size, sampler=OwnRows()))
    return module


#: Adds the gradient of one batch, number n.
Gradient = Callable[[dict[str, Tensor], int], None]


class Hand:
    """A loop by hand: its network reads embeddings, to which perturbations can be added."""

    def __init__(self, precision: str = "fp32", dropout: float = 0.1) -> None:
        self.network = Plain(dropout).model
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.01, momentum=0.9)
        self.autocast = AUTOCAST[precision]
        self.scaler = torch.amp.GradScaler("cpu", enabled=precision == "fp16")

    def loss(self, batch: dict[str, Tensor], number: int, delta: Tensor | None = None) -> Tensor:
        """Compute the loss, scaled for float16, with the dropout of the step."""
        torch.manual_seed(number)
        kind = self.autocast
        cast = nullcontext() if kind is None else torch.autocast("cpu", kind, cache_enabled=False)
        with cast:
            words = self.network.bert.embeddings.word_embeddings(batch["input_ids"])
            words = words if delta is None else words + delta
            output = self.network(inputs_embeds=words, attention_mask=batch["attention_mask"])
            loss = cross_entropy(output.logits.float(), batch["labels"])
        return self.scaler.scale(loss)

    def free(self, batch: dict[str, Tensor]) -> Tensor:
        """Return which tokens may move."""
        special = torch.stack([batch["input_ids"] == each for each in SPECIAL]).any(0)
        return ((batch["attention_mask"] > 0) & ~special).unsqueeze(-1)

    def radius(self, batch: dict[str, Tensor], epsilon: float, norm: str = "sentence") -> Tensor:
        """Return the bound of each text, or of each token."""
        words = self.network.bert.embeddings.word_embeddings(batch["input_ids"]).detach()
        if self.autocast is not None:
            return relative_radius(words, self.free(batch), epsilon, norm)
        return epsilon * _size(words * self.free(batch), norm)

    def climbed(
        self, batch: dict[str, Tensor], delta: Tensor, gradient: Tensor, step: float, bound: Tensor
    ) -> Tensor:
        """Take a step uphill and project, of the whole text, or of each token."""
        norm = "token" if bound.shape[1] > 1 else "sentence"
        if self.autocast is not None:
            # In float64 it would differ by a rounding of float32, of which one of 16 bits makes
            # more than is allowed; the formulas are compared in float32 and in their own tests.
            uphill = step * bound * unit(gradient.masked_fill(~self.free(batch), 0.0), norm)
            return project(delta + uphill, bound, norm)
        gradient = gradient.double() * self.free(batch)
        size = _size(gradient, norm)
        moved = delta.double() + step * bound.double() * gradient / torch.where(size > 0, size, 1)
        long = _size(moved, norm)
        return (moved * (bound / torch.where(long > 0, long, 1)).clamp(max=1)).float()

    def run(self, gradient: Gradient, size: int = 4, window: int = 1) -> nn.Module:
        """Take a step after each window of batches."""
        for number, batch in enumerate(DataLoader(rows(), batch_size=size)):
            gradient(batch, number)
            if (number + 1) % window == 0:
                for parameter in self.network.parameters():
                    if parameter.grad is not None:
                        parameter.grad /= window
                self.scaler.step(self.optimizer)
                self.scaler.update()
                self.optimizer.zero_grad()
        return self.network


def _size(values: Tensor, norm: str) -> Tensor:
    over = (-1,) if norm == "token" else (1, 2)
    return values.square().sum(over, keepdim=True).sqrt()


def zeros(batch: dict[str, Tensor]) -> Tensor:
    """Make a perturbation of 0 that has a gradient."""
    return torch.zeros(*batch["input_ids"].shape, 16, requires_grad=True)


def gap(one: nn.Module, other: nn.Module) -> float:
    """Return the largest difference of two networks' weights."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)
