"""Prompts are the vectors, or what a perceptron or an LSTM in both directions makes of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lmkit.surgery.prompt_encoder import ENCODERS, SoftPrompt

P, WIDTH, HIDDEN = 5, 4, 3
EACH = pytest.mark.parametrize("encoder", ENCODERS)


def make(encoder: str) -> SoftPrompt:
    torch.manual_seed(0)
    return SoftPrompt(torch.randn(P, WIDTH), encoder, HIDDEN).double()


def recurrent(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """Run two layers of an LSTM in both directions, gate by gate."""
    for layer in range(2):
        sides = []
        for end in ("", "_reverse"):
            w, u, b, c = (
                weights[f"{kind}_{part}_l{layer}{end}"]
                for kind in ("weight", "bias")
                for part in ("ih", "hh")
            )
            h = cell = torch.zeros(HIDDEN, dtype=x.dtype)
            states = []
            for row in x.flip(0) if end else x:
                enter, forget, new, leave = (w @ row + u @ h + b + c).chunk(4)
                cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
                h = leave.sigmoid() * cell.tanh()
                states.append(h)
            sides.append(torch.stack(states[::-1] if end else states))
        x = torch.cat(sides, dim=1)
    return x


def perceptron(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    inner = x @ weights["0.weight"].T + weights["0.bias"]
    return inner.clamp(min=0) @ weights["2.weight"].T + weights["2.bias"]


@EACH
def test_prompts_are_what_the_formula_says(encoder: str) -> None:
    prompt = make(encoder)
    expected = prompt.vectors
    if encoder == "lstm":
        expected = recurrent(dict(prompt.encoder.recurrent.named_parameters()), expected)
    if encoder != "none":
        expected = perceptron(dict(prompt.encoder.perceptron.named_parameters()), expected)
    assert prompt().shape == (P, WIDTH)
    assert torch.allclose(prompt(), expected, atol=1e-12)


@EACH
def test_everything_in_it_learns(encoder: str) -> None:
    prompt = make(encoder)
    prompt().square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in prompt.parameters())


@EACH
def test_what_is_baked_is_computed_once_and_for_all(encoder: str) -> None:
    prompt = make(encoder)
    expected = prompt().detach().clone()
    for _ in range(2):
        prompt.bake()
        assert torch.equal(prompt(), expected)
    assert [name for name, _ in prompt.named_parameters()] == ["vectors"]


def test_one_prompt_of_a_perceptron_does_not_see_another() -> None:
    prompt, mixed = make("mlp"), make("lstm")
    for each, independent in ((prompt, True), (mixed, False)):
        before = each()[0].clone()
        with torch.no_grad():
            each.vectors[-1] += 1
        assert torch.equal(each()[0], before) == independent


@EACH
def test_it_starts_from_a_copy_and_in_its_type(encoder: str) -> None:
    table = nn.Parameter(torch.randn(P, WIDTH, dtype=torch.bfloat16))
    prompt = SoftPrompt(table.data, encoder, HIDDEN)
    assert {p.dtype for p in prompt.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        prompt.vectors.zero_()
    assert table.any()
