"""Structured pruning: heads, inner neurons, layers and hidden dimensions are physically removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .arguments import check_whole
from .blocks import Block, Writer
from .config_history import config_remembered
from .cuts import Cutting, Slice, Slices
from .hidden_width import cut_hidden, find_hidden
from .kept_units import Removal, layers_to_keep, resolve
from .layers import check_layers, keep_layers
from .plain_config import say_in_config
from .tuning import is_tuned_in_part, rename_trainable, trainable_at_first
from .units import find_units

__all__ = ["RemoveUnits", "removal", "remove_units"]

# What modules of transformers call the number of heads, that of keys and values, and all widths.
_HEADS = ("num_attention_heads", "num_heads", "n_heads")
_GROUPS = ("num_key_value_heads",)
_ALL = ("all_head_size", "inner_dim", "split_size")


@dataclass(frozen=True)
class RemoveUnits:
    r"""Remove all heads, inner neurons, layers and hidden dimensions of a network but some.

    Rows of the layers that write a unit and columns of those that read it are cut out, biases too.
    What is left computes what the whole network computes with the other units gated to zero
    (`lmkit.surgery.units.gated`), up to rounding: heads as in arXiv:1905.10650, inner neurons and
    hidden dimensions as in arXiv:2204.00408. With grouped queries a key-value head goes with all
    its queries.

    The config says what it can, so that plain transformers loads what is saved: uniform widths of
    feed-forward blocks, layers, numbers of heads where the architecture takes them.

    Attributes:
        kept: the indices that are kept, increasing, by name of `Units`; units that are not named
            stay whole, and so do those in layers that go.
        layers: which layers to keep, as `keep_layers` takes them; `None` for all. All names and
            numbers are those of before.
        hidden: which hidden dimensions to keep, increasing; `None` for all.
        chosen: how the choice came about, as plain data; nothing is computed from it.
        counts: how many there were, by name, `"layers"` (`"encoder layers"`) and `"hidden"`; by it
            a network that was pruned otherwise is told apart. `removal` writes it.

    Raises:
        ValueError: indices are none, twice or out of order, or nothing is to be removed; when
            called, the network was pruned otherwise, or a layer is wrapped, factorized or
            quantized. The network is as before then.
        NothingMatchedError: when called, a name matches no units, or the architecture is unknown;
            says what is missing.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> network = BertModel(BertConfig(vocab_size=99, hidden_size=8, num_hidden_layers=1,
        ...     num_attention_heads=2, intermediate_size=16))
        >>> RemoveUnits({"encoder.layer.0.output.dense": [0, 5, 9]})(network)
        >>> network.encoder.layer[0].intermediate.dense
        Linear(in_features=8, out_features=3, bias=True)
        >>> network.config.intermediate_size
        3
    """

    kept: Mapping[str, Sequence[int]]
    layers: Sequence[int] | Mapping[str, Any] | None = None
    hidden: Sequence[int] | None = None
    chosen: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the attributes."""
        for word in ("kept", "chosen", "counts"):
            if not isinstance(given := getattr(self, word), Mapping):
                raise ValueError(f"{word} must be a mapping of names, got {given!r}")
            object.__setattr__(self, word, dict(given))
        kept = {name: _indices(f"kept[{name!r}]", given) for name, given in self.kept.items()}
        object.__setattr__(self, "kept", kept)
        if isinstance(self.layers, Mapping):
            by_stack = {k: _indices(f"layers[{k!r}]", given) for k, given in self.layers.items()}
            object.__setattr__(self, "layers", by_stack)
        elif self.layers is not None:
            object.__setattr__(self, "layers", _indices("layers", self.layers))
        if self.hidden is not None:
            object.__setattr__(self, "hidden", _indices("hidden", self.hidden))
        for name, count in self.counts.items():
            check_whole(f"counts[{name!r}]", count, 1)
            if name in kept and kept[name][-1] >= count:
                raise ValueError(f"kept[{name!r}] has {kept[name][-1]}, and there are {count}")
        if not self.kept and self.layers is None and self.hidden is None:
            raise ValueError("kept names no units, and there are no layers and no hidden either")

    def __call__(self, network: nn.Module) -> None:
        """Remove the units; when they are gone, do nothing."""
        remove_units(network, self)


def removal(
    network: Any,
    kept: Mapping[str, Sequence[int]],
    layers: Sequence[int] | Mapping[str, Any] | None = None,
    hidden: Sequence[int] | None = None,
    chosen: Mapping[str, Any] | None = None,
) -> RemoveUnits:
    """Make a surgery that knows how many units there were.

    Args:
        network: as it is before the surgery.
        kept: see `RemoveUnits`, like all that follow.
        layers: likewise.
        hidden: likewise.
        chosen: likewise.

    Raises:
        NothingMatchedError: there are no units of a name.
        ValueError: an index is not there.
    """
    units = {each.name: each.count for each in find_units(network)} if kept else {}
    counts = {name: units[name] for name in kept if name in units}
    if layers is not None:
        check_layers(network, layers)
        stacks = {word: path for word, (path, _) in layers_to_keep(network, layers).items()}
        counts |= {word: len(network.get_submodule(path)) for word, path in stacks.items()}
    if hidden is not None:
        counts["hidden"] = find_hidden(network).width
    made = RemoveUnits(kept, layers, hidden, chosen or {}, counts)
    resolve(network, made)
    return made


