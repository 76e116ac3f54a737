"""Which rank each layer is worth, and its factors, from the weights and from what was gathered."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..functional.low_rank import (
    Decomposition,
    decompose,
    largest_rank,
    rank_by_energy,
    ranks_within,
    retained_energy,
    row_weights,
    whitener,
)
from .arguments import check_finite, check_whole
from .base import NothingMatchedError
from .low_rank import (
    LowRank,
    check_rank,
    check_replaceable,
    matrix_places,
    matrix_shape,
    token_table,
)

__all__ = ["METHODS", "Choice", "LayerRank", "RankRule", "choose_ranks", "target_layers"]

#: By what the loss of a layer is measured: outputs on data, the Fisher information, the weight.
METHODS = ("activation", "fisher", "plain")


@dataclass(frozen=True)
class RankRule:
    """How ranks are found; one of the three.

    Attributes:
        rank: of every layer.
        energy: share of each layer's energy that is kept, in `(0, 1]`.
        parameters: share of the parameters of all layers together that is kept, in `(0, 1)`.

    Raises:
        ValueError: not just one is given, or it lies outside its range.

    Example:
        >>> RankRule(energy=0.9, parameters=0.6)
        Traceback (most recent call last):
        ...
        ValueError: give one of rank, energy and parameters, got energy=0.9 and parameters=0.6
    """

    rank: int | None = None
    energy: float | None = None
    parameters: float | None = None

    def __post_init__(self) -> None:
        """Check the attributes."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            listed = " and ".join(f"{name}={value}" for name, value in given.items())
            raise ValueError(f"give one of rank, energy and parameters, got {listed or 'none'}")
        if self.rank is not None:
            check_whole("rank", self.rank, 1)
        for name in given.keys() - {"rank"}:
            check_finite(name, given[name])
        if self.energy is not None and not 0.0 < self.energy <= 1.0:
            raise ValueError(f"energy must lie in (0, 1], got {self.energy}")
        if self.parameters is not None and not 0.0 < self.parameters < 1.0:
            raise ValueError(f"parameters must lie in (0, 1), got {self.parameters}")


class LayerRank(NamedTuple):
    """What becomes of one layer.

    Attributes:
        name: dotted, without what wraps the layer.
        shape: of its matrix.
        rank: `None` for a layer that stays as it is.
        energy: share that is kept, of the weighted spectrum.
    """

    name: str
    shape: tuple[int, int]
    rank: int | None
    energy: float

    @property
    def parameters(self) -> int:
        """How many numbers are left."""
        return math.prod(self.shape) if self.rank is None else self.rank * sum(self.shape)


class Choice(NamedTuple):
    """Ranks and factors of a network.

    Attributes:
        surgery: to be performed.
        factors: to be set then, see `put_factors`.
        layers: what becomes of each layer that was looked at.
    """

    surgery: LowRank
    factors: dict[str, tuple[Tensor, Tensor]]
    layers: list[LayerRank]


def target_layers(network: nn.Module, targets: Sequence[str], embedding_rank: int = 0) -> list[str]:
    """Return the dotted names of the matrices that are to be factorized, inside what wraps them.

    They come in the order of the network.

    Args:
        network: where to look.
        targets: roles, `"all"` or patterns, as `match_sites` takes them; may be empty.
        embedding_rank: whether the table of the tokens is one, 0 for no.

    Raises:
        NothingMatchedError: a target matches nothing, or there is none.
        ValueError: a layer is no plain one, shares its weight, or is factorized already.
    """
    found = [place for target in targets for place in matrix_places(network, target)]
    if embedding_rank:
        found.append(token_table(network))
    if not found:
        raise NothingMatchedError("targets name no layer, and there is no embedding_rank either")
    names = [name for name, _ in network.named_modules() if name in found]
    for name in names:
        check_replaceable(network, name)
    return names


