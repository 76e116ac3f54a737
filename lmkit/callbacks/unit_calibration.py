"""What units, layers and dimensions are worth, measured on batches before they go at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from ..functional.unit_importance import (
    activation_importance,
    magnitude_importance,
    random_importance,
)
from ..modules import LMModule
from ..surgery.blocks import stack_paths
from ..surgery.hidden_width import find_hidden
from ..surgery.unit_gates import (
    ALL,
    DimensionGates,
    LayerChanges,
    LayerGates,
    MeanActivity,
    NormActivity,
    UnitGates,
    straight_weight,
)
from ..surgery.units import Units
from .calibration import gather

__all__ = ["calibrated_dimensions", "calibrated_layers", "calibrated_units"]


def calibrated_units(
    trainer: Trainer,
    module: LMModule,
    units: Sequence[Units],
    importance: str,
    batches: int,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Score units as they are in evaluation, by the module's own loss on training batches.

    Args:
        trainer: of a fit.
        module: has the units.
        units: of `find_units`.
        importance: `taylor`, `activation`, `magnitude` or `random`.
        batches: of each rank; by the two last none is looked at.
        seed: of `random`.

    Returns:
        By name `[count]`, the same on each rank.

    Raises:
        ValueError: there are no batches, or they have no real token.
    """
    network, scores = module.network, {}
    weights = {
        reader: straight_weight(network.get_submodule(reader)).detach()
        for each in units
        for reader in each.readers
    }
    gathered: Mapping[str, Tensor] = {}
    if importance == "taylor":
        gathered = gather(UnitGates(network, units), trainer, module, batches)
    elif importance == "activation":
        gathered = gather(MeanActivity(network, list(weights)), trainer, module, batches)
    for each in units:
        if importance == "random":
            scores[each.name] = random_importance(each.count, each.width, seed, each.name)
        elif importance == "magnitude":
            read = [weights[reader] for reader in each.readers]
            scores[each.name] = magnitude_importance(read, each.count)
        elif importance == "taylor":
            scores[each.name] = _known(gathered, each.name)
        else:
            found = [
                activation_importance(
                    _known(gathered, reader), weights[reader].double().cpu(), each.count
                )
                for reader in each.readers
            ]
            scores[each.name] = torch.stack(found).sum(0)
    return scores


def calibrated_layers(
    trainer: Trainer, module: LMModule, importance: str, batches: int, seed: int = 0
) -> dict[str, Tensor]:
    r"""Score layers, by stack.

    With a gate $\xi$ on what a layer adds, $x + \xi (f(x) - x)$, by `taylor` a layer is worth
    $|\partial L / \partial \xi|$; by `activation` the mean over real tokens of $\lVert f(x) - x
    \rVert_2 / \lVert x \rVert_2$; by `magnitude` the norm of its weights.

    Args:
        trainer: of a fit.
        module: has the layers.
        importance: `taylor`, `activation`, `magnitude` or `random`.
        batches: of each rank; by the two last none is looked at.
        seed: of `random`.

    Returns:
        By stack, `""` or `"encoder"` and `"decoder"`, one number for each layer.

    Raises:
        ValueError: there are no batches, or they have no real token.
    """
    network: Any = module.network
    scores: dict[str, Tensor] = {}
    paths = stack_paths(network)
    names = [f"{p}.{n}" for p in paths.values() for n in range(len(network.get_submodule(p)))]
    gathered: Mapping[str, Tensor] = {}
    if importance in ("taylor", "activation"):
        kind = LayerGates if importance == "taylor" else LayerChanges
        gathered = gather(kind(network, names), trainer, module, batches)
    for stack, path in paths.items():
        here = [name for name in names if name.startswith(f"{path}.")]
        if importance == "random":
            scores[stack] = random_importance(len(here), 1, seed, path)
        elif importance == "magnitude":
            layers = [list(network.get_submodule(name).parameters()) for name in here]
            norms = [torch.stack([p.detach().double().norm() for p in w]).norm() for w in layers]
            scores[stack] = torch.stack(norms).cpu()
        else:
            scores[stack] = torch.stack([_known(gathered, name).squeeze(0) for name in here])
    return scores


def calibrated_dimensions(
    trainer: Trainer, module: LMModule, importance: str, batches: int, seed: int = 0
) -> Tensor:
    r"""Score hidden dimensions by what the normalizations of that width give, `[hidden]`.

    With one gate for a dimension in all of them, by `taylor` it is worth $|\partial L / \partial
    \xi|$; by `activation` the sum over them of its mean absolute value; by `magnitude` the norm of
    its column in the table of the tokens.

    Args:
        trainer: of a fit.
        module: has the dimensions.
        importance: `taylor`, `activation`, `magnitude` or `random`.
        batches: of each rank; by the two last none is looked at.
        seed: of `random`.

    Raises:
        ValueError: there are no batches, or they have no real token; or the hidden dimensions of
            the architecture are not known.
    """
    network: Any = module.network
    width = find_hidden(network).width
    if importance == "random":
        return random_importance(width, 1, seed, "hidden")
    if importance == "magnitude":
        table: Tensor = network.get_input_embeddings().weight.detach().double()
        if table.shape[1] == width:
            norm: Tensor = table.norm(dim=0).cpu()
            return norm
    norms = [
        name
        for name, part in network.named_modules()
        if type(part).__name__.endswith("Norm")
        and getattr(getattr(part, "weight", None), "shape", None) == (width,)
    ]
    if importance == "magnitude":
        scales = [network.get_submodule(name).weight.detach().double().abs() for name in norms]
        return torch.stack(scales).sum(0).cpu()
    if importance == "taylor":
        return _known(gather(DimensionGates(network, norms), trainer, module, batches), ALL)
    means = gather(NormActivity(network, norms), trainer, module, batches)
    return torch.stack(list(means.values())).sum(0)


def _known(gathered: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in gathered:
        raise ValueError(
            f"no calibration batch has passed {name}, so there is nothing to choose by: take "
            "importance='magnitude', or data that the whole network reads"
        )
    return gathered[name]
