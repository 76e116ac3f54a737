"""A module that learns nothing and remembers every batch it was given."""

from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class Recorder(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []
        self.validated = []

    def training_step(self, batch, batch_idx):
        self.seen.append((batch["index"].tolist(), batch["input_ids"].sum().item()))
        return self.weight * 1.0

    def validation_step(self, batch, batch_idx):
        self.validated.append((batch["index"].tolist(), batch["input_ids"].sum().item()))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Predictor(Recorder):
    def predict_step(self, batch, batch_idx):
        return batch


class SaveInHook(Callback):
    """Saves as a user's own callback would, after every batch."""

    def __init__(self, folder: Path):
        self.folder = folder

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        # Optimizer steps are fewer than batches under accumulation: count batches.
        done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        trainer.save_checkpoint(self.folder / f"{done:03d}.ckpt")


def save_often(folder: Path):
    return ModelCheckpoint(
        folder,
        filename="{step:03d}",
        save_top_k=-1,
        every_n_train_steps=1,
        save_on_train_epoch_end=False,
    )


def make_trainer(folder: Path, *callbacks, **options) -> Trainer:
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **options,
    )
