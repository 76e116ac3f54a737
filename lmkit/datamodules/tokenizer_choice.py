"""Which tokenizer the data are tokenized with."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from ..tokenization import load_tokenizer
from .corpus import HeldOut, trained_tokenizer
from .source import TextSource

__all__ = ["choose_tokenizer"]


def choose_tokenizer(
    name: str | None,
    module: Any,
    source: TextSource | None,
    rule: HeldOut | None,
    *,
    kind: Literal["wordpiece", "bpe"],
    vocab_size: int,
    affixes: bool,
    sentinels: int,
    cache: Path,
) -> PreTrainedTokenizerBase:
    """Take the one that is named, else the model's own, else one trained on the training text.

    Args:
        name: hub name or folder, if the user gave one.
        module: the `LightningModule` that is to be trained, if there is one yet.
        source: the training text.
        rule: what of it is held out.
        kind: see `trained_tokenizer`, as are the others.
        vocab_size: of a trained one.
        affixes: of a trained one.
        sentinels: of a trained one.
        cache: folder of the cache.

    Raises:
        ValueError: there is neither a tokenizer nor a training text.
    """
    if name is not None:
        return load_tokenizer(name)
    own = getattr(module, "tokenizer", None)
    if isinstance(own, PreTrainedTokenizerBase):
        return own
    model = module.hparams.get("model") if module is not None else None
    if isinstance(model, str):
        return load_tokenizer(model)
    if source is None:
        raise ValueError(
            "there is no tokenizer and no training text to train one on, which a stream is not; "
            "pass tokenizer (a hub name or a folder, e.g. of the exported model), or train_file or "
            "source"
        )
    return trained_tokenizer(
        source,
        rule,
        kind=kind,
        vocab_size=vocab_size,
        affixes=affixes,
        cache=cache,
        sentinels=sentinels,
    )
