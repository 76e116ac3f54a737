"""Training batches for what has to look at the data before a fit begins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import nn

from ..modules import LMModule
from ..surgery.calibration import Calibration, RowFisher
from ..types import Batch

__all__ = ["gather", "in_evaluation", "prepared_batches", "training_batches"]


def training_batches(trainer: Trainer, count: int) -> Iterator[Batch]:
    """Yield the first training batches of the first epoch, which the fit then has as ever.

    They are a function of the data's seed: nothing is drawn from a generator, and no loader
    remembers that it was asked.

    Args:
        trainer: of a fit that sets up.
        count: how many; fewer where there are fewer.
    """
    loader: Any = trainer.fit_loop._data_source.dataloader()
    if hasattr(loader, "batch"):
        most = min(count, len(loader), getattr(loader, "stop", count))
        yield from (loader.batch(position) for position in range(most))
        return
    # A loader of torch draws its order when it is asked for the first batch.
    with torch.random.fork_rng(devices=[]):
        batches = iter(loader)
        try:
            yield from islice(batches, count)
        finally:
            if hasattr(batches, "close"):
                batches.close()


def prepared_batches(trainer: Trainer, module: LMModule, count: int) -> Iterator[Batch]:
    """Yield the first training batches as the module's step takes them, on its device.

    Args:
        trainer: of a fit that sets up.
        module: with its network built.
        count: how many; fewer where there are fewer.
    """
    datamodule: Any = getattr(trainer, "datamodule", None)
    for batch in training_batches(trainer, count):
        if datamodule is not None:
            batch = datamodule.on_before_batch_transfer(batch, 0)
        device = next(module.parameters()).device
        yield module.prepare({name: t.to(device) for name, t in batch.items()})


def gather(
    calibration: Calibration, trainer: Trainer, module: LMModule, batches: int
) -> dict[str, torch.Tensor]:
    """Run a module on training batches, without dropout, and return what was gathered.

    Args:
        calibration: hooks on layers of the module's network.
        trainer: of a fit that sets up.
        module: with its network built; stays as it is.
        batches: of each rank.

    Returns:
        The mean of what was summed up, over the batches of all ranks, by name; without layers that
        no batch has passed. The same on each rank.

    Raises:
        ValueError: there are no batches, or they have no real token.
    """
    differentiated = isinstance(calibration, RowFisher)
    seen, device = 0, _device(trainer)
    with in_evaluation(module, trainer), calibration, torch.set_grad_enabled(differentiated):
        for prepared in prepared_batches(trainer, module, batches):
            with calibration.watching(prepared):
                output = module.step(prepared)
                if isinstance(calibration, RowFisher):
                    calibration.accumulate(output.loss * output.items)
            seen += 1
    means: dict[str, torch.Tensor] = {}
    for name, count in calibration.counts.items():
        counted = torch.tensor(count, dtype=torch.float64)
        total, number = (
            trainer.strategy.reduce(own.to(device), reduce_op="sum")
            for own in (calibration.total(name), counted)
        )
        if float(number):
            means[name] = (total / number).cpu()
    if not means:
        raise ValueError(
            f"the {seen} training batches to calibrate on have no real token: give more data, or "
            "take method='plain', which needs none"
        )
    return means


@contextmanager
def in_evaluation(module: LMModule, trainer: Trainer) -> Iterator[None]:
    """Put a module on the device of a Trainer and in evaluation mode, for a while.

    Args:
        module: with its network built.
        trainer: of a fit that sets up.
    """
    modes = [(part, part.training) for part in module.modules()]
    home = next(module.parameters()).device
    # Data that do not fit the network are told there, and classes get their weights in the loss.
    module.setup("fit")
    module.eval()
    # By torch's own method: Lightning's would note the device, which the set-up foresees already.
    nn.Module.to(module, _device(trainer))
    try:
        yield
    finally:
        nn.Module.to(module, home)
        for part, mode in modes:
            part.training = mode


def _device(trainer: Trainer) -> torch.device:
    root = trainer.strategy.root_device
    # Sums are float64, which not every accelerator has.
    return root if root.type == "cuda" else torch.device("cpu")
