"""One of each transform that needs no large model, for what all of them promise."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from lmkit.transforms import (
    EDA,
    Chain,
    CharacterNoise,
    IdentitySwap,
    OneOf,
    RandomDeletion,
    RandomInsertion,
    RandomSubstitution,
    RandomSwap,
    Sometimes,
    SpanMasking,
    SpellingErrors,
    SynonymReplacement,
    TokenDropout,
    Transform,
)
from lmkit.transforms.edits import OPERATIONS, Edit
from lmkit.transforms.noise import KINDS

WORDS = [
    "film",
    "movie",
    "city",
    "big",
    "quickly",
    "plan",
    "went",
    "he",
    "her",
    "his",
    "James",
    "car",
    "good",
    "possible",
    "receive",
    "New",
    "York",
    "not",
    "a",
    "the",
    ",",
    ".",
    "!",
    "3.5",
    "[MASK]",
    "www.a.com",
    "Ünïcode",
    "don't",
    "東京",
    "CAR",
    "I",
]

EVERY: dict[str, Callable[[str], Transform]] = {
    "synonyms": lambda wordnet: SynonymReplacement(0.5, wordnet),
    "insertion": lambda wordnet: RandomInsertion(0.5, wordnet),
    "swap": lambda _: RandomSwap(0.7),
    "deletion": lambda _: RandomDeletion(0.6),
    "eda": lambda wordnet: EDA(0.4, 0.4, 0.4, 0.4, wordnet),
    "noise": lambda _: CharacterNoise(KINDS, 0.7, 0.5, shortest=1),
    "spelling": lambda _: SpellingErrors(0.8),
    "dropout": lambda _: TokenDropout("[MASK]", 0.5),
    "spans": lambda _: SpanMasking("[MASK]", 0.5),
    "identity": lambda _: IdentitySwap(0.9, pairs=[["city", "village"]]),
    "substitution": lambda _: RandomSubstitution({"one": 3, "two": 1}, 0.5),
    "one of": lambda _: OneOf([RandomSwap(0.5), RandomDeletion(0.5)], [1, 2]),
    "sometimes": lambda _: Sometimes(RandomDeletion(0.8), 0.7),
    "chain": lambda wordnet: Chain(
        [
            RandomInsertion(0.4, wordnet),
            RandomSwap(0.4),
            RandomDeletion(0.3),
            TokenDropout("[MASK]", 0.3),
            RandomInsertion(0.2, wordnet),
        ]
    ),
    "nothing": lambda _: Chain([]),
}


def random_row(rng: random.Random) -> list[str]:
    """Draw a row of words, which may be empty."""
    return [rng.choice(WORDS) for _ in range(rng.choice([0, 1, 2, 3, 8, 20]))]


def random_bio(rng: random.Random, length: int) -> list[str]:
    """Draw valid BIO tags with entities of every length, also next to each other."""
    tags: list[str] = []
    while len(tags) < length:
        kind = rng.choice(["", "", "PER", "LOC"])
        size = rng.randint(1, 4)
        tags += ["O"] * size if not kind else [f"B-{kind}"] + [f"I-{kind}"] * (size - 1)
    return tags[:length]


def write_lines(folder: Path) -> str:
    """Write a corpus of a few lines."""
    path = folder / "texts.txt"
    path.write_text("the cat sat\nthe dog sat\nthe cat and the dog ran away\n", encoding="utf-8")
    return str(path)


def check_edits(edits: Sequence[Edit], length: int, new_length: int) -> None:
    """Check that edits are in order, do not overlap, and lead from one length to the other.

    Args:
        edits: in the order of the words.
        length: number of words before.
        new_length: number of words after.

    Raises:
        ValueError: they do not.

    Example:
        >>> check_edits([Edit("delete", 1, 2, 1, 1)], 3, 3)
        Traceback (most recent call last):
        ...
        ValueError: edits must lead from 3 to 3 words, they lead to 2
    """
    position, shift = 0, 0
    for edit in edits:
        operation, start, stop, new_start, new_stop = edit
        if operation not in OPERATIONS:
            raise ValueError(f"edits: operation must be one of {OPERATIONS}, got {operation!r}")
        fits = position <= start <= stop <= length and new_start == start + shift <= new_stop
        if not fits or (start == stop and new_start == new_stop):
            raise ValueError(f"edits must be in order and not overlap, got {edit}")
        position, shift = stop, new_stop - stop
    if length + shift != new_length:
        raise ValueError(
            f"edits must lead from {length} to {new_length} words, they lead to {length + shift}"
        )


def check_bio(labels: Sequence[str]) -> None:
    """Check that each I goes on with an entity of its type.

    Raises:
        ValueError: one does not.

    Example:
        >>> check_bio(["O", "I-PER"])
        Traceback (most recent call last):
        ...
        ValueError: labels must be BIO: 'I-PER' at word 1 follows 'O'
    """
    before = "O"
    for place, tag in enumerate(labels):
        if tag[:1] == "I" and (before == "O" or before[1:] != tag[1:]):
            raise ValueError(f"labels must be BIO: {tag!r} at word {place} follows {before!r}")
        before = tag
