"""From sources of text to token stores and rows, all that a language model's data are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from ..cache import cache_folder
from ..tokenization import require_separator
from .corpus import hold_out, token_stores
from .data_facts import describe, text_facts
from .rows import Rows
from .source import TextSource
from .source_resolution import resolve_sources
from .token_store import TokenStore
from .tokenizer_choice import take_tokenizer

if TYPE_CHECKING:
    from .base import LMDataModule

__all__ = ["TextData", "text_data"]


class TextData(NamedTuple):
    """All that a data module is set up with.

    Attributes:
        stream: the training text, where it is streamed.
        stores: split -> its tokens.
        rows: split -> its rows.
        facts: what decides which rows there are and what is made of them, as plain data.
        statistics: see `describe`, and `words`.
        words: a sentence.
    """

    stream: TextSource | None
    stores: dict[str, TokenStore]
    rows: dict[str, Rows]
    facts: dict[str, Any]
    statistics: dict[str, int | float | str]
    words: str


def text_data(data: LMDataModule, tokenizer: PreTrainedTokenizerBase | None) -> TextData:
    """Return what a data module is set up with; its tokenizer is set here.

    Args:
        data: knows its sources and settings, and makes rows.
        tokenizer: given by the caller, if one was.

    Raises:
        ValueError: there is no text, it is bad, or the tokenizer cannot be used.
    """
    cache = cache_folder(data.cache_dir)
    sources = resolve_sources(data.source, data.files, data.text_options, cache, data.streaming)
    stream = sources.pop("train", None) if data.streaming else None
    rule = None
    if "train" in sources and "val" not in sources and data.val_fraction:
        rule = hold_out(sources["train"], data.val_fraction)
    tokenizer = take_tokenizer(data, tokenizer, sources.get("train"), rule)
    separator = require_separator(tokenizer, *data.separator_roles)
    stores = token_stores(sources, rule, tokenizer, separator, cache, **data.boundaries())
    modes = {"train": data.batching}
    rows = {k: data.rows(store, modes.get(k, data.eval_batching)) for k, store in stores.items()}
    facts = {
        **text_facts(sources, stream, rule, tokenizer, cache),
        "max_length": data.max_length,
        "batching": data.batching,
        "seed": data.seed,
        **data.settings(),
    }
    described = describe(stream, sources, stores, rows, tokenizer, cache)
    return TextData(stream, stores, rows, facts, *described)
