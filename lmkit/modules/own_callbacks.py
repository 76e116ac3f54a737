"""Callbacks that a module brings itself, by `configure_callbacks`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer

__all__ = ["OwnCallback", "new_callbacks"]


class OwnCallback(Callback):
    """A callback of one module, which leaves the Trainer with it and has no state."""

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the Trainer, whose next module may be another."""
        callbacks = cast(Any, trainer).callbacks
        cast(Any, trainer).callbacks = [each for each in callbacks if each is not self]


def new_callbacks(module: LightningModule, own: Iterable[OwnCallback]) -> list[Callback]:
    """Return those of which the Trainer of a module has none of an earlier run."""
    there = [] if module._trainer is None else cast(Any, module.trainer).callbacks
    return [each for each in own if not any(type(other) is type(each) for other in there)]
