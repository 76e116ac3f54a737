"""A network over fewer tokens: the rows of its tables and heads that are kept, and no others."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .arguments import check_whole
from .base import NothingMatchedError
from .low_rank import check_rank
from .low_rank_layers import LowRankEmbedding, LowRankLinear
from .sites import base_name
from .token_ids import configs_of, named_ids, nested_configs, rewrite_ids
from .token_tables import token_tables

__all__ = ["TrimVocabulary", "id_ranges", "needed_ids"]

#: Where a config notes the sizes that its vocabulary had before it was trimmed.
TRIMMED = "trimmed_from"

_RANGES = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")
# Tables of positions; RoBERTa's kin number these from the id of padding on.
_POSITIONS = re.compile(r"(?:.*\.)?(?:position_embeddings|embed_positions|wpe)")


@dataclass(frozen=True)
class TrimVocabulary:
    r"""Keep some rows of all that has one for each token: tables, heads and their biases.

    The new id of the $i$-th kept token is $i$. Which weights have a row for each token is not
    guessed from names or sizes: the architecture is laid out twice, without memory, with the old
    and with the new vocabulary, and what differs is cut. So are the numbers that modules hold, such
    as the id of padding. Weights stay the same parameters: what is tied stays tied, what is frozen
    stays frozen. `vocab_size` and the token ids of config and generation config follow, and the
    config notes the old size as `trimmed_from`.

    Exact: of a text of kept tokens the network makes the same hidden states, and the same logits of
    the kept tokens.

    Attributes:
        kept: the old ids in ascending order, as `id_ranges` writes them, e.g. `"0-4,7,9-11"`.
        size: rows of the old vocabulary.

    Raises:
        ValueError: `kept` or `size` is malformed; when called, the network has another vocabulary
            or two of them, an id that its config names is not kept, its positions are numbered from
            the id of padding and that would change, or adapters wrap a head over the vocabulary.
        NothingMatchedError: when called, the network is none of transformers, or has no tokens.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> network = BertForMaskedLM(BertConfig(vocab_size=99, hidden_size=8,
        ...     num_hidden_layers=1, num_attention_heads=2, intermediate_size=8))
        >>> TrimVocabulary(id_ranges([0, 1, 2, 3, 7, 50]), 99)(network)
        >>> network.config.vocab_size, network.get_output_embeddings().bias.shape
        (6, torch.Size([6]))
    """

    kept: str
    size: int

    def __post_init__(self) -> None:
        """Check the attributes."""
        check_whole("size", self.size, 1)
        if not isinstance(self.kept, str) or not _RANGES.fullmatch(self.kept):
            raise ValueError(
                "kept must be ranges of ids such as '0-4,7,9-11', as id_ranges writes them, got "
                f"{self.kept!r:.60}"
            )
        ids = self.ids
        if any(one >= other for one, other in pairwise(ids)):
            raise ValueError("kept must be in ascending order, each id once")
        if ids[-1] >= self.size:
            raise ValueError(f"kept has the id {ids[-1]}, and size says {self.size} rows")

    @property
    def ids(self) -> list[int]:
        """The old ids; the new id of the one at place $i$ is $i$."""
        found: list[int] = []
        for part in self.kept.split(","):
            first, _, last = part.partition("-")
            found.extend(range(int(first), int(last or first) + 1))
        return found

    def __call__(self, network: nn.Module) -> None:
        """Cut the rows; on a network that was trimmed from this size, do nothing."""
        rows = _rows(network)
        if self.size in getattr(network.config, TRIMMED, ()):
            return
        if rows != self.size:
            raise ValueError(
                f"the surgery keeps {len(self.ids)} of {self.size} tokens, and the network has "
                f"rows for {rows}: it is for another network"
            )
        assert isinstance(network, PreTrainedModel)
        new = {old: number for number, old in enumerate(self.ids)}
        plan = _lay_out(network, new, rows)
        cuts = _cuts(network, plan.dimensions, rows, len(new))
        index = torch.tensor(self.ids)
        for tensor, dimension in cuts:
            tensor.data = tensor.data.index_select(dimension, index.to(tensor.device))
            tensor.grad = None
        inside = _inner_modules(network)
        for (place, word), number in plan.numbers.items():
            setattr(inside[place], word, number)
        for config in configs_of(network):
            rewrite_ids(config, new, rows)
        setattr(network.config, TRIMMED, [*getattr(network.config, TRIMMED, ()), rows])


def id_ranges(ids: Iterable[int]) -> str:
    """Write ids in ascending order as ranges.

    Example:
        >>> id_ranges([0, 1, 2, 7, 9, 10])
        '0-2,7,9-10'
    """
    parts: list[list[int]] = []
    for number in ids:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in parts)


def needed_ids(network: PreTrainedModel) -> set[int]:
    """Return the ids that `TrimVocabulary` has to keep, whatever the texts.

    These are the ones that config and generation config name, if the network has a row for them;
    and all up to the id of padding where positions are numbered from it.

    Raises:
        NothingMatchedError: the network has no tokens.
    """
    rows, found = _rows(network), set[int]()
    for config in configs_of(network):
        found |= {number for _, ids in named_ids(config) for number in ids}
    for name, module in network.named_modules():
        padding = getattr(module, "padding_idx", None) if _POSITIONS.fullmatch(name) else None
        found |= set(range((-1 if padding is None else padding) + 1))
    return {number for number in found if 0 <= number < rows}


class _Plan(NamedTuple):
    """What depends on the vocabulary: dimensions of tensors, and numbers that modules hold."""

    dimensions: dict[str, int]
    numbers: dict[tuple[str, str], int]


def _rows(network: nn.Module) -> int:
    """Return the size of the vocabulary, of which there must be one."""
    found = {
        name: int(rows)
        for name, table in token_tables(network).items()
        if (rows := getattr(table, "num_embeddings", None)) is not None
    }
    if not found:
        raise NothingMatchedError(f"{type(network).__name__} names no embeddings of tokens")
    if len(set(found.values())) > 1:
        raise ValueError(
            f"the network has tables for several vocabularies ({found}), and one tokenizer cannot "
            "say which tokens to keep of each"
        )
    return next(iter(found.values()))


def _lay_out(network: PreTrainedModel, new: Mapping[int, int], rows: int) -> _Plan:
    """Find what depends on the vocabulary, from the architecture with the old and the new one."""
    kind: Any = type(network)
    config = copy.deepcopy(network.config)
    for part in copy.deepcopy(configs_of(network)):
        rewrite_ids(part, new, rows)  # what it refuses is refused before anything is changed
    with torch.device("meta"):
        before = kind(copy.deepcopy(config))
    for part in nested_configs([config]):
        rewrite_ids(part, new, rows)
    with torch.device("meta"):
        after = kind(config)
    shapes = {name: tensor.shape for name, tensor in _tensors(after)}
    dimensions = {
        name: next(i for i, size in enumerate(tensor.shape) if size != shapes[name][i])
        for name, tensor in _tensors(before)
        if tensor.shape != shapes[name]
    }
    modules, numbers = dict(after.named_modules()), dict[tuple[str, str], int]()
    for name, module in before.named_modules():
        theirs = vars(modules[name])
        for word, value in vars(module).items():
            if type(value) is int and theirs[word] != value:
                numbers[name, word] = theirs[word]
                if word == "padding_idx" and _POSITIONS.fullmatch(name):
                    raise ValueError(
                        f"{name} numbers positions from the id of padding, {value}, and of the "
                        "tokens before it not all are kept: keep these, see needed_ids"
                    )
    return _Plan(dimensions, numbers)


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from network.named_parameters(remove_duplicate=False)
    yield from network.named_buffers(remove_duplicate=False)


def _inner_modules(network: nn.Module) -> dict[str, nn.Module]:
    """Return modules by the name that they had before they were wrapped: what is inside."""
    # What wraps a module comes before it.
    return {base_name(name): module for name, module in network.named_modules()}


def _cuts(
    network: nn.Module, dimensions: Mapping[str, int], rows: int, kept: int
) -> list[tuple[Tensor, int]]:
    """Return each tensor with a row for each token once, and the dimension of the rows.

    Raises:
        ValueError: one of them cannot be cut; says why.
    """
    inside = _inner_modules(network)
    layers = Counter(base_name(name) for name, _ in network.named_modules())
    found: dict[int, tuple[Tensor, int]] = {}
    for name, dimension in dimensions.items():
        place, _, word = name.rpartition(".")
        owner = inside[place]
        if layers[place] > 1:
            raise ValueError(
                f"{place} has a row for each token, and adapters wrap it: merge them first "
                "(lmkit.export with merge=True), and trim what that gives"
            )
        if isinstance(owner, LowRankEmbedding | LowRankLinear) and word == "weight":
            shape = [*owner.weight.shape]
            shape[dimension] = kept
            check_rank(place, (shape[0], shape[1]), owner.rank)
            table = "table" if isinstance(owner, LowRankEmbedding) else "up"
            word = table if dimension == 0 else {"table": "up", "up": "down"}[table]
        tensor = {**owner._parameters, **owner._buffers}.get(word)
        if tensor is None or tensor.shape[dimension] != rows:
            raise ValueError(
                f"{name} should have a row for each of {rows} tokens, and has "
                f"{'none of its own' if tensor is None else tuple(tensor.shape)}: only plain "
                "weights can be trimmed"
            )
        found[id(tensor)] = tensor, dimension
    return list(found.values())
