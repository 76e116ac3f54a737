"""What the decoder of an encoder-decoder reads while it learns: the target, shifted."""

from __future__ import annotations

from typing import cast

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..tokenization import special_affixes
from ..types import IGNORE_INDEX

__all__ = ["decoder_inputs", "decoder_start"]


def decoder_inputs(network: PreTrainedModel, labels: Tensor) -> Tensor:
    """Shift the target to the right, behind the token that the decoder starts from.

    Args:
        network: an encoder-decoder; its own way of shifting is used if it has one.
        labels: int64 `[B, T]`, -100 behind the end of a target.

    Returns:
        int64 `[B, T]`, with padding for -100.

    Example:
        >>> import torch
        >>> from transformers import T5Config, T5ForConditionalGeneration
        >>> network = T5ForConditionalGeneration(T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8,
        ...     num_layers=1, num_heads=2, decoder_start_token_id=0))
        >>> decoder_inputs(network, torch.tensor([[7, 8, 1], [7, 1, -100]])).tolist()
        [[0, 7, 8], [0, 7, 1]]
    """
    own = getattr(network, "prepare_decoder_input_ids_from_labels", None)
    if own is not None:
        return cast(Tensor, own(labels))
    shifted = labels.new_empty(labels.shape)
    shifted[:, 1:] = labels[:, :-1]
    shifted[:, 0] = network.config.decoder_start_token_id
    return shifted.masked_fill(shifted == IGNORE_INDEX, network.config.pad_token_id)


def decoder_start(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return from which token the decoder of a new network starts, as an entry of its config.

    Where the tokenizer begins each text with a token of its own, as BERT's does with `[CLS]`, the
    decoder starts from that. Its targets then lose it: it would be one more token for each to
    write, and one that cannot be missed.

    Returns:
        `decoder_start_token_id`; nothing where a text begins with its first word, and the
        architecture knows what to start from.

    Example:
        >>> from lmkit.tokenization import train_tokenizer
        >>> decoder_start(train_tokenizer(["a small text"], vocab_size=60))
        {'decoder_start_token_id': 2}
    """
    before, _ = special_affixes(tokenizer)
    return {"decoder_start_token_id": before[0]} if len(before) == 1 else {}
