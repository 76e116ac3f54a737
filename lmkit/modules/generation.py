"""Text from an encoder-decoder: how it writes, and beam search over a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..tokenization.text_ends import close_texts
from ..types import Batch
from .network import usable_positions

__all__ = ["evaluating", "generate", "set_generation", "source_batch"]

# Of a network that says nothing itself.
_BEAMS, _MAX_NEW_TOKENS = 4, 128


@torch.no_grad()
def generate(
    network: PreTrainedModel,
    batch: Batch,
    *,
    end: int | None,
    beams: int | None = None,
    max_new_tokens: int | None = None,
) -> list[list[int]]:
    """Write what is most probable for each row of a batch, by beam search.

    What is written for a row depends on that row alone, up to rounding. The modes of all layers
    are restored.

    Args:
        network: an encoder-decoder.
        batch: `input_ids` and `attention_mask`, int64 `[B, L]`.
        end: id that ends a text.
        beams: how many beginnings are kept in the search; 1 takes the most probable token each
            time. By default what the network's generation config says.
        max_new_tokens: how many tokens are written for a row at most; by default the same.

    Returns:
        For each row the ids that were written, without the token that the decoder starts from, up
        to the end and without it.

    Example:
        >>> from transformers import T5Config, T5ForConditionalGeneration
        >>> network = T5ForConditionalGeneration(T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8,
        ...     num_layers=1, num_heads=2, decoder_start_token_id=0))
        >>> ids = torch.tensor([[7, 8, 1], [7, 1, 0]])
        >>> batch = {"input_ids": ids, "attention_mask": (ids > 0).long()}
        >>> rows = generate(network, batch, end=1, beams=2, max_new_tokens=4)
        >>> len(rows), max(map(len, rows)) <= 4, network.training
        (2, True, True)
    """
    settings: dict[str, Any] = {"num_beams": beams, "max_new_tokens": max_new_tokens}
    if beams is not None:
        settings["do_sample"] = False
    with evaluating(network):
        ids: Tensor = cast(Any, network).generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            **{name: value for name, value in settings.items() if value is not None},
        )
    rows: list[list[int]] = ids[:, 1:].tolist()
    return [row[: row.index(end)] if end in row else row for row in rows]


def set_generation(network: PreTrainedModel, given: Mapping[str, Any]) -> None:
    """Tell a network how it writes, in a way that its checkpoints and exports keep.

    The entry `seq2seq` of its config holds what the data say (`prefix`, `max_target_length`) and
    under `generation` how it writes; its generation config, which transformers' `generate` reads,
    is set to the same.

    Args:
        network: an encoder-decoder, whose config may have the entry already.
        given: arguments of `generate` that the user chose. What nobody chose is the entry's, else
            that of the generation config, else 4 beams and 128 tokens or the longest target.

    Raises:
        ValueError: transformers knows no such argument.

    Example:
        >>> from transformers import T5Config, T5ForConditionalGeneration
        >>> network = T5ForConditionalGeneration(T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8,
        ...     num_layers=1, num_heads=2, decoder_start_token_id=0))
        >>> set_generation(network, {"num_beams": 2})
        >>> network.generation_config.num_beams, network.generation_config.max_new_tokens
        (2, 128)
    """
    config, own = network.config, cast(Any, network).generation_config
    entry = dict(getattr(config, "seq2seq", None) or {})
    settings = {
        "num_beams": own.num_beams or _BEAMS,
        "max_new_tokens": entry.get("max_target_length", _MAX_NEW_TOKENS),
        **entry.get("generation", {}),
        **given,
    }
    places = usable_positions(network.get_decoder())
    if places is not None:
        settings["max_new_tokens"] = min(settings["max_new_tokens"], places - 1)
    if own.forced_eos_token_id is not None:
        # BART's config names an id of its own vocabulary, which another may have for another token.
        settings["forced_eos_token_id"] = own.eos_token_id
    if unknown := own.update(**settings, max_length=None):
        raise ValueError(
            f"generation has {next(iter(unknown))!r}, which is no argument of transformers' "
            "generate; take e.g. length_penalty, no_repeat_ngram_size or repetition_penalty"
        )
    config.seq2seq = {**entry, "generation": settings}


def source_batch(
    network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> Batch:
    """Encode sources as the data module does, behind the prefix that the network was trained with.

    Args:
        network: an encoder-decoder; its config may have the entry `seq2seq`.
        tokenizer: its tokenizer, which is told to put the end behind a text.
        texts: at least one; what the network has no positions for is cut off.

    Returns:
        `input_ids` and `attention_mask`, int64 `[B, L]`, on the network's device.
    """
    close_texts(tokenizer)
    prefix = (getattr(network.config, "seq2seq", None) or {}).get("prefix", "")
    longest = usable_positions(cast(Any, network).get_encoder())
    encoded = tokenizer(
        [prefix + text for text in texts],
        padding=True,
        truncation=longest is not None,
        max_length=longest,
        return_tensors="pt",
    ).to(network.device)
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Switch dropout off, and afterwards give each layer the mode that it had."""
    modes = [(module, module.training) for module in network.modules()]
    network.train(False)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
