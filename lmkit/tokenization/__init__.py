"""Tokenizers: loaded, trained, kept in a checkpoint, and asked for what a task needs."""

from .loading import load_tokenizer, tokenizer_digest, tokenizer_from_files, tokenizer_to_files
from .special import (
    require_mask_token,
    require_pad_token,
    require_separator,
    special_affixes,
    text_encoder,
)
from .training import train_tokenizer

__all__ = [
    "load_tokenizer",
    "require_mask_token",
    "require_pad_token",
    "require_separator",
    "special_affixes",
    "text_encoder",
    "tokenizer_digest",
    "tokenizer_from_files",
    "tokenizer_to_files",
    "train_tokenizer",
]
