"""Bottleneck adapters of several tasks in one encoder, of which that of one task is active."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from .adapter import Adapter
from .base import from_spec, to_spec
from .tuning import is_tuned_in_part, unfreeze_base
from .wrapped_layer import WrappedLayer

__all__ = [
    "TaskAdapter",
    "keep_task",
    "ledger_of_task",
    "task_adapter_names",
    "task_adapter_parameters",
    "use_task",
]


@dataclass(frozen=True)
class TaskAdapter:
    r"""Give each layer an adapter for each task: $y + s (W_u^t \sigma(W_d^t y + b_d^t) + b_u^t)$.

    $y$ is what a projection gives and $t$ the task whose adapter is active (arXiv:1902.00751 and
    arXiv:1902.02671); the others add nothing and get no gradient. $W_u^t$ starts at zero, so that
    no logit changes. They are the adapters of `Adapter`, beside a network that goes on learning.

    Attributes:
        names: of the tasks, which are those of the adapters; the first is active at first.
        kind: of `lmkit.surgery.adapter.KINDS`, where adapters stand.
        size: of the bottleneck.
        activation: of `lmkit.surgery.bottleneck.ACTIVATIONS`.
        scale: $s$.
        dropout: of the bottleneck's activations, in `[0, 1)`.
        freeze: whether all but adapters and head is frozen, so that no task moves another.

    Raises:
        ValueError: there are no names, or one twice; an attribute lies outside its range; when
            called, there is another adapter of a name.
        NothingMatchedError: when called, the network has no such projections; names what it has.

    Example:
        >>> network = nn.ModuleList([nn.ModuleDict({"fc2": nn.Linear(4, 4)})])
        >>> TaskAdapter(["topic", "ner"], size=2)(network)
        >>> network[0]["fc2"].adapter_names, network[0]["fc2"].active_adapters
        (('topic', 'ner'), {'topic': 1.0})
    """

    names: Sequence[str]
    kind: str = "pfeiffer"
    size: int = 64
    activation: str = "gelu"
    scale: float = 1.0
    dropout: float = 0.0
    freeze: bool = False

    def __post_init__(self) -> None:
        """Check the attributes."""
        object.__setattr__(self, "names", tuple(self.names))
        if not self.names or len(set(self.names)) < len(self.names):
            raise ValueError(
                f"names must be those of at least one task, each once, got {list(self.names)}"
            )
        self._adapters()

    def __call__(self, network: nn.Module) -> None:
        """Add the adapters that are not there yet; the first task is active then."""
        tuned = is_tuned_in_part(network)
        for adapter in self._adapters():
            adapter(network)
        if not (self.freeze or tuned):
            unfreeze_base(network)
        use_task(network, self.names, self.names[0])

    def _adapters(self) -> list[Adapter]:
        how = (self.kind, self.size, self.activation, self.scale, self.dropout)
        return [Adapter(name, *how, head=self.freeze) for name in self.names]


def use_task(network: nn.Module, names: Iterable[str], task: str) -> None:
    """Let the adapter of one task be active, and those of the other tasks not.

    Adapters that are of no task stay as they are.

    Args:
        network: changed in place.
        names: of all tasks.
        task: one of them.
    """
    others = set(names) - {task}
    for layer in _layers(network):
        before = layer.active_adapters
        wanted = {name: weight for name, weight in before.items() if name not in others}
        if task in layer.adapters:
            wanted[task] = 1.0
        if wanted != before:
            layer.use(wanted)


def keep_task(network: nn.Module, names: Iterable[str], task: str) -> None:
    """Take out the adapters of all tasks but one, which is active from then on.

    Args:
        network: changed in place.
        names: of all tasks.
        task: one of them.
    """
    use_task(network, names, task)
    for layer in _layers(network):
        for name in set(names) - {task}:
            if name in layer.adapters:
                del layer.adapters[name]
            getattr(layer, "origins", {}).pop(name, None)


def task_adapter_parameters(network: nn.Module, task: str) -> list[nn.Parameter]:
    """Return the weights of the adapters of one task, each once."""
    found = (p for layer in _layers(network) for p in _weights(layer, task))
    return list(dict.fromkeys(found))


def task_adapter_names(ledger: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the names of the tasks whose adapters a ledger puts in.

    Example:
        >>> task_adapter_names([to_spec(TaskAdapter(["topic", "ner"]))])
        ['topic', 'ner']
    """
    surgeries = (from_spec(spec) for spec in ledger if spec["class_path"] == _CLASS_PATH)
    return [name for each in surgeries if isinstance(each, TaskAdapter) for name in each.names]


def ledger_of_task(ledger: Iterable[Mapping[str, Any]], task: str) -> list[dict[str, Any]]:
    """Return a ledger whose adapters of tasks are those of one task alone.

    Args:
        ledger: of a network of several tasks.
        task: one of them.

    Example:
        >>> ledger = [to_spec(TaskAdapter(["topic", "ner"]))]
        >>> task_adapter_names(ledger_of_task(ledger, "ner"))
        ['ner']
    """
    kept = []
    for spec in ledger:
        surgery = from_spec(spec) if spec["class_path"] == _CLASS_PATH else None
        if isinstance(surgery, TaskAdapter) and task in surgery.names:
            kept.append(to_spec(replace(surgery, names=(task,))))
        else:
            kept.append(dict(spec))
    return kept


_CLASS_PATH = f"{TaskAdapter.__module__}.{TaskAdapter.__qualname__}"


def _layers(network: nn.Module) -> Iterator[WrappedLayer]:
    return (layer for layer in network.modules() if isinstance(layer, WrappedLayer))


def _weights(layer: WrappedLayer, task: str) -> Iterator[nn.Parameter]:
    return layer.adapters[task].parameters() if task in layer.adapters else iter(())
