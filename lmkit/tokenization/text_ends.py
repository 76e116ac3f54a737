"""The token that ends a text which a decoder writes."""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.processors import Sequence, TemplateProcessing
from transformers import PreTrainedTokenizerBase

from .special import special_affixes

__all__ = ["close_texts", "require_end"]


def require_end(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id that ends a text: `eos`, or where there is none, as BERT has it, `[SEP]`.

    Raises:
        ValueError: the tokenizer has neither.

    Example:
        >>> from lmkit.tokenization import train_tokenizer
        >>> require_end(train_tokenizer(["a small text"], vocab_size=60))
        3
    """
    for role in ("eos_token_id", "sep_token_id"):
        if (token := getattr(tokenizer, role, None)) is not None:
            return int(token)
    has = ", ".join(f"{role} {token}" for role, token in tokenizer.special_tokens_map.items())
    raise ValueError(
        "a decoder has to know where a text ends (eos_token or sep_token), and the tokenizer "
        f"{tokenizer.name_or_path or ''} ({type(tokenizer).__name__}) has only: "
        f"{has or 'no special tokens'}. Choose another tokenizer, or leave tokenizer out to train "
        "one on the training text"
    )


def close_texts(tokenizer: PreTrainedTokenizerBase) -> int:
    """Let a tokenizer put the end behind each text, in place, if it does not do so already.

    Its exported files then do so too, in any other program.

    Returns:
        The id of the end.

    Raises:
        ValueError: there is no end, or the tokenizer is a slow one, which cannot be told.

    Example:
        >>> from lmkit.tokenization import train_tokenizer
        >>> tokenizer = train_tokenizer(["a small text"], "bpe", vocab_size=300, affixes=False)
        >>> close_texts(tokenizer)
        2
        >>> tokenizer.decode(tokenizer("a small text").input_ids)
        'a small text</s>'
    """
    end = require_end(tokenizer)
    if end in special_affixes(tokenizer)[1]:
        return end
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise ValueError(
            f"{type(tokenizer).__name__} does not put its end behind a text, and cannot be told "
            "to; use a fast tokenizer"
        )
    token = tokenizer.convert_ids_to_tokens(end)
    closing = TemplateProcessing(
        single=f"$A {token}", pair=f"$A {token} $B {token}", special_tokens=[(token, end)]
    )
    own = backend.post_processor
    backend.post_processor = Sequence([own, closing]) if own is not None else closing
    return end
