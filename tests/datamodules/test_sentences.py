import itertools

import pytest

from lmkit.datamodules.sentences import sentence_starts


def cut(text):
    starts = [*sentence_starts(text).tolist(), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(starts)]


def test_a_sentence_ends_with_its_line_and_inside_of_it():
    assert cut("One\n\n  and two \nThree. Four") == ["One\n\n  ", "and two \n", "Three. ", "Four"]
    assert cut("One.\nTwo.\n") == ["One.\n", "Two.\n"]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One ends. Another?", ["One ends. ", "Another?"]),
        ('He said "No." Then he left.', ['He said "No." ', "Then he left."]),
        ("Really?! \u201cYes.\u201d (It is.)", ["Really?! ", "\u201cYes.\u201d ", "(It is.)"]),
        ("In 1990 . 12 men came", ["In 1990 . ", "12 men came"]),
        ("It costs 3.50 euros, e.g. here.", ["It costs 3.50 euros, e.g. here."]),
        ("one ends. another does not", ["one ends. another does not"]),
        ("\u4f60\u597d\u3002\u518d\u89c1\uff01", ["\u4f60\u597d\u3002", "\u518d\u89c1\uff01"]),
        ("\u041e\u043d. \u042f", ["\u041e\u043d. ", "\u042f"]),
        ("  Only one line. Two\n", ["Only one line. ", "Two\n"]),
        ("One line ends.  ", ["One line ends.  "]),
    ],
)
def test_a_line_is_cut_where_a_stop_is_followed_by_a_beginning(text, sentences):
    assert cut(text) == sentences


def test_a_blank_text_has_no_sentence():
    assert not len(sentence_starts("")) and not len(sentence_starts(" \n "))
