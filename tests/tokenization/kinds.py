"""Small tokenizers of every kind that can be trimmed, as transformers has them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import cache
from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase

from lmkit.tokenization import train_tokenizer

_SYLLABLES = ["ba", "co", "du", "fe", "gi", "ho", "ju", "ka", "le", "mi", "no", "pu", "qua", "re"]
_SYLLABLES += ["si", "to", "vu", "wa", "xe", "yo", "zi", "tion", "ing", "the", "and"]
#: Characters that each stand in another script, or in none.
STRANGE = "Ünïcode 東京 и Москва 🙂 it's 12 345, tabs\tand  spaces"
_ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>"]
_BYTES = [f"<0x{number:02X}>" for number in range(256)]


def texts(count: int, seed: int = 0) -> list[str]:
    """Make texts of invented words, some of them frequent."""
    rng = random.Random(seed)
    words = ["".join(rng.choices(_SYLLABLES, k=rng.randint(1, 4))) for _ in range(300)]
    return [
        " ".join(rng.choices(words, [1 / (1 + n) for n in range(300)], k=rng.randint(3, 12)))
        for _ in range(count)
    ]


@cache
def corpus() -> tuple[str, ...]:
    """What the tokenizers are trained on."""
    return (*texts(400), *[STRANGE] * 3)


def fuzz(count: int = 400, seed: int = 1) -> list[str]:
    """Make texts out of the characters and words of the corpus, and of others."""
    rng = random.Random(seed)
    letters = sorted({letter for text in corpus() for letter in text}) + list("éß♫\n한")
    words = [word for text in corpus() for word in text.split()]
    made = ["".join(rng.choices(letters, k=rng.randint(0, 25))) for _ in range(count // 2)]
    made += [" ".join(rng.choices(words, k=rng.randint(1, 9))) for _ in range(count // 4)]
    return made + ["".join(rng.choices(words, k=rng.randint(1, 4))) for _ in range(count // 4)]


def _unigram(size: int = 500) -> list[tuple[str, float]]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=size,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return [tuple(piece) for piece in json.loads(tokenizer.to_str())["model"]["vocab"]]


def _byte_level() -> dict[str, Any]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return _bpe(tokenizer, 600, _ROBERTA, alphabet)


def _with_fallback() -> dict[str, Any]:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence(steps)
    return _bpe(tokenizer, 800, ["<unk>", "<s>", "</s>", *_BYTES], [])


def _with_suffix() -> dict[str, Any]:
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return _bpe(tokenizer, 400, ["<unk>"], [], end_of_word_suffix="</w>")


def _bpe(
    tokenizer: Tokenizer, size: int, special: list[str], alphabet: list[str], **how: Any
) -> dict[str, Any]:
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
        **how,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(pair) for pair in model["merges"]]}


def _clip() -> PreTrainedTokenizerBase:
    backend = Tokenizer(models.BPE(**_with_suffix(), end_of_word_suffix="</w>", unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.BPEDecoder(suffix="</w>")
    return _wrap(backend)


def _llama_3() -> PreTrainedTokenizerBase:
    backend = Tokenizer(models.BPE(**_byte_level(), ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return _wrap(backend)


def _wrap(backend: Tokenizer) -> PreTrainedTokenizerBase:
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def _wordpiece() -> PreTrainedTokenizerBase:
    return train_tokenizer(list(corpus()), vocab_size=500)


MAKERS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "wordpiece": _wordpiece,
    "bert": lambda: transformers.BertTokenizer(vocab=_wordpiece().get_vocab()),
    "bpe": lambda: train_tokenizer(list(corpus()), "bpe", vocab_size=500),
    "sentinels": lambda: train_tokenizer(list(corpus()), "bpe", vocab_size=500, sentinels=9),
    "gpt2": lambda: transformers.GPT2Tokenizer(**_byte_level()),
    "roberta": lambda: transformers.RobertaTokenizer(**_byte_level()),
    "llama": lambda: transformers.LlamaTokenizer(**_with_fallback()),
    "llama_3": _llama_3,
    "clip": _clip,
    "t5": lambda: transformers.T5Tokenizer(vocab=_unigram(), extra_ids=10),
    "xlm_roberta": lambda: transformers.XLMRobertaTokenizer(vocab=_unigram()),
    "mbart": lambda: transformers.MBartTokenizer(vocab=_unigram()),
}


@cache
def make(name: str) -> PreTrainedTokenizerBase:
    """Make a tokenizer, once a process."""
    return MAKERS[name]()
