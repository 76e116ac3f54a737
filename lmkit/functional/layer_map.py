"""Which layers of a student learn from, or begin as, which layers of its teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["LAYER_MAPS", "layer_pairs", "monotone_match", "spread_layers"]

#: The names of the maps that `layer_pairs` knows.
LAYER_MAPS = ("uniform", "last", "skip")


def layer_pairs(
    student_layers: int, teacher_layers: int, layer_map: str | Sequence[Sequence[int]]
) -> list[tuple[int, int]]:
    r"""Return the pairs of hidden states, of the student and of the teacher, that are compared.

    Hidden state 0 is that of the embeddings, and $i$ is what layer $i$ puts out, counted from 1.
    So layer $i$'s attention or queries have index $i - 1$ among those of the layers. For a student
    of $S$ layers and a teacher of $T$:

    - `uniform`: $(i, \lfloor i T / S + 1/2 \rfloor)$ for $i = 0, \ldots, S$ (TinyBERT,
      arXiv:1909.10351, whose $T / S$ is whole). Both ends are matched.
    - `last`: $(S, T)$ alone.
    - `skip`: $(i, i \lfloor T / S \rfloor)$ for $i = 1, \ldots, S - 1$ (PKD-skip,
      arXiv:1908.09355). The last layer is left out: the predictions are compared there.
    - or the pairs themselves. A negative number counts from the end: -1 is the last layer.

    Args:
        student_layers: $S$, at least 1.
        teacher_layers: $T$, at least 1.
        layer_map: `uniform`, `last`, `skip`, or pairs such as `[[0, 0], [3, 6], [-1, -1]]`.

    Returns:
        The pairs in order, with no negative number.

    Raises:
        TypeError: a pair is not one of two whole numbers.
        ValueError: there is no such map or layer, or no pair at all.

    Example:
        >>> layer_pairs(3, 12, "uniform"), layer_pairs(3, 12, "skip")
        ([(0, 0), (1, 4), (2, 8), (3, 12)], [(1, 4), (2, 8)])
        >>> layer_pairs(3, 12, [[0, 0], [-1, -1]])
        [(0, 0), (3, 12)]
    """
    for name, layers in (("student_layers", student_layers), ("teacher_layers", teacher_layers)):
        if layers < 1:
            raise ValueError(f"{name} must be at least 1, got {layers}")
    if not isinstance(layer_map, str):
        return _explicit(student_layers, teacher_layers, layer_map)
    if layer_map == "uniform":
        # Whole numbers only, so that a half goes up whatever its layer is.
        double = 2 * student_layers
        nearest = (
            (2 * i * teacher_layers + student_layers) // double for i in range(student_layers + 1)
        )
        return list(enumerate(nearest))
    if layer_map == "last":
        return [(student_layers, teacher_layers)]
    if layer_map == "skip":
        stride = teacher_layers // student_layers
        if student_layers == 1 or stride == 0:
            raise ValueError(
                "layer_map='skip' needs a student of at least 2 layers and a teacher of at least "
                f"as many, got {student_layers} and {teacher_layers}; take 'uniform' or 'last'"
            )
        return [(i, i * stride) for i in range(1, student_layers)]
    raise ValueError(
        f"layer_map must be one of {', '.join(LAYER_MAPS)}, or a list of pairs; got {layer_map!r}"
    )


def monotone_match(costs: Tensor) -> list[int]:
    r"""Match each of some teacher layers with a student layer, in order, at the least total cost.

    $\min \sum_t c_{t, m(t)}$ over all $m$ with $m(1) < m(2) < \ldots < m(T)$, or with $\le$ where
    the student has fewer layers of finite cost than are to be matched. It is found by dynamic
    programming, in $O(T S)$. Where several have the least cost, the one with the lowest student
    layers is taken, beginning with the first.

    CoFi (arXiv:2204.00408) chooses a student layer for each teacher layer anew in
    every step too. Its code goes down from the last teacher layer and takes, each time, the
    cheapest student layer below the one taken before, and that one again when none is left. We
    deviate in minimising the sum, so that an early choice does not spoil the others, and a layer is
    never taken twice while there are enough.

    It waits for the device once, to read the costs.

    Args:
        costs: float `[T, S]`, the cost of matching each teacher layer with each student layer.
            Infinite where they must not be matched, such as with a layer that has been removed.

    Returns:
        For each teacher layer the index of its student layer.

    Raises:
        ValueError: `costs` has another shape or no entry, holds NaN or minus infinity, or forbids
            every match.

    Example:
        >>> monotone_match(torch.tensor([[5.0, 1.0, 2.0], [5.0, 0.0, 1.0]]))
        [1, 2]
        >>> monotone_match(torch.tensor([[1.0, 2.0], [4.0, 3.0], [4.0, 3.0]]))
        [0, 1, 1]
    """
    if costs.dim() != 2 or not costs.numel():
        raise ValueError(
            "costs must have the shape [teacher layers, student layers], at least one of each, got "
            f"{list(costs.shape)}"
        )
    table: list[list[float]] = costs.detach().to("cpu", torch.float64).tolist()
    if not all(cost > -math.inf for row in table for cost in row):
        raise ValueError(f"costs must not hold NaN or minus infinity, got {table}")
    teachers, students = len(table), len(table[0])
    open_students = sum(any(map(math.isfinite, column)) for column in zip(*table, strict=True))
    step = 1 if open_students >= teachers else 0
    # best[t][s]: the least cost of teacher layers t and later with student layers s and later.
    # One column more than there are layers stands for "none is left".
    best = [[math.inf] * (students + 1) for _ in range(teachers)] + [[0.0] * (students + 1)]
    for t in reversed(range(teachers)):
        for s in reversed(range(students)):
            best[t][s] = min(table[t][s] + best[t + 1][s + step], best[t][s + 1])
    if math.isinf(best[0][0]):
        raise ValueError(
            f"costs forbid every match of {teachers} teacher layers in order: match fewer of them, "
            f"or make more costs finite; got {table}"
        )
    match, s = [], 0
    for t in range(teachers):
        while table[t][s] + best[t + 1][s + step] != best[t][s]:
            s += 1
        match.append(s)
        s += step
    return match


def spread_layers(count: int, total: int) -> list[int]:
    r"""Return the teacher layers that a student of fewer layers begins as, spread over all of them.

    The first, the last, and between them those nearest to
    $i \frac{\mathrm{total} - 1}{\mathrm{count} - 1}$; of two that are equally near, the lower one.
    So 3 of 6 are 0, 2 and 5, and 6 of 12 are those of DistilBERT (arXiv:1910.01108). A student of
    one layer begins as the first: only that one has learnt to read embeddings.

    Args:
        count: layers of the student, in `[1, total]`.
        total: layers of the teacher.

    Returns:
        Indices of layers, counted from 0, each greater than the one before.

    Raises:
        ValueError: `count` lies outside its range.

    Example:
        >>> spread_layers(3, 6), spread_layers(6, 12)
        ([0, 2, 5], [0, 2, 4, 7, 9, 11])
    """
    if not 1 <= count <= total:
        raise ValueError(
            f"count must lie in [1, {total}], the number of the teacher's layers, got {count}"
        )
    if count == 1:
        return [0]
    gaps = count - 1
    # ceil(x - 1/2) in whole numbers, so that a half goes down.
    return [-((gaps - 2 * i * (total - 1)) // (2 * gaps)) for i in range(count)]


def _explicit(
    student_layers: int, teacher_layers: int, pairs: Sequence[object]
) -> list[tuple[int, int]]:
    if not pairs:
        raise ValueError("layer_map has no pair; write for example [[-1, -1]]")
    found = []
    for pair in pairs:
        if (
            isinstance(pair, str)
            or not isinstance(pair, Sequence)
            or len(pair) != 2
            or any(isinstance(i, bool) or not isinstance(i, int) for i in pair)
        ):
            raise TypeError(
                f"layer_map must hold pairs of whole numbers, [student, teacher], got {pair!r}"
            )
        for i, layers in zip(pair, (student_layers, teacher_layers), strict=True):
            if not -layers - 1 <= i <= layers:
                raise ValueError(
                    f"layer_map has the pair {list(pair)}, but the student has {student_layers} "
                    f"layers and the teacher {teacher_layers}: 0 is the embeddings, and the last "
                    "layer is its number or -1"
                )
        student, teacher = pair
        found.append((student % (student_layers + 1), teacher % (teacher_layers + 1)))
    return found
