"""The four changes of EDA against the paper's words."""

from __future__ import annotations

import json
import re
from collections import Counter

import numpy as np
import pytest

from lmkit.transforms import EDA, RandomDeletion, RandomInsertion, RandomSwap, SynonymReplacement
from lmkit.transforms.random_words import count_for, pick

TABLE = {f"w{i}": [f"w{i}a", f"w{i}b"] for i in range(50)}


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table.json"
    path.write_text(json.dumps(TABLE))
    return str(path)


def row(length):
    return [f"w{i}" for i in range(length)]


@pytest.mark.parametrize(
    ("alpha", "length", "count"), [(0.1, 5, 1), (0.1, 30, 3), (0.29, 100, 29), (0, 50, 0)]
)
def test_counts(table, alpha, length, count):
    rng = np.random.default_rng(0)
    assert count_for(alpha, length, 1.0, rng) == count
    if length > 50:
        return
    for _ in range(20):
        made = SynonymReplacement(alpha, table)(row(length), None, rng)
        assert len(made.words) == length and len(made.edits) == count
        for edit in made.edits:
            assert made.words[edit.new_start] in TABLE[f"w{edit.start}"]
        inserted = RandomInsertion(alpha, table)(row(length), None, rng)
        assert len(inserted.words) == length + count
        swapped = RandomSwap(alpha)(row(length), None, rng)
        assert sorted(swapped.words) == sorted(row(length))
        # Two swaps may meet at a word, or undo each other.
        assert len(swapped.edits) <= 2 * count and (count != 1 or len(swapped.edits) == 2)


def test_half_the_strength_is_half_the_count():
    rng = np.random.default_rng(0)
    assert count_for(0.2, 30, 0.5, rng) == 3
    drawn = [count_for(0.1, 5, 0.3, rng) for _ in range(4000)]
    assert set(drawn) == {0, 1} and abs(np.mean(drawn) - 0.3) < 0.03


def test_one_swap_takes_each_pair_equally_often():
    rng = np.random.default_rng(0)
    swapped = Counter(
        tuple(edit.start for edit in RandomSwap(0.01)(list("abcd"), None, rng).edits)
        for _ in range(6000)
    )
    assert len(swapped) == 6 and all(abs(n - 1000) < 150 for n in swapped.values())


def test_words_go_as_often_as_the_rate_says():
    rng = np.random.default_rng(0)
    gone = [200 - len(RandomDeletion(0.2)(["a"] * 200, None, rng).words) for _ in range(100)]
    assert abs(np.mean(gone) / 200 - 0.2) < 0.01


def test_the_word_that_survives_is_any():
    rng = np.random.default_rng(0)
    left = Counter(RandomDeletion(1.0)(list("abc"), None, rng).words[0] for _ in range(3000))
    assert len(left) == 3 and all(abs(n - 1000) < 130 for n in left.values())


def test_insertions_come_to_any_place_but_between_protected_words(table):
    rng = np.random.default_rng(0)
    insert = RandomInsertion(0.01, table)
    where = Counter(insert(row(3), None, rng).edits[0].start for _ in range(4000))
    assert len(where) == 4 and all(abs(n - 1000) < 150 for n in where.values())
    protected = [True, True, False, True, True]
    where = Counter(insert(row(5), None, rng, protected).edits[0].start for _ in range(200))
    assert set(where) == {2, 3}


def test_plain_tags_of_insertions_are_those_of_their_words(table):
    rng = np.random.default_rng(0)
    for _ in range(50):
        made = RandomInsertion(0.5, table)(row(6), [f"t{i}" for i in range(6)], rng)
        for word, tag in zip(made.words, made.labels, strict=True):
            assert tag[1:] == word[1:2]


def test_swaps_stay_in_their_entity():
    words, tags = list("abcdefg"), ["O", "B-X", "I-X", "I-X", "O", "B-X", "O"]
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(300):
        made = RandomSwap(0.5)(words, tags, rng)
        assert made.labels == tags
        assert {*made.words[1:4]} == {*"bcd"} and made.words[5] == "f"
        seen |= {edit.start for edit in made.edits}
    assert seen == {0, 1, 2, 3, 4, 6}


def test_eda_does_one_of_four(table):
    rng = np.random.default_rng(0)
    eda = EDA(0.2, 0.2, 0.2, 0.2, table)
    kinds = Counter()
    for _ in range(2000):
        made = eda(row(20), None, rng)
        kinds.update({edit.operation for edit in made.edits})
    assert set(kinds) == {"substitute", "insert", "swap", "delete"}
    assert all(abs(n - 500) < 80 for n in kinds.values())
    assert {e.operation for e in EDA(0, 0, 0, 0.9)(row(9), None, rng).edits} == {"delete"}
    with pytest.raises(ValueError, match="must be above 0"):
        EDA(0, 0, 0, 0)


def test_stop_words_and_capitals(tmp_path):
    path = tmp_path / "t.json"
    path.write_text('{"film": ["movie", "film"]}')
    made = SynonymReplacement(1.0, str(path))
    rng = np.random.default_rng(0)
    assert made(["Film", "FILM", "film", "a"], None, rng).words == ["Movie", "MOVIE", "movie", "a"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomSwap(-0.1), r"alpha must lie in \[0, 1\], got -0.1"),
        (lambda: RandomDeletion(1.1), r"rate must lie in \[0, 1\], got 1.1"),
        (lambda: RandomDeletion(True), "rate must be a number"),
        (lambda: SynonymReplacement(2), "alpha must lie in"),
        (lambda: SynonymReplacement(senses=0), "senses must be a whole number, at least 1, got 0"),
        (lambda: EDA(swap="x"), "swap must be a number"),
        (lambda: EDA(deletion=-1), "deletion must lie in"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_table_that_is_none(tmp_path):
    path = tmp_path / "t.json"
    for text, message in (
        ('{"a": "b"}', f"source must hold words with lists of words in {path}, has 'b' for 'a'"),
        ('{"a": [""]}', "has '' for 'a'"),
        ('{"a": ["motor car"]}', "has 'motor car' for 'a'"),
        ('["a"]', "got "),
        ("{", f"{path} is no JSON: "),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=re.escape(message)):
            SynonymReplacement(source=str(path))(["a"], None, np.random.default_rng(0))
        with pytest.raises(ValueError, match=re.escape(message)):  # before any text is changed
            SynonymReplacement(source=str(path)).fingerprint()
    with pytest.raises(TypeError, match="source must be the name of a folder or file"):
        SynonymReplacement(source=3)


def test_pick_draws_each_at_most_once():
    rng = np.random.default_rng(0)
    seen = Counter()
    for _ in range(3000):
        drawn = pick(2, [5, 6, 7], rng)
        assert len(set(drawn)) == 2
        seen.update(drawn)
    assert all(abs(n - 2000) < 150 for n in seen.values())
