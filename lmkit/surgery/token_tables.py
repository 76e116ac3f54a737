"""What turns tokens into embeddings, as the networks of transformers name it."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

__all__ = ["token_tables"]


def token_tables(network: nn.Module) -> dict[str, nn.Module]:
    """Find the layers that turn tokens into embeddings, in all networks of transformers inside.

    Args:
        network: of transformers, or what holds some.

    Returns:
        Layers by dotted name, in the order of the network, each once, also those that share their
        weight with another: tables, what stands in their place, or of images the layer of the
        patches. Empty if none is named.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> network = BertModel(BertConfig(vocab_size=99, hidden_size=8, num_hidden_layers=1,
        ...     num_attention_heads=2, intermediate_size=16))
        >>> list(token_tables(network))
        ['embeddings.word_embeddings']
    """
    names = {id(module): name for name, module in network.named_modules()}
    found: dict[str, nn.Module] = {}
    for part in network.modules():
        if not isinstance(part, PreTrainedModel):
            continue
        try:
            table = part.get_input_embeddings()
        except (AttributeError, NotImplementedError):  # so transformers says that it has none
            continue
        if id(table) in names:
            found[names[id(table)]] = table
    return found
