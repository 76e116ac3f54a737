"""The copies of a module in which Lightning's callbacks average its weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

__all__ = ["averaged_modules", "averages"]


def averages(callbacks: Iterable[object], module: nn.Module) -> Iterator[dict[int, Tensor]]:
    """Yield for each average of a module its weights, by the identities of the module's own.

    Args:
        callbacks: of the Trainer; those of Lightning that average (EMA, SWA) are asked.
        module: that is trained.

    Example:
        >>> list(averages([], nn.Linear(2, 2)))
        []
    """
    own = list(module.parameters())
    for copy in averaged_modules(callbacks, module):
        yield dict(zip(map(id, own), copy.parameters(), strict=True))


def averaged_modules(callbacks: Iterable[object], module: nn.Module) -> Iterator[Any]:
    """Yield the copies of a module in which its weights are averaged.

    Args:
        callbacks: of the Trainer; those of Lightning that average (EMA, SWA) are asked.
        module: that is trained.

    Example:
        >>> list(averaged_modules([], nn.Linear(2, 2)))
        []
    """
    for callback in callbacks:
        # Lightning has no public name for it.
        average = getattr(callback, "_average_model", None)
        if isinstance(average, nn.Module):
            copy = average.module if isinstance(average, AveragedModel) else average
            # A copy that was made before the network was built has no weights, and averages none.
            if len(list(module.parameters())) == len(list(copy.parameters())):
                yield copy
