"""From sources of text to a tokenizer and token stores, each made once and kept by content."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tokenizers
from transformers import PreTrainedTokenizerBase

from ..tokenization import (
    text_encoder,
    tokenizer_digest,
    tokenizer_from_files,
    tokenizer_to_files,
    train_tokenizer,
    word_encoder,
)
from .source import TextSource, short_hash
from .text_rows import Text
from .token_store import FORMAT_VERSION, TokenStore
from .token_writer import write_stores

__all__ = ["HeldOut", "hold_out", "token_stores", "trained_tokenizer"]


@dataclass(frozen=True)
class HeldOut:
    """Which documents of the training text are held out for validation: by a hash of the text.

    Equal documents are on the same side, and a document stays there when others come or go.

    Attributes:
        below: documents whose hash, in `[0, 1)`, is below this are held out.
    """

    below: float

    def __call__(self, text: Text) -> str:
        """Return `val` or `train`."""
        return "val" if _place(text) < self.below else "train"


def hold_out(source: TextSource, fraction: float) -> HeldOut:
    """Return a rule that holds out about `fraction` of the documents, and at least one.

    Raises:
        ValueError: there are fewer than two different documents.
    """
    lowest: list[float] = []
    starts = True
    for text in source.texts():
        if starts:
            if _place(text) < fraction:
                return HeldOut(fraction)
            lowest = sorted({*lowest, _place(text)})[:2]
        starts = text.ends
    if not lowest:
        raise ValueError(f"train: there is no text in {source.name}, only blank lines")
    if len(lowest) < 2:
        raise ValueError(
            f"val split is empty: {source.name} has one document; "
            "pass val_file, or cut the text into more documents (document='line' or 'paragraph'), "
            "or pass val_fraction=0 to train without validation"
        )
    # So few documents that none fell below: the lowest one is held out.
    return HeldOut(sum(lowest) / 2)


def trained_tokenizer(
    source: TextSource,
    rule: HeldOut | None,
    *,
    kind: Literal["wordpiece", "bpe"],
    vocab_size: int,
    affixes: bool,
    cache: Path,
    sentinels: int = 0,
) -> PreTrainedTokenizerBase:
    """Return a tokenizer trained on the training text, from the cache when it is there.

    Args:
        source: the training text.
        rule: what of it is held out, and not trained on.
        kind: see `train_tokenizer`.
        vocab_size: see `train_tokenizer`.
        affixes: see `train_tokenizer`.
        cache: folder of the cache.
        sentinels: see `train_tokenizer`.
    """
    facts = [source.key(cache), rule and rule.below, kind, vocab_size, affixes, sentinels]
    key = short_hash(["tokenizer", FORMAT_VERSION, tokenizers.__version__, *facts])
    final = cache / "tokenizers" / key
    if (final / "tokenizer.json").is_file():
        try:
            files = {path.name: path.read_text(encoding="utf-8") for path in final.iterdir()}
            return tokenizer_from_files(files)
        except ValueError:  # damaged: it is trained again
            shutil.rmtree(final, ignore_errors=True)
    trained = train_tokenizer(
        _Training(source, rule), kind, vocab_size, affixes=affixes, sentinels=sentinels
    )
    files = tokenizer_to_files(trained)
    final.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=final.parent, prefix=".building-"))
    try:
        for name, text in files.items():
            (building / name).write_text(text, encoding="utf-8")
        building.rename(final)
    except OSError:
        # Another process was first, with the same tokenizer; or the disk is full, and this run
        # can go on without the cache.
        shutil.rmtree(building, ignore_errors=True)
    return tokenizer_from_files(files)


def token_stores(
    sources: dict[str, TextSource],
    rule: HeldOut | None,
    tokenizer: PreTrainedTokenizerBase,
    separator: int,
    cache: Path,
    words: bool = False,
    sentences: bool = False,
) -> dict[str, TokenStore]:
    """Return a store for each split, from the cache or written now.

    Args:
        sources: split -> its text.
        rule: what of the training text is held out as `val`, if anything.
        tokenizer: makes the tokens.
        separator: id that ends a document.
        cache: folder of the cache.
        words: whether the stores have to know where words begin.
        sentences: whether they have to know where sentences begin.

    Raises:
        ValueError: a split has no text, or no tokens; or words or sentences are asked of a
            tokenizer that does not know them.
    """
    encode = word_encoder(tokenizer) if words or sentences else text_encoder(tokenizer)
    asked = [name for name, wanted in (("words", words), ("sentences", sentences)) if wanted]
    digest = tokenizer_digest(tokenizer)
    stores: dict[str, TokenStore] = {}
    for split, source in sources.items():
        halves = ("train", "val") if split == "train" and rule else (split,)
        part = rule.below if split == "train" and rule else None
        facts = ["tokens", FORMAT_VERSION, source.key(cache), digest, separator, part, *asked]
        targets = {
            half: cache / "tokens" / short_hash([*facts, half if part else ""]) for half in halves
        }
        try:
            found = {half: TokenStore(path) for half, path in targets.items()}
        except FileNotFoundError:
            found = write_stores(
                source.texts(report=True),
                targets,
                encode=encode,
                separator=separator,
                vocab_size=len(tokenizer),
                route=rule if part else None,
                words=words,
                sentences=sentences,
                name=split,
            )
        for half, store in found.items():
            if not store.documents:
                raise ValueError(f"{half}: there is no text in {source.name}, only blank lines")
            if store.tokens == store.documents:
                raise ValueError(f"{half}: the tokenizer finds no token in {source.name}")
        stores.update(found)
    return stores


class _Training:
    """The texts that are not held out; can be read more than once."""

    def __init__(self, source: TextSource, rule: HeldOut | None) -> None:
        self.source, self.rule = source, rule

    def __iter__(self) -> Iterator[str]:
        kept = starts = True
        for text in self.source.texts():
            if starts and self.rule:
                kept = self.rule(text) == "train"
            starts = text.ends
            if kept:
                yield text.text


def _place(text: Text) -> float:
    digest = hashlib.blake2b(text.text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
