"""What became of each layer in a structured pruning: figures, a table and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, NamedTuple

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from ..dashboard import is_dry_run, log_figure
from ..surgery import NothingMatchedError
from ..surgery.blocks import Block, find_blocks, group_blocks
from ..surgery.structured_pruning import RemoveUnits
from ..surgery.unit_costs import layer_parameters
from .structured_run import StructuredRun

__all__ = ["Inventory", "StructuredReport"]


class Inventory(NamedTuple):
    """What a network has.

    Attributes:
        units: by name of a block its kind, stack, number of layer and count: heads of queries, or
            neurons.
        parameters: of all layers.
        hidden: the width of its states.
    """

    units: dict[str, tuple[str, str, int, int]]
    parameters: int
    hidden: int

    def total(self, kind: str) -> int:
        """Return how many units of a kind there are in all layers."""
        return sum(count for known, _, _, count in self.units.values() if known == kind)


class StructuredReport:
    """Says how much is left, to loggers and to whoever looks on.

    Args:
        word: under which figures are logged.
    """

    def __init__(self, word: str) -> None:
        self.word = word
        self._whole = 0

    def begin(self, network: nn.Module) -> None:
        """Look at the network that a fit starts from."""
        self._whole = layer_parameters(network)

    def look(self, network: Any) -> Inventory:
        """Count what a network has; of an unknown architecture no units."""
        groups: list[list[Block]] = []
        with suppress(NothingMatchedError):
            groups = group_blocks(find_blocks(network))
        blocks = [block for group in groups for block in group]
        units = {
            block.reader: (block.kind, block.stack, block.layer, block.count * block.queries)
            for block in blocks
        }
        hidden = int(getattr(network.config, "hidden_size", 0))
        return Inventory(units, layer_parameters(network), hidden)

    def figures(self, network: nn.Module, run: StructuredRun) -> dict[str, float]:
        """Return what is left, without what is shut."""
        found, parameters = self.look(network), layer_parameters(network)
        left = {kind: found.total(kind) for kind in ("heads", "ffn")}
        if run.units and run.masks.masked:
            open_units = run.masks.left
            queries = run.targets.queries if run.targets is not None else {}
            for each in run.units:
                gone = (each.count - open_units[each.name]) * len(each.readers)
                left[each.kind] -= gone * queries.get(each.name, 1)
            parameters = run.parameters.left(run.units, open_units)
        share = {f"{self.word}/parameters_share": parameters / max(1, self._whole)}
        if not found.units:
            return share
        heads, neurons = float(left["heads"]), float(left["ffn"])
        return {f"{self.word}/heads": heads, f"{self.word}/neurons": neurons, **share}

    def log(
        self, trainer: Trainer, network: nn.Module, run: StructuredRun, step: int | None = None
    ) -> None:
        """Log what is left.

        Args:
            trainer: has the loggers.
            network: of now.
            run: knows what is shut.
            step: the optimizer step; that of the trainer by default.
        """
        if trainer.loggers:
            figures = self.figures(network, run)
            for logger in trainer.loggers:
                logger.log_metrics(figures, step=trainer.global_step if step is None else step)

    def say(self, trainer: Trainer, before: Inventory, network: Any, surgery: RemoveUnits) -> None:
        """Print what became of each layer, and draw it.

        Args:
            trainer: of the run.
            before: of `look`.
            network: of now.
            surgery: that was done.
        """
        after = self.look(network)
        lines = []
        if surgery.kept:
            lines = _table(before, after)
        if surgery.layers is not None:
            kept = surgery.layers if isinstance(surgery.layers, Mapping) else {"": surgery.layers}
            for stack, numbers in kept.items():
                lines.append(f"layers kept{f' of the {stack}' if stack else ''}: {numbers}")
        if surgery.hidden is not None:
            lines.append(f"hidden dimensions kept: {len(surgery.hidden)} of {before.hidden}")
        share = after.parameters / max(1, before.parameters)
        lines.append(
            f"StructuredPruningCallback: of {before.parameters:,} parameters in the layers "
            f"{after.parameters:,} are left ({share:.1%})"
        )
        rank_zero_info("\n".join(lines))
        has_folder = not is_dry_run(trainer) and find_spec("matplotlib") is not None
        if surgery.kept and has_folder and trainer.is_global_zero:
            log_figure(trainer, f"{self.word}/units", units_figure(before, after))


def units_figure(before: Inventory, after: Inventory) -> Any:
    """Draw how many heads and neurons each layer had and has."""
    from matplotlib.figure import Figure

    rows = _rows(before, after)
    kinds = [kind for kind in ("heads", "ffn") if any(row[2] == kind for row in rows)]
    figure = Figure(
        figsize=(max(4.0, 1.5 + 0.35 * len(rows)), 3 * len(kinds)), layout="constrained"
    )
    for number, kind in enumerate(kinds):
        here = [row for row in rows if row[2] == kind]
        axes = figure.add_subplot(len(kinds), 1, number + 1)
        places = range(len(here))
        axes.bar(places, [row[3] for row in here], color="lightgrey", label="before")
        axes.bar(places, [row[4] for row in here], label="left")
        axes.set_xticks(places, [f"{stack} {layer}".strip() for stack, layer, *_ in here])
        axes.set_ylabel({"heads": "heads", "ffn": "inner neurons"}[kind])
        axes.grid(axis="y", alpha=0.3)
        axes.legend(loc="upper right")
    axes.set_xlabel("layer")
    return figure


def _rows(before: Inventory, after: Inventory) -> list[tuple[str, int, str, int, int]]:
    return [
        (stack, layer, kind, count, after.units[name][3])
        for name, (kind, stack, layer, count) in before.units.items()
    ]


def _table(before: Inventory, after: Inventory) -> list[str]:
    cells: dict[tuple[str, int], dict[str, list[str]]] = {}
    for stack, layer, kind, had, has in _rows(before, after):
        here = cells.setdefault((stack, layer), {"heads": [], "ffn": []})
        here[kind].append(f"{has} of {had}")
    lines = [f"{'layer':<12}  {'heads':>20}  {'neurons':>20}"]
    for (stack, layer), known in cells.items():
        heads, neurons = (", ".join(known[kind]) for kind in ("heads", "ffn"))
        lines.append(f"{f'{stack} {layer}'.strip():<12}  {heads:>20}  {neurons:>20}")
    return lines
