"""Sampling replacements, putting them in, and the loss of finding them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lmkit.functional.random import uniform
from lmkit.functional.replaced_token import (
    replace_tokens,
    sample_tokens,
    token_binary_cross_entropy,
)

# The 0.9999 quantile of chi-square by degrees of freedom.
CHI_SQUARE = {5: 25.7, 7: 29.9}


def some_text(rows=4, length=10, vocab=50, seed=0):
    """Masked ids, positions, originals and samples of which about a half is the original."""
    g = torch.Generator().manual_seed(seed)
    text = torch.randint(5, vocab, (rows, length), generator=g)
    positions = torch.randperm(rows * length, generator=g)[: rows * length // 4]
    originals = text.flatten()[positions]
    other = torch.randint(5, vocab, positions.shape, generator=g)
    sampled = torch.where(torch.rand(positions.shape, generator=g) < 0.5, originals, other)
    masked = text.flatten().index_fill(0, positions, 4).view_as(text)
    return text, masked, positions, sampled, originals


def test_samples_follow_the_softmax():
    torch.manual_seed(0)
    logits = torch.tensor([2.0, 0.0, -1.0, 1.0, 0.5, -2.0])
    count = 60_000
    drawn = sample_tokens(logits.expand(count, -1), uniform(torch.tensor(3), count))
    expected = logits.softmax(-1) * count
    chi = ((drawn.bincount(minlength=6) - expected) ** 2 / expected).sum()
    assert chi < CHI_SQUARE[5]


def test_samples_are_distributed_as_those_of_gumbel_noise():
    torch.manual_seed(0)
    logits, count = torch.randn(8), 40_000
    gumbel = -torch.empty(count, 8).exponential_().log()
    theirs = (logits + gumbel).argmax(-1).bincount(minlength=8).float()
    ours = sample_tokens(logits.expand(count, -1), torch.rand(count)).bincount(minlength=8).float()
    # Two samples of one size from one distribution.
    assert ((ours - theirs) ** 2 / (ours + theirs)).sum() < CHI_SQUARE[7]


def test_an_impossible_token_is_never_sampled_even_at_the_edges():
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf])
    draws = torch.tensor([0.0, 1e-30, 0.5 - 1e-9, 0.5, 1 - 1e-9, 1 - 2.0**-53], dtype=torch.float64)
    drawn = sample_tokens(logits.expand(6, -1), draws)
    assert set(drawn.tolist()) == {1, 3} and drawn[0] == 1 and drawn[-1] == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_certain_token_is_always_sampled_and_no_gradient_flows(dtype):
    logits = (F.one_hot(torch.tensor([3, 0, 29_999]), 30_000) * 200.0).to(dtype)
    drawn = sample_tokens(logits.requires_grad_(), torch.tensor([0.0, 0.7, 1 - 2.0**-53]))
    assert drawn.tolist() == [3, 0, 29_999] and not drawn.requires_grad


def test_no_position_gives_no_sample():
    assert sample_tokens(torch.zeros(0, 9), torch.zeros(0)).shape == (0,)


def test_a_sample_depends_on_its_own_logits_and_draw_alone():
    torch.manual_seed(0)
    logits, draws = torch.randn(20, 99), torch.rand(20)
    whole = sample_tokens(logits, draws)
    parts = [sample_tokens(logits[i : i + 1], draws[i : i + 1]) for i in range(20)]
    assert torch.equal(whole, torch.cat(parts))


def test_labels_count_the_samples_that_are_not_the_original():
    text, masked, positions, sampled, originals = some_text()
    corrupted, replaced = replace_tokens(masked, positions, sampled, originals)
    assert replaced.sum() == (sampled != originals).sum() > 0
    assert torch.equal(replaced, corrupted != text)
    unselected = torch.ones(text.numel(), dtype=torch.bool).index_fill(0, positions, False)
    assert not replaced.flatten()[unselected].any()
    assert torch.equal(corrupted.flatten()[unselected], text.flatten()[unselected])


def test_a_generator_that_is_always_right_leaves_the_text_as_it_was():
    text, masked, positions, _, originals = some_text()
    corrupted, replaced = replace_tokens(masked, positions, originals, originals)
    assert torch.equal(corrupted, text) and not replaced.any()


def test_a_slot_without_a_token_replaces_nothing():
    ids = torch.tensor([[2, 4, 8, 3]])
    positions, originals = torch.tensor([1, 0, 0]), torch.tensor([6, -100, -100])
    corrupted, replaced = replace_tokens(ids, positions, torch.tensor([7, 7, 9]), originals)
    assert corrupted.tolist() == [[2, 7, 8, 3]]
    assert replaced.tolist() == [[False, True, False, False]]
    assert ids.tolist() == [[2, 4, 8, 3]], "the ids that were given are not touched"


def test_padding_changes_neither_loss_nor_gradient():
    torch.manual_seed(0)
    logits, targets = torch.randn(3, 7), torch.rand(3, 7) < 0.3
    real = torch.ones(3, 7, dtype=torch.bool)
    padded = F.pad(logits, (0, 5), value=torch.inf).requires_grad_()
    bare = logits.clone().requires_grad_()
    one, n = token_binary_cross_entropy(bare, targets, real)
    two, m = token_binary_cross_entropy(padded, F.pad(targets, (0, 5)), F.pad(real, (0, 5)))
    one.backward()
    two.backward()
    assert n == m == 21 and one.item() == pytest.approx(two.item(), abs=1e-7)
    assert torch.allclose(bare.grad, padded.grad[:, :7], atol=1e-8)
    assert not padded.grad[:, 7:].any()
    assert one.item() == pytest.approx(
        F.binary_cross_entropy_with_logits(logits, targets.float()).item(), abs=1e-7
    )


def test_batches_add_up_to_the_whole():
    torch.manual_seed(0)
    logits, targets, real = torch.randn(6, 5), torch.rand(6, 5) < 0.3, torch.rand(6, 5) < 0.7
    whole, count = token_binary_cross_entropy(logits, targets, real)
    parts = [token_binary_cross_entropy(logits[i], targets[i], real[i]) for i in range(6)]
    assert sum(n for _, n in parts) == count
    assert sum(loss * n for loss, n in parts) / count == pytest.approx(whole.item(), rel=1e-6)


def test_nothing_but_padding_gives_a_loss_of_zero_and_a_gradient_of_zero():
    logits = torch.randn(2, 3, requires_grad=True)
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    loss, count = token_binary_cross_entropy(logits, nothing, nothing)
    loss.backward()
    assert loss == 0 and count == 0 and not logits.grad.any()
