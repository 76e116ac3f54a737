"""A network of a few weights on five batches, with loggers as they come."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, Dataset


class Rows(Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, index):
        ids = torch.arange(6) + index
        return {
            "input_ids": ids,
            "attention_mask": (torch.arange(6) < 4).long(),
            "index": torch.tensor(index if index < 19 else -1),
        }


class TinyModule(LightningModule):
    def __init__(self, explode_at: int = -1):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.frozen = torch.nn.Linear(1, 1).requires_grad_(False)
        self.explode_at = explode_at
        self.asked = []

    def training_step(self, batch, batch_idx):
        if self.global_step == self.explode_at:
            raise OSError("No space left on device")
        loss = self.layer(batch["input_ids"][:, :1].float()).pow(2).mean() / 100
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", float(10 - self.global_step), batch_size=1)

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return [{"first": int(ids[0])} for ids in batch["input_ids"]]

    def sample(self, batch, rows):
        self.asked.append(batch["index"].tolist())
        torch.rand(3)
        return [{"text": f"row {i}", "fills": [0.5, "é"]} for i in batch["index"].tolist()]

    def configure_optimizers(self):
        return torch.optim.SGD(self.layer.parameters(), lr=1e-3)


def loader():
    return DataLoader(Rows(), batch_size=4)


@pytest.fixture
def fit(tmp_path):
    """Fit a tiny module with callbacks; returns trainer and module."""

    def run(*callbacks, module=None, val=None, ckpt_path=None, logger=False, **options):
        options = {"max_epochs": 1, "log_every_n_steps": 1, "num_sanity_val_steps": 0} | options
        trainer = Trainer(
            default_root_dir=tmp_path,
            accelerator="cpu",
            callbacks=list(callbacks),
            logger=logger,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=any("Checkpoint" in type(c).__name__ for c in callbacks),
            **options,
        )
        module = module or TinyModule()
        val = loader() if val is None else val
        trainer.fit(module, loader(), val, ckpt_path=ckpt_path)
        return trainer, module

    return run


@pytest.fixture
def tiny():
    return TinyModule


@pytest.fixture
def rows():
    return loader
