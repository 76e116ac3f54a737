"""The choice of whole words and of spans."""

import random
from collections import Counter

import pytest
import torch
from torch import Tensor

from lmkit.functional import (
    choose_spans,
    choose_words,
    geometric_lengths,
    mix,
    ngram_lengths,
    uniform,
)


def rows(count: int = 200, length: int = 96, pieces: int = 3) -> tuple[Tensor, Tensor]:
    """Rows of one to three texts with words of 1 to `pieces` tokens, padded differently."""
    rng = random.Random(0)
    words = torch.full((count, length), -1)
    for row in range(count):
        end, column, number = length - rng.randrange(length // 2), 1, 0
        while column < end:
            size = rng.randint(1, pieces)
            stop = min(column + size, end)
            words[row, column:stop] = number
            number += 1
            column = stop + (rng.random() < 0.03)  # a special token between two texts
    maskable = words >= 0
    maskable[:, 17] = False  # an unknown token, say
    return words, maskable


def row_keys(count: int = 200, epoch: int = 0) -> Tensor:
    return torch.tensor([mix(3, epoch, row) for row in range(count)])


def groups(words: Tensor, maskable: Tensor) -> list[list[int]]:
    """The columns of each word of one row."""
    found: dict[int, list[int]] = {}
    for column in range(len(words)):
        if words[column] >= 0 and maskable[column]:
            found.setdefault(int(words[column]), []).append(column)
    return list(found.values())


def reference_words(words: Tensor, maskable: Tensor, key: Tensor, rate: float) -> list[int]:
    """BERT's rule in plain Python: in random order, take what fits, skip what does not."""
    units = groups(words, maskable)
    budget = max(1, round(rate * sum(map(len, units)))) if units else 0
    draws = uniform(key, len(units)).tolist()
    out: list[int] = []
    for place in sorted(range(len(units)), key=draws.__getitem__):
        if len(out) + len(units[place]) <= budget:
            out += units[place]
    return sorted(out)


@pytest.mark.parametrize(("rate", "pieces"), [(0.15, 3), (0.4, 5), (0.02, 4), (1.0, 2)])
def test_words_are_those_of_the_plain_rule(rate: float, pieces: int) -> None:
    words, maskable = rows(60, pieces=pieces)
    keys = row_keys(60)
    chosen = choose_words(words, maskable, keys, rate)
    for row in range(60):
        expected = reference_words(words[row], maskable[row], keys[row], rate)
        assert chosen[row].nonzero().flatten().tolist() == expected


LENGTHS = {"words": None, "spanbert": geometric_lengths(), "albert": ngram_lengths()}


def choose(name: str, words: Tensor, maskable: Tensor, keys: Tensor, rate: float = 0.15) -> Tensor:
    lengths = LENGTHS[name]
    if lengths is None:
        return choose_words(words, maskable, keys, rate)
    return choose_spans(words, maskable, keys, rate, lengths)


@pytest.mark.parametrize("name", LENGTHS)
def test_every_chosen_word_is_whole_and_the_budget_is_kept(name: str) -> None:
    words, maskable = rows()
    chosen = choose(name, words, maskable, row_keys())
    assert not (chosen & ~maskable).any()
    for row in range(len(words)):
        units = groups(words[row], maskable[row])
        budget = max(1, round(0.15 * sum(map(len, units))))
        taken = [unit for unit in units if chosen[row, unit].any()]
        assert all(chosen[row, unit].all() for unit in taken)
        assert budget - max(map(len, units)) < sum(map(len, taken)) <= budget


@pytest.mark.parametrize("name", LENGTHS)
def test_the_choice_in_a_row_depends_on_its_key_alone(name: str) -> None:
    words, maskable = rows()
    keys = row_keys()
    whole = choose(name, words, maskable, keys)
    some = torch.tensor([31, 4, 77])
    assert torch.equal(choose(name, words[some], maskable[some], keys[some]), whole[some])
    wide = torch.full((len(words), 30), -1)
    padded = choose(name, torch.cat([words, wide], 1), torch.cat([maskable, wide >= 0], 1), keys)
    assert torch.equal(padded[:, : words.shape[1]], whole) and not padded[:, -30:].any()
    other = choose(name, words, maskable, row_keys(epoch=1))
    jaccard = float((whole & other).sum()) / float((whole | other).sum())
    assert abs(jaccard - 0.15 / (2 - 0.15)) < 0.04


@pytest.mark.parametrize("name", LENGTHS)
def test_every_place_of_a_text_is_about_as_likely_to_be_chosen(name: str) -> None:
    words = torch.arange(100).repeat(8000, 1)
    shares = choose(name, words, words >= 0, row_keys(8000)).double().mean(0)
    assert float(shares.mean()) == pytest.approx(0.15)
    # Four sigma are 0.016. The rest is the first and last word of a text, which begin and end a
    # span and are therefore chosen more often where the budget cuts it short.
    assert float((shares - 0.15).abs().max()) < 0.025


@pytest.mark.parametrize("name", ["spanbert", "albert"])
def test_spans_are_as_long_as_they_should_be(name: str) -> None:
    words = torch.arange(2000).repeat(100, 1)
    chosen = choose(name, words, words >= 0, row_keys(100), rate=0.04)
    runs = Counter[int]()
    for row in chosen.tolist():
        length = 0
        for flag in [*row, False]:
            if flag:
                length += 1
            elif length:
                runs[length] += 1
                length = 0
    lengths = LENGTHS[name]
    assert lengths is not None
    mean = sum(n * count for n, count in runs.items()) / runs.total()
    # Some spans touch, and the last of a row is cut to the budget.
    assert mean == pytest.approx(sum(n * p for n, p in enumerate(lengths, 1)), rel=0.1)
    assert runs[1] / runs.total() == pytest.approx(lengths[0], rel=0.1)


def test_a_span_ends_with_its_text() -> None:
    words = torch.tensor([[-1, 0, 1, -1, 2, 3, 4, 5, -1]]).repeat(500, 1)
    chosen = choose_spans(words, words >= 0, row_keys(500), 2 / 6, [0, 1])
    seen = {tuple(row.nonzero().flatten().tolist()) for row in chosen}
    assert seen == {(1, 2), (4, 5), (6, 7)}


def test_a_row_whose_words_are_longer_than_the_budget_gets_none() -> None:
    words = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 2], [-1] * 6])
    for name in LENGTHS:
        chosen = choose(name, words, words >= 0, row_keys(3))
        # Of a span that begins with a long word none is taken, be its other words short.
        assert chosen.sum(1).tolist() in ([[0, 1, 0]] if name == "words" else [[0, 1, 0], [0] * 3])
        assert not choose(name, words[2:], words[2:] >= 0, row_keys(1)).any()


def test_lengths_are_those_of_the_papers() -> None:
    assert geometric_lengths() == pytest.approx(
        [0.2 * 0.8**n / (1 - 0.8**10) for n in range(10)], rel=1e-12
    )
    assert sum(n * p for n, p in enumerate(geometric_lengths(), 1)) == pytest.approx(3.8, abs=0.01)
    assert ngram_lengths() == pytest.approx([6 / 11, 3 / 11, 2 / 11])


@pytest.mark.parametrize("lengths", [[], [0.5, 0.4], [1.5, -0.5]])
def test_lengths_that_are_no_probabilities_are_refused(lengths: list[float]) -> None:
    words = torch.arange(4).unsqueeze(0)
    with pytest.raises(ValueError, match=r"lengths must be probabilities .* geometric_lengths\(\)"):
        choose_spans(words, words >= 0, torch.tensor([1]), 0.15, lengths)
    with pytest.raises(ValueError, match="success"):
        geometric_lengths(0.0)
    with pytest.raises(ValueError, match="longest"):
        ngram_lengths(0)
