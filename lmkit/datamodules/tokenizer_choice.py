"""Which tokenizer the data are tokenized with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from transformers import PreTrainedTokenizerBase

from ..cache import cache_folder
from ..tokenization import load_tokenizer, require_pad_token
from .corpus import HeldOut, trained_tokenizer
from .source import TextSource

if TYPE_CHECKING:
    from .base import LMDataModule

__all__ = ["choose_tokenizer", "take_tokenizer"]


def take_tokenizer(
    data: LMDataModule,
    given: PreTrainedTokenizerBase | None,
    source: TextSource | None,
    rule: HeldOut | None,
) -> PreTrainedTokenizerBase:
    """Give a data module its tokenizer: the given one, or what `choose_tokenizer` finds.

    Args:
        data: knows the name, the model, and how to train one.
        given: by the caller.
        source: the training text.
        rule: what of it is held out.

    Raises:
        ValueError: there is none, or the objective cannot use it.
    """
    tokenizer = given or choose_tokenizer(
        data.tokenizer_name,
        data.trainer and data.trainer.lightning_module,
        source,
        rule,
        kind=data.tokenizer_kind,
        vocab_size=data.vocab_size,
        affixes=data.trains_affixes,
        sentinels=data.trained_sentinels(),
        cache=cache_folder(data.cache_dir),
    )
    data.check_tokenizer(tokenizer)
    require_pad_token(tokenizer, give=True)
    data.tokenizer = tokenizer
    return tokenizer


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
            "there is no tokenizer, and none can be trained: there is no training text, or it is a "
            "stream (streaming=True), which is read only once. Pass tokenizer (a hub name or a "
            "folder, e.g. of an exported model)"
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
