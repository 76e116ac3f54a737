"""Small token stores whose ids are the letters of the text."""

import numpy as np

from lmkit.datamodules.text_rows import Text
from lmkit.datamodules.token_writer import write_stores
from lmkit.tokenization import EncodedText

SEPARATOR = 3


def encode(texts):
    return [[ord(letter) for letter in text] for text in texts]


def documents(*texts):
    return [Text(text, "f", line) for line, text in enumerate(texts, 1)]


def write(texts, folder, **options):
    options = {"encode": encode, "separator": SEPARATOR, "vocab_size": 300, **options}
    return write_stores(texts, {"train": folder / "key"}, **options)["train"]


def encode_words(texts):
    """Letters as tokens; a word begins after a space, as with a tokenizer that keeps spaces."""
    return [
        EncodedText(
            [ord(letter) for letter in text],
            np.array([at == 0 or text[at - 1] == " " for at in range(len(text))], bool),
            np.arange(1, len(text) + 1),
        )
        for text in texts
    ]
