"""What is pruned is zero, scores move as in the paper, and a state brings all of it back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lmkit.callbacks.weight_masks import PrunedWeight, WeightMasks


def weights(*shapes: tuple[int, int], seed: int = 0) -> dict[str, PrunedWeight]:
    draw = torch.Generator().manual_seed(seed)
    made = [torch.randn(shape, dtype=torch.float64, generator=draw) for shape in shapes]
    return {f"w{i}": PrunedWeight(nn.Parameter(tensor)) for i, tensor in enumerate(made)}


def begin(
    criterion: str = "magnitude", scope: str = "local", target: float = 0.9, **settings: Any
) -> WeightMasks:
    masks = WeightMasks(criterion, scope, **settings)
    masks.start(weights((4, 6), (3, 8)), target)
    return masks


def zeros(masks: WeightMasks) -> list[int]:
    return [int((each.weight == 0).sum()) for each in masks.weights.values()]


def push(masks: WeightMasks, seed: int, factor: float = 1.0) -> None:
    """Give the weights gradients, and look at them."""
    draw = torch.Generator().manual_seed(seed)
    for weight, _ in masks.weights.values():
        weight.grad = torch.randn(weight.shape, dtype=weight.dtype, generator=draw)
    masks.observe(factor, {id(each.weight) for each in masks.weights.values()})


def test_the_smallest_become_zero_and_the_share_does_not_compound() -> None:
    masks = begin()
    before = [each.weight.detach().clone() for each in masks.weights.values()]
    for level in (0.25, 0.5, 0.5, 0.5):
        masks.choose(level)
    assert zeros(masks) == [12, 12] and masks.sparsity == masks.level == 0.5
    for (weight, _), old in zip(masks.weights.values(), before, strict=True):
        kept = weight != 0
        assert torch.equal(weight[kept], old[kept])
        assert old[kept].abs().min() > old[~kept].abs().max()


def test_a_weight_stays_pruned_whatever_becomes_of_the_others() -> None:
    masks = begin()
    masks.choose(0.5)
    before = {name: mask.clone() for name, mask in masks.pruned.items()}
    with torch.no_grad():
        for weight, _ in masks.weights.values():
            weight.normal_().mul_(1e-9)
    masks.apply()
    for name, (weight, _) in masks.weights.items():
        # No minus zero either, whose bits are not all zero.
        assert not weight[before[name]].any() and not weight[before[name]].signbit().any()
    masks.choose(0.75)
    assert all(not (old & ~masks.pruned[name]).any() for name, old in before.items())
    assert zeros(masks) == [18, 18]


def test_a_turned_weight_is_pruned_as_its_transpose() -> None:
    straight, turned = (WeightMasks("magnitude", "row", (2, 4)) for _ in range(2))
    value = torch.randn(5, 8)
    straight.start({"w": PrunedWeight(nn.Parameter(value.clone()))}, 0.5)
    turned.start({"w": PrunedWeight(nn.Parameter(value.T.clone()), is_turned=True)}, 0.5)
    for masks in (straight, turned):
        masks.choose(0.5)
    assert torch.equal(straight.pruned["w"], turned.pruned["w"].T)
    assert (straight.pruned["w"].view(5, 2, 4).sum(-1) == 2).all()


def test_gradients_of_what_is_pruned_are_dropped_for_the_weights_of_the_step_alone() -> None:
    masks = begin()
    masks.choose(0.5)
    for weight, _ in masks.weights.values():
        weight.grad = torch.ones_like(weight)
    first, second = (each.weight for each in masks.weights.values())
    masks.observe(1.0, {id(first)})
    assert torch.equal(first.grad == 0, masks.pruned["w0"]) and (second.grad == 1).all()
    second.grad = None
    masks.observe(1.0, {id(second)})


def test_masks_are_applied_to_copies_on_other_numbers() -> None:
    masks = begin()
    masks.choose(0.5)
    copy = torch.ones(4, 6)
    masks.apply_to({id(masks.weights["w0"].weight): copy})
    assert torch.equal(copy == 0, masks.pruned["w0"])


@pytest.mark.parametrize("criterion", ["movement", "soft_movement"])
def test_scores_move_only_when_the_step_is_done(criterion: str) -> None:
    masks = begin(criterion, penalty=0.0, score_rate=0.5)
    push(masks, 0, factor=2.0)
    assert masks.moves == 0 and not any(scores.any() for scores in masks.scores.values())
    expected = {
        name: -0.5 * 2.0 * (each.weight.grad * each.weight).detach().float()
        for name, each in masks.weights.items()
        if each.weight.grad is not None
    }
    masks.commit()
    masks.commit()
    assert masks.moves == 1
    for name, scores in masks.scores.items():
        assert torch.allclose(scores, expected[name], rtol=1e-6)


def test_the_penalty_of_soft_movement_is_for_the_mean_over_all_weights() -> None:
    masks = begin("soft_movement", penalty=3.0, score_rate=1.0)
    for _ in range(2):
        push(masks, 0, factor=0.0)
        masks.commit()
    # S <- S - 3 / 48 * s(S) (1 - s(S)), twice from 0.
    first = torch.tensor(-3 / 48 / 4, dtype=torch.float64)
    second = first - 3 / 48 * first.sigmoid() * (1 - first.sigmoid())
    for scores in masks.scores.values():
        assert torch.allclose(scores.double(), second.expand_as(scores), atol=1e-7)


def test_a_gradient_that_is_no_number_moves_no_score() -> None:
    masks = begin("movement")
    for weight, _ in masks.weights.values():
        weight.grad = torch.full_like(weight, torch.nan)
    masks.observe(1.0, {id(each.weight) for each in masks.weights.values()})
    masks.commit()
    assert all(scores.isfinite().all() for scores in masks.scores.values())


class _TopShare(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, pruned: int) -> Tensor:
        mask = torch.ones_like(scores).flatten()
        mask[scores.flatten().argsort(stable=True)[:pruned]] = 0.0
        return mask.view_as(scores)

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        return outputs[0], None


def test_movement_is_the_straight_through_estimator_step_by_step() -> None:
    """A layer trained with scores as parameters, against values that are masked between steps."""
    draw = torch.Generator().manual_seed(11)
    start, inputs, goal = (
        torch.randn(*shape, dtype=torch.float64, generator=draw)
        for shape in ((6, 8), (64, 8), (64, 6))
    )
    # 48 weights; pruned after each step.
    counts = [0, 10, 20, 26, 30, 34, *[36] * 20]
    weight, scores = (nn.Parameter(each) for each in (start.clone(), torch.zeros_like(start)))
    reference = torch.optim.SGD(
        [{"params": [weight], "lr": 0.3}, {"params": [scores], "lr": 0.5}], lr=0.0
    )

    own = nn.Parameter(start.clone())
    masks = WeightMasks("movement", "local", score_rate=0.5)
    masks.start({"w": PrunedWeight(own)}, 0.75)
    optimizer = torch.optim.SGD([own], lr=0.3)

    came_back, pruned = 0, 0
    for count in counts:
        reference.zero_grad()
        (inputs @ (weight * _TopShare.apply(scores, pruned)).T - goal).square().mean().backward()
        reference.step()
        optimizer.zero_grad()
        (inputs @ own.T - goal).square().mean().backward()
        masks.observe(1.0, {id(own)})
        optimizer.step()
        masks.commit()
        masks.apply()
        pruned, before = count, masks.pruned["w"].clone()
        masks.choose(count / 48)
        came_back += int((before & ~masks.pruned["w"]).sum())
        mask = _TopShare.apply(scores.detach(), pruned)
        assert torch.equal(masks.pruned["w"], mask == 0)
        assert torch.allclose(masks.scores["w"].double(), scores, atol=1e-6)
        assert torch.allclose(own.detach(), weight.detach() * mask, atol=1e-12)
        whole = own + masks.held["w"]
        assert torch.allclose(whole.detach(), weight.detach(), atol=1e-12)
    # Otherwise it would not show that what is held comes back.
    assert came_back > 3


def test_settled_masks_hold_nothing() -> None:
    masks = begin("movement")
    push(masks, 0)
    masks.commit()
    masks.choose(0.5)
    assert any(held.any() for held in masks.held.values())
    masks.settle()
    push(masks, 1)
    masks.commit()
    assert masks.moves == 1 and not masks.scores and not masks.held and zeros(masks) == [12, 12]


@pytest.mark.parametrize("criterion", ["magnitude", "movement", "soft_movement"])
def test_a_state_is_plain_and_brings_back_what_comes_next(criterion: str) -> None:
    def go_on(masks: WeightMasks) -> None:
        push(masks, 5)
        masks.commit()
        masks.choose(0.75)

    masks = begin(criterion)
    push(masks, 0)
    masks.commit()
    masks.choose(0.5)
    state = masks.state_dict()
    other = WeightMasks(criterion, "local")
    other.load_state_dict(state)
    copies = {
        n: PrunedWeight(nn.Parameter(w.detach().clone())) for n, (w, _) in masks.weights.items()
    }
    other.start(copies, 0.9)
    go_on(masks)
    assert not torch.equal(state["pruned"]["w0"], masks.pruned["w0"])
    go_on(other)
    for name in masks.weights:
        assert torch.equal(masks.weights[name].weight, other.weights[name].weight)
        assert torch.equal(masks.pruned[name], other.pruned[name])
    # The next start is a fresh one.
    assert WeightMasks("magnitude", "local").state_dict() == {}
    other.start(weights((4, 6)), 0.9)
    assert other.level == 0.0 and list(other.pruned) == ["w0"]


def test_what_was_zero_at_the_start_counts_and_stays() -> None:
    for criterion in ("magnitude", "random", "movement"):
        found = weights((4, 6), (3, 8))
        with torch.no_grad():
            found["w0"].weight[:2] = 0.0
        masks = WeightMasks(criterion, "local")
        masks.start(found, 0.75)
        assert masks.initial == masks.level == masks.sparsity == 0.25
        with torch.no_grad():
            found["w0"].weight[0] = 5.0
        push(masks, 0)
        masks.commit()
        masks.apply()
        masks.choose(0.75)
        assert zeros(masks) == [18, 18] and not found["w0"].weight[:2].any()


@pytest.mark.parametrize(
    ("scope", "pattern", "target"),
    [("local", None, 0.25), ("row", None, 0.75), ("global", None, 0.2), ("local", (2, 4), 0.5)],
)
def test_more_zeros_than_the_target_are_refused(
    scope: str, pattern: tuple[int, int] | None, target: float
) -> None:
    found = weights((4, 8), (3, 8))
    with torch.no_grad():
        found["w0"].weight[:2] = 0.0
    masks = WeightMasks("magnitude", scope, pattern)
    with pytest.raises(
        ValueError, match=r"pruned already, to 28.6% zeros, and in w0 there are more"
    ):
        masks.start(found, target)


def test_a_matrix_of_zeros_is_refused() -> None:
    found = weights((4, 8), (3, 8))
    nn.init.zeros_(found["w1"].weight)
    with pytest.raises(ValueError, match="w1 is all zeros, which would be kept as pruned weights"):
        WeightMasks("magnitude", "global").start(found, 0.9)


def test_a_state_of_other_weights_is_refused() -> None:
    state = begin().state_dict()
    for others in (weights((4, 6)), weights((4, 6), (8, 3))):
        masks = WeightMasks("magnitude", "local")
        masks.load_state_dict(state)
        with pytest.raises(ValueError, match=r"masks are of 2 weights, and \d are to be pruned"):
            masks.start(others, 0.9)


def test_there_is_nothing_to_choose_by_at_first() -> None:
    with pytest.raises(ValueError, match="'movement' has seen no step by which it could choose"):
        begin("movement").choose(0.5)
    with pytest.raises(ValueError, match="'wanda' has seen no inputs of w0"):
        begin("wanda", "row").choose(0.5)
    with pytest.raises(ValueError, match="'wanda' has seen no inputs of w1"):
        begin("wanda", "row").choose(0.5, {"w0": torch.ones(6)})


def test_wanda_weighs_by_what_is_read() -> None:
    masks = begin("wanda", "row")
    first = masks.weights["w0"].weight.detach().clone()
    norms = torch.tensor([1.0, 10.0, 0.1, 2.0, 5.0, 0.5])
    masks.choose(0.5, {"w0": norms, "w1": torch.ones(8)})
    for i in range(4):
        by_hand = sorted(range(6), key=lambda j: abs(float(first[i, j])) * float(norms[j]))
        assert sorted(by_hand[:3]) == masks.pruned["w0"][i].nonzero().flatten().tolist()
