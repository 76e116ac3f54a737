"""Texts as tokens."""

from lmkit.datamodules.encoded_texts import encode_texts
from lmkit.datamodules.labelled_texts import LabelledText
from tests import tiny


def test_cut_texts_are_counted():
    tokenizer = tiny.tokenizer()
    examples = [LabelledText(text, None, ("x",), None, "f", 1) for text in tiny.sentences(20)]
    expected = [len(tokenizer(e.text)["input_ids"]) > 12 for e in examples]
    found = encode_texts(tokenizer, examples, 12)["truncated"]
    assert found == expected and any(expected) and not all(expected)
