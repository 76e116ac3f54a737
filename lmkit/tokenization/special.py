"""What a task needs to know of a tokenizer: its special tokens, and ids without them."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

__all__ = [
    "require_mask_token",
    "require_pad_token",
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


def require_pad_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the padding token, else of the end-of-text token, or raise `ValueError`."""
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
