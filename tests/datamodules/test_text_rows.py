import pytest

from lmkit.datamodules.text_rows import BadRows, guess_column


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        (["id", "text"], "text"),
        (["Sentence", "label"], "Sentence"),
        (["content", "text"], "text"),
        (["whatever"], "whatever"),
    ],
)
def test_an_obvious_column_is_guessed(columns, found):
    assert guess_column(columns, None, "a.csv") == found


def test_the_column_that_is_named_is_taken():
    assert guess_column(["text", "title"], "title", "a.csv") == "title"


@pytest.mark.parametrize(
    ("columns", "wanted", "message"),
    [
        (["a", "b"], None, r"a\.csv: which column .* Pass text_column; text columns: 'a', 'b'"),
        ([], None, r"text columns: none"),
        (["body"], "text", r"no text column 'text'; text columns: 'body'$"),
        (["body"], "boddy", r"did you mean 'body'\?"),
    ],
)
def test_no_such_column_names_those_there_are(columns, wanted, message):
    with pytest.raises(ValueError, match=message):
        guess_column(columns, wanted, "a.csv")


def test_bad_rows_raise_or_are_counted(caplog):
    with pytest.raises(ValueError, match=r"^a\.txt, line 3: broken\. Mend it, or pass on_bad_row"):
        BadRows()("a.txt", 3, "broken", "Mend it")
    bad = BadRows("skip")
    for line in (3, 5):
        bad("a.txt", line, "broken", "Mend it")
    bad.report()
    bad.report()
    assert [record.getMessage() for record in caplog.records] == [
        "skipped 2 bad rows; the first: a.txt, line 3: broken"
    ]
