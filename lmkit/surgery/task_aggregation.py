"""Attention of each task over what the adapters of all tasks compute."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from .adapter_fusion import Fusion
from .base import from_spec, to_spec
from .bottleneck import AdaptedLayer
from .norm_shift import Shifted
from .task_adapter import TaskAdapter, mixture_name, task_adapter_parameters, use_task

__all__ = ["TaskAggregation", "aggregated_tasks", "ledger_of_task"]


@dataclass(frozen=True)
class TaskAggregation:
    r"""Let each task attend to the adapters of all: $y + V_b \sum_t \alpha_t z_t$.

    $\alpha = \mathrm{softmax}_t(Q_b y \cdot K_b z_t)$, with $b$ the active task, $y$ what a
    projection gives and $z_t$ what the adapter of task $t$ adds to it. $Q_b$, $K_b$ and $V_b$ are
    those of `Fusion` (arXiv:2005.00247), and take the place of the adapter in each layer that has
    one. Unlike `AdapterFusion` nothing is frozen. Adapter $b$ learns, and the weights of the others
    are constants while $b$ is active; the gradient of $y$ is that of the whole sum. Normalizations
    have the shift of task $b$ alone.

    Attributes:
        names: of the tasks, whose adapters are there.
        tasks: those that attend, by default all; the first is active at first. The adapter of a
            task that does not attend is frozen.

    Raises:
        ValueError: there are no names, or one twice, or tasks has others; when called, the network
            has no adapter of a name, or the task attends to others already.

    Example:
        >>> network = nn.ModuleList([nn.ModuleDict({"fc2": nn.Linear(4, 4)})])
        >>> TaskAdapter(["topic", "ner"], size=2)(network)
        >>> TaskAggregation(["topic", "ner"])(network)
        >>> network[0]["fc2"].adapter_names, network[0]["fc2"].active_adapters
        (('topic', 'ner', 'topic/all', 'ner/all'), {'topic/all': 1.0})
    """

    names: Sequence[str]
    tasks: Sequence[str] | None = None

    def __post_init__(self) -> None:
        """Check the names."""
        names = tuple(self.names)
        tasks = names if self.tasks is None else tuple(self.tasks)
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "tasks", tasks)
        if not names or len({*names, *map(mixture_name, names)}) < 2 * len(names):
            raise ValueError(
                "names must be those of at least one task, each once, and none that of another's "
                f"mixture, such as {mixture_name('topic')!r}; got {list(names)}"
            )
        if not tasks or len(set(tasks)) < len(tasks) or not set(tasks) <= set(names):
            raise ValueError(
                f"tasks must be some of the names {list(names)}, each once, got {list(tasks)}"
            )

    def __call__(self, network: nn.Module) -> None:
        """Add the attention of the tasks that have none yet; the first is active then."""
        layers = [m for m in network.modules() if isinstance(m, AdaptedLayer | Shifted)]
        adapted = [layer for layer in layers if isinstance(layer, AdaptedLayer)]
        there = {name: None for layer in adapted for name in layer.adapters}
        if missing := [name for name in self.names if name not in there]:
            raise ValueError(
                f"the network has no bottleneck adapters of the tasks {missing}; it has "
                f"{list(there) or 'none'}: add them first, with TaskAdapter"
            )
        for task in self._tasks:
            for each in adapted:
                self._check(each, task)
        for layer in layers:
            for task in self._tasks:
                if task in layer.adapters and mixture_name(task) not in layer.fusions:
                    self._add(layer, task)
        for name in self.names:
            if not any(mixture_name(name) in layer.fusions for layer in layers):
                for parameter in task_adapter_parameters(network, name):
                    parameter.requires_grad_(False)
        use_task(network, self.names, self._tasks[0])

    @property
    def _tasks(self) -> tuple[str, ...]:
        return tuple(self.tasks or ())

    def _parts(self, layer: AdaptedLayer | Shifted) -> tuple[str, ...]:
        return tuple(name for name in self.names if name in layer.adapters)

    def _check(self, layer: AdaptedLayer, task: str) -> None:
        name, parts = mixture_name(task), self._parts(layer)
        before: Any = layer.fusions[name].names if name in layer.fusions else parts
        if set(before) != set(parts):
            raise ValueError(
                f"{task!r} attends to the adapters of {', '.join(before)} already, and not to "
                f"those of {', '.join(parts)}: give the tasks that it was trained with"
            )

    def _add(self, layer: AdaptedLayer | Shifted, task: str) -> None:
        name = mixture_name(task)
        if isinstance(layer, Shifted):
            layer.fusions[name] = (task,)
            return
        parts = self._parts(layer)
        others = [part for part in parts if part != task]
        like = next(layer.adapters[task].parameters())
        fusion = Fusion(parts, layer.out_features, others).to(like.device, like.dtype)
        layer.fusions[name] = fusion.train(layer.training)
        layer.origins[name] = self


def aggregated_tasks(ledger: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the tasks that attend to the adapters of all, by a ledger.

    Example:
        >>> aggregated_tasks([to_spec(TaskAggregation(["topic", "ner"], ["ner"]))])
        ['ner']
    """
    found = (task for each in _surgeries(ledger, TaskAggregation) for task in each.tasks)
    return list(dict.fromkeys(found))


def ledger_of_task(
    ledger: Iterable[Mapping[str, Any]], names: Iterable[str], task: str
) -> list[dict[str, Any]]:
    """Return the ledger of a network of which `keep_task` has kept one task.

    If the task attends to the adapters of all, these stay, and its own attention alone.

    Args:
        ledger: of a network of several tasks.
        names: of all tasks that have adapters there.
        task: one of them.

    Example:
        >>> ledger = [to_spec(TaskAdapter(["topic", "ner"]))]
        >>> ledger_of_task(ledger, ["topic", "ner"], "ner")[0]["init_args"]["names"]
        ['ner']
    """
    ledger = list(ledger)
    gone = set(names) - {task}
    mixed = task in aggregated_tasks(ledger)
    kept = []
    for spec in ledger:
        (surgery,) = _surgeries([spec], TaskAdapter, TaskAggregation) or (None,)
        word = "tasks" if isinstance(surgery, TaskAggregation) else "names"
        if surgery is None or (word == "names" and mixed):
            kept.append(dict(spec))
        elif left := [each for each in getattr(surgery, word) if each not in gone]:
            kept.append(to_spec(replace(surgery, **{word: left})))
    return kept


def _surgeries(ledger: Iterable[Mapping[str, Any]], *kinds: type) -> list[Any]:
    paths = {f"{kind.__module__}.{kind.__qualname__}" for kind in kinds}
    return [from_spec(spec) for spec in ledger if spec["class_path"] in paths]
