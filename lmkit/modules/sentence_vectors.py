"""Raw texts through a network in batches of like length, and vectors of whole texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from ..tokenization import load_tokenizer, require_pad_token
from ..types import Batch
from .generation import evaluating
from .network import named_config, usable_positions
from .network_inputs import network_inputs

__all__ = ["SentenceVectors", "sorted_batches"]


def sorted_batches(
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    batch_size: int,
    pairs: Sequence[str] | None = None,
) -> Iterator[tuple[list[int], Batch]]:
    """Encode texts, and yield them in batches of like length, the longest first.

    Args:
        network: that is to read them; what it has no positions for is cut off.
        tokenizer: its tokenizer.
        texts: any number.
        batch_size: of texts.
        pairs: the second text of each, for a network of pairs.

    Yields:
        The places of the texts in `texts`, and `input_ids` and `attention_mask`, int64 `[B, L]`,
        perhaps `token_type_ids`, padded on the right.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from lmkit.tokenization import train_tokenizer
        >>> tokenizer = train_tokenizer(["a cat sat", "dogs"], vocab_size=60)
        >>> network = BertModel(BertConfig(vocab_size=60, hidden_size=8, num_hidden_layers=1,
        ...     num_attention_heads=2, intermediate_size=8))
        >>> texts = ["a", "a cat sat", "a cat"]
        >>> [places for places, _ in sorted_batches(network, tokenizer, texts, 2)]
        [[1, 2], [0]]
    """
    if not texts:
        return
    require_pad_token(tokenizer, give=True)
    longest = min(usable_positions(network) or 512, tokenizer.model_max_length)
    second = None if pairs is None else list(pairs)
    encoded = tokenizer(
        list(texts),
        second,
        truncation=True,
        max_length=longest,
        return_token_type_ids=second is not None,
    )
    lengths = [len(ids) for ids in encoded["input_ids"]]
    order = sorted(range(len(texts)), key=lambda place: -lengths[place])
    for first in range(0, len(order), batch_size):
        places = order[first : first + batch_size]
        rows = {name: [column[place] for place in places] for name, column in encoded.items()}
        padded = tokenizer.pad(rows, padding_side="right", return_tensors="pt")
        yield places, dict(padded)


class SentenceVectors:
    r"""Vectors of texts: the mean of an encoder's last states over the real tokens, of length 1.

    $v(x) = \frac{m}{\lVert m \rVert_2}, \; m = \frac{1}{L} \sum_{t=1}^{L} h_t(x)$, with the tokens
    at both ends (Sentence-BERT, arXiv:1908.10084, mean pooling). The product of two vectors is the
    cosine of the texts.

    Args:
        network: an encoder or decoder without a head.
        tokenizer: its tokenizer.
        batch_size: of texts.

    Raises:
        ValueError: the network is an encoder-decoder, or `batch_size` is less than 1.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from lmkit.tokenization import train_tokenizer
        >>> tokenizer = train_tokenizer(["a cat sat", "dogs"], vocab_size=60)
        >>> network = BertModel(BertConfig(vocab_size=60, hidden_size=8, num_hidden_layers=1,
        ...     num_attention_heads=2, intermediate_size=8))
        >>> vectors = SentenceVectors(network, tokenizer)(["a cat", "a cat", "dogs"])
        >>> vectors.shape, bool(torch.isclose(vectors[0] @ vectors[1], torch.tensor(1.0)))
        (torch.Size([3, 8]), True)
    """

    def __init__(
        self, network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int = 64
    ) -> None:
        if getattr(network.config, "is_encoder_decoder", False):
            raise ValueError(
                f"vectors of texts are of an encoder, and {type(network).__name__} is an "
                "encoder-decoder: take e.g. a model of the sentence-transformers"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.network, self.tokenizer, self.batch_size = network, tokenizer, batch_size

    @classmethod
    def load(cls, model: str, batch_size: int = 64, device: str | None = None) -> SentenceVectors:
        """Load an encoder.

        Args:
            model: folder or hub name of an encoder of transformers; a head is left out.
            batch_size: of texts.
            device: by default CUDA, if it is there.

        Raises:
            ValueError: there is no such model, or it is an encoder-decoder.
        """
        named_config(model)
        network = AutoModel.from_pretrained(model, dtype=torch.float32)
        found = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(network.to(found).eval(), load_tokenizer(model), batch_size)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return the vectors of texts, float32 `[N, H]`, on the CPU."""
        made = torch.zeros(len(texts), int(self.network.config.hidden_size))
        batches = sorted_batches(self.network, self.tokenizer, texts, self.batch_size)
        with evaluating(self.network):
            for places, encoded in batches:
                batch = {name: ids.to(self.network.device) for name, ids in encoded.items()}
                states: Tensor = self.network(**network_inputs(self.network, batch))[0]
                real = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
                mean = (states * real).sum(1) / real.sum(1).clamp(min=1)
                made[places] = torch.nn.functional.normalize(mean.float(), dim=-1).cpu()
        return made
