"""A question and its context as rows of tokens: overlapping windows of what does not fit one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from .special import pair_affixes

__all__ = ["EncodedContext", "QuestionWindows", "Window", "window_bounds"]


class EncodedContext(NamedTuple):
    """A context as tokens.

    Attributes:
        ids: the tokens.
        offsets: int64 `[n, 2]`, each token's first character and the one after its last, without
            white space at its ends; -1 of a token of nothing else.
    """

    ids: list[int]
    offsets: NDArray[np.int64]


class Window(NamedTuple):
    """One row: the question, and a stretch of the context.

    Attributes:
        ids: the tokens of the row, special ones included.
        types: the token type of each.
        first: the token of the context that the stretch begins with.
        last: the token after its last one.
        column: where in the row the stretch begins.
        null: where in the row the token stands that means "no answer here": CLS.
    """

    ids: list[int]
    types: list[int]
    first: int
    last: int
    column: int
    null: int


def window_bounds(length: int, room: int, doc_stride: int) -> list[tuple[int, int]]:
    """Return the first token and the one after the last of each window of a context.

    The windows cover it from its beginning to its end; all but the last are full.

    Args:
        length: tokens of the context; one of none has one window, which is empty.
        room: tokens of a window.
        doc_stride: tokens that a window shares with the one before it, fewer than `room`.

    Example:
        >>> window_bounds(10, room=5, doc_stride=2)
        [(0, 5), (3, 8), (6, 10)]
    """
    bounds = [(0, min(room, length))]
    while bounds[-1][1] < length:
        first = bounds[-1][0] + room - doc_stride
        bounds.append((first, min(first + room, length)))
    return bounds


class QuestionWindows:
    """Makes rows as the tokenizer itself joins a question and a context.

    A tokenizer that pads on the right has the question first, as BERT, and one that pads on the
    left the context. Only the context is cut into windows. Of a question longer than
    `max_question_length` the tokens beyond are left out.

    Args:
        tokenizer: a fast one, which alone knows the characters of its tokens.
        max_length: tokens in a row at most, special tokens included.
        doc_stride: tokens that neighbouring windows of a context share.
        max_question_length: tokens of a question at most.

    Attributes:
        cut: how many questions were cut so far.

    Raises:
        ValueError: the tokenizer is not a fast one, or windows cannot move on.

    Example:
        >>> from lmkit.tokenization import train_tokenizer
        >>> tokenizer = train_tokenizer(["who sat on a mat ? a cat sat there"], vocab_size=60)
        >>> windows = QuestionWindows(tokenizer, 12, doc_stride=1, max_question_length=2)
        >>> question, context = windows.questions(["who"])[0], windows.contexts(["a " * 10])[0]
        >>> [(w.first, w.last, w.column) for w in windows(question, context)]
        [(0, 8, 3), (7, 10, 3)]
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        doc_stride: int = 128,
        max_question_length: int = 64,
    ) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise ValueError(
                f"question answering needs a fast tokenizer, which knows the characters of its "
                f"tokens, and {tokenizer.name_or_path} is a {type(tokenizer).__name__}"
            )
        self._encode: Any = Tokenizer.from_str(backend.to_str())
        self._encode.no_truncation()
        self._encode.no_padding()
        self.affixes = pair_affixes(tokenizer)
        self.question_first = tokenizer.padding_side != "left"
        self._nulls = [tokenizer.cls_token_id, tokenizer.bos_token_id]
        special = sum(map(len, self.affixes[:3]))
        self.room, self.doc_stride = max_length - special, doc_stride
        self.max_question_length = max_question_length
        self.cut = 0
        if doc_stride < 0 or max_question_length < 1:
            raise ValueError(
                "doc_stride must be at least 0 and max_question_length at least 1, got "
                f"{doc_stride} and {max_question_length}"
            )
        if self.room - max_question_length <= doc_stride:
            raise ValueError(
                f"max_length={max_length} leaves {self.room - max_question_length} tokens for the "
                f"context, beside {special} special ones and a question of "
                f"max_question_length={max_question_length}; windows that share "
                f"doc_stride={doc_stride} need more. Raise max_length or lower the others"
            )

    def questions(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of questions, cut to `max_question_length`."""
        rows = self._encode.encode_batch(list(texts), add_special_tokens=False)
        self.cut += sum(len(row.ids) > self.max_question_length for row in rows)
        return [row.ids[: self.max_question_length] for row in rows]

    def contexts(self, texts: Sequence[str]) -> list[EncodedContext]:
        """Return contexts as tokens with their characters."""
        rows = self._encode.encode_batch(list(texts), add_special_tokens=False)
        return [
            EncodedContext(row.ids, _trimmed(row.offsets, text))
            for row, text in zip(rows, texts, strict=True)
        ]

    def __call__(self, question: Sequence[int], context: EncodedContext) -> list[Window]:
        """Return the rows of a question, at least one."""
        bounds = window_bounds(len(context.ids), self.room - len(question), self.doc_stride)
        return [self._window(list(question), context.ids[a:b], a) for a, b in bounds]

    def _window(self, question: list[int], stretch: list[int], first: int) -> Window:
        prefix, middle, suffix, types = self.affixes
        one, other = (question, stretch) if self.question_first else (stretch, question)
        ids = [*prefix, *one, *middle, *other, *suffix]
        before, of_one, between, of_other, after = types
        kinds = [*before, *[of_one] * len(one), *between, *[of_other] * len(other), *after]
        column = len(prefix)
        if self.question_first:
            column += len(question) + len(middle)
        null = next((ids.index(token) for token in self._nulls if token in ids), 0)
        return Window(ids, kinds, first, first + len(stretch), column, null)


def _trimmed(offsets: Sequence[tuple[int, int]], text: str) -> NDArray[np.int64]:
    """Take white space off the ends of tokens: some tokenizers count the space before a word."""
    trimmed = np.array(offsets, np.int64).reshape(-1, 2)
    for place, (start, end) in enumerate(offsets):
        if end > start and not text[start].isspace() and not text[end - 1].isspace():
            continue
        piece = text[start:end]
        start += len(piece) - len(piece.lstrip())
        end = start + len(piece.strip())
        trimmed[place] = (start, end) if end > start else (-1, -1)
    return trimmed
