"""What every transform promises, on random rows."""

from __future__ import annotations

import pickle
import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from lmkit.transforms import (
    Protection,
    RandomSwap,
    Transform,
    Transformed,
    example_rng,
    replay,
    split_words,
    transform_from,
    transform_text,
)
from lmkit.transforms.edits import carry
from lmkit.transforms.labels import entity_ids
from tests.transforms.every import EVERY, check_bio, check_edits, random_bio, random_row
from tests.transforms.tiny_wordnet import write_wordnet

TURNS = 150


@pytest.fixture(scope="module")
def wordnet(tmp_path_factory):
    return write_wordnet(tmp_path_factory.mktemp("wordnet"))


@pytest.fixture(params=EVERY)
def transform(request, wordnet) -> Transform:
    return EVERY[request.param](wordnet)


def rows(seed: int):
    rng = random.Random(seed)
    for turn in range(TURNS):
        words = random_row(rng)
        protected = [rng.random() < 0.3 for _ in words] if turn % 3 else None
        yield turn, words, random_bio(rng, len(words)), protected


def fixed_words(words, protected):
    return [word for word, fixed in zip(words, protected or [], strict=False) if fixed]


def test_rows_keep_their_promises(transform):
    changed = 0
    for turn, words, tags, protected in rows(1):
        before = list(words)
        made = transform(words, tags, np.random.default_rng(turn), protected)
        assert words == before
        assert len(made.labels) == len(made.words)
        check_bio(made.labels)
        check_edits(made.edits, len(words), len(made.words))
        assert replay(words, made.edits, made.words) == made.words
        assert bool(made.words) == bool(words)
        assert made.edits or (made.words == words and made.labels == tags)
        changed += bool(made.edits)
        if protected:
            # Each protected word stands outside of the edits, in the old order.
            kept = carry(protected, made.edits, False)
            assert fixed_words(made.words, kept) == fixed_words(words, protected)
            assert sum(kept) == sum(protected)
    assert changed > TURNS // 4 or transform == EVERY["nothing"]("")


def test_entities_are_neither_torn_nor_joined(transform):
    for turn, words, tags, protected in rows(2):
        made = transform(words, tags, np.random.default_rng(turn), protected)
        old = carry(entity_ids(tags), made.edits, -2)
        new = entity_ids(made.labels)
        # Words that stayed are in one entity after if they were in one before.
        pairs = {(o, n) for o, n in zip(old, new, strict=True) if o != -2}
        for side in (0, 1):
            ids = [pair[side] for pair in pairs]
            assert len(set(ids)) == len(ids)
        assert all((o == -1) == (n == -1) for o, n in pairs)


def test_plain_tags_go_with_their_words(transform):
    for turn, words, _, protected in rows(3):
        # The tag of a word is the word: so it is seen where it went.
        tags = [f"tag_{word}" for word in words]
        made = transform(words, tags, np.random.default_rng(turn), protected)
        assert len(made.labels) == len(made.words) and set(made.labels) <= set(tags)
        stay = carry([True] * len(words), made.edits, False)
        for word, tag, stays in zip(made.words, made.labels, stay, strict=True):
            assert not stays or tag == f"tag_{word}"


def test_no_label_changes_a_word(transform):
    for turn, words, tags, protected in rows(4):
        # Plain tags only: BIO says where swaps may be.
        plain = transform(words, ["X" for _ in tags], np.random.default_rng(turn), protected)
        bare = transform(words, None, np.random.default_rng(turn), protected)
        assert bare.labels is None and bare.words == plain.words and bare.edits == plain.edits


def test_strength_0_is_the_identity_on_bytes(transform):
    text = (
        " “Don't,” he  said:\n\tgo to\u00a0[MASK] <mask> www.x.org/a?b=c 3.14 \ud800 café… 東京! "
    )
    assert split_words(text).text() == text
    for seed in range(5):
        made = transform_text(transform, text, np.random.default_rng(seed), None, strength=0.0)
        assert made == text
        assert transform_text(transform, "", np.random.default_rng(seed)) == ""


def test_strength_lowers_the_share_of_changes(transform, wordnet):
    words = ["film", "city", "possible", "his", "car", "big"] * 4

    def changed(strength: float) -> int:
        made = [
            transform(words, None, np.random.default_rng(turn), None, strength)
            for turn in range(60)
        ]
        return sum(len(m.edits) for m in made)

    if transform == EVERY["nothing"](wordnet):
        assert changed(1.0) == 0
    else:
        assert 0 < changed(0.1) < 0.5 * changed(1.0)


def test_the_same_numbers_make_the_same_text(transform):
    text = "The big film went quickly to the city, and his car was possible. " * 3
    texts = Counter()
    for epoch in range(8):
        for index in range(3):
            made = transform_text(transform, text, example_rng(7, epoch, index))
            again = pickle.loads(pickle.dumps(transform))
            assert transform_text(again, text, example_rng(7, epoch, index)) == made
            texts[made] += 1
    assert len(texts) > 1 or not getattr(transform, "transforms", True)


def test_a_row_of_protected_words_stays(transform):
    words = ["film", "city", "his"]
    made = transform(words, ["B-A", "I-A", "O"], np.random.default_rng(0), [True] * 3)
    assert made == Transformed(words, ["B-A", "I-A", "O"], [])


def test_one_word_survives(transform):
    for seed in range(30):
        assert transform(["film"], None, np.random.default_rng(seed)).words
        assert transform([], None, np.random.default_rng(seed)) == Transformed([], None, [])


def test_spec_makes_an_equal_transform(transform):
    again = transform_from(transform.spec)
    assert again == transform and hash(again) == hash(transform)
    assert again.fingerprint() == transform.fingerprint()
    assert transform != RandomSwap(0.123)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": ["O"]}, "labels must be one for each of 2 words: 1"),
        ({"protected": [True]}, "protected must be one for each of 2 words: 1"),
        ({"strength": 1.5}, r"strength must lie in \[0, 1\], got 1.5"),
        ({"strength": float("nan")}, "strength must lie in"),
        ({"strength": "1"}, "strength must be a number"),
        ({"labels": ["S-PER", "O"]}, "labels must be BIO or plain tags, got 'S-PER'"),
    ],
)
def test_bad_arguments(arguments, message):
    call = {"words": ["a", "b"], "labels": None, "rng": np.random.default_rng(0), **arguments}
    with pytest.raises(ValueError, match=message):
        RandomSwap()(**call)


def test_fingerprints_are_the_same_in_another_process():
    code = "from lmkit.transforms import *; print(OneOf([RandomSwap(), 'SpellingErrors'])"
    runs = {
        subprocess.run(
            [sys.executable, "-c", f"{code}.fingerprint())"],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1 and len(runs.pop().strip()) == 32


def test_imports_no_torch():
    code = "import sys, lmkit.transforms; print('torch' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == "False"


def test_protection_of_a_text_is_kept(transform):
    text = "He did not go to New York, and www.a.com is never 3.5 big [MASK]."
    for seed in range(20):
        made = transform_text(transform, text, np.random.default_rng(seed), Protection())
        for word in ("not", "New", "York", "www.a.com", "never", "3.5"):
            assert word in split_words(made).words
        assert made.count(",") == 1
