"""Rows of choices are those that the tokenizer itself would make."""

from __future__ import annotations

from typing import Any

import pytest

from lmkit.tokenization.choice_rows import ChoiceRows, choice_texts
from tests import tiny


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
@pytest.mark.parametrize("room", [9, 14, 40])
def test_rows_are_those_of_the_tokenizer_itself(kind: str, room: int) -> None:
    fast: Any = tiny.tokenizer(kind)
    pairs = list(zip(tiny.sentences(8, 1), tiny.sentences(8, 2), strict=True))
    for (one, other), row in zip(pairs, ChoiceRows(fast, room)(pairs), strict=True):
        whole = fast(one, other, return_token_type_ids=True)
        assert row.is_cut == (len(whole["input_ids"]) > room)
        assert len(row.ids) == len(row.types) == min(room, len(whole["input_ids"]))
        if not row.is_cut:
            assert (row.ids, row.types) == (whole["input_ids"], whole["token_type_ids"])
            continue
        cut = fast(one, other, truncation="longest_first", max_length=room)["input_ids"]
        # Where both lose, an odd token falls to either.
        assert sum(a != b for a, b in zip(row.ids, cut, strict=True)) <= room // 2
        assert row.ids[:3] == cut[:3] and row.ids[-1] == cut[-1]


def test_the_shorter_text_keeps_all_its_tokens() -> None:
    rows = ChoiceRows(tiny.tokenizer(), 12)
    long, short = "the quick brown fox jumps over a lazy dog", "birds sing"
    for pair in ((long, short), (short, long)):
        (row,) = rows([pair])
        text = str(tiny.tokenizer().decode(row.ids))
        assert row.is_cut and len(row.ids) == 12 and "birds sing" in text


def test_a_choice_fills_the_blank_or_stands_behind() -> None:
    assert choice_texts("It rained.", "Anna got _ .", "wet") == ("It rained.", "Anna got wet .")
    assert choice_texts("", "Anna _ home", r"\1 went") == ("Anna _ home", r"Anna \1 went home")
    assert choice_texts("It rained.", "Why?", "Clouds.") == ("It rained.", "Why? Clouds.")
    assert choice_texts("It rained.", "", "Clouds.") == ("It rained.", "Clouds.")
    assert choice_texts("", "a_b is?", "x") == ("a_b is?", "x")


def test_no_room_is_refused() -> None:
    with pytest.raises(ValueError, match="max_length=4 leaves no room beside 3 special tokens"):
        ChoiceRows(tiny.tokenizer(), 4)
