"""Train a tokenizer on a stream of texts, the same one each time."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, cast

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

__all__ = ["train_tokenizer"]

WORDPIECE_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BPE_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def train_tokenizer(
    texts: Iterable[str],
    kind: Literal["wordpiece", "bpe"] = "wordpiece",
    vocab_size: int = 8192,
    *,
    lowercase: bool | None = None,
    affixes: bool = True,
    sentinels: int = 0,
) -> PreTrainedTokenizerFast:
    """Train a tokenizer on a stream of texts; the same texts give the same tokenizer.

    WordPiece as in BERT (arXiv:1810.04805): `[CLS] text [SEP]`. Byte-level BPE as in GPT-2 and
    RoBERTa (arXiv:1907.11692): `<s> text </s>`, and no text has an unknown token.

    Args:
        texts: the texts, read once (BPE) or twice (WordPiece: the library's own trainer orders the
            pieces `##x` by a hash table, which differs from run to run, so that the alphabet is
            counted first). A one-shot iterator is spooled to disk for that. Never held in memory.
        kind: `wordpiece` or `bpe`.
        vocab_size: size of the vocabulary, special tokens included; a small text gives fewer.
        lowercase: fold case (and, for WordPiece, accents); by default WordPiece does, BPE does not.
        affixes: put `[CLS] [SEP]` or `<s> </s>` around a text, as masked language models have it.
        sentinels: end the vocabulary with so many, `<extra_id_0>` last, that stand for spans of a
            text, and put only `</s>` behind a text, as T5 has it (arXiv:1910.10683); needs `bpe`.

    Raises:
        ValueError: unknown `kind`, `vocab_size` too small, no text, or sentinels for WordPiece.

    Example:
        >>> tokenizer = train_tokenizer(["a small text", "a smaller text"], vocab_size=60)
        >>> tokenizer.decode(tokenizer("a small text").input_ids)
        '[CLS] a small text [SEP]'
    """
    if sentinels < 0 or (sentinels and kind == "wordpiece"):
        raise ValueError(
            f"sentinels must be 0 or more, and need the kind 'bpe'; got {sentinels} for {kind!r}"
        )
    if kind == "wordpiece":
        return _train_wordpiece(texts, vocab_size, lowercase is not False, affixes)
    if kind == "bpe":
        return _train_bpe(texts, vocab_size, bool(lowercase), affixes, sentinels)
    raise ValueError(f"tokenizer kind must be 'wordpiece' or 'bpe', got {kind!r}")


def _train_wordpiece(
    texts: Iterable[str], vocab_size: int, lowercase: bool, affixes: bool
) -> PreTrainedTokenizerFast:
    if vocab_size < 30:
        raise ValueError(f"vocab_size must be at least 30 for WordPiece, got {vocab_size}")
    with tempfile.TemporaryDirectory() as folder:
        if iter(texts) is texts:
            texts = _Spool(texts, Path(folder) / "texts.jsonl")
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        # BERT's trainer keeps 1,000 characters; a small vocabulary leaves room for words.
        alphabet = _alphabet(texts, tokenizer, limit=min(1000, vocab_size // 3))
        pieces = [f"##{letter}" for letter in alphabet if _joins_words(letter, tokenizer)]
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            special_tokens=[*WORDPIECE_SPECIALS, *alphabet, *pieces],
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
    # The alphabet was declared special only to fix its ids: a fresh model forgets that.
    tokenizer = Tokenizer(models.WordPiece(tokenizer.get_vocab(), unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.add_special_tokens(list(WORDPIECE_SPECIALS))
    if affixes:
        tokenizer.post_processor = processors.BertProcessing(
            ("[SEP]", WORDPIECE_SPECIALS.index("[SEP]")),
            ("[CLS]", WORDPIECE_SPECIALS.index("[CLS]")),
        )
    return _wrap(
        tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def _train_bpe(
    texts: Iterable[str], vocab_size: int, lowercase: bool, affixes: bool, sentinels: int
) -> PreTrainedTokenizerFast:
    special = len(BPE_SPECIALS) + sentinels
    if vocab_size < 256 + special:
        raise ValueError(
            f"vocab_size must be at least {256 + special} for byte-level BPE (256 bytes and "
            f"{special} special tokens), got {vocab_size}"
        )
    tokenizer = Tokenizer(models.BPE())
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    seen = Counter[str]()
    mask = AddedToken("<mask>", lstrip=True, special=True)  # as RoBERTa: takes the space before
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - sentinels,
        special_tokens=[*BPE_SPECIALS[:4], mask],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_counted(texts, seen), trainer)
    if not seen["texts"]:
        raise ValueError("there is no text to train a tokenizer on")
    # A sentinel takes the space before it, as the first token of the span that it stands for has.
    names = [f"<extra_id_{number}>" for number in reversed(range(sentinels))]
    tokenizer.add_special_tokens([AddedToken(n, lstrip=True, special=True) for n in names])
    if sentinels:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>",
            pair="$A </s> $B </s>",
            special_tokens=[("</s>", BPE_SPECIALS.index("</s>"))],
        )
    elif affixes:
        tokenizer.post_processor = processors.RobertaProcessing(
            ("</s>", BPE_SPECIALS.index("</s>")),
            ("<s>", BPE_SPECIALS.index("<s>")),
            add_prefix_space=False,
        )
    masked = affixes and not sentinels
    roles = {"cls_token": "<s>", "sep_token": "</s>", "mask_token": mask} if masked else {}
    return _wrap(
        tokenizer,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        **roles,
    )


def _wrap(tokenizer: Tokenizer, **roles: Any) -> PreTrainedTokenizerFast:
    tokenizer_class: Any = PreTrainedTokenizerFast  # its constructor has no annotations
    return cast(
        PreTrainedTokenizerFast,
        tokenizer_class(
            tokenizer_object=tokenizer,
            # No token_type_ids: several models (DistilBERT) refuse them, and zeros are the default.
            model_input_names=["input_ids", "attention_mask"],
            clean_up_tokenization_spaces=False,
            **roles,
        ),
    )


def _alphabet(texts: Iterable[str], tokenizer: Tokenizer, limit: int) -> list[str]:
    raw = Counter[str]()
    for text in texts:
        raw.update(text)
    letters = Counter[str]()
    for character, count in raw.items():
        for letter in tokenizer.normalizer.normalize_str(character):
            if not letter.isspace():
                letters[letter] += count
    if not letters:
        raise ValueError("there is no text to train a tokenizer on")
    ranked = sorted(letters, key=lambda letter: (-letters[letter], letter))
    return sorted(ranked[:limit])


def _joins_words(letter: str, tokenizer: Tokenizer) -> bool:
    probe = tokenizer.normalizer.normalize_str(f"a{letter}a")
    return len(tokenizer.pre_tokenizer.pre_tokenize_str(probe)) == 1


def _counted(texts: Iterable[str], seen: Counter[str]) -> Iterator[str]:
    for text in texts:
        seen["texts"] += 1
        yield text


class _Spool:
    """A one-shot iterator of texts on disk, to be read more than once."""

    def __init__(self, texts: Iterable[str], path: Path) -> None:
        self.path = path
        with path.open("w", encoding="utf-8") as stream:
            for text in texts:
                stream.write(json.dumps(text) + "\n")

    def __iter__(self) -> Iterator[str]:
        with self.path.open(encoding="utf-8") as stream:
            for line in stream:
                yield json.loads(line)
