"""Mistakes are of their kind, as many as asked for, and misspellings and masks too."""

from __future__ import annotations

import numpy as np
import pytest

from lmkit.transforms import CharacterNoise, SpanMasking, SpellingErrors, TokenDropout
from lmkit.transforms.noise import KINDS, LAYOUTS, neighbours
from lmkit.transforms.spelling import misspell
from lmkit.transforms.spelling_table import MISSPELLINGS

WORDS = ["word", "Moon", "HELLO", "l1fe", "tt", "x", "Straße", "東京", "--", "ab1"]


def edits_between(one: str, other: str) -> int:
    """Return how many letters differ, of words that are as long."""
    return sum(a != b for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_makes_its_mistake(kind):
    near = neighbours()
    changed = set()
    for seed in range(300):
        noise = CharacterNoise([kind], 1.0, 0.0, shortest=1)
        made = noise(WORDS, None, np.random.default_rng(seed)).words
        assert len(made) == len(WORDS)
        for old, new in zip(WORDS, made, strict=True):
            assert new
            if old == new:
                continue
            changed.add(old)
            if kind == "keyboard":
                ((a, b),) = [(a, b) for a, b in zip(old, new, strict=True) if a != b]
                assert b.lower() in near[a.lower()] and a.isupper() == b.isupper()
            elif kind == "swap":
                assert sorted(old) == sorted(new) and edits_between(old, new) == 2
            elif kind == "drop":
                assert new in [old[:i] + old[i + 1 :] for i in range(len(old))]
            elif kind == "insert":
                assert old in [new[:i] + new[i + 1 :] for i in range(len(new))]
            elif kind == "case":
                assert old.lower() == new.lower() and edits_between(old, new) == 1
            else:
                assert abs(len(new) - len(old)) <= 1
    expected = {
        "keyboard": {"word", "Moon", "HELLO", "l1fe", "tt", "x", "Straße", "ab1"},
        "ocr": {"word", "Moon", "HELLO", "l1fe", "tt", "Straße", "ab1"},
        "swap": {"word", "Moon", "HELLO", "l1fe", "Straße", "東京", "ab1"},
        "drop": {*WORDS} - {"x"},
        "insert": {*WORDS},
        "case": {"word", "Moon", "HELLO", "l1fe", "tt", "x", "Straße", "ab1"},
    }
    assert changed == expected[kind]


def test_rates():
    rng = np.random.default_rng(0)
    noise = CharacterNoise(["insert"], 0.3, 0.25)
    made = noise(["abcdefgh"] * 1000, None, rng).words
    changed = [word for word in made if word != "abcdefgh"]
    assert abs(len(changed) / 1000 - 0.3) < 0.05
    assert {len(word) for word in changed} == {10}
    quarter = noise(["abcdefgh"] * 1000, None, rng, strength=0.25)
    assert abs(len(quarter.edits) / 1000 - 0.075) < 0.03


def test_first_letters_and_short_words():
    rng = np.random.default_rng(0)
    noise = CharacterNoise(KINDS, 1.0, 0.4, shortest=4, keep_first=True)
    for _ in range(200):
        made = noise(["word", "abc"], None, rng).words
        assert made[0][0] == "w" and made[1] == "abc"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_neighbours_are_mutual(layout):
    near = neighbours(layout)
    assert len(near) == 26
    for key, others in near.items():
        assert 1 <= len(others) <= 6 and key not in others
        assert all(key in near[other] for other in others)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: CharacterNoise(["typo"]), ValueError, "kinds must be one of keyboard, .* 'typo'"),
        (lambda: CharacterNoise([]), ValueError, "kinds must name at least one"),
        (lambda: CharacterNoise("swap"), TypeError, "kinds must be a list"),
        (lambda: CharacterNoise(rate=2), ValueError, "rate must lie in"),
        (lambda: CharacterNoise(character_rate=-1), ValueError, "character_rate must lie in"),
        (lambda: CharacterNoise(shortest=0), ValueError, "shortest must be a whole number"),
        (lambda: CharacterNoise(layout="x"), ValueError, "layout must be one of qwerty"),
        (lambda: SpellingErrors(2), ValueError, "rate must lie in"),
        (lambda: SpellingErrors(table={"a": "b"}), ValueError, "table must hold words with lists"),
        (lambda: SpellingErrors(table={"a": [1]}), ValueError, "has 1 for 'a'"),
        (lambda: SpellingErrors(table=["a"]), ValueError, "table must hold words"),
        (lambda: TokenDropout(""), ValueError, "replacement must be one word"),
        (lambda: TokenDropout("a b"), ValueError, "replacement must be one word"),
        (lambda: SpanMasking("_", mean_length=0.5), ValueError, "mean_length must be at least 1"),
        (lambda: SpanMasking("_", longest=0), ValueError, "longest must be a whole number"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_misspellings():
    rng = np.random.default_rng(0)
    errors = SpellingErrors(1.0)
    for _ in range(20):
        made = errors(["definitely", "Comma", "cat", "ALREADY"], None, rng).words
        assert made[0] in MISSPELLINGS["definitely"]
        assert made[1:] == ["Coma", "cat", "ALLREADY"]
    assert SpellingErrors(1.0, rules=False)(["comma"], None, rng).edits == []
    own = SpellingErrors(1.0, table={"cat": ["kat"], "because": ["cuz"]})
    assert own(["cat", "because"], None, rng).words == ["kat", "cuz"]
    share = [len(SpellingErrors(0.4)(["because"] * 50, None, rng).edits) for _ in range(40)]
    assert abs(np.mean(share) / 50 - 0.4) < 0.04


def test_the_table_of_misspellings():
    for word, wrongs in MISSPELLINGS.items():
        assert word.isalpha() and word == word.lower()
        assert wrongs and len(set(wrongs)) == len(wrongs) and word not in wrongs
    assert misspell("believable") == ["beleivable", "believible"]
    assert misspell("table1") == []


def test_spans_are_long_and_stop_at_what_is_protected():
    rng = np.random.default_rng(0)
    mask = SpanMasking("_", 0.3, mean_length=5.0, longest=6)
    lengths = []
    for _ in range(300):
        made = mask(["w"] * 100, None, rng).words
        assert made.count("_") == 30
        lengths += [len(run) for run in "".join(made).split("w") if run]
    assert 2.5 < np.mean(lengths) < 6.5
    single = SpanMasking("_", 0.3, mean_length=1.0)(["w"] * 100, None, rng).words
    assert single.count("_") == 30
    protected = [i % 4 == 3 for i in range(40)]
    made = SpanMasking("_", 1.0)(["w"] * 40, None, rng, protected).words
    assert [word == "w" for word in made] == protected
    longest = SpanMasking("_", 0.02, mean_length=1e9, longest=2)(["w"] * 100, None, rng).words
    assert "__" in "".join(longest)


def test_dropout_as_often_as_the_rate_says():
    made = TokenDropout("<unk>", 0.3)(["w"] * 3000, ["X"] * 3000, np.random.default_rng(0))
    assert abs(made.words.count("<unk>") / 3000 - 0.3) < 0.03 and made.labels == ["X"] * 3000
