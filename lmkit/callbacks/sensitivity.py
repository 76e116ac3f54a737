"""How much a network says otherwise when single layers of it are replaced, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from ..modules import LMModule
from ..modules.distillation_metrics import distance_of
from ..types import Batch, StepOutput
from .calibration import in_evaluation, prepared_batches

__all__ = ["ALL", "scan", "swapped"]

#: Under which `scan` returns what all replacements together do.
ALL = ""


@torch.no_grad()
def scan(
    trainer: Trainer,
    module: LMModule,
    groups: Mapping[str, Sequence[str]],
    replacements: Mapping[str, nn.Module],
    batches: int,
) -> dict[str, float]:
    r"""Measure what each replacement of layers does to what the network says of training batches.

    Of classes that is $\mathrm{KL}(q \| p)$ between what it says with its own layers, $q$, and with
    the others, $p$; of labels the same for each of them; of values the squared difference. It is
    the mean over all items of all batches and ranks, in evaluation mode.

    Args:
        trainer: of a fit.
        module: as it is afterwards.
        groups: which layers of the network are replaced together, by the name of the group.
        replacements: by dotted name.
        batches: of each rank.

    Returns:
        By the name of the group, and under `ALL` of all layers at once. The same on each rank.

    Raises:
        ValueError: there are no batches with an item.
    """
    sums = dict.fromkeys([*groups, ALL], 0.0)
    items = 0.0
    together = {ALL: [name for names in groups.values() for name in names]}
    with in_evaluation(module, trainer):
        device = next(module.parameters()).device
        for layer in replacements.values():
            layer.to(device).eval()
        for batch in prepared_batches(trainer, module, batches):
            said = module.step(batch)
            for group, names in {**groups, **together}.items():
                others = {name: replacements[name] for name in names}
                with swapped(module.network, others):
                    gap, counted = _gap(module, said, module.step(batch), batch)
                sums[group] += float(gap)
            items += float(counted)
    added = torch.tensor([items, *sums.values()], dtype=torch.float64, device=device)
    added = cast(Tensor, trainer.strategy.reduce(added, reduce_op="sum")).cpu()
    if not float(added[0]):
        raise ValueError(
            "there are no training batches with anything to predict, by which the layers could be "
            "compared: give more data, or sensitivity=0"
        )
    means = (added[1:] / added[0]).tolist()
    return dict(zip(sums, means, strict=True))


@contextmanager
def swapped(network: nn.Module, others: Mapping[str, nn.Module]) -> Iterator[None]:
    """Let other layers stand in a network, for a while.

    Args:
        network: has its own layers back at the end.
        others: by dotted name.

    Example:
        >>> network = nn.Sequential(nn.ReLU())
        >>> with swapped(network, {"0": nn.Tanh()}):
        ...     network[0]
        Tanh()
        >>> network[0]
        ReLU()
    """
    own = {name: network.get_submodule(name) for name in others}
    try:
        for name, layer in others.items():
            _put(network, name, layer)
        yield
    finally:
        for name, layer in own.items():
            _put(network, name, layer)


def _put(network: nn.Module, name: str, layer: nn.Module) -> None:
    owner, _, last = name.rpartition(".")
    setattr(network.get_submodule(owner), last, layer)


def _gap(
    module: LMModule, said: StepOutput, says: StepOutput, batch: Batch
) -> tuple[Tensor, Tensor | float]:
    """Return the sum of the differences of all items, and how many there are."""
    try:
        before, now = module.scores(said, batch), module.scores(says, batch)
    except NotImplementedError:
        logits: Any = says.logits
        rows = (logits - said.logits).double().square().flatten(1).mean(1)
        return rows.sum(), float(len(rows))
    # In float64, for a difference may be a millionth of what it is a difference of.
    finer = now._replace(logits=now.logits.double())
    return distance_of(finer, before.logits.double()).sum(), before.valid.sum()
