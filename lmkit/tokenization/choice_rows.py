"""A question and each of its choices as rows of tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from .special import pair_affixes, text_encoder

__all__ = ["ChoiceRow", "ChoiceRows", "choice_texts"]

_BLANK = re.compile(r"(?<!\w)_+(?!\w)")


class ChoiceRow(NamedTuple):
    """One choice of a question.

    Attributes:
        ids: the tokens of the row, special ones included.
        types: the token type of each.
        is_cut: whether a text was too long.
    """

    ids: list[int]
    types: list[int]
    is_cut: bool


def choice_texts(context: str, question: str, choice: str) -> tuple[str, str]:
    """Return the two texts of a row: what is given, and what the choice makes of it.

    A blank in the question, `_`, is filled with the choice; else the choice stands behind it.

    Args:
        context: what the question is about, "" if there is nothing but the question.
        question: "" where the choices are ends of the context.
        choice: one of the answers.

    Example:
        >>> choice_texts("Anna sat down.", "She", "fell asleep.")
        ('Anna sat down.', 'She fell asleep.')
        >>> choice_texts("", "The sky is _ .", "blue"), choice_texts("", "What is blue?", "The sky")
        (('The sky is _ .', 'The sky is blue .'), ('What is blue?', 'The sky'))
    """
    if _BLANK.search(question):
        return context or question, _BLANK.sub(lambda _: choice, question)
    if context and question:
        return context, f"{question} {choice}"
    return context or question, choice


class ChoiceRows:
    """Makes rows as the tokenizer itself joins two texts.

    Where both do not fit, tokens are taken off the end of the longer one, as transformers'
    `longest_first`.

    Args:
        tokenizer: joins two texts.
        max_length: tokens in a row at most, special tokens included.

    Raises:
        ValueError: the special tokens leave no room for two texts.

    Example:
        >>> from lmkit.tokenization import train_tokenizer
        >>> rows = ChoiceRows(train_tokenizer(["who sat on a mat ?"], vocab_size=60), 7)
        >>> [(len(row.ids), row.is_cut) for row in rows([("who sat on", "a mat"), ("who", "a")])]
        [(7, True), (5, False)]
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self._encode = text_encoder(tokenizer)
        self.affixes = pair_affixes(tokenizer)
        special = sum(map(len, self.affixes[:3]))
        self.room = max_length - special
        if self.room < 2:
            raise ValueError(
                f"max_length={max_length} leaves no room beside {special} special tokens"
            )

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[ChoiceRow]:
        """Return the rows of pairs of texts."""
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        ids = dict(zip(texts, self._encode(texts), strict=True)) if texts else {}
        return [self._row(list(ids[one]), list(ids[other])) for one, other in pairs]

    def _row(self, one: list[int], other: list[int]) -> ChoiceRow:
        prefix, middle, suffix, types = self.affixes
        is_cut = len(one) + len(other) > self.room
        if is_cut:
            # The shorter one keeps all, or both have half.
            half = self.room // 2
            kept = min(len(other), max(half, self.room - len(one)))
            one, other = one[: self.room - kept], other[:kept]
        before, of_one, between, of_other, after = types
        return ChoiceRow(
            [*prefix, *one, *middle, *other, *suffix],
            [*before, *[of_one] * len(one), *between, *[of_other] * len(other), *after],
            is_cut,
        )
