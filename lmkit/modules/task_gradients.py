"""The gradients of single tasks over an accumulation window and over ranks, before they meet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch._functorch.config as functorch_config
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn

if TYPE_CHECKING:
    from .multi_task import MultiTaskModule

__all__ = ["TaskGradients", "keep_graphs", "load_gradients", "rest_of", "save_gradients"]


def keep_graphs() -> None:
    """Let compiled layers keep what a second backward needs; before their first step."""
    functorch_config.donated_buffer = False


def rest_of(
    loss: Tensor, watched: Sequence[Tensor], parameters: Sequence[nn.Parameter]
) -> list[nn.Parameter]:
    """Find the parameters that a loss reaches otherwise than through the losses of tasks.

    Args:
        loss: scalar with a graph.
        watched: the losses of the tasks, in that graph.
        parameters: those that are asked for.

    Returns:
        Those of them that a walk through the graph meets; none where the loss is made of the
        tasks' losses alone.

    Example:
        >>> weight, scale = (nn.Parameter(torch.ones(())) for _ in range(2))
        >>> task = weight * 3
        >>> rest_of(task * scale, [task], [weight, scale])[0] is scale
        True
    """
    seen: set[Any] = {value.grad_fn for value in watched}
    if loss.grad_fn in seen:
        return []
    waiting, met = [loss.grad_fn], set()
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            met.add(id(node.variable))
        waiting += [following for following, _ in node.next_functions]
    return [parameter for parameter in parameters if id(parameter) in met]


class TaskGradients:
    """What a window has gathered: of each task a vector, of all other parameters their gradients.

    Args:
        shared: parameters that tasks share, by which their gradients are kept apart.
        parameters: all of the module.

    Raises:
        ValueError: nothing that is shared is trainable.
    """

    def __init__(self, shared: Sequence[nn.Parameter], parameters: Iterable[nn.Parameter]) -> None:
        self.shared = [parameter for parameter in shared if parameter.requires_grad]
        inside = {id(parameter) for parameter in self.shared}
        self.own = [p for p in parameters if p.requires_grad and id(p) not in inside]
        if not self.shared:
            raise ValueError("the tasks share no trainable parameter: leave aggregation out")
        #: Of each task its gradient on the shared parameters, `[N]`; of `""` what is of no task.
        self.rows: dict[str, Tensor] = {}
        self.reached = [False] * len(self.shared)
        self._places: dict[int, tuple[int, int]] = {}
        start = 0
        for number, parameter in enumerate(self.shared):
            self._places[id(parameter)] = start, number
            start += parameter.numel()
        self._length = start
        dtype = torch.float32
        for parameter in self.shared:
            dtype = torch.promote_types(dtype, parameter.dtype)
        self._like = torch.empty((), dtype=dtype, device=self.shared[0].device)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that is trainable."""
        return [*self.shared, *self.own]

    def add(
        self, task: str, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None]
    ) -> None:
        """Add gradients of a task; those of parameters that are not shared go to these."""
        self._add(task, parameters, gradients, 1)

    def take_away(
        self,
        beside: Sequence[nn.Parameter],
        parameters: Sequence[nn.Parameter],
        gradients: Sequence[Tensor | None],
    ) -> None:
        """Take a task's gradients out of those that were of the whole loss."""
        inside = {id(parameter) for parameter in beside}
        if inside:
            left = [
                g if id(p) in inside else None for p, g in zip(parameters, gradients, strict=True)
            ]
            self._add("", parameters, left, -1)

    def _add(
        self,
        task: str,
        parameters: Sequence[nn.Parameter],
        gradients: Sequence[Tensor | None],
        sign: int,
    ) -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is None:
                continue
            if id(parameter) in self._places:
                start, number = self._places[id(parameter)]
                self.reached[number] = True
                row = self._row(task)
                row[start : start + parameter.numel()].add_(gradient.flatten(), alpha=sign)
            elif parameter.grad is None:
                parameter.grad = gradient.clone() if sign == 1 else -gradient
            else:
                parameter.grad.add_(gradient, alpha=sign)

    def _row(self, task: str) -> Tensor:
        if task not in self.rows:
            self.rows[task] = self._like.new_zeros(self._length)
        return self.rows[task]

    def reduce(self, strategy: Strategy, tasks: Sequence[str]) -> None:
        """Replace each gradient by its mean over ranks; 0 where a rank has none."""
        if getattr(strategy, "world_size", 1) == 1:
            return
        self._meet(strategy, tasks)
        for name in self.rows:
            self.rows[name] = strategy.reduce(self.rows[name], reduce_op="mean")
        here = self._anywhere(strategy, [parameter.grad is not None for parameter in self.own])
        reached = [p for p, exists in zip(self.own, here, strict=True) if exists]
        if not reached:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in reached]
        flat = strategy.reduce(
            torch.cat([g.flatten().to(self._like.dtype) for g in gradients]), reduce_op="mean"
        )
        for parameter, part in zip(reached, flat.split([p.numel() for p in reached]), strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype)

    def write(self, weights: Mapping[str, float]) -> None:
        """Give the shared parameters the weighted sum of the tasks' gradients."""
        total = self.rows.pop("", None)
        total = self._like.new_zeros(self._length) if total is None else total
        for name, weight in weights.items():
            total.add_(self.rows[name], alpha=weight)
        for parameter, reached in zip(self.shared, self.reached, strict=True):
            start, _ = self._places[id(parameter)]
            part = total[start : start + parameter.numel()]
            parameter.grad = part.view_as(parameter).to(parameter.dtype) if reached else None

    def state_dict(self, strategy: Strategy, tasks: Sequence[str]) -> dict[str, Any]:
        """Return the rows as their mean over ranks, of which the sum over ranks is the same."""
        self._meet(strategy, tasks)
        rows = {}
        for name, row in self.rows.items():
            rows[name] = strategy.reduce(row.clone(), reduce_op="mean").cpu()
        return {"rows": rows, "reached": list(self.reached)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the rows of `state_dict`, if there are any."""
        for name, row in state.get("rows", {}).items():
            self._row(name).copy_(row)
        self.reached = list(state.get("reached", self.reached))

    def _meet(self, strategy: Strategy, tasks: Sequence[str]) -> None:
        """Give each rank the rows that any rank has, in one order, and what any has reached."""
        names = [*tasks, ""]
        here = [name in self.rows for name in names] + self.reached
        there = self._anywhere(strategy, here)
        self.rows = {name: self._row(name) for name, has in zip(names, there, strict=False) if has}
        self.reached = there[len(names) :]

    def _anywhere(self, strategy: Strategy, here: Sequence[bool]) -> list[bool]:
        """Say of each whether it is so on any rank."""
        counts = torch.tensor(here, dtype=torch.float32, device=self._like.device)
        return [count > 0 for count in strategy.reduce(counts, reduce_op="sum").tolist()]


def save_gradients(module: MultiTaskModule, entry: dict[str, Any]) -> None:
    """Add the gradients of tasks in a window that is not full to lmkit's entry of a checkpoint."""
    if module.aggregation is not None and entry["pending"]["gradients"]:
        entry["task_gradients"] = module.aggregation.state_dict(module.trainer)


def load_gradients(module: MultiTaskModule, entry: Mapping[str, Any]) -> None:
    """Take up the gradients of `save_gradients`."""
    if module.aggregation is not None:
        module.aggregation.load_state_dict(entry.get("task_gradients", {}))