@torch.no_grad()
def choose_ranks(
    network: nn.Module,
    names: Sequence[str],
    rule: RankRule,
    method: str = "plain",
    gathered: Mapping[str, Tensor] | None = None,
    embedding_rank: int = 0,
    chosen: Mapping[str, Any] | None = None,
) -> Choice:
    """Compute the factors of layers, and the ranks that a rule gives them.

    Where the rule leaves a layer so many ranks that they would save nothing, the layer stays.

    Args:
        network: not changed.
        names: of `target_layers`.
        rule: gives the ranks of all but the table of the tokens.
        method: of `METHODS`.
        gathered: by name, of `"activation"` the second moments of what the layers read, of
            `"fisher"` the Fisher information of their rows, see `calibration`; of any scale.
        embedding_rank: of the table of the tokens, if that is among the names.
        chosen: how the ranks came about, as plain data for the ledger.

    Returns:
        The surgery, the factors in the type of the weights, and what becomes of each layer.

    Raises:
        ValueError: the method is unknown, or nothing was gathered for a layer; a rank saves
            nothing; the budget is too small; or no layer at all would be smaller.

    Example:
        >>> network = nn.ModuleDict({"fc1": nn.Linear(8, 8)})
        >>> made = choose_ranks(network, ["fc1"], RankRule(rank=2))
        >>> made.surgery.ranks, [tuple(f.shape) for f in made.factors["fc1"]]
        ({'fc1': 2}, [(8, 2), (2, 8)])
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    shapes = {name: matrix_shape(network.get_submodule(name)) for name in names}
    tables = [name for name in names if isinstance(network.get_submodule(name), nn.Embedding)]
    fixed = dict.fromkeys(tables, embedding_rank)
    if rule.rank is not None:
        fixed = dict.fromkeys(names, rule.rank) | fixed
    # Before minutes of decompositions.
    for name, rank in fixed.items():
        check_rank(name, shapes[name], rank)
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    spectra: dict[str, Tensor] = {}
    for name in names:
        layer: Any = network.get_submodule(name)
        made = _decomposed(name, layer, method, (gathered or {}).get(name))
        spectra[name] = made.values
        # No more than the layer itself has, and of its type: all layers are held at once.
        most = max(1, largest_rank(*shapes[name]))
        factors[name] = made.up[:, :most].to(layer.weight), made.down[:most].to(layer.weight)
    ranks = _ranks(names, shapes, spectra, rule, fixed)
    layers = [
        LayerRank(
            name, shapes[name], rank, 1.0 if rank is None else retained_energy(spectra[name], rank)
        )
        for name, rank in ranks.items()
    ]
    kept = {name: rank for name, rank in ranks.items() if rank is not None}
    if not kept:
        raise ValueError(
            f"{_said(rule)} leaves all of the {len(names)} layers as they are, {names[0]} first: "
            "their spectra are so flat that factors of as many ranks would be larger; keep less"
        )
    cut = {
        name: (up[:, :rank].contiguous().clone(), down[:rank].contiguous().clone())
        for name, rank in kept.items()
        for up, down in (factors[name],)
    }
    return Choice(LowRank(kept, dict(chosen or {})), cut, layers)


def _ranks(
    names: Sequence[str],
    shapes: Mapping[str, tuple[int, int]],
    spectra: Mapping[str, Tensor],
    rule: RankRule,
    fixed: Mapping[str, int],
) -> dict[str, int | None]:
    open_names = [name for name in names if name not in fixed]
    ranks: dict[str, int | None] = dict.fromkeys(names) | dict(fixed)
    if rule.energy is not None:
        for name in open_names:
            rank = rank_by_energy(spectra[name], rule.energy)
            ranks[name] = rank if rank <= largest_rank(*shapes[name]) else None
    elif rule.parameters is not None and open_names:
        of_all = [shapes[name] for name in open_names]
        budget = int(rule.parameters * sum(map(math.prod, of_all)))
        found = ranks_within([spectra[name] for name in open_names], of_all, budget)
        ranks |= dict(zip(open_names, found, strict=True))
    return ranks


def _decomposed(name: str, layer: Any, method: str, gathered: Tensor | None) -> Decomposition:
    weight = layer.weight.detach()
    if not bool(weight.isfinite().all()):
        raise ValueError(f"{name} has a weight with numbers that are not finite")
    weight = weight.T if isinstance(layer, Conv1D) else weight
    if method == "plain":
        return decompose(weight)
    if gathered is None:
        raise ValueError(
            f"nothing was gathered for {name}, which no batch has passed; leave it out, or take "
            "method='plain'"
        )
    gathered = gathered.to(weight.device)
    try:
        # Tokens are chosen one at a time: their second moment is a diagonal, of how often each is.
        if method == "fisher" or isinstance(layer, nn.Embedding):
            return decompose(weight, rows=row_weights(gathered))
        return decompose(weight, root=whitener(gathered))
    except ValueError as error:
        raise ValueError(f"{name} could not be decomposed: {error}") from error


def _said(rule: RankRule) -> str:
    return ", ".join(f"{name}={value}" for name, value in vars(rule).items() if value is not None)
