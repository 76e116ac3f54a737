"""Texts, or pairs of texts, as the tokens of examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from .labelled_texts import LabelledText

__all__ = ["check_pairs", "encode_texts"]


def check_pairs(examples: Sequence[LabelledText]) -> None:
    """Check that texts without a label are pairs where those with one are, and only there.

    Raises:
        ValueError: they are not; names the first.
    """
    kinds = {example.pair is not None for example in examples if not example.is_unlabelled}
    for example in examples:
        if example.is_unlabelled and kinds and (example.pair is not None) not in kinds:
            has, have = ("one text", "two") if example.pair is None else ("two texts", "one")
            raise ValueError(
                f"unlabelled_file: {example.file}, line {example.line} has {has}, and the rows "
                f"with a label have {have}; give rows of the same kind, or say by text_column and "
                "text_pair_column which columns to read"
            )


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, examples: list[LabelledText], max_length: int
) -> dict[str, Any]:
    """Return `input_ids`, of pairs `token_type_ids`, and which texts were `truncated`.

    Args:
        tokenizer: puts its special tokens around.
        examples: of one text or two, all alike.
        max_length: of the ids; what is longer is cut, of a pair the longer text first.
    """
    if not examples:
        return {"input_ids": [], "truncated": []}
    pairs = [example.pair for example in examples]
    is_pair = any(pair is not None for pair in pairs)
    # transformers warns of what is longer than the model; it is cut here, and counted.
    encoded = tokenizer(
        [example.text for example in examples],
        [pair or "" for pair in pairs] if is_pair else None,
        truncation=True,
        max_length=max_length,
        return_attention_mask=False,
        return_token_type_ids=is_pair,
        return_overflowing_tokens=False,
    )
    ids = encoded["input_ids"]
    columns: dict[str, Any] = {"input_ids": ids}
    if is_pair and "token_type_ids" in encoded and any(map(any, encoded["token_type_ids"])):
        columns["token_type_ids"] = encoded["token_type_ids"]
    rows = encoded.encodings
    columns["truncated"] = [bool(row.overflowing) for row in rows] if rows else [False] * len(ids)
    return columns
