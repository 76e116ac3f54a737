"""Losses between hidden states of a student and of its teacher, one number per row.

Each is the mean over the real tokens of a row, 0 for a row without one. A caller takes the mean
over the rows, so the losses of two halves of a batch add up to that of the whole.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .distillation_inputs import real_pair, token_mean, wide_dtype

__all__ = [
    "first_token_distance",
    "fsp_distance",
    "hidden_cosine",
    "hidden_distance",
    "initial_projection",
    "similarity_distance",
]


def hidden_distance(
    student: Tensor,
    teacher: Tensor,
    tokens: Tensor,
    projection: Tensor | None = None,
    normalize: bool = False,
) -> Tensor:
    r"""Compute the squared distance of hidden states: $\frac{1}{D_T} \| W h_S - h_T \|^2$.

    As in TinyBERT, arXiv:1909.10351. With `normalize` both sides pass through a layer norm
    without weights first, as a few outlying dimensions of some teachers would outweigh all others.

    Args:
        student: float `[R, L, D_S]`; computed in float32, or float64 if given.
        teacher: float `[R, L, D_T]`; gets no gradient.
        tokens: bool `[R, L]`, the real tokens; anything may stand at the others, NaN too.
        projection: $W$, float `[D_T, D_S]`; none needed where the widths are equal.
        normalize: whether both sides are normalised, the student after its projection.

    Returns:
        `[R]`.

    Raises:
        TypeError: `tokens` is not of bool.
        ValueError: the widths differ and there is no projection, or the shapes do not fit.

    Example:
        >>> real = torch.tensor([[True, False]])
        >>> hidden_distance(torch.zeros(1, 2, 3), torch.full((1, 2, 3), 2.0), real)
        tensor([4.])
    """
    student, teacher = _projected(student, teacher, tokens, projection)
    if normalize:
        student, teacher = (F.layer_norm(x, x.shape[-1:]) for x in (student, teacher))
    return token_mean((student - teacher).square().mean(-1), tokens)


def hidden_cosine(
    student: Tensor, teacher: Tensor, tokens: Tensor, projection: Tensor | None = None
) -> Tensor:
    r"""Compute one minus the cosine of the angle between hidden states.

    As in DistilBERT, arXiv:1910.01108. Written as
    $1 - \cos = \frac{1}{2} \| \hat x - \hat y \|^2$ with vectors of length 1, which is exact where
    they are close. A vector of length 0 stays what it is.

    Args:
        student: float `[R, L, D_S]`; computed in float32, or float64 if given.
        teacher: float `[R, L, D_T]`; gets no gradient.
        tokens: bool `[R, L]`, the real tokens; anything may stand at the others, NaN too.
        projection: $W$, float `[D_T, D_S]`; none needed where the widths are equal.

    Returns:
        `[R]`, in `[0, 2]`.

    Raises:
        TypeError: `tokens` is not of bool.
        ValueError: the widths differ and there is no projection, or the shapes do not fit.

    Example:
        >>> student, teacher = torch.tensor([[[3.0, 0.0]]]), torch.tensor([[[2.0, 2.0]]])
        >>> hidden_cosine(student, teacher, torch.tensor([[True]]))
        tensor([0.2929])
    """
    student, teacher = _projected(student, teacher, tokens, projection)
    return token_mean(0.5 * _unit_distance(student, teacher), tokens)


def first_token_distance(
    student: Tensor, teacher: Tensor, tokens: Tensor, projection: Tensor | None = None
) -> Tensor:
    r"""Compute $\| \hat x - \hat y \|^2$ of the first token, vectors of length 1 (PKD).

    Patient knowledge distillation, arXiv:1908.09355. The first real token is taken,
    which in a row that is padded on its left is not the first position.

    Args:
        student: float `[R, L, D_S]`; computed in float32, or float64 if given.
        teacher: float `[R, L, D_T]`; gets no gradient.
        tokens: bool `[R, L]`, the real tokens; anything may stand at the others, NaN too.
        projection: $W$, float `[D_T, D_S]`; none needed where the widths are equal.

    Returns:
        `[R]`, in `[0, 4]`.

    Raises:
        TypeError: `tokens` is not of bool.
        ValueError: the widths differ and there is no projection, or the shapes do not fit.

    Example:
        >>> student = torch.tensor([[[3.0, 0.0], [1.0, 1.0]]])
        >>> teacher = torch.tensor([[[0.0, 2.0], [1.0, 1.0]]])
        >>> first_token_distance(student, teacher, torch.tensor([[True, True]]))
        tensor([2.])
    """
    student, teacher = real_pair(student, teacher, "tokens", tokens, 2)
    rows = torch.arange(tokens.shape[0], device=tokens.device)
    # `argmax` takes the first of equals, and no booleans.
    first = tokens.int().argmax(1)
    student, teacher = student[rows, first], teacher[rows, first]
    return _unit_distance(_project(student, teacher, projection), teacher)


def fsp_distance(
    student_first: Tensor,
    student_second: Tensor,
    teacher_first: Tensor,
    teacher_second: Tensor,
    tokens: Tensor,
) -> Tensor:
    r"""Compute how differently two layers relate on both sides (flow of solution procedure).

    The mean over entries of $(G_S - G_T)^2$ with $G = \frac{1}{n} \sum_t a_t b_t^\top$, where $a$
    and $b$ are the hidden states of a layer and of a later one (Yim et al. 2017, "A Gift from
    Knowledge Distillation", CVPR). There $t$ goes over the places of an image, and the sum over
    entries is taken; their mean does not grow with the width.

    Args:
        student_first: float `[R, L, D_1]`; computed in float32, or float64 if given.
        student_second: float `[R, L, D_2]`.
        teacher_first: float `[R, L, D_1]`; gets no gradient.
        teacher_second: float `[R, L, D_2]`; gets no gradient.
        tokens: bool `[R, L]`, the real tokens; anything may stand at the others, NaN too.

    Returns:
        `[R]`.

    Raises:
        TypeError: `tokens` is not of bool.
        ValueError: the widths of student and teacher differ, or the shapes do not fit.

    Example:
        >>> ones, real = torch.ones(1, 2, 3), torch.tensor([[True, True]])
        >>> fsp_distance(ones, ones, ones, 3 * ones, real)
        tensor([4.])
    """
    _check_widths(student_first, teacher_first, "hand in the student's states projected")
    _check_widths(student_second, teacher_second, "hand in the student's states projected")
    first = real_pair(student_first, teacher_first, "tokens", tokens, 2)
    second = real_pair(student_second, teacher_second, "tokens", tokens, 2)
    dtype, counts = wide_dtype(*first, *second), tokens.sum(-1).clamp(min=1).reshape(-1, 1, 1)
    with torch.autocast(student_first.device.type, enabled=False):
        flows = [a.mT.to(dtype) @ b.to(dtype) for a, b in zip(first, second, strict=True)]
    return ((flows[0] - flows[1]) / counts).square().mean((1, 2))


def similarity_distance(student: Tensor, teacher: Tensor, tokens: Tensor) -> Tensor:
    r"""Compute how differently the tokens of a row resemble each other on both sides.

    The mean over all pairs of real tokens of $(\cos(s_i, s_j) - \cos(t_i, t_j))^2$. It is the
    matching of Gram matrices to which neuron selectivity transfer with the quadratic kernel comes
    down (arXiv:1707.01219), a maximum mean discrepancy. We deviate in normalising each
    token's vector, and not each dimension over the tokens: what two tokens have in common then does
    not depend on the others. The widths may differ, so no projection is needed.

    Args:
        student: float `[R, L, D_S]`; computed in float32, or float64 if given.
        teacher: float `[R, L, D_T]`; gets no gradient.
        tokens: bool `[R, L]`, the real tokens; anything may stand at the others, NaN too.

    Returns:
        `[R]`, in `[0, 4]`.

    Raises:
        TypeError: `tokens` is not of bool.
        ValueError: the shapes do not fit.

    Example:
        >>> student, teacher = torch.tensor([[[1.0], [1.0]]]), torch.eye(2).unsqueeze(0)
        >>> similarity_distance(student, teacher, torch.tensor([[True, True]]))
        tensor([0.5000])
    """
    sides = [F.normalize(x, dim=-1) for x in real_pair(student, teacher, "tokens", tokens, 2)]
    with torch.autocast(student.device.type, enabled=False):
        first, second = (x @ x.mT for x in sides)
    # A token that is not real is a vector of zeros here: its pairs add nothing.
    pairs = tokens.sum(-1).clamp(min=1).square()
    return (first - second).square().sum((1, 2)) / pairs


def initial_projection(student_width: int, teacher_width: int) -> Tensor:
    """Return the projection to start from: a truncated identity.

    A student that is cut out of its teacher then begins at the teacher's own coordinates.

    Args:
        student_width: $D_S$, at least 1.
        teacher_width: $D_T$, at least 1.

    Returns:
        float32 `[D_T, D_S]`, 1 where row and column are the same, else 0.

    Raises:
        ValueError: a width is below 1.

    Example:
        >>> initial_projection(2, 3).tolist()
        [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    """
    for name, width in (("student_width", student_width), ("teacher_width", teacher_width)):
        if width < 1:
            raise ValueError(f"{name} must be at least 1, got {width}")
    return torch.eye(teacher_width, student_width)


def _projected(
    student: Tensor, teacher: Tensor, tokens: Tensor, projection: Tensor | None
) -> tuple[Tensor, Tensor]:
    student, teacher = real_pair(student, teacher, "tokens", tokens, 2)
    return _project(student, teacher, projection), teacher


def _project(student: Tensor, teacher: Tensor, projection: Tensor | None) -> Tensor:
    if projection is None:
        _check_widths(student, teacher, "hand in a projection, see `initial_projection`")
        return student
    if projection.shape != (teacher.shape[-1], student.shape[-1]):
        raise ValueError(
            f"projection must have the shape {[teacher.shape[-1], student.shape[-1]]}, from the "
            f"student's width to the teacher's, got {list(projection.shape)}"
        )
    dtype = wide_dtype(student, projection)
    with torch.autocast(student.device.type, enabled=False):
        return F.linear(student.to(dtype), projection.to(dtype))


def _check_widths(student: Tensor, teacher: Tensor, remedy: str) -> None:
    if student.shape[-1] != teacher.shape[-1]:
        raise ValueError(
            f"student has width {student.shape[-1]}, teacher {teacher.shape[-1]}: {remedy}"
        )


def _unit_distance(student: Tensor, teacher: Tensor) -> Tensor:
    return (F.normalize(student, dim=-1) - F.normalize(teacher, dim=-1)).square().sum(-1)
