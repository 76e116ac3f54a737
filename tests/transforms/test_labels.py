"""Tags by the rules, one by one."""

from __future__ import annotations

import pytest

from lmkit.transforms.changes import Change
from lmkit.transforms.labels import are_bio, tags_after
from tests.transforms.every import check_bio


@pytest.mark.parametrize(
    ("tags", "change", "expected"),
    [
        ("B-X I-X O", Change("delete", 0, 1, []), "B-X O"),
        ("B-X I-X B-X I-X", Change("delete", 2, 3, []), "B-X I-X B-X"),
        ("B-X O", Change("delete", 0, 1, []), "O"),
        ("B-X I-X", Change("insert", 1, 1, ["a", "b"]), "B-X I-X I-X I-X"),
        ("B-X B-X", Change("insert", 1, 1, ["a"]), "B-X O B-X"),
        ("B-X I-Y", Change("insert", 1, 1, ["a"]), "B-X O B-Y"),
        ("O B-X", Change("insert", 1, 1, ["a"]), "O O B-X"),
        ("B-X", Change("insert", 1, 1, ["a"]), "B-X O"),
        ("B-X", Change("insert", 0, 0, ["a"]), "O B-X"),
        ("B-X I-X O", Change("substitute", 0, 1, ["a"]), "B-X I-X O"),
        ("B-X I-X O", Change("substitute", 0, 2, ["a"]), "B-X O"),
        ("O B-X I-X", Change("substitute", 1, 2, ["a", "b"]), "O B-X I-X I-X"),
        ("B I O", Change("delete", 0, 1, []), "B O"),
    ],
)
def test_bio(tags, change, expected):
    made = tags_after(tags.split(), [change], are_bio(tags.split()))
    assert made == expected.split()
    check_bio(made)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (Change("swap", 0, 1, ["c"], (2,)), "V D V"),
        (Change("insert", 0, 0, ["a"], (2,)), "V N D V"),
        (Change("substitute", 1, 2, ["a"]), "N D V"),
        (Change("delete", 1, 2, []), "N V"),
    ],
)
def test_plain(change, expected):
    assert tags_after(["N", "D", "V"], [change], are_bio(["N", "D", "V"])) == expected.split()


@pytest.mark.parametrize(
    ("tags", "bio"),
    [
        ("O O", True),
        ("B I O", True),
        ("B-X O", True),
        ("NOUN PRON", False),
        ("N V O", False),
        ("O OBJ", False),
        ("", True),
        ("S E", False),
    ],
)
def test_which_are_bio(tags, bio):
    assert are_bio(tags.split()) is bio


def test_other_schemes_are_refused():
    with pytest.raises(ValueError, match=r"'L-PER'.*to_bio"):
        are_bio(["B-PER", "L-PER"])
