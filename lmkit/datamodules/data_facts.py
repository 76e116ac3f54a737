"""What a run's data are, in words and numbers, and whether a resumed run has the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..tokenization import tokenizer_digest
from .corpus import HeldOut
from .rows import Rows
from .source import TextSource
from .token_store import TokenStore

__all__ = ["compare_facts", "describe", "text_facts"]

# Facts that decide which tokens are in which row: with another one, a resumed run would silently
# repeat some of the text and miss some.
_DECISIVE = (
    "train text",
    "unlabelled text",
    "val_fraction",
    "tokenizer",
    "max_length",
    "raw_length",
    "batching",
    "sentence_objective",
    "examples_per_class",
    "augmentations_per_example",
    "labels",
    "tasks",
    "sampling",
    "batches",
    "seed",
)


def compare_facts(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Compare a checkpoint's data with this run's.

    Returns:
        A warning about differences that leave the order of the text as it was, or "".

    Raises:
        ValueError: a fact differs that decides which tokens are in which row.

    Example:
        >>> compare_facts({"mask_rate": 0.15}, {"mask_rate": 0.3})
        'since the checkpoint was written, mask_rate was changed from 0.15 to 0.3'
    """
    changes = {
        name: _change(name, before.get(name), now.get(name))
        for name in (*before, *(set(now) - set(before)))
        if before.get(name) != now.get(name)
    }
    decisive = [changes[name] for name in _DECISIVE if name in changes]
    if decisive:
        raise ValueError(
            f"cannot resume: since the checkpoint was written, {', '.join(decisive)}. Give the "
            "settings and files that it was written with; to train on other data from its weights, "
            "start a new run from an export of it (lmkit export)"
        )
    return f"since the checkpoint was written, {', '.join(changes.values())}" if changes else ""


def text_facts(
    sources: Mapping[str, TextSource],
    stream: TextSource | None,
    rule: HeldOut | None,
    tokenizer: PreTrainedTokenizerBase,
    cache: Path,
) -> dict[str, Any]:
    """Return what decides which tokens there are, as plain data: hashes of texts and tokenizer.

    A stream goes by its name: it is not read ahead to know what it holds.
    """
    streamed = {"train text": stream.name} if stream else {}
    return {
        **{f"{split} text": source.key(cache) for split, source in sources.items()},
        **streamed,
        "val_fraction": rule.below if rule else 0.0,
        "tokenizer": tokenizer_digest(tokenizer),
    }


def describe(
    stream: TextSource | None,
    sources: Mapping[str, TextSource],
    stores: Mapping[str, TokenStore],
    rows: Mapping[str, Rows],
    tokenizer: PreTrainedTokenizerBase,
    cache: Path,
) -> tuple[dict[str, int | float | str], str]:
    """Return the statistics of the data as plain data, and a sentence that says them."""
    name = (stream or next(iter(sources.values()))).name
    statistics: dict[str, int | float | str] = {"source": name, "vocabulary": len(tokenizer)}
    words = ["train as a stream"] if stream else []
    if stream and "val" not in stores:
        words.append("no validation (pass val_file)")
    for split, store in stores.items():
        statistics[f"{split}/documents"] = store.documents
        statistics[f"{split}/tokens"] = store.tokens
        statistics[f"{split}/text_bytes"] = store.text_bytes
        statistics[f"{split}/rows"] = len(rows[split])
        statistics[f"{split}/cut_documents"] = rows[split].cut
        words.append(
            f"{split} {store.documents:,} documents, {store.tokens:,} tokens, "
            f"{len(rows[split]):,} rows"
            + (f" ({rows[split].cut:,} documents longer than a row cut)" if rows[split].cut else "")
        )
    size = sum(store.disk_bytes for store in stores.values())
    statistics["cache_bytes"] = size
    sentence = (
        f"data from {name}: {'; '.join(words)}; vocabulary of {len(tokenizer):,}; "
        f"{size / 2**20:.1f} MiB in {cache}"
    )
    return statistics, sentence


def _change(name: str, before: Any, now: Any) -> str:
    if name == "tokenizer" or name.endswith("text"):  # hashes: their values say nothing
        return f"the {name} was changed"
    return f"{name} was changed from {before} to {now}"
