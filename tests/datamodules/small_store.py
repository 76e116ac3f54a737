"""Small token stores whose ids are the letters of the text."""

from lmkit.datamodules.text_rows import Text
from lmkit.datamodules.token_writer import write_stores

SEPARATOR = 3


def encode(texts):
    return [[ord(letter) for letter in text] for text in texts]


def documents(*texts):
    return [Text(text, "f", line) for line, text in enumerate(texts, 1)]


def write(texts, folder, **options):
    options = {"encode": encode, "separator": SEPARATOR, "vocab_size": 300, **options}
    return write_stores(texts, {"train": folder / "key"}, **options)["train"]
