"""The corruption of the masked language model."""

import math

import pytest
import torch

from lmkit.functional import mask_tokens

VOCAB, MASK, SPECIALS = 1000, 4, 5


def rows(count: int = 400, length: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(SPECIALS, VOCAB, (count, length), generator=generator)
    ids[:, 0], ids[:, -1] = 2, 3
    return ids, (ids >= SPECIALS)


def corrupt(epoch: int = 0, rate: float = 0.15, **kwargs: float) -> tuple[torch.Tensor, ...]:
    ids, maskable = rows()
    keys = torch.arange(len(ids)) + 10_000 * epoch
    corrupted, labels = mask_tokens(
        ids, maskable, keys, mask_token_id=MASK, vocab_size=VOCAB, mask_rate=rate, **kwargs
    )
    return ids, maskable, corrupted, labels


def test_the_share_of_chosen_tokens_is_the_mask_rate_within_four_sigma() -> None:
    for rate in (0.15, 0.3):
        _, maskable, _, labels = corrupt(rate=rate)
        candidates, chosen = int(maskable.sum()), int((labels != -100).sum())
        sigma = math.sqrt(candidates * rate * (1 - rate))
        assert candidates > 40_000
        assert abs(chosen - rate * candidates) < 4 * sigma


def test_of_the_chosen_80_percent_are_masked_10_random_10_kept() -> None:
    ids, _, corrupted, labels = corrupt()
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


def test_random_tokens_are_uniform_over_what_is_allowed() -> None:
    ids, maskable = rows()
    allowed = torch.arange(SPECIALS, SPECIALS + 50)
    corrupted, labels = mask_tokens(
        ids,
        maskable,
        torch.arange(len(ids)),
        mask_token_id=MASK,
        vocab_size=VOCAB,
        mask_rate=1.0,
        mask_share=0.0,
        random_share=1.0,
        random_ids=allowed,
    )
    drawn = corrupted[labels != -100]
    counts = torch.bincount(drawn, minlength=VOCAB)
    assert counts.sum() == counts[allowed].sum()
    mean = drawn.numel() / 50
    assert float(((counts[allowed] - mean) ** 2 / mean).sum()) < 49 + 5 * math.sqrt(98)


def test_special_tokens_and_unchosen_tokens_stay_as_they_are() -> None:
    ids, maskable, corrupted, labels = corrupt()
    assert not ((labels != -100) & ~maskable).any()
    assert torch.equal(corrupted[labels == -100], ids[labels == -100])
    assert torch.equal(labels[labels != -100], ids[labels != -100])


def test_the_mask_of_a_row_depends_on_its_key_alone() -> None:
    ids, maskable = rows(50)
    keys = torch.arange(50) * 7
    settings = {"mask_token_id": MASK, "vocab_size": VOCAB}
    whole, labels = mask_tokens(ids, maskable, keys, **settings)
    some = torch.tensor([31, 4])
    part, part_labels = mask_tokens(ids[some], maskable[some], keys[some], **settings)
    assert torch.equal(part, whole[some]) and torch.equal(part_labels, labels[some])
    short, short_labels = mask_tokens(ids[:, :40], maskable[:, :40], keys, **settings)
    assert torch.equal(short, whole[:, :40]) and torch.equal(short_labels, labels[:, :40])


def test_two_epochs_choose_independently() -> None:
    first, second = (corrupt(epoch)[3] != -100 for epoch in (0, 1))
    jaccard = float((first & second).sum()) / float((first | second).sum())
    assert abs(jaccard - 0.15 / (2 - 0.15)) < 0.01


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"rate": 1.5}, "mask_rate"),
        ({"mask_share": -0.1}, "mask_share"),
        ({"mask_share": 0.8, "random_share": 0.3}, "at most 1"),
    ],
)
def test_a_share_outside_its_range_is_refused(kwargs: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        corrupt(**kwargs)
