"""The columns of a table that hold a pair."""

from __future__ import annotations

from typing import Any

import pytest

from lmkit.datamodules.pair_columns import PairColumns, Wanted, pair_columns, read_pairs
from lmkit.datamodules.records import Record
from lmkit.datamodules.text_rows import BadRows


@pytest.mark.parametrize(
    ("row", "wanted", "expected"),
    [
        ({"Source": "", "Target": ""}, Wanted(), ("Source", "Target", None)),
        ({"article": "", "highlights": "", "id": ""}, Wanted(), ("article", "highlights", None)),
        ({"document": "", "summary": ""}, Wanted(), ("document", "summary", None)),
        ({"summary": "", "text": ""}, Wanted(), ("text", "summary", None)),
        ({"en": "", "de": ""}, Wanted(source_lang="de"), ("de", "en", None)),
        ({"id": "", "en": "", "de": ""}, Wanted(None, None, "en", "de"), ("en", "de", None)),
        (
            {"translation": {"en": "", "de": ""}},
            Wanted(target_lang="en"),
            ("de", "en", "translation"),
        ),
        ({"a": "", "b": ""}, Wanted("b", "a"), ("b", "a", None)),
        ({"text": "", "b": "", "summary": ""}, Wanted("b"), ("b", "summary", None)),
        # Languages that name no column do not hide the usual ones.
        ({"source": "", "target": ""}, Wanted(None, None, "en", "de"), ("source", "target", None)),
    ],
)
def test_columns_are_found(row: dict[str, Any], wanted: Wanted, expected: Any) -> None:
    assert pair_columns(row, "x.csv", wanted) == PairColumns(*expected)


@pytest.mark.parametrize(
    ("row", "wanted", "message"),
    [
        (
            {"a": "", "b": ""},
            Wanted(),
            r"which column is the source\? Pass source_column.*'a', 'b'",
        ),
        ({"source": "", "b": ""}, Wanted(), r"which column is the target\? Pass target_column"),
        ({"a": "", "b": ""}, Wanted("c", "a"), r"no column 'c' \(source_column\); there are 'a'"),
        (
            {"translation": {"en": "", "de": ""}},
            Wanted(),
            r"source_lang is None, and the languages are 'en', 'de'; pass source_lang",
        ),
        (
            {"translation": {"en": "", "de": "", "fr": ""}},
            Wanted(source_lang="en"),
            "target_lang is None",
        ),
        ({"en": "", "de": ""}, Wanted(None, None, "en", "ge"), "target_lang is 'ge'"),
    ],
)
def test_columns_that_are_not_obvious_are_named(
    row: dict[str, Any], wanted: Wanted, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pair_columns(row, "x.csv", wanted)


def test_to_predict_on_needs_sources_alone() -> None:
    assert pair_columns({"text": ""}, "x.csv", labelled=False) == PairColumns("text", None)
    assert pair_columns({"question": ""}, "x.csv", labelled=False).source == "question"
    inner = {"translation": {"en": "one"}}
    found = pair_columns(inner, "x", Wanted(None, None, "en", "de"), labelled=False)
    assert found == PairColumns("en", None, "translation")


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"source": "two", "target": ""}, r"the target \(column 'target'\) is blank"),
        ({"source": None, "target": "zwei"}, r"the source \(column 'source'\) is missing"),
        ({"source": "two"}, r"the target \(column 'target'\) is missing"),
        ({"source": 2, "target": "zwei"}, r"is int, not a string"),
    ],
)
def test_a_row_without_a_side_is_bad(values: dict[str, Any], fault: str) -> None:
    rows = [
        Record({"source": "one", "target": "eins"}, "x.csv", 2),
        Record(values, "x.csv", 3),
    ]
    with pytest.raises(ValueError, match=rf"x\.csv, line 3: .*{fault}"):
        read_pairs(rows, BadRows())
    bad = BadRows("skip")
    (pair,) = read_pairs(rows, bad)
    assert (pair.source, pair.target, bad.count) == ("one", "eins", 1)
