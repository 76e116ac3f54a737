"""What a task needs to know of a tokenizer: its special tokens, and ids without them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

__all__ = [
    "PairAffixes",
    "pair_affixes",
    "require_mask_token",
    "require_pad_token",
    "require_sentinels",
    "require_separator",
    "special_affixes",
    "text_encoder",
]


def special_affixes(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the ids that the tokenizer puts before and after one text, found by a probe.

    Raises:
        ValueError: the tokenizer changes the text's own tokens when it adds its special ones.

    Example:
        >>> from lmkit.tokenization import train_tokenizer
        >>> tokenizer = train_tokenizer(["a small text"], vocab_size=60)
        >>> special_affixes(tokenizer)
        ([2], [3])
    """
    for probe in ("the", "a", "1", "."):
        plain = list(tokenizer(probe, add_special_tokens=False)["input_ids"])
        full = list(tokenizer(probe)["input_ids"])
        for start in range(len(full) - len(plain) + 1):
            if plain and full[start : start + len(plain)] == plain:
                return full[:start], full[start + len(plain) :]
    raise ValueError(
        f"cannot tell what {type(tokenizer).__name__} puts around a text: it encodes 'the' as "
        f"{plain} alone and as {full} with special tokens; use another tokenizer"
    )


class PairAffixes(NamedTuple):
    """What a tokenizer puts around a pair of texts: `prefix A middle B suffix`.

    Attributes:
        prefix: ids before the first text.
        middle: ids between the two.
        suffix: ids after the second.
        types: the token type of prefix, first text, middle, second text and suffix, each id for id
            (one for a text).
    """

    prefix: list[int]
    middle: list[int]
    suffix: list[int]
    types: tuple[list[int], int, list[int], int, list[int]]


def pair_affixes(tokenizer: PreTrainedTokenizerBase) -> PairAffixes:
    """Return what the tokenizer puts around and between two texts, found by a probe.

    Raises:
        ValueError: nothing stands between the texts, or the tokenizer changes their own tokens.

    Example:
        >>> from lmkit.tokenization import train_tokenizer
        >>> pair_affixes(train_tokenizer(["a small text"], vocab_size=60))
        PairAffixes(prefix=[2], middle=[3], suffix=[3], types=([0], 0, [0], 1, [1]))
    """
    for probe in ("the", "a", "1", "."):
        plain = list(tokenizer(probe, add_special_tokens=False)["input_ids"])
        pair = tokenizer(probe, probe, return_token_type_ids=True)
        full, types = list(pair["input_ids"]), list(pair["token_type_ids"])
        at = [i for i in range(len(full)) if plain and full[i : i + len(plain)] == plain]
        if len(at) == 2 and at[0] + len(plain) < at[1]:
            ends = [start + len(plain) for start in at]
            parts = (slice(at[0]), slice(ends[0], at[1]), slice(ends[1], None))
            prefix, middle, suffix = (full[part] for part in parts)
            before, between, after = (types[part] for part in parts)
            return PairAffixes(
                prefix, middle, suffix, (before, types[at[0]], between, types[at[1]], after)
            )
    raise ValueError(
        f"{type(tokenizer).__name__} puts no separator between the two texts of a pair (it encodes "
        f"'the' as {plain} and the pair of it as {full}); use a tokenizer that does, such as "
        "BERT's or RoBERTa's"
    )


def text_encoder(
    tokenizer: PreTrainedTokenizerBase,
) -> Callable[[list[str]], list[list[int]]]:
    """Return a function from texts to token ids, without special tokens, truncation or padding.

    It runs on a copy of the tokenizer's backend, so that neither changes the other.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        return lambda texts: cast(
            list[list[int]], tokenizer(texts, add_special_tokens=False)["input_ids"]
        )
    copy = Tokenizer.from_str(backend.to_str())
    copy.no_truncation()
    copy.no_padding()

    def encode(texts: list[str]) -> list[list[int]]:
        return [row.ids for row in copy.encode_batch_fast(texts, add_special_tokens=False)]

    return encode


def require_mask_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the mask token, or raise `ValueError` saying what to do."""
    return _require(tokenizer, ("mask_token",), "a masked language model needs a mask token")


def require_pad_token(tokenizer: PreTrainedTokenizerBase, give: bool = False) -> int:
    """Return the id of the padding token, else of the end-of-text token, or raise `ValueError`.

    Args:
        tokenizer: the tokenizer.
        give: let the end of text be the padding token of a tokenizer without one, such as GPT-2's.
    """
    if give and tokenizer.pad_token_id is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return _require(tokenizer, ("pad_token", "eos_token"), "batches need a padding token")


def require_separator(tokenizer: PreTrainedTokenizerBase, *roles: str) -> int:
    """Return the id that ends a document: of the first of `roles` that the tokenizer has.

    Args:
        tokenizer: the tokenizer.
        *roles: e.g. `"sep_token", "eos_token"` for a masked language model.

    Raises:
        ValueError: it has none of them.
    """
    return _require(tokenizer, roles, "documents need a token that ends them")


def require_sentinels(tokenizer: PreTrainedTokenizerBase, count: int = 1) -> list[int]:
    """Return the ids of `<extra_id_0>`, `<extra_id_1>`, ...: what stands for spans of a text.

    Args:
        tokenizer: T5's or one like it; its ids may stand in any order.
        count: how many are needed.

    Returns:
        All that it has, in the order of their numbers.

    Raises:
        ValueError: it has fewer than `count`.

    Example:
        >>> from lmkit.tokenization import train_tokenizer
        >>> tokenizer = train_tokenizer(["a small text"], "bpe", vocab_size=300, sentinels=3)
        >>> require_sentinels(tokenizer)
        [272, 271, 270]
    """
    vocabulary = tokenizer.get_vocab()
    found: list[int] = []
    while (name := f"<extra_id_{len(found)}>") in vocabulary or f"▁{name}" in vocabulary:
        # mT5's stand among the words of its vocabulary, which have the mark of a space before.
        found.append(vocabulary[name if name in vocabulary else f"▁{name}"])
    if len(found) < count:
        raise ValueError(
            f"span corruption needs {count} sentinel tokens, <extra_id_0> to "
            f"<extra_id_{count - 1}>, and the tokenizer {tokenizer.name_or_path or ''} "
            f"({type(tokenizer).__name__}) has {len(found) or 'none'}. Choose a tokenizer like "
            "T5's, leave tokenizer out to train one on the training text"
            + (", or lower max_length" if found else "")
        )
    return found


def _require(tokenizer: PreTrainedTokenizerBase, roles: tuple[str, ...], need: str) -> int:
    for role in roles:
        token_id = getattr(tokenizer, f"{role}_id", None)
        if token_id is not None:
            return int(token_id)
    has = ", ".join(f"{role} {token}" for role, token in tokenizer.special_tokens_map.items())
    raise ValueError(
        f"{need} ({' or '.join(roles)}), and the tokenizer {tokenizer.name_or_path or ''} "
        f"({type(tokenizer).__name__}) has only: {has or 'no special tokens'}. Choose another "
        "tokenizer, or leave tokenizer out to train one on the training text"
    )
