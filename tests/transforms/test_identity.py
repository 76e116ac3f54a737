"""Swaps of identity go both ways and keep the grammar."""

from __future__ import annotations

import numpy as np
import pytest

from lmkit.transforms import IdentitySwap, Protection, example_rng, transform_text
from lmkit.transforms.identity_table import GENDERED, NAMES

OPEN = Protection(names=False)


def swap(text: str, **options) -> str:
    return transform_text(IdentitySwap(1.0, **options), text, example_rng(0, 0, 0), OPEN)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("He likes her book.", "She likes his book."),
        ("I saw him.", "I saw her."),
        ("I saw him and left.", "I saw her and left."),
        ("The book is his.", "The book is hers."),
        ("His is better than hers.", "Hers is better than his."),
        ("Give him the prize", "Give her the prize"),
        ("She\u2019s the queen, he'll be king.", "He\u2019s the king, she'll be queen."),
        ("HER ACTOR", "HIS ACTRESS"),
        ("Mary told James that her brother came.", "James told Mary that his sister came."),
        ("Mr. Smith's wife", "Ms. Smith's husband"),
        ("her own home", "his own home"),
        ("he hurt himself", "she hurt herself"),
    ],
)
def test_both_ways(one, other):
    assert swap(one) == other
    assert swap(other) == one


@pytest.mark.parametrize(
    ("one", "other"), [("Mrs. Lee", "Mr. Lee"), ("mum", "dad"), ("a table", "a table")]
)
def test_one_way(one, other):
    assert swap(one) == other


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I miss him and I count on the host.", "I miss her and I count on the host."),
        ("Miss Lee met Miss Marple", "Mr Lee met Mr Marple"),
        ("MISS LEE", "MR LEE"),
        ("Miss you, and I miss her", "Miss you, and I miss him"),
    ],
)
def test_verbs_are_no_titles(text, expected):
    assert swap(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("James was late. Later James left.", "James was late. Later James left."),
        ("Mary was late. She met James's brother.", "Mary was late. He met James's sister."),
        ("James was late. He left.", "Mary was late. She left."),
    ],
)
def test_a_name_that_stays_in_one_place_stays_in_all(text, expected):
    change = IdentitySwap(1.0)
    assert transform_text(change, text, example_rng(0, 0, 0), Protection()) == expected


def test_every_pair_is_two_sided_and_no_word_is_in_two():
    words = [word for pair in [*GENDERED, *NAMES] for word in pair]
    assert len(set(words)) == len(words)
    text = " ".join(words)
    assert swap(swap(text)) == text
    assert all(a != b for a, b in zip(swap(text).split(), words, strict=True))


def test_options():
    assert swap("He met Mary", gender=False) == "He met James"
    assert swap("He met Mary", names=False) == "She met Mary"
    assert swap("a Hindu temple", pairs=[["Hindu", "Muslim"]]) == "a Muslim temple"
    assert swap("his dog", pairs=[["his", "their"]]) == "their dog"
    rng = np.random.default_rng(0)
    half = [bool(IdentitySwap(0.5)(["he", "she"], None, rng).edits) for _ in range(2000)]
    assert abs(np.mean(half) - 0.5) < 0.04


def test_tags_stay():
    made = IdentitySwap(1.0)(["James", "left"], ["B-PER", "O"], np.random.default_rng(0))
    assert made.words == ["Mary", "left"] and made.labels == ["B-PER", "O"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": [["a"]]}, "pairs must have two words each"),
        ({"pairs": [["a", "b c"]]}, "pairs must have two words each"),
        ({"pairs": [["a", "b"], ["b", "c"]]}, "pairs: 'b' stands in two places"),
        ({"pairs": [["a", "a"]]}, "pairs: 'a' stands in two places"),
        ({"probability": 2}, "probability must lie in"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        IdentitySwap(**options)
