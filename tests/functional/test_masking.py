"""The corruption of the masked language model."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lmkit.functional import (
    choose_tokens,
    corrupt_tokens,
    label_positions,
    mix,
    token_budget,
    uniform,
)

VOCAB, MASK, SPECIALS = 1000, 4, 5


def rows(count: int = 400, length: int = 128) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(SPECIALS, VOCAB, (count, length), generator=generator)
    ids[:, 0], ids[:, -1] = 2, 3
    for row in range(count):
        ids[row, length - row % 40 :] = 0
    return ids, (ids >= SPECIALS)


def row_keys(count: int = 400, epoch: int = 0) -> Tensor:
    return torch.tensor([mix(7, epoch, row) for row in range(count)])


def corrupt(
    epoch: int = 0, rate: float = 0.15, exact: bool = False, **kwargs: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    ids, maskable = rows()
    keys = row_keys(epoch=epoch)
    chosen = choose_tokens(maskable, keys, rate, exact)
    settings = {"mask_token_id": MASK, "vocab_size": VOCAB, **kwargs}
    corrupted, labels = corrupt_tokens(ids, chosen, keys, **settings)
    assert torch.equal(labels != -100, chosen)
    return ids, maskable, corrupted, labels


def test_the_share_of_chosen_tokens_is_the_mask_rate_within_four_sigma() -> None:
    for rate in (0.15, 0.3):
        _, maskable, _, labels = corrupt(rate=rate)
        candidates, chosen = int(maskable.sum()), int((labels != -100).sum())
        sigma = math.sqrt(candidates * rate * (1 - rate))
        assert candidates > 40_000
        assert abs(chosen - rate * candidates) < 4 * sigma


@pytest.mark.parametrize("exact", [False, True])
def test_of_the_chosen_80_percent_are_masked_10_random_10_kept(exact: bool) -> None:
    ids, _, corrupted, labels = corrupt(exact=exact)
    chosen = labels != -100
    k = int(chosen.sum())
    masked = int(((corrupted == MASK) & chosen).sum())
    kept = int(((corrupted == ids) & chosen).sum())
    # A random token is the mask token, or the original, with probability 1/V each.
    e = 0.1 / VOCAB
    expected = [k * (0.8 + e), k * (0.1 - 2 * e), k * (0.1 + e)]
    observed = [masked, k - masked - kept, kept]
    chi2 = sum((o - x) ** 2 / x for o, x in zip(observed, expected, strict=True))
    assert chi2 < 13.8  # two degrees of freedom, p = 0.001


def test_an_exact_count_is_the_smallest_draws_of_each_row() -> None:
    _, maskable = rows()
    maskable[3] = False
    keys = row_keys()
    for rate in (0.01, 0.15, 1.0):
        chosen = choose_tokens(maskable, keys, rate, exact=True)
        for row, draw in enumerate(uniform(keys, maskable.shape[1]).tolist()):
            candidates = maskable[row].nonzero().flatten().tolist()
            budget = max(1, round(rate * len(candidates))) if candidates else 0
            expected = sorted(sorted(candidates, key=draw.__getitem__)[:budget])
            assert chosen[row].nonzero().flatten().tolist() == expected


def test_every_place_is_as_likely_to_be_chosen_by_an_exact_count() -> None:
    maskable = torch.ones(4000, 20, dtype=torch.bool)
    chosen = choose_tokens(maskable, row_keys(4000), 0.15, exact=True)
    counts = chosen.sum(0).double()
    assert counts.sum() == 4000 * 3
    assert float(((counts - 600) ** 2 / 600).sum()) < 19 + 5 * math.sqrt(38)


def test_a_rate_of_zero_chooses_nothing_and_a_rate_of_one_everything() -> None:
    _, maskable = rows(20)
    for exact in (False, True):
        assert not choose_tokens(maskable, row_keys(20), 0.0, exact).any()
        assert torch.equal(choose_tokens(maskable, row_keys(20), 1.0, exact), maskable)


def test_the_budget_is_bert_s() -> None:
    candidates = np.arange(600)
    expected = [max(1, round(0.15 * n)) if n else 0 for n in range(600)]
    assert token_budget(candidates, 0.15).tolist() == expected


@pytest.mark.parametrize("some", [False, True])
def test_random_tokens_are_uniform_over_what_is_allowed(some: bool) -> None:
    ids, chosen = rows()
    size = 50 if some else 70
    allowed = torch.arange(SPECIALS, SPECIALS + 50) if some else torch.arange(70)
    corrupted, labels = corrupt_tokens(
        ids,
        chosen,
        row_keys(),
        mask_token_id=MASK,
        vocab_size=70,
        mask_share=0.3,
        random_share=0.7,
        random_ids=allowed if some else None,
    )
    changed = corrupted[(labels != -100) & (corrupted != MASK) & (corrupted != ids)]
    counts = torch.bincount(changed, minlength=VOCAB)
    allowed = allowed[allowed != MASK]
    assert counts.sum() == counts[allowed].sum()
    mean = counts[allowed].double().mean()
    assert float(((counts[allowed] - mean) ** 2 / mean).sum()) < size + 5 * math.sqrt(2 * size)


@pytest.mark.parametrize("exact", [False, True])
def test_special_tokens_and_unchosen_tokens_stay_as_they_are(exact: bool) -> None:
    ids, maskable, corrupted, labels = corrupt(exact=exact)
    assert not ((labels != -100) & ~maskable).any()
    assert torch.equal(corrupted[labels == -100], ids[labels == -100])
    assert torch.equal(labels[labels != -100], ids[labels != -100])


@pytest.mark.parametrize("exact", [False, True])
def test_the_mask_of_a_row_depends_on_its_key_alone(exact: bool) -> None:
    ids, maskable = rows(50)
    maskable[:, 40:] = False
    keys = row_keys(50)

    def run(which: slice | Tensor, width: int) -> Tensor:
        own = maskable[which][:, :width], keys[which]
        chosen = choose_tokens(*own, 0.15, exact)
        settings = {"mask_token_id": MASK, "vocab_size": VOCAB}
        return torch.stack(corrupt_tokens(ids[which][:, :width], chosen, own[1], **settings))

    whole = run(slice(None), 128)
    some = torch.tensor([31, 4])
    assert torch.equal(run(some, 128), whole[:, some])
    assert torch.equal(run(slice(None), 40), whole[:, :, :40])


def test_two_epochs_choose_independently() -> None:
    first, second = (corrupt(epoch)[3] != -100 for epoch in (0, 1))
    jaccard = float((first & second).sum()) / float((first | second).sum())
    assert abs(jaccard - 0.15 / (2 - 0.15)) < 0.01


def test_label_positions_name_each_labelled_column_once() -> None:
    _, _, _, labels = corrupt()
    chosen = labels != -100
    chosen[5] = False
    slots = int(chosen.sum(1).max()) + 2
    positions = label_positions(chosen, slots)
    assert positions.shape == (len(chosen), slots) and positions.dtype == torch.int64
    for row in range(len(chosen)):
        own = chosen[row].nonzero().flatten()
        assert torch.equal(positions[row, : len(own)], own)
        assert not chosen[row, positions[row, len(own) :]].any()


def test_too_few_slots_for_the_labels_are_refused() -> None:
    chosen = torch.tensor([[True, False, True], [True, True, True]])
    assert label_positions(chosen[1:], 3).tolist() == [[0, 1, 2]]
    with pytest.raises(ValueError, match=r"slots must be at least 2, .* got 1"):
        label_positions(chosen[:1], 1)
    with pytest.raises(ValueError, match=r"slots must be at most 3, .* got 4"):
        label_positions(chosen, 4)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"mask_share": -0.1}, "mask_share"),
        ({"random_share": 1.5}, "random_share"),
        ({"mask_share": 0.8, "random_share": 0.3}, "at most 1"),
    ],
)
def test_a_share_outside_its_range_is_refused(kwargs: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        corrupt(**kwargs)
