"""Windows of a context: they cover it, and are those that the tokenizer itself would make."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from lmkit.tokenization import train_tokenizer
from lmkit.tokenization.question_windows import QuestionWindows, window_bounds
from tests import tiny


def tokenizer(kind: str = "wordpiece", side: str = "right") -> Any:
    made = train_tokenizer(tiny.sentences(200), kind, vocab_size=300)
    made.padding_side = side
    return made


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 30])
@pytest.mark.parametrize(("room", "stride"), [(8, 0), (8, 3), (8, 7)])
def test_windows_cover_every_token_and_share_what_they_should(
    length: int, room: int, stride: int
) -> None:
    bounds = window_bounds(length, room, stride)
    assert {t for a, b in bounds for t in range(a, b)} == set(range(length))
    assert all(b - a == room for a, b in bounds[:-1])
    assert all(end - start == stride for (_, end), (start, _) in pairwise(bounds))


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_rows_are_those_of_the_tokenizer_itself(kind: str, side: str) -> None:
    fast = tokenizer(kind, side)
    windows = QuestionWindows(fast, 32, doc_stride=5, max_question_length=20)
    contexts = [" ".join(tiny.sentences(4, seed)) for seed in range(4)] + ["fox"]
    for question, context in zip(tiny.sentences(5, 9), contexts, strict=True):
        question = " ".join(question.split()[:4])
        encoded = windows.contexts([context])[0]
        made = windows(windows.questions([question])[0], encoded)
        texts, cut = ((question, context), "only_second")
        if side == "left":
            texts, cut = ((context, question), "only_first")
        expected = fast(
            *texts,
            truncation=cut,
            max_length=32,
            stride=5,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_token_type_ids=True,
        )
        assert [w.ids for w in made] == expected["input_ids"]
        assert [w.types for w in made] == expected["token_type_ids"]
        for row, window in enumerate(made):
            whose = expected.sequence_ids(row)
            assert whose.index(int(side == "right")) == window.column
            theirs = expected["offset_mapping"][row][window.column :]
            ours = encoded.offsets[window.first : window.last]
            for (a, b), (start, end) in zip(ours, theirs, strict=False):
                # The tokenizer may count the space before a word, we do not.
                shown = context[a:b] if a >= 0 else ""
                assert shown == context[start:end].strip()
            assert window.ids[window.null] == fast.cls_token_id


def test_a_long_question_is_cut_and_counted() -> None:
    windows = QuestionWindows(tokenizer(), 20, doc_stride=2, max_question_length=3)
    assert [*map(len, windows.questions(["fox", "the quick brown fox jumps"]))] == [1, 3]
    assert windows.cut == 1


def test_white_space_is_no_part_of_a_token() -> None:
    fast = tokenizer("bpe")
    text = "fox  quick \n brown"
    offsets = QuestionWindows(fast, 64, 4, 8).contexts([text])[0].offsets
    assert all((a, b) == (-1, -1) or not (text[a] + text[b - 1]).isspace() for a, b in offsets)
    assert "".join(text[a:b] for a, b in offsets if a >= 0) == "foxquickbrown"


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"max_length": 20}, "leaves 10 tokens.*doc_stride=12"),
        ({"doc_stride": -1}, "doc_stride must be at least 0"),
        ({"max_question_length": 0}, "max_question_length at least 1"),
    ],
)
def test_windows_that_cannot_move_on_are_refused(settings: dict[str, int], fault: str) -> None:
    options = {"max_length": 32, "doc_stride": 12, "max_question_length": 7, **settings}
    with pytest.raises(ValueError, match=fault):
        QuestionWindows(tokenizer(), **options)
