r"""Which task is trained in which step: probabilities by the sizes of the tasks, and the draw."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .random import mix, uniform

__all__ = [
    "about_task",
    "annealed_temperature",
    "check_task_names",
    "draw_tasks",
    "take_turns",
    "task_probabilities",
]

# How much of the exponent is gone in the last epoch (arXiv:1902.02671, section 4.1).
_ANNEALED = 0.8

# What a name may be made of: it becomes a part of log names, state-dict keys and folders.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")


def task_probabilities(
    sizes: Sequence[float], temperature: float = 1.0, cap: float | None = None
) -> Tensor:
    r"""Return how probable each task is.

    $p_i = \min(n_i, K)^{1/\tau} / \sum_j \min(n_j, K)^{1/\tau}$ (T5, arXiv:1910.10683, section
    3.5.2). At $\tau = 1$ tasks come as often as their sizes say, the higher it is the more evenly,
    and in the limit of an infinite one all as often.

    Args:
        sizes: $n_i$, examples of each task, or any other weights, each above 0.
        temperature: $\tau > 0$; may be infinite.
        cap: $K$, above 0, the size from which on a task counts as no larger; `None` for none.

    Returns:
        float64 `[T]`, which add up to 1.

    Raises:
        ValueError: there is no task, or a number lies outside its range.

    Example:
        >>> task_probabilities([400, 100, 16], temperature=2.0)
        tensor([0.5882, 0.2941, 0.1176], dtype=torch.float64)
    """
    if not sizes or min(sizes) <= 0:
        raise ValueError(f"sizes must be one number above 0 for each task, got {list(sizes)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if cap is not None and not cap > 0:
        raise ValueError(f"cap must be above 0, got {cap}")
    counted = torch.tensor(list(sizes), dtype=torch.float64)
    if cap is not None:
        counted = counted.clamp(max=cap)
    # By logarithms, so that neither a low temperature nor large sizes overflow.
    return (counted.log() / temperature).softmax(0)


def annealed_temperature(epoch: int, epochs: int) -> float:
    r"""Return the temperature of an epoch in a run that begins by size and ends nearly evenly.

    $1/\tau = 1 - 0.8\,e/(E - 1)$ in epoch $e$, from 0, of $E$ (BERT and PALs, arXiv:1902.02671,
    section 4.1, which counts from 1). Epochs behind the last one are as the last one.

    Args:
        epoch: $e \ge 0$.
        epochs: $E \ge 1$; a run of one epoch goes by size.

    Returns:
        $\tau$, from 1 to 5.

    Raises:
        ValueError: a number lies outside its range.

    Example:
        >>> [round(annealed_temperature(epoch, 3), 4) for epoch in range(3)]
        [1.0, 1.6667, 5.0]
    """
    if epoch < 0 or epochs < 1:
        raise ValueError(f"epoch must be at least 0 and epochs 1, got {epoch} and {epochs}")
    passed = min(1.0, epoch / (epochs - 1)) if epochs > 1 else 0.0
    return 1.0 / (1.0 - _ANNEALED * passed)


def draw_tasks(probabilities: Tensor, steps: int, seed: int, epoch: int) -> Tensor:
    """Draw the task of each step of an epoch, independently of each other.

    Args:
        probabilities: float64 `[T]`, which add up to 1.
        steps: how many, at least 0.
        seed: of the run.
        epoch: each has draws of its own.

    Returns:
        int64 `[steps]`, each in `[0, T)`: the same for the same arguments in every process. With
        fewer steps it is the beginning of what it is with more.

    Example:
        >>> drawn = draw_tasks(torch.tensor([0.75, 0.25], dtype=torch.float64), 1000, 3, 0)
        >>> 0.7 < float((drawn == 0).double().mean()) < 0.8
        True
    """
    draws = uniform(torch.tensor(mix(seed, epoch)), steps)
    # The sum may end a rounding error below 1, and a draw above it.
    last = len(probabilities) - 1
    return torch.searchsorted(probabilities.cumsum(0), draws, right=True).clamp(max=last)


def take_turns(tasks: int, steps: int, first: int = 0) -> Tensor:
    """Return the task of each step where they come in turn: their numbers differ by 1 at most.

    Args:
        tasks: how many there are.
        steps: how many steps.
        first: how many steps there were before, so that the turns go on.

    Returns:
        int64 `[steps]`.

    Example:
        >>> take_turns(3, 5, first=1).tolist()
        [1, 2, 0, 1, 2]
    """
    return (torch.arange(steps) + first) % tasks


def check_task_names(names: Iterable[object]) -> None:
    """Check that tasks can be told apart by their names, in logs, weights and folders.

    Args:
        names: as they were given.

    Raises:
        ValueError: there is none, one is no plain word, or two differ only by case.

    Example:
        >>> check_task_names(["ner", "NER"])
        Traceback (most recent call last):
        ...
        ValueError: the tasks 'ner' and 'NER' differ only by case; give them names that differ
    """
    known: dict[str, str] = {}
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(
                f"a task's name is made of letters, digits, _ and -, got {name!r}; it becomes a "
                "part of log names such as val/<task>/loss, and of folders"
            )
        if hasattr(torch.nn.ModuleDict, name) or name in vars(torch.nn.ModuleDict()):
            raise ValueError(
                f"a task cannot be called {name!r}, which torch's modules have as a method; call "
                f"it for example {name}_task"
            )
        if (other := known.setdefault(name.lower(), name)) is not name and other != name:
            raise ValueError(
                f"the tasks {other!r} and {name!r} differ only by case; give them names that differ"
            )
    if not known:
        raise ValueError("tasks must name at least one task, and there is none")


@contextmanager
def about_task(name: str) -> Iterator[None]:
    """Let a `ValueError` of what is done inside name its task, and its own options.

    Example:
        >>> with about_task("ner"):
        ...     raise ValueError("there are no train examples; pass --data.train_file=FILE")
        Traceback (most recent call last):
        ...
        ValueError: task 'ner': there are no train examples; pass --data.tasks.ner.train_file=FILE
    """
    try:
        yield
    except ValueError as error:
        said = str(error).replace("--data.", f"--data.tasks.{name}.")
        raise ValueError(f"task {name!r}: {said}") from error
