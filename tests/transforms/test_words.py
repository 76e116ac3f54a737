"""Words and gaps are the text, whatever it holds."""

from __future__ import annotations

import random

import numpy as np
import pytest

from lmkit.transforms import CharacterNoise, Words, split_words, transform_text


def test_any_text_comes_back():
    rng = random.Random(0)
    alphabet = [
        *"abcXYZ 019\t\n.,!?-'\u2019\"()[]<>@#:/_$€…“”",
        "é",
        "e\u0301",
        "\u200d",
        "東",
        "🙂",
    ]
    alphabet += ["[MASK]", "<mask>", "https://", "www.", "\ud800", "\x00", "\u00a0", "नमस्ते", "\r"]
    for _ in range(3000):
        text = "".join(rng.choices(alphabet, k=rng.randint(0, 30)))
        words, gaps = made = split_words(text)
        assert made.text() == text
        assert len(gaps) == len(words) + 1
        assert not any(gap.strip() for gap in gaps)
        assert all(word == word.strip() != "" for word in words)


def test_unlikely_characters_come_back():
    rng = random.Random(1)
    for _ in range(300):
        text = "".join(chr(rng.randrange(0x110000)) for _ in range(20))
        assert split_words(text).text() == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (" \n", []),
        ("well-known, isn\u2019t it?!", ["well-known", ",", "isn\u2019t", "it", "?!"]),
        ("U.S.A. at 12:30...", ["U.S.A.", "at", "12:30", "..."]),
        ("see https://a.b/c?d=1. Or", ["see", "https://a.b/c?d=1", ".", "Or"]),
        ("me@x.org @you #now", ["me@x.org", "@you", "#now"]),
        ("a [MASK] <mask> [b]", ["a", "[MASK]", "<mask>", "[", "b", "]"]),
        ("नमस्ते cafe\u0301", ["नमस्ते", "cafe\u0301"]),
        ("-- a - b", ["--", "a", "-", "b"]),
        ("1,000.5 3rd", ["1,000.5", "3rd"]),
    ],
)
def test_words(text, words):
    assert split_words(text).words == words


@pytest.mark.parametrize(
    "address",
    [
        "ftp://example.org/readme",
        "HTTP://Example.com/Path",
        "s3://my-bucket/some-key",
        "WWW.example.com/a",
        "o'neil@example.com",
        "user@localhost",
    ],
)
def test_addresses_are_one_word_and_stay(address):
    text = f"see {address}, or not"
    assert address in split_words(text).words
    made = transform_text(CharacterNoise(rate=1.0), text, np.random.default_rng(0))
    assert address in made and made != text


def test_a_long_text_takes_linear_time():
    # Of a backtracking pattern this would take minutes.
    text = "a.b-" * 50_000 + "@"
    assert split_words(text).text() == text


def test_only_strings():
    with pytest.raises(TypeError, match="text must be a string, got bytes"):
        split_words(b"a")
    assert Words(["a"], [" ", "."]).text() == " a."
