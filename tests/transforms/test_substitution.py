"""Draws from a corpus against UDA's formulae, written again."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from lmkit.transforms import RandomSubstitution
from lmkit.transforms.substitution import count_words
from tests.transforms.every import write_lines

TEXTS = ["the cat sat", "the dog sat", "the cat and the dog ran away"]


def test_counts(tmp_path):
    source = RandomSubstitution(write_lines(tmp_path), tf_idf=True)
    assert source.counts == count_words(TEXTS)
    assert source.counts.words["the"] == 4 and source.counts.documents["the"] == 3
    assert source.counts.texts == 3


def test_draws_as_often_as_in_the_corpus():
    rng = np.random.default_rng(0)
    made = RandomSubstitution({"x": 3, "y": 1}, 1.0)(["w"] * 4000, None, rng).words
    assert abs(made.count("x") / 4000 - 0.75) < 0.03
    some = RandomSubstitution(["x"], 0.2)(["w"] * 4000, None, rng).words
    assert abs(some.count("x") / 4000 - 0.2) < 0.03


def test_uda(tmp_path):
    source = RandomSubstitution(write_lines(tmp_path), 0.3, tf_idf=True)
    texts = [text.split() for text in TEXTS]
    idf = {w: math.log(3 / sum(w in t for t in texts)) for t in texts for w in t}
    row = ["the", "cat", "sat", "Cat", "new"]
    tf_idf = [0.0, 2 * idf["cat"], idf["sat"], 2 * idf["cat"], math.log(3)]
    gap = [max(tf_idf) - t for t in tf_idf]
    expected = [min(1.0, 0.3 * g / (sum(gap) / 5)) for g in gap]
    assert source.rates(row) == pytest.approx(expected, rel=1e-12)
    assert source.rates(row)[4] == 0.0 and source.rates(row)[0] == max(expected)
    scores = {w: sum(t.count(w) for t in texts) * idf[w] for w in idf}
    weights = source.weights()
    for word, score in scores.items():
        assert weights[word] == pytest.approx(max(scores.values()) - score, rel=1e-12)
    # What is drawn follows them.
    drawn = Counter()
    plain = RandomSubstitution(source.source, 1.0, tf_idf=True)
    for seed in range(3000):
        made = plain(["the", "zebra"], None, np.random.default_rng(seed))
        drawn.update(made.words[e.start] for e in made.edits)
    total = sum(v for w, v in weights.items() if w != "the")
    seen = sum(drawn.values())
    for word in ("cat", "sat"):
        assert abs(drawn[word] / seen - weights[word] / total) < 0.05


def test_signs_and_numbers_do_not_move_the_rates_of_words(tmp_path):
    source = RandomSubstitution(write_lines(tmp_path), 0.3, tf_idf=True)
    row = ["the", "cat", "sat"]
    assert source.rates([*row, ",", "1999", ",", "."]) == [*source.rates(row), *[0.3] * 4]
    assert source.rates([",", "."]) == [0.3, 0.3]


def test_the_mean_rate_is_the_rate(tmp_path):
    source = RandomSubstitution(write_lines(tmp_path), 0.1, tf_idf=True)
    assert np.mean(source.rates(["the", "cat", "and", "the", "dog", "sat"])) == pytest.approx(0.1)
    assert source.rates(["cat"]) == [0.1]


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="at least one word"):
        RandomSubstitution([])
    with pytest.raises(ValueError, match="tf_idf needs texts"):
        RandomSubstitution(["a"], tf_idf=True)
    with pytest.raises(ValueError, match=r"source\['a'\] must be a whole number"):
        RandomSubstitution({"a": 0})
    with pytest.raises(ValueError, match="has True for True"):
        RandomSubstitution([True, "a"])
    with pytest.raises(ValueError, match="smallest_count must be a whole number"):
        RandomSubstitution(["a"], smallest_count="x")
    with pytest.raises(TypeError, match="source must be a file, a list or counts"):
        RandomSubstitution(3)
    with pytest.raises(FileNotFoundError):
        RandomSubstitution(str(tmp_path / "none.txt")).fingerprint()
    (tmp_path / "empty.txt").write_text("1 2\n")
    with pytest.raises(ValueError, match="has no word to draw"):
        RandomSubstitution(str(tmp_path / "empty.txt"), 1.0)(["a"], None, np.random.default_rng(0))
    with pytest.raises(ValueError, match="has no word to draw"):
        RandomSubstitution(str(tmp_path / "empty.txt"), 1.0, True)(
            ["a"], None, np.random.default_rng(0)
        )


def test_another_file_is_another_fingerprint(tmp_path):
    source = write_lines(tmp_path)
    before = RandomSubstitution(source).fingerprint()
    (tmp_path / "texts.txt").write_text("other words\n")
    assert RandomSubstitution(source).fingerprint() != before
