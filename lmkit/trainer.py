"""Lightning's Trainer with the precision that the processor is fastest in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.fabric.plugins.precision.precision import _PRECISION_INPUT
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.plugins.precision import Precision

__all__ = ["Trainer", "best_precision"]


class Trainer(LightningTrainer):
    """Lightning's Trainer; without a `precision` it takes `best_precision`'s.

    All else is Lightning's, and any Lightning Trainer runs lmkit's parts.

    Args:
        accelerator: as Lightning has it.
        precision: as Lightning has it; `None` chooses `"bf16-mixed"` where the processor has
            matrix units for bfloat16, and `"32-true"` elsewhere.
        plugins: as Lightning has it.
        **settings: every other argument of Lightning's Trainer.

    Example:
        >>> trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        >>> trainer.precision == best_precision("cpu")
        True
    """

    def __init__(
        self,
        *,
        accelerator: str | Accelerator = "auto",
        precision: _PRECISION_INPUT | None = None,
        plugins: Any = None,
        **settings: Any,
    ) -> None:
        given = plugins if isinstance(plugins, Sequence) else [plugins]
        brings = any(isinstance(plugin, Precision) for plugin in given)
        brings = brings or isinstance(settings.get("strategy", "auto"), str) is False
        if precision is None and not brings:
            precision = best_precision(accelerator)
        super().__init__(accelerator=accelerator, precision=precision, plugins=plugins, **settings)


def best_precision(accelerator: str | Accelerator = "auto") -> _PRECISION_INPUT:
    """Return the precision in which the processor trains fastest without losing quality.

    `"bf16-mixed"`, which keeps weights and optimizer in float32, on CUDA from compute capability
    8.0 on and on CPUs with AMX or AVX-512 BF16; `"32-true"` elsewhere.

    Args:
        accelerator: as in `Trainer`; `"auto"` is a GPU if there is one.
    """
    name = accelerator if isinstance(accelerator, str) else type(accelerator).__name__.lower()
    if name in ("auto", "gpu", "cuda", "cudaaccelerator") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.get_device_capability() >= (8, 0) else "32-true"
    on_cpu = name in ("cpu", "cpuaccelerator")
    on_cpu = on_cpu or (name == "auto" and not torch.backends.mps.is_available())
    return "bf16-mixed" if on_cpu and _has_bfloat16() else "32-true"


def _has_bfloat16() -> bool:
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
