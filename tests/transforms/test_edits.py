"""Edits say what happened, alone and one after the other."""

from __future__ import annotations

import random

import pytest

from lmkit.transforms import Edit, replay, span_after
from lmkit.transforms.changes import Change, perform
from lmkit.transforms.edits import carry, compose
from tests.transforms.every import check_edits


def random_changes(rng: random.Random, length: int) -> list[Change]:
    made, position = [], 0
    while position <= length and rng.random() < 0.8:
        start = rng.randint(position, length)
        stop = min(length, start + rng.choice([0, 0, 1, 1, 2]))
        new = [f"n{rng.randint(0, 99)}" for _ in range(rng.choice([0, 1, 1, 2]))]
        if new or stop > start:
            operation = "insert" if stop == start else "substitute" if new else "delete"
            made.append(Change(operation, start, stop, new))
        position = stop + 1
    return made


def test_edits_compose():
    rng = random.Random(0)
    for _ in range(2000):
        first = [f"w{i}" for i in range(rng.randint(0, 8))]
        middle, one = perform(first, random_changes(rng, len(first)))
        last, two = perform(middle, random_changes(rng, len(middle)))
        both = compose(one, two, len(first))
        check_edits(both, len(first), len(last))
        assert replay(first, both, last) == last
        # A word that neither touched is in neither's edits, and in no other place.
        assert carry(carry(first, one, ""), two, "") == carry(first, both, "")


def test_spans_follow():
    rng = random.Random(1)
    seen = {True: 0, False: 0}
    for _ in range(2000):
        words = [f"w{i}" for i in range(rng.randint(1, 8))]
        made, edits = perform(words, random_changes(rng, len(words)))
        start = rng.randrange(len(words))
        stop = rng.randint(start + 1, len(words))
        span = span_after(edits, start, stop)
        # Words are all different: the span is whole if they stand in a row, and untouched.
        kept = carry(words, edits, "")
        runs = [i for i in range(len(kept)) if kept[i : i + stop - start] == words[start:stop]]
        seen[span is None] += 1
        assert span == ((runs[0], runs[0] + stop - start) if runs else None)
        assert span is None or made[slice(*span)] == words[start:stop]
    assert min(seen.values()) > 300


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([Edit("turn", 0, 1, 0, 1)], "operation must be one of"),
        ([Edit("delete", 1, 2, 1, 1), Edit("delete", 0, 1, 0, 0)], "in order and not overlap"),
        ([Edit("substitute", 0, 1, 1, 2)], "in order and not overlap"),
        ([Edit("insert", 1, 1, 1, 1)], "in order and not overlap"),
        ([Edit("delete", 2, 4, 2, 2)], "in order and not overlap"),
        ([Edit("insert", 0, 0, 0, 1)], "from 3 to 3 words, they lead to 4"),
    ],
)
def test_what_is_no_edit(edits, message):
    with pytest.raises(ValueError, match=message):
        check_edits(edits, 3, 3)
