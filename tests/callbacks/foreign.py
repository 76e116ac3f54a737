"""A LightningModule that is not lmkit's, with a network of transformers inside."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification

from tests import tiny

__all__ = ["Foreign", "foreign_rows"]


class Foreign(LightningModule):
    """Knows nothing of lmkit; its rows are ids, and what it learns is whether the first is odd."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = {k: v for k, v in tiny.MASKED["bert"].items() if k != "model_type"}
        self.net: nn.Module = BertForSequenceClassification(BertConfig(**config, vocab_size=99))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.net(input_ids=batch, labels=batch[:, 0] % 2).loss
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)


def foreign_rows(count: int = 8, **how: Any) -> DataLoader[Tensor]:
    """Make rows of five ids."""
    return DataLoader(torch.arange(5, 5 + 5 * count).view(count, 5), **how)  # type: ignore[arg-type]
