"""What is cut off: how much, of what, and what it depends on."""

import pytest
import torch

from lmkit.functional.cutoff import cut_features, cut_span, cut_tokens

ROWS, LENGTH = 300, 12
TEXT = (torch.arange(ROWS) * 1000).unsqueeze(1).expand(ROWS, LENGTH)
KEYS = TEXT * 7919 + torch.arange(LENGTH)
FREE = (torch.arange(LENGTH) > 0) & (torch.arange(LENGTH) < 3 + torch.arange(ROWS).unsqueeze(1) % 9)


@pytest.mark.parametrize("ratio", [0.0, 0.15, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["tokens", "span"])
def test_the_share_of_each_text_is_cut_off(kind, ratio):
    cut = cut_tokens(KEYS, TEXT, FREE, ratio) if kind == "tokens" else cut_span(TEXT, FREE, ratio)
    assert not (cut & ~FREE).any()
    wanted, made = ratio * FREE.sum(1), cut.sum(1)
    # Rounded up or down, and neither more often than is fair.
    assert ((made - wanted).abs() < 1).all()
    assert abs((made - wanted).mean().item()) < 0.06


def test_each_token_is_as_likely_to_go():
    free = torch.ones(ROWS, LENGTH, dtype=torch.bool)
    share = cut_tokens(KEYS, TEXT, free, 0.25).float().mean(0)
    assert torch.allclose(share, torch.full((LENGTH,), 0.25), atol=0.1)


def test_a_span_is_in_one_piece_of_free_tokens_and_may_be_anywhere():
    cut = cut_span(TEXT, FREE, 0.4)
    starts = set()
    for row in range(ROWS):
        ranks = [n for n, t in enumerate(FREE[row].nonzero().flatten()) if cut[row, t]]
        if ranks:
            assert ranks == list(range(ranks[0], ranks[-1] + 1))
            starts.add(ranks[0])
    assert {0, 1, 2, 3} <= starts


def test_features_go_from_all_tokens_of_a_text():
    cut = cut_features(TEXT[:, :1], 10, 0.3)
    assert cut.shape == (ROWS, 1, 10) and bool((cut.sum(-1) == 3).all())
    assert torch.allclose(cut.float().mean((0, 1)), torch.full((10,), 0.3), atol=0.1)
    packed = cut_features(TEXT[:3], 10, 0.3)
    assert torch.equal(packed, cut[:3].expand(3, LENGTH, 10))


def test_what_goes_depends_on_the_text_alone():
    whole = cut_tokens(KEYS, TEXT, FREE, 0.4)
    assert torch.equal(cut_tokens(KEYS[5:9], TEXT[5:9], FREE[5:9], 0.4), whole[5:9])
    span = cut_span(TEXT, FREE, 0.4)
    assert torch.equal(cut_span(TEXT[5:9], FREE[5:9], 0.4), span[5:9])
    other = cut_tokens(KEYS + 1, TEXT + 1, FREE, 0.4)
    assert not torch.equal(other, whole)


@pytest.mark.parametrize("kind", ["tokens", "span"])
def test_packed_texts_lose_what_each_loses_alone(kind):
    segments = torch.tensor([[1, 1, 1, 1, 2, 2, 2, 0]])
    free = torch.tensor([[0, 1, 1, 1, 1, 1, 1, 0]]).bool()
    text = torch.tensor([[50, 50, 50, 50, 90, 90, 90, 0]])
    keys = text * 100 + torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0]])

    def cut(part):
        how = free[:, part], 0.5
        if kind == "span":
            return cut_span(text[:, part], *how)
        return cut_tokens(keys[:, part], text[:, part], *how)

    made = (
        cut_span(text, free, 0.5, segments)
        if kind == "span"
        else cut_tokens(keys, text, free, 0.5, segments)
    )
    assert torch.equal(made[:, :4], cut(slice(0, 4)))
    assert torch.equal(made[:, 4:7], cut(slice(4, 7)))
    assert not made[:, 7].any()
