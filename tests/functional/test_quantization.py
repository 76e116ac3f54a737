"""Rounding is that of independent references in float64, torchao's and ONNX's; gradients pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lmkit.functional.quantization import (
    affine_parameters,
    dequantize,
    dequantize_weight,
    fake_quantize,
    fake_quantize_input,
    fake_quantize_weight,
    input_parameters,
    quantize,
    quantize_weight,
    weight_range,
    weight_scale,
)

GRIDS = [(8, 0), (8, 4), (4, 0), (4, 8), (2, 0), (3, 4)]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Draw numbers with a few that are far larger than the others."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    far = torch.rand(*shape, generator=generator) < 0.05
    return torch.where(far, 20 * x, x).to(dtype)


def by_hand(row: np.ndarray, bits: int) -> tuple[list[int], float]:
    """Round one group of weights, number by number."""
    low, high = weight_range(bits)
    scale = max(max(row) / high, min(row) / low)
    whole = []
    for number in row:
        below = int(np.floor(number / scale))
        rest = number / scale - below
        up = rest > 0.5 or (rest == 0.5 and below % 2 == 1)
        whole.append(min(max(below + int(up), low), high))
    return whole, scale


@pytest.mark.parametrize(("bits", "group"), GRIDS)
def test_weights_are_those_of_a_plain_loop(bits: int, group: int) -> None:
    weight = draw(5, 16)
    whole, scale = quantize_weight(weight, bits, group)
    size = group or 16
    assert whole.dtype == torch.int8 and scale.shape == (5, 16 // size)
    for row in range(5):
        for first in range(0, 16, size):
            expected, step = by_hand(weight[row, first : first + size].numpy(), bits)
            assert whole[row, first : first + size].tolist() == expected
            assert scale[row, first // size].item() == pytest.approx(step, rel=1e-15)


@pytest.mark.parametrize(("bits", "group"), GRIDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_error_is_at_most_half_a_step(bits: int, group: int, dtype: torch.dtype) -> None:
    weight = draw(200, 64, dtype=dtype)
    whole, scale = quantize_weight(weight, bits, group)
    steps = scale.repeat_interleave(64 // scale.shape[1], 1)
    gap = (weight - dequantize_weight(whole, scale)).abs()
    assert (gap <= steps / 2 * (1 + 1e-4)).all()
    assert gap.max() > 0.4 * steps.min()  # it is rounded at all


@pytest.mark.parametrize(("bits", "group"), GRIDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_was_rounded_is_rounded_to_itself(bits: int, group: int, dtype: torch.dtype) -> None:
    whole, scale = quantize_weight(draw(200, 64, dtype=dtype), bits, group)
    rounded = dequantize_weight(whole, scale)
    # With the scales of before, and with scales that are computed anew.
    low, high = weight_range(bits)
    groups = rounded.unflatten(-1, (scale.shape[1], -1))
    assert torch.equal(quantize(groups, scale.unsqueeze(-1), 0, low, high).reshape(200, 64), whole)
    again, anew = quantize_weight(rounded, bits, group)
    assert torch.equal(again, whole) and torch.allclose(anew, scale, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("bits", "group"), GRIDS)
def test_fake_quantization_is_quantization_and_back_to_the_bit(bits: int, group: int) -> None:
    weight = draw(50, 32, dtype=torch.float32)
    expected = dequantize_weight(*quantize_weight(weight, bits, group))
    assert torch.equal(fake_quantize_weight(weight, bits, group), expected)
    learns = weight.clone().requires_grad_()
    assert torch.equal(fake_quantize_weight(learns, bits, group), expected)


def test_a_scale_does_not_change_the_whole_numbers_and_zeros_stay_zero() -> None:
    weight = draw(20, 16)
    weight[draw(20, 16, seed=1) > 0.3] = 0
    whole, scale = quantize_weight(weight)
    doubled, twice = quantize_weight(2 * weight)
    assert torch.equal(whole, doubled) and torch.equal(2 * scale, twice)
    assert torch.equal(whole[weight == 0], torch.zeros_like(whole[weight == 0]))
    assert (fake_quantize_weight(weight)[weight == 0] == 0).all()
    # The other way round only of 8 bits, whose range is the same on both sides.
    assert torch.equal(quantize_weight(-weight)[0], -whole)
    nothing, step = quantize_weight(torch.zeros(2, 4))
    assert not nothing.any() and (step > 0).all()
    assert torch.equal(fake_quantize_weight(torch.zeros(2, 4)), torch.zeros(2, 4))


def test_more_bits_and_smaller_groups_lose_less() -> None:
    weight = draw(64, 64)
    lost = [float((fake_quantize_weight(weight, b, g) - weight).norm()) for b, g in GRIDS]
    named = dict(zip(GRIDS, lost, strict=True))
    assert named[8, 4] < named[8, 0] < named[4, 8] < named[4, 0] < named[2, 0]
    assert named[8, 0] < 0.02 * weight.norm()


def test_half_precision_is_computed_with_in_float32() -> None:
    weight = draw(8, 16).bfloat16()
    whole, scale = quantize_weight(weight)
    assert scale.dtype == torch.float32
    assert torch.equal(whole, quantize_weight(weight.float())[0])
    rounded = fake_quantize_weight(weight)
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(rounded, fake_quantize_weight(weight.float()).bfloat16())


@pytest.mark.parametrize("granularity", ["per_token", "per_tensor"])
@pytest.mark.parametrize("shift", [-40.0, -2.0, 0.0, 3.0, 40.0])
def test_inputs_are_those_of_a_plain_formula_in_float64(granularity: Any, shift: float) -> None:
    x = draw(3, 5, 16) + shift
    scale, zero = input_parameters(x, granularity)
    axis = -1 if granularity == "per_token" else None
    low = np.minimum(x.numpy().min(axis, keepdims=True), 0.0)
    high = np.maximum(x.numpy().max(axis, keepdims=True), 0.0)
    step = (high - low) / 255
    point = np.clip(np.rint(-low / step), 0, 255)
    whole = np.clip(np.rint(x.numpy() / step) + point, 0, 255)
    assert np.allclose(scale.numpy().ravel(), step.ravel(), rtol=1e-15)
    assert np.array_equal(zero.numpy().ravel(), point.ravel())
    assert np.array_equal(quantize(x, scale, zero, 0, 255).numpy(), whole.astype(np.uint8))
    rounded = fake_quantize_input(x, scale, zero)
    assert np.allclose(rounded.numpy(), (whole - point) * step, rtol=1e-14, atol=1e-14)
    assert ((rounded - x).abs() <= scale / 2 * (1 + 1e-4)).all()
    again = fake_quantize_input(rounded, scale, zero)
    assert torch.allclose(again, rounded, rtol=1e-14, atol=1e-14)


def test_the_range_reaches_over_zero_which_is_exact() -> None:
    for low, high in ((2.0, 9.0), (-9.0, -2.0), (-3.0, 5.0), (0.0, 0.0)):
        scale, zero = affine_parameters(torch.tensor(low), torch.tensor(high))
        assert scale > 0 and 0 <= zero <= 255 and zero == zero.round()
        rounded = fake_quantize_input(torch.tensor([0.0]), scale, zero)
        assert rounded.item() == 0.0
        assert quantize(torch.tensor([0.0]), scale, zero, 0, 255).item() == zero


def test_a_token_is_rounded_alike_in_any_company() -> None:
    x = draw(4, 6, 8)
    whole = fake_quantize_input(x, *input_parameters(x, "per_token"))
    alone = fake_quantize_input(x[2:3], *input_parameters(x[2:3], "per_token"))
    assert torch.equal(whole[2:3], alone)
    joined = fake_quantize_input(x, *input_parameters(x, "per_tensor"))
    assert not torch.equal(
        joined[2:3], fake_quantize_input(x[2:3], *input_parameters(x[2:3], "per_tensor"))
    )


def test_inputs_are_rounded_as_torchao_does_bit_for_bit() -> None:
    qat = pytest.importorskip("torchao.quantization.qat")
    from torchao.quantization.qat.fake_quantizer import IntxFakeQuantizer

    config = qat.IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False)
    for shift in (-30.0, 0.0, 0.5, 30.0):
        x = draw(4, 7, 64, dtype=torch.float32) + shift
        own = fake_quantize_input(x, *input_parameters(x, "per_token"))
        assert torch.equal(own, IntxFakeQuantizer(config)(x))


@pytest.mark.parametrize(("bits", "group"), [(8, 0), (4, 0), (4, 16)])
def test_weights_are_rounded_as_torchao_does_with_the_same_steps(bits: int, group: int) -> None:
    pytest.importorskip("torchao")
    from torchao.quantization.quant_primitives import dequantize_affine, quantize_affine

    weight = draw(20, 64, dtype=torch.float32)
    low, high = weight_range(bits)
    whole, scale = quantize_weight(weight, bits, group)
    block = (1, group or 64)
    zero = torch.zeros_like(scale, dtype=torch.int8)
    theirs = quantize_affine(weight, block, scale, zero, torch.int8, low, high)
    assert torch.equal(whole, theirs)
    back = dequantize_affine(theirs, block, scale, zero, torch.int8, low, high)
    assert torch.equal(fake_quantize_weight(weight, bits, group), back)


def test_four_bits_have_the_steps_of_torchao_that_clip_nothing() -> None:
    pytest.importorskip("torchao")
    from torchao.quantization.quant_primitives import MappingType, choose_qparams_affine

    weight = draw(20, 64, dtype=torch.float32)
    scale, _ = choose_qparams_affine(
        weight, MappingType.SYMMETRIC_NO_CLIPPING_ERR, (1, 32), torch.int8, -8, 7, keepdim=True
    )
    assert torch.equal(weight_scale(weight, 4, 32), scale)


def test_inputs_are_rounded_as_onnx_runtime_does() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"])
    kinds = {"q": TensorProto.UINT8, "scale": TensorProto.FLOAT, "zero": TensorProto.UINT8}
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for shift in (-5.0, 0.0, 5.0):
        x = draw(6, 40, dtype=torch.float32) + shift
        q, scale, zero = session.run(None, {"x": x.numpy()})
        own_scale, own_zero = input_parameters(x, "per_tensor")
        assert own_scale.item() == pytest.approx(float(scale), rel=1e-6) and own_zero == int(zero)
        # They divide where we multiply by the reciprocal: halves may fall to either side.
        gaps = quantize(x, own_scale, own_zero, 0, 255).int() - torch.from_numpy(q).int()
        assert gaps.abs().max() <= 1 and (gaps != 0).float().mean() < 0.01


def test_gradients_pass_where_nothing_is_clipped_and_nowhere_else() -> None:
    x = torch.tensor([-9.0, -0.84, -0.8, 0.3, 0.7, 0.74, 0.76, 9.0], dtype=torch.float64)
    x.requires_grad_()
    weights = torch.arange(1.0, 9.0, dtype=torch.float64)
    (fake_quantize(x, torch.tensor(0.1, dtype=torch.float64), 0, -8, 7) * weights).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.0, 0.0]
    # A range that was computed from the numbers clips none of them.
    for granularity in ("per_token", "per_tensor"):
        y = draw(9, 32, dtype=torch.float32).requires_grad_()
        fake_quantize_input(y, *input_parameters(y, granularity)).backward(torch.ones(9, 32))
        assert torch.equal(y.grad, torch.ones(9, 32))
    for bits, group in GRIDS:
        w = draw(9, 32, dtype=torch.float32).requires_grad_()
        fake_quantize_weight(w, bits, group).backward(torch.full((9, 32), 2.0))
        assert torch.equal(w.grad, torch.full((9, 32), 2.0))


def test_the_extremes_of_an_even_range_keep_their_gradient() -> None:
    # Both ends are 127.5 steps from zero, and both round up: one step too many for 8 bits.
    x = torch.tensor([[-1.0, 0.2, 1.0]], requires_grad=True)
    scale, zero = input_parameters(x, "per_token")
    fake_quantize_input(x, scale, zero).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [[1.0, 1.0, 1.0]]
    assert ((fake_quantize_input(x, scale, zero) - x).abs() <= scale / 2 * (1 + 1e-4)).all()


def test_whole_numbers_stand_for_what_the_formula_says() -> None:
    q = torch.tensor([[0, 255, 7]], dtype=torch.uint8)
    assert dequantize(q, torch.tensor(0.5), 7).tolist() == [[-3.5, 124.0, 0.0]]
    assert quantize(torch.tensor([0.5, 1.5, 2.5, -0.5]), torch.tensor(1.0)).tolist() == [0, 2, 2, 0]
    assert quantize(torch.tensor([1e9, -1e9]), torch.tensor(1.0)).tolist() == [127, -127]


def test_what_lies_outside_is_refused() -> None:
    for bits in (1, 9, 4.0, True, "8"):
        with pytest.raises(ValueError, match="bits must be a whole number from 2 to 8, got"):
            weight_range(bits)  # type: ignore[arg-type]
    for group in (3, -1, 32):
        with pytest.raises(ValueError, match=r"must divide the 16 inputs.*got"):
            weight_scale(draw(2, 16), 8, group)
    with pytest.raises(ValueError, match="per_token or per_tensor, got 'per_row'"):
        input_parameters(draw(2, 3), "per_row")  # type: ignore[arg-type]