def remove_units(network: Any, surgery: RemoveUnits) -> Slices:
    """Remove units, and say where each parameter comes from.

    Args:
        network: of transformers; changed in place. Parameters that are cut are new ones, those
            that are not stay the same.
        surgery: what to keep.

    Returns:
        By the name of each parameter what part it is of which old one, so that what an optimizer
        knows of the old ones can be cut alike; and the names of those that are gone.

    Raises:
        NothingMatchedError: see `RemoveUnits`.
        ValueError: see `RemoveUnits`; the network is as before then.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> network = BertModel(BertConfig(vocab_size=99, hidden_size=8, num_hidden_layers=1,
        ...     num_attention_heads=2, intermediate_size=16))
        >>> slices = remove_units(network, RemoveUnits({"encoder.layer.0.output.dense": [0, 5]}))
        >>> slices["encoder.layer.0.output.dense.weight"].cuts
        ((1, tensor([0, 5])),)
    """
    due = resolve(network, surgery)
    if due is None:
        return _slices(network, {}, ())
    cutting = _plan(network, surgery, due)
    before = list(dict(network.named_parameters()))
    trainable = set(trainable_at_first(network))
    with config_remembered(network):
        origins = cutting.perform()
        if due.layers and surgery.layers is not None:
            keep_layers(network, surgery.layers)
        slices = _slices(network, origins, before)
        if is_tuned_in_part(network):
            now = [name for name, piece in slices.items() if piece.name in trainable]
            rename_trainable(network, trainable, now)
        if surgery.kept or due.hidden:
            say_in_config(network)
    return slices


def _plan(network: Any, surgery: RemoveUnits, due: Removal) -> Cutting:
    """Gather all that is to be cut, and check that it can be."""
    if due.layers and surgery.layers is not None:
        check_layers(network, surgery.layers)
    heads = any(group[0].kind == "heads" for group, _ in due.units)
    if (heads or due.layers) and any(hasattr(module, "prefixes") for module in network.modules()):
        raise ValueError(
            "the network has learned prefixes for each of its heads: remove heads and layers "
            "before prefix tuning"
        )
    cutting = Cutting(network)
    for group, kept in due.units:
        for block in group:
            _cut(cutting, network, block, kept)
    if due.hidden is not None and surgery.hidden is not None:
        cut_hidden(cutting, due.hidden, surgery.hidden)
    return cutting


def _cut(cutting: Cutting, network: Any, block: Block, kept: Sequence[int]) -> None:
    units = torch.tensor(list(kept))
    for writer in block.writers:
        cutting.outputs(writer.name, _rows(units, writer, block.count))
    cutting.inputs(block.reader, _rows(units, Writer(block.reader, block.width, 1), block.count))
    holder = network.get_submodule(block.holder)
    if block.kind == "ffn":
        cutting.size(holder, "intermediate_size", len(kept))
        return
    sizes = dict.fromkeys(_HEADS, len(kept) * block.queries)
    sizes |= dict.fromkeys(_GROUPS, len(kept)) | dict.fromkeys(_ALL, len(kept) * block.width)
    for word, size in sizes.items():
        cutting.size(holder, word, size)
    table = getattr(holder, "relative_attention_bias", None)
    if table is not None:
        cutting.parameter(table.weight, 1, units)
        cutting.size(table, "embedding_dim", len(kept))


def _rows(units: Tensor, writer: Writer, count: int) -> Tensor:
    """Return the outputs that belong to units, in each part of a layer that holds several."""
    inside = torch.arange(writer.width)
    starts = torch.arange(writer.parts) * count * writer.width
    return (starts[:, None, None] + units[None, :, None] * writer.width + inside).flatten()


def _slices(network: nn.Module, origins: Mapping[int, Slice], before: Sequence[str]) -> Slices:
    first = {id(parameter): name for name, parameter in network.named_parameters()}
    found = {
        name: origins.get(id(parameter), Slice(first[id(parameter)]))
        for name, parameter in network.named_parameters(remove_duplicate=False)
    }
    there = {piece.name for piece in found.values()}
    return Slices(found, [name for name in before if name not in there])


def _indices(word: str, given: Any) -> list[int]:
    if isinstance(given, str | Mapping) or not isinstance(given, Sequence):
        raise ValueError(f"{word} must be a list of indices, got {given!r}")
    for index in given:
        check_whole(word, index, 0)
    indices = [int(index) for index in given]
    if not indices or any(a >= b for a, b in pairwise(indices)):
        raise ValueError(
            f"{word} must be indices in increasing order, at least one, got {indices[:20]}"
        )
    return indices
