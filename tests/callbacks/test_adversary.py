"""The perturbations of a batch: bounds, masks, starts, steps; what is refused."""

import pytest
import torch

from lmkit.callbacks.adversary import Adversary, check_share
from lmkit.callbacks.perturbed_embedding import Tokens
from lmkit.functional.adversarial import NORMS, ball_norm, relative_radius

WORDS = torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(0))
FREE = torch.tensor(
    [[0, 1, 1, 1, 1, 0], [0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]], dtype=torch.bool
).unsqueeze(-1)
TEXT = (torch.arange(3) * 1000).unsqueeze(1).expand(3, 6)
TOKENS = Tokens(FREE, None, TEXT, torch.arange(6).expand(3, 6))


def made(norm="sentence", epsilon=0.1, relative=True):
    adversary = Adversary(epsilon, relative, norm)
    adversary.begin(7)
    adversary.meet(0, TOKENS, WORDS)
    return adversary


def drawn(seed):
    return torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("noise", ["uniform", "normal"])
def test_whatever_happens_the_bound_holds_and_what_is_not_free_stays(noise, norm):
    adversary = made(norm)
    adversary.start(1.0, noise)
    for seed in range(6):
        (each,) = adversary.perturbations
        assert bool((ball_norm(each.delta, norm) <= each.radius * (1 + 1e-6)).all())
        assert not each.delta[~FREE.expand_as(each.delta)].any() and each.delta.any()
        gradient = drawn(seed)
        gradient[0, 1, 0] = torch.nan
        adversary.climb([gradient], 0.7, "unit" if seed % 2 else "peak")


def test_the_radius_is_a_share_of_the_embeddings_or_the_bound_itself():
    (each,) = made(epsilon=0.2).perturbations
    assert torch.equal(each.radius, relative_radius(WORDS, FREE, 0.2))
    (each,) = made(epsilon=0.2, relative=False).perturbations
    assert each.radius.item() == pytest.approx(0.2)


def test_one_full_step_from_zero_lands_on_the_bound_along_the_gradient():
    adversary, gradient = made(), drawn(1)
    adversary.climb([gradient], 1.0)
    (each,) = adversary.perturbations
    for row in range(2):
        g = (gradient[row] * FREE[row]).double()
        expected = each.radius[row].double() * g / g.norm()
        assert torch.allclose(each.delta[row].double(), expected, atol=1e-7)
    assert not each.delta[2].any()
    adversary.aim([gradient], 0.5)
    assert torch.allclose(adversary.perturbations[0].delta, each.delta / 2)


def test_a_call_without_a_gradient_stays_and_none_at_all_is_told():
    adversary = made()
    adversary.meet(1, TOKENS, WORDS)
    adversary.climb([None, drawn(1)], 1.0)
    first, second = adversary.perturbations
    assert not first.delta.any() and second.delta.any()
    with pytest.raises(ValueError, match="the loss does not depend on the embeddings"):
        adversary.climb([None, None], 1.0)


def test_starts_are_functions_of_stream_text_and_call():
    first = made()
    first.meet(1, TOKENS, WORDS)
    first.start(1.0)
    one, other = (each.delta for each in first.perturbations)
    assert not torch.equal(one, other)
    again = made()
    again.start_call(0, 1.0)
    assert torch.equal(again.perturbations[0].delta, one)
    again.begin(8)
    again.meet(0, TOKENS, WORDS)
    again.start(1.0)
    assert not torch.equal(again.perturbations[0].delta, one)


def test_it_is_added_in_the_type_of_the_embeddings_and_has_a_gradient():
    adversary = made()
    adversary.start(1.0)
    (leaf,) = adversary.leaves()
    words = WORDS.bfloat16()
    moved = adversary.move(0, TOKENS, words)
    assert moved.dtype == torch.bfloat16 and torch.equal(moved, words + leaf.detach().bfloat16())
    moved.float().square().sum().backward()
    assert leaf.grad.dtype == torch.float32 and leaf.grad.any()
    adversary.freeze()
    assert not adversary.perturbations[0].delta.requires_grad
    assert torch.equal(adversary.record(1, TOKENS, WORDS), WORDS)


def test_more_calls_than_before_are_told():
    with pytest.raises(ValueError, match="more often than the first, which had 1 calls"):
        made().add(1, WORDS)


def test_what_lies_outside_its_range_is_refused():
    with pytest.raises(ValueError, match="epsilon must be at least 0, got nan"):
        Adversary(float("nan"))
    with pytest.raises(ValueError, match="norm must be one of"):
        Adversary(0.1, norm="batch")
    with pytest.raises(ValueError, match=r"x must be at least 0\.0, got -1"):
        check_share("x", -1, 0.0)
    check_share("x", 7.0, 0.0)
