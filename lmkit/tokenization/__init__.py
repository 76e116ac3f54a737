"""Tokenizers: loaded, trained, kept in a checkpoint, and asked for what a task needs."""

from .loading import (
    load_tokenizer,
    tokenizer_digest,
    tokenizer_from_files,
    tokenizer_to_files,
    vocabulary_digest,
)
from .special import (
    PairAffixes,
    pair_affixes,
    require_mask_token,
    require_pad_token,
    require_sentinels,
    require_separator,
    special_affixes,
    text_encoder,
)
from .training import train_tokenizer
from .word_encoder import EncodedText, word_encoder

__all__ = [
    "EncodedText",
    "PairAffixes",
    "load_tokenizer",
    "pair_affixes",
    "require_mask_token",
    "require_pad_token",
    "require_sentinels",
    "require_separator",
    "special_affixes",
    "text_encoder",
    "tokenizer_digest",
    "tokenizer_from_files",
    "tokenizer_to_files",
    "train_tokenizer",
    "vocabulary_digest",
    "word_encoder",
]
