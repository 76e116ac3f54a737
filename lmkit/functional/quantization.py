"""Numbers of few bits: their steps, and rounding that has a gradient."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor

__all__ = [
    "INPUT_BITS",
    "affine_parameters",
    "dequantize",
    "dequantize_weight",
    "fake_quantize",
    "fake_quantize_input",
    "fake_quantize_weight",
    "input_parameters",
    "quantize",
    "quantize_weight",
    "weight_range",
    "weight_scale",
]

#: What layers read is rounded to unsigned numbers of so many bits.
INPUT_BITS = 8


def weight_range(bits: int) -> tuple[int, int]:
    r"""Return the least and the largest whole number of weights, $(q_-, q_+)$.

    $[-127, 127]$ of 8 bits, as ONNX Runtime has it; of fewer bits all of them,
    $[-2^{b-1}, 2^{b-1} - 1]$, for there one of them is a great part.

    Args:
        bits: $b$, from 2 to 8.

    Raises:
        ValueError: `bits` lies outside its range.

    Example:
        >>> weight_range(8), weight_range(4)
        ((-127, 127), (-8, 7))
    """
    if type(bits) is bool or not isinstance(bits, int) or not 2 <= bits <= 8:
        raise ValueError(f"bits must be a whole number from 2 to 8, got {bits!r}")
    half: int = 2 ** (bits - 1)
    return (-127, 127) if bits == 8 else (-half, half - 1)


def weight_scale(weight: Tensor, bits: int = 8, group_size: int = 0) -> Tensor:
    r"""Compute the step of each output, or of each group of its inputs: nothing is clipped.

    $$s = \max\left(\frac{\max_j w_j}{q_+}, \frac{\min_j w_j}{q_-}\right)$$

    The weight farthest from zero is a multiple of $s$, so what was rounded once is rounded to
    itself, with scales that are computed anew too.

    Args:
        weight: float `[..., i]`; float16 and bfloat16 are computed with in float32.
        bits: of a number.
        group_size: how many inputs share a step; 0 for all of an output. It must divide $i$.

    Returns:
        `[..., i / group_size]`, or `[..., 1]`; above 0.

    Raises:
        ValueError: the groups do not fit.

    Example:
        >>> weight_scale(torch.tensor([[1.27, -0.5], [0.0, -2.54]]))
        tensor([[0.0100],
                [0.0200]])
    """
    low, high = weight_range(bits)
    groups = _by_group(_wide(weight), group_size)
    least, most = torch.aminmax(groups, dim=-1)
    scale = torch.maximum(most / high, least / low)
    return scale.clamp_min(torch.finfo(scale.dtype).tiny)


def quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor | int = 0, low: int = -127, high: int = 127
) -> Tensor:
    r"""Round to whole numbers: $q = \min(\max(\lfloor x / s \rceil + z, q_-), q_+)$.

    Halves go to the even number. As torchao has it, $x$ is multiplied by $1 / s$.

    Args:
        x: float, of any shape.
        scale: $s$, above 0, broadcast to `x`.
        zero_point: $z$, what stands for 0.
        low: $q_-$.
        high: $q_+$.

    Returns:
        int8 of the shape of `x`; uint8 where `low` is not below 0.

    Example:
        >>> quantize(torch.tensor([0.26, -9.0, 0.25]), torch.tensor(0.1))
        tensor([ 3, -90,   2], dtype=torch.int8)
    """
    rounded = (_wide(x) * (1 / scale)).round_().add_(zero_point).clamp_(low, high)
    return rounded.to(torch.int8 if low < 0 else torch.uint8)


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor | int = 0) -> Tensor:
    r"""Return what whole numbers stand for: $\hat x = s (q - z)$.

    Args:
        q: whole numbers.
        scale: $s$, broadcast to `q`; its type is that of the result.
        zero_point: $z$.

    Example:
        >>> dequantize(torch.tensor([3, -90], dtype=torch.int8), torch.tensor(0.5))
        tensor([  1.5000, -45.0000])
    """
    return q.to(scale.dtype).sub_(zero_point).mul_(scale)


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor | int = 0, low: int = -127, high: int = 127
) -> Tensor:
    r"""Round to what can be represented, and let the gradient pass: straight-through.

    $\hat x = s (q - z)$ with $q$ of `quantize`, in floating-point numbers. Where $x$ is clipped by
    more than half a step the gradient is 0, elsewhere that of $\hat x$; the scale has none
    (arXiv:1308.3432, arXiv:1712.05877).

    Args:
        x: float, of any shape; float16 and bfloat16 are computed with in float32.
        scale: $s$, above 0, broadcast to `x`.
        zero_point: $z$.
        low: $q_-$.
        high: $q_+$.

    Returns:
        Of the shape and type of `x`.

    Example:
        >>> x = torch.tensor([0.26, 9.0], requires_grad=True)
        >>> fake_quantize(x, torch.tensor(0.1), 0, -8, 7).sum().backward()
        >>> x.grad
        tensor([1., 0.])
    """
    return cast(Tensor, _StraightThrough.apply(x, scale, zero_point, low, high))


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor | int, low: int, high: int
    ) -> Tensor:
        steps = _wide(x) * (1 / scale)
        if ctx.needs_input_grad[0]:
            exact = steps + zero_point
            rounded = steps.round_().add_(zero_point).clamp_(low, high)
            # Half a step beyond an end is no farther than rounding goes anywhere.
            ctx.save_for_backward(exact.sub_(rounded).abs_() <= 0.5)
        else:
            rounded = steps.round_().add_(zero_point).clamp_(low, high)
        return rounded.sub_(zero_point).mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (inside,) = ctx.saved_tensors
        return gradient * inside, None, None, None, None


def quantize_weight(weight: Tensor, bits: int = 8, group_size: int = 0) -> tuple[Tensor, Tensor]:
    r"""Round weights with the steps of `weight_scale`: off by at most half a step.

    Args:
        weight: float `[..., i]`.
        bits: of a number.
        group_size: how many inputs share a step; 0 for all of an output.

    Returns:
        int8 `[..., i]`, and the scale `[..., g]`.

    Example:
        >>> quantize_weight(torch.tensor([[1.27, -0.5]]))
        (tensor([[127, -50]], dtype=torch.int8), tensor([[0.0100]]))
    """
    low, high = weight_range(bits)
    scale = weight_scale(weight, bits, group_size)
    rounded = quantize(_by_group(weight, group_size), scale.unsqueeze(-1), 0, low, high)
    return rounded.reshape(weight.shape), scale


def dequantize_weight(q: Tensor, scale: Tensor) -> Tensor:
    """Return the weights that `quantize_weight` has rounded.

    Args:
        q: int8 `[..., i]`.
        scale: `[..., g]`, where $g$ divides $i$.

    Example:
        >>> dequantize_weight(*quantize_weight(torch.tensor([[1.27, -0.5]])))
        tensor([[ 1.2700, -0.5000]])
    """
    groups = _by_group(q, q.shape[-1] // scale.shape[-1])
    return dequantize(groups, scale.unsqueeze(-1)).reshape(q.shape)


def fake_quantize_weight(weight: Tensor, bits: int = 8, group_size: int = 0) -> Tensor:
    """Return what `dequantize_weight` makes of `quantize_weight`, to the bit, with a gradient.

    Args:
        weight: float `[..., i]`.
        bits: of a number.
        group_size: how many inputs share a step; 0 for all of an output.

    """
    low, high = weight_range(bits)
    scale = weight_scale(weight.detach(), bits, group_size).unsqueeze(-1)
    groups = _by_group(weight, group_size)
    return fake_quantize(groups, scale, 0, low, high).reshape(weight.shape)


def affine_parameters(least: Tensor, most: Tensor, bits: int = INPUT_BITS) -> tuple[Tensor, Tensor]:
    r"""Compute step and zero point of unsigned numbers that reach over a range and over 0.

    $$s = \frac{x_+ - x_-}{2^b - 1}, \qquad z = \lfloor -x_- / s \rceil, \qquad
    x_- = \min(x_{\min}, 0), \quad x_+ = \max(x_{\max}, 0)$$

    Zero itself is represented exactly. ONNX Runtime's `DynamicQuantizeLinear` computes the same.

    Args:
        least: $x_{\min}$, of any shape.
        most: $x_{\max}$, of the same shape.
        bits: $b$.

    Returns:
        $s$, above 0, and $z$, a whole number in $[0, 2^b - 1]$; both float, of the same shape.

    Example:
        >>> affine_parameters(torch.tensor(-1.0), torch.tensor(1.55))
        (tensor(0.0100), tensor(100.))
    """
    high = 2**bits - 1
    below, above = least.clamp_max(0), most.clamp_min(0)
    scale = ((above - below) / high).clamp_min(torch.finfo(below.dtype).tiny)
    return scale, (-(below / scale).round()).clamp(0, high)


def input_parameters(x: Tensor, granularity: Literal["per_token", "per_tensor"]) -> tuple[Any, Any]:
    """Compute step and zero point of what a layer reads, from the numbers themselves.

    Args:
        x: float `[..., i]`, not empty; float16 and bfloat16 are computed with in float32.
        granularity: `"per_token"` for one of each row, `[..., 1]`; `"per_tensor"` for one of all.

    Raises:
        ValueError: the granularity is none of these.

    Example:
        >>> [t.shape for t in input_parameters(torch.ones(2, 3, 4), "per_token")]
        [torch.Size([2, 3, 1]), torch.Size([2, 3, 1])]
    """
    wide = _wide(x.detach())
    if granularity == "per_token":
        return affine_parameters(*torch.aminmax(wide, dim=-1, keepdim=True))
    if granularity != "per_tensor":
        raise ValueError(f"granularity must be per_token or per_tensor, got {granularity!r}")
    return affine_parameters(*torch.aminmax(wide))


def fake_quantize_input(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Round what a layer reads to unsigned numbers of 8 bits, with a gradient.

    Args:
        x: float, of any shape.
        scale: of `affine_parameters`, broadcast to `x`.
        zero_point: as well.

    Example:
        >>> fake_quantize_input(torch.tensor([-1.0, 0.26]), torch.tensor(0.1), torch.tensor(10))
        tensor([-1.0000,  0.3000])
    """
    return fake_quantize(x, scale, zero_point, 0, 2**INPUT_BITS - 1)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _by_group(x: Tensor, group_size: int) -> Tensor:
    """View `[..., i]` as `[..., g, i / g]`."""
    width = x.shape[-1]
    size = group_size or width
    if size < 1 or width % size:
        raise ValueError(
            f"group_size must divide the {width} inputs of the weight, or be 0 for all of them, "
            f"got {group_size}"
        )
    grouped: Tensor = x.unflatten(-1, (-1, size))
    return grouped
