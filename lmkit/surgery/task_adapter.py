"""Bottleneck adapters of several tasks in one encoder, of which that of one task is active."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from .adapter import Adapter
from .base import from_spec
from .tuning import is_tuned_in_part, unfreeze_base
from .wrapped_layer import WrappedLayer

__all__ = [
    "TaskAdapter",
    "keep_task",
    "mixture_name",
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


def mixture_name(task: str) -> str:
    """Return the name of what mixes the adapters of all tasks for one, see `TaskAggregation`.

    Example:
        >>> mixture_name("topic")
        'topic/all'
    """
    return f"{task}/all"


def use_task(network: nn.Module, names: Iterable[str], task: str) -> None:
    """Let the adapter of one task be active, or its mixture if it has one, and no other task's.

    Adapters that are of no task stay as they are.

    Args:
        network: changed in place.
        names: of all tasks.
        task: one of them.
    """
    of_tasks = {each for name in names for each in (name, mixture_name(name))}
    for layer in _layers(network):
        before = layer.active_adapters
        wanted = {name: weight for name, weight in before.items() if name not in of_tasks}
        own = mixture_name(task) if mixture_name(task) in layer.fusions else task
        if own in layer.adapter_names:
            wanted[own] = 1.0
        if wanted != before:
            layer.use(wanted)


def keep_task(network: nn.Module, names: Iterable[str], task: str) -> None:
    """Take out the adapters of all tasks but one, which is active from then on.

    Where it mixes those of the others they stay, and learn no more.

    Args:
        network: changed in place.
        names: of all tasks.
        task: one of them.
    """
    use_task(network, names, task)
    for layer in _layers(network):
        for name in set(names) - {task}:
            _take_out(layer, mixture_name(name))
            if mixture_name(task) not in layer.fusions:
                _take_out(layer, name)
            elif name in layer.adapters:
                layer.adapters[name].requires_grad_(False)


def task_adapter_parameters(network: nn.Module, task: str) -> list[nn.Parameter]:
    """Return the weights of the adapters of one task and of what mixes them for it, each once."""
    found = (p for layer in _layers(network) for p in _weights(layer, task))
    return list(dict.fromkeys(found))


def task_adapter_names(ledger: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the names of the tasks whose adapters a ledger puts in.

    Example:
        >>> from lmkit.surgery import to_spec
        >>> task_adapter_names([to_spec(TaskAdapter(["topic", "ner"]))])
        ['topic', 'ner']
    """
    surgeries = (from_spec(spec) for spec in ledger if spec["class_path"] == _CLASS_PATH)
    return [name for each in surgeries if isinstance(each, TaskAdapter) for name in each.names]


_CLASS_PATH = f"{TaskAdapter.__module__}.{TaskAdapter.__qualname__}"


def _layers(network: nn.Module) -> Iterator[WrappedLayer]:
    return (layer for layer in network.modules() if isinstance(layer, WrappedLayer))


def _weights(layer: WrappedLayer, task: str) -> Iterator[nn.Parameter]:
    for held, name in ((layer.adapters, task), (layer.fusions, mixture_name(task))):
        if name in held and isinstance(held[name], nn.Module):
            yield from held[name].parameters()


def _take_out(layer: WrappedLayer, name: str) -> None:
    for held in (layer.adapters, layer.fusions, getattr(layer, "origins", {})):
        if name in held:
            del held[name]
