"""The few types that every part shares: a batch, the result of a step, and two protocols."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

__all__ = [
    "IGNORE_INDEX",
    "VIEW_PREFIX",
    "Batch",
    "Objective",
    "ObjectiveWrapper",
    "StepOutput",
    "Surgery",
]

#: The label of a position that is no target, as `torch.nn.functional.cross_entropy` has it.
IGNORE_INDEX = -100

#: Entries of a batch under this prefix are those of another view of its examples.
VIEW_PREFIX = "view_"

#: Named tensors with the example as their first dimension, e.g. `input_ids` of shape `[B, L]`.
Batch = dict[str, Tensor]


class StepOutput(NamedTuple):
    """What one objective says of one batch.

    Attributes:
        loss: scalar, the mean of the loss over its items; differentiable.
        items: scalar, how many items (tokens, examples) `loss` is the mean of; 0 is allowed and
            goes with a loss of 0.
        logits: the scores that metrics are made of, or `None`. Their shape is the task's.
        logs: further scalars under their log names, each a mean over the items.
    """

    loss: Tensor
    items: Tensor
    logits: Tensor | None = None
    logs: Mapping[str, Tensor] = {}


#: From a batch to its `StepOutput`: the `step` of a module, bare or wrapped.
Objective = Callable[[Batch], StepOutput]


@runtime_checkable
class Surgery(Protocol):
    """A change of structure: a frozen dataclass of plain data that is called on a network.

    It changes the network in place, and leaves alone what it has changed before. A surgery that
    matches nothing raises `lmkit.surgery.NothingMatchedError`.
    """

    def __call__(self, network: nn.Module) -> None:
        """Change `network` in place."""


@runtime_checkable
class ObjectiveWrapper(Protocol):
    """A change of any task's loss: calls `objective` and adds a term of its own."""

    def __call__(self, objective: Objective, batch: Batch) -> StepOutput:
        """Return the changed result for `batch`."""
