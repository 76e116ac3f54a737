"""How long a layer takes with fewer heads and neurons, measured on this machine."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..surgery.blocks import stack_paths
from ..surgery.structured_pruning import RemoveUnits
from ..surgery.units import Units

__all__ = ["LayerTimes", "measure_layer_times"]

# Between these shares of the units a time is a line.
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class LayerTimes:
    """CPU seconds of the layers of a network, by what is left of them.

    The blocks of a layer run one after another, so the time of a layer is a sum over them.

    Attributes:
        total: of all layers, dense.
        table: of the units of each name how long the layer takes with so many of them: pairs of
            count and seconds, rising, the last one dense.
        shape: of the batch, rows and tokens.
    """

    total: float
    table: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    shape: tuple[int, int] = (1, 1)

    def costs(self, units: Units) -> Tensor:
        """Return what 0, 1, ... units cost, float64 `[count + 1]`; 0 for none, never falling.

        Between two counts that were measured it is a line, and below the least the next line goes
        on.

        Example:
            >>> times = LayerTimes(9.0, {"a": [(1, 5.0), (2, 6.0), (4, 9.0)]})
            >>> times.costs(Units("heads", "a", ("a",), 4, 2, 0, "")).tolist()
            [0.0, 1.0, 2.0, 3.5, 5.0]
        """
        counts, seconds = (list(column) for column in zip(*self.table[units.name], strict=True))
        at, values = torch.arange(units.count + 1).double(), torch.zeros(units.count + 1).double()
        for left, right in zip(range(len(counts) - 1), range(1, len(counts)), strict=True):
            slope = (seconds[right] - seconds[left]) / (counts[right] - counts[left])
            inside = (at >= counts[left]) if left else torch.ones_like(at, dtype=torch.bool)
            line = seconds[left] + slope * (at - counts[left])
            values = torch.where(inside, line, values)
        # Noise may have made a smaller layer the slower one.
        rising = values.cummax(0).values
        # Some units must be the same in all layers of a stack.
        return (rising - rising[0]) * len(units.readers)

    def state_dict(self) -> dict[str, Any]:
        """Return all as plain data."""
        table = {name: [list(pair) for pair in pairs] for name, pairs in self.table.items()}
        return {"total": self.total, "table": table, "shape": list(self.shape)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> LayerTimes:
        """Make it of `state_dict`."""
        table = {name: [(int(n), s) for n, s in pairs] for name, pairs in state["table"].items()}
        rows, tokens = state["shape"]
        return cls(state["total"], table, (rows, tokens))


def measure_layer_times(
    network: Any, units: Sequence[Units], batch: int, length: int, rounds: int = 5
) -> LayerTimes:
    """Measure the layers of a network with fewer units, on the CPU.

    The network runs once on random tokens, and what its layers are called with is kept. Then copies
    of one layer of each stack, with shares of its heads or neurons left, are timed in turn with the
    dense one, round by round; of each the least process time over all rounds counts, for what else
    runs on the machine can only add to it. Layers of one stack that have as many units are taken to
    be alike. Embeddings and head are left out.

    Args:
        network: not changed.
        units: of `find_units`.
        batch: rows.
        length: tokens of a row.
        rounds: at least 1.
    """
    probe = copy.deepcopy(network).cpu().float().eval()
    calls = _layer_calls(probe, batch, length)
    known: dict[Any, list[tuple[int, float]]] = {}
    dense: dict[Any, float] = {}
    table: dict[str, list[tuple[int, float]]] = {}
    for each in units:
        of_layer = [u.count for u in units if (u.stack, u.layer) == (each.stack, each.layer)]
        place = each.name.split(".", len(_path(probe, each).split(".")))[-1]
        key = (each.stack, place, tuple(of_layer))
        if key not in known:
            known[key] = _curve(probe, each, calls[_path(probe, each)], rounds)
            dense[each.stack, tuple(of_layer)] = known[key][-1][1]
        table[each.name] = known[key]
    total = 0.0
    for stack, path in stack_paths(probe).items():
        for number in range(len(probe.get_submodule(path))):
            of_layer = [u.count for u in units if (u.stack, u.layer) == (stack, number)]
            total += dense.get((stack, tuple(of_layer)), next(iter(dense.values())))
    return LayerTimes(total, table, (batch, length))


def _path(network: Any, units: Units) -> str:
    return f"{stack_paths(network)[units.stack]}.{units.layer}"


def _layer_calls(network: Any, batch: int, length: int) -> dict[str, tuple[Any, Any]]:
    """Run a network once, and return what each of its layers was called with."""
    calls: dict[str, tuple[Any, Any]] = {}
    handles = []
    for path in stack_paths(network).values():
        for number, layer in enumerate(network.get_submodule(path)):

            def keep(_: Any, args: Any, kwargs: Any, name: str = f"{path}.{number}") -> None:
                calls[name] = args, kwargs

            handles.append(layer.register_forward_pre_hook(keep, with_kwargs=True))
    vocabulary = network.get_input_embeddings().num_embeddings
    most = getattr(network.config, "max_position_embeddings", None) or length
    shape = batch, min(length, most)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, shape, generator=generator)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if network.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    if getattr(network.config, "use_cache", False):
        inputs["use_cache"] = False  # type: ignore[assignment]
    try:
        with torch.no_grad():
            network.base_model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _curve(
    network: Any, units: Units, call: tuple[Any, Any], rounds: int
) -> list[tuple[int, float]]:
    """Time a layer with shares of its units, the dense one last."""
    counts = sorted({max(1, round(share * units.count)) for share in _SHARES})
    path = _path(network, units)
    shared = {id(p): p for p in network.parameters()}
    inside = {id(p) for p in network.get_submodule(path).parameters()}
    layers: list[nn.Module] = []
    for count in counts:
        memo: dict[int, Any] = {key: p for key, p in shared.items() if key not in inside}
        copied = copy.deepcopy(network, memo)
        if count < units.count:
            RemoveUnits({units.name: list(range(count))})(copied)
        layers.append(copied.get_submodule(path))
    seconds = [float("inf")] * len(counts)
    args, kwargs = call
    with torch.no_grad():
        for layer in layers:  # the first run of each allocates
            layer(*args, **kwargs)
        for _ in range(rounds):
            for place, layer in enumerate(layers):
                started = time.process_time()
                layer(*args, **kwargs)
                seconds[place] = min(seconds[place], time.process_time() - started)
    return list(zip(counts, seconds, strict=True))
