"""Words as pieces: where the words of a text are, and which tokens each of them is made of."""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

__all__ = ["PiecedWords", "join_words", "piece_encoder", "split_words"]

# Scripts that put no space between words: each of their characters is a word.
_ALONE = (
    "\u2e80-\u2eff\u3005-\u3007\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
)
_ALONE += "\U00020000-\U0003ffff"


class PiecedWords(NamedTuple):
    """The words of a sentence as tokens.

    Attributes:
        ids: int64 `[P]`, the tokens, without special ones.
        starts: int64 `[W]`, the place of each word's first token; -1 for a word that the tokenizer
            makes nothing of, such as a control character.
    """

    ids: NDArray[np.int64]
    starts: NDArray[np.int64]


def split_words(text: str) -> list[tuple[int, int]]:
    """Return where the words of a text are: the first character of each, and the one behind it.

    Letters, digits and the marks on them make a word together; any other character that is no
    space is one alone, and so is each Chinese or Japanese one. Words this short are never cut by a
    span that somebody drew with care.

    Example:
        >>> [("Don't go to 東京!")[start:end] for start, end in split_words("Don't go to 東京!")]
        ['Don', "'", 't', 'go', 'to', '東', '京', '!']
    """
    return [match.span() for match in _word_pattern().finditer(text)]


def join_words(words: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """Return words as a text with a space between them, and where each of them is.

    Example:
        >>> join_words(["a", "cat"])
        ('a cat', [(0, 1), (2, 5)])
    """
    spans = []
    start = 0
    for word in words:
        spans.append((start, start + len(word)))
        start += len(word) + 1
    return " ".join(words), spans


def piece_encoder(
    tokenizer: PreTrainedTokenizerBase,
) -> Callable[[Sequence[Sequence[str]]], list[PiecedWords]]:
    r"""Return a function from sentences, as lists of words, to tokens.

    Each word is tokenized as if a space stood before it, as `is_split_into_words=True` does it. It
    runs on a copy of the tokenizer's backend, without special tokens or truncation.

    Example:
        >>> from lmkit.tokenization import train_tokenizer
        >>> tokenizer = train_tokenizer(["a cat sat"], vocab_size=30)
        >>> (made,) = piece_encoder(tokenizer)([["scat", "\x00", "at"]])
        >>> tokenizer.convert_ids_to_tokens(made.ids.tolist()), made.starts.tolist()
        (['s', '##c', '##at', 'a', '##t'], [0, -1, 3])
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        return lambda sentences: [_word_by_word(tokenizer, words) for words in sentences]
    copy: Any = Tokenizer.from_str(json.dumps(_with_space(json.loads(backend.to_str()))))
    copy.no_truncation()
    copy.no_padding()

    def encode(sentences: Sequence[Sequence[str]]) -> list[PiecedWords]:
        rows = copy.encode_batch(
            [list(words) for words in sentences], is_pretokenized=True, add_special_tokens=False
        )
        return [
            _pieced(row.ids, row.word_ids, len(words))
            for row, words in zip(rows, sentences, strict=True)
        ]

    return encode


def _pieced(ids: list[int], owners: list[int], words: int) -> PiecedWords:
    starts = np.full(words, -1, np.int64)
    # From right to left, so that a word's first piece is the one that stays.
    places = np.arange(len(ids))[::-1]
    starts[np.asarray(owners, np.int64)[::-1]] = places
    return PiecedWords(np.asarray(ids, np.int64), starts)


def _word_by_word(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> PiecedWords:
    ids: list[int] = []
    owners: list[int] = []
    for number, word in enumerate(words):
        pieces = tokenizer(word, add_special_tokens=False)["input_ids"]
        ids += pieces
        owners += [number] * len(pieces)
    return _pieced(ids, owners, len(words))


def _with_space(state: dict[str, Any]) -> dict[str, Any]:
    """Let a byte-level tokenizer see each word with a space before it, as it saw words in text."""

    def change(part: Any) -> None:
        if isinstance(part, dict):
            if part.get("type") == "ByteLevel" and "add_prefix_space" in part:
                part["add_prefix_space"] = True
            for inner in part.get("pretokenizers", []):
                change(inner)

    change(state["pre_tokenizer"])
    return state


@cache
def _word_pattern() -> re.Pattern[str]:
    # `\w` of Python has no marks: without them the vowels of Hindi would be words of their own.
    marks = [chr(c) for c in range(sys.maxunicode) if unicodedata.category(chr(c))[0] == "M"]
    alone = f"[{_ALONE}]"
    return re.compile(rf"{alone}|(?:(?!{alone})[\w{''.join(marks)}])+|[^\s]")
