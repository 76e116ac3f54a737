"""Which tokens of a tokenizer are whole words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["whole_words"]


def whole_words(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the words that are one token behind a space, with their ids, in order of the ids.

    Only words of letters count: no pieces, numbers, signs or special tokens.

    Args:
        tokenizer: of any kind.

    Example:
        >>> from lmkit.tokenization import train_tokenizer
        >>> "cat" in whole_words(train_tokenizer(["a cat sat on a cat"], vocab_size=40))
        True
    """
    special = set(tokenizer.all_special_ids)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    ids = [number for token, number in vocabulary if number not in special]
    texts = [str(tokenizer.decode([i])).strip() for i in ids]
    words = sorted({text for text in texts if text.isalpha()})
    # A space before it, as in the middle of a text.
    rows = tokenizer([f" {word}" for word in words], add_special_tokens=False)["input_ids"]
    single = [
        (int(row[0]), word)
        for word, row in zip(words, rows, strict=True)
        if len(row) == 1 and row[0] not in special and str(tokenizer.decode(row)).strip() == word
    ]
    return {word: number for number, word in sorted(single)}
