"""Token ids together with where words begin and which characters each token stands for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

__all__ = ["EncodedText", "word_encoder"]


class EncodedText(NamedTuple):
    """A text as tokens.

    Attributes:
        ids: the tokens.
        starts_word: bool `[n]`, whether a token is the first of its word.
        ends: int64 `[n]`, the character after the token's last one; of a token without a character
            of its own, such as a lone space before a word, that of the word's first one.
    """

    ids: list[int]
    starts_word: NDArray[np.bool_]
    ends: NDArray[np.int64]


def word_encoder(
    tokenizer: PreTrainedTokenizerBase,
) -> Callable[[list[str]], list[EncodedText]]:
    """Return a function from texts to tokens and words, without special tokens or truncation.

    Words are what the tokenizer itself cuts a text into before it looks tokens up: with `##` or
    without, in bytes or in characters. One that cuts nothing (SentencePiece as Llama 2 has it) has
    words that begin at spaces. It runs on a copy of the tokenizer's backend.

    Raises:
        ValueError: the tokenizer is not a fast one, which alone knows its words.

    Example:
        >>> from lmkit.tokenization import train_tokenizer
        >>> tokenizer = train_tokenizer(["a cat sat"], vocab_size=30)
        >>> encoded = word_encoder(tokenizer)(["scat at"])[0]
        >>> tokenizer.convert_ids_to_tokens(encoded.ids)
        ['s', '##c', '##at', 'a', '##t']
        >>> encoded.starts_word.tolist()
        [True, False, False, True, False]
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise ValueError(
            f"the words of a text are known to fast tokenizers only, and {tokenizer.name_or_path} "
            f"is a {type(tokenizer).__name__}; take a fast one, or mask single tokens "
            "(masking='token')"
        )
    copy: Any = Tokenizer.from_str(backend.to_str())
    copy.no_truncation()
    copy.no_padding()
    find_words = _cut_words if copy.pre_tokenizer is not None else _spaced_words

    def encode(texts: list[str]) -> list[EncodedText]:
        # encode_batch_fast knows neither words nor offsets.
        rows = copy.encode_batch(texts, add_special_tokens=False)
        return [_encoded(row, text, find_words) for row, text in zip(rows, texts, strict=True)]

    return encode


def _encoded(
    row: Encoding, text: str, find_words: Callable[[Encoding, str], NDArray[np.bool_]]
) -> EncodedText:
    offsets = np.asarray(row.offsets, np.int64).reshape(-1, 2)
    starts_word = find_words(row, text)
    starts_word[:1] = True
    return EncodedText(row.ids, starts_word, np.maximum(offsets[:, 1], offsets[:, 0] + 1))


def _cut_words(row: Encoding, text: str) -> NDArray[np.bool_]:
    numbers = np.asarray(row.word_ids, np.float64)  # NaN for none, which equals nothing
    starts = np.ones(len(numbers), bool)
    starts[1:] = numbers[1:] != numbers[:-1]
    return starts


def _spaced_words(row: Encoding, text: str) -> NDArray[np.bool_]:
    return np.array(
        [
            token[:1] in " ▁"
            or text[start : start + 1].isspace()
            or text[start - 1 : start].isspace()
            for token, (start, _) in zip(row.tokens, row.offsets, strict=True)
        ],
        bool,
    )
