"""Which units of a network are still to be removed: all that a surgery names, or none."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .base import NothingMatchedError
from .blocks import Block, find_blocks, group_blocks, stack_paths
from .hidden_width import HiddenWidth, find_hidden
from .twins import check_blocks

__all__ = ["Removal", "layers_to_keep", "resolve"]


class Removal(NamedTuple):
    """What is to be done to a network.

    Attributes:
        units: blocks that keep the same units, and the indices of these.
        hidden: the hidden dimensions, if some are to go.
        layers: whether layers are to go.
    """

    units: list[tuple[list[Block], Sequence[int]]]
    hidden: HiddenWidth | None
    layers: bool


def resolve(network: Any, surgery: Any) -> Removal | None:
    """Find out what of a surgery is to be done.

    Args:
        network: of transformers.
        surgery: a `RemoveUnits`.

    Returns:
        `None` if there is nothing to be done, or all is done already.

    Raises:
        NothingMatchedError: there are no units of a name, or none that are known.
        ValueError: the network was pruned otherwise.
    """
    groups = _groups(network) if surgery.kept or surgery.hidden is not None else {}
    numbers = layers_to_keep(network, surgery.layers)
    steps: dict[str, bool | None] = {}
    for word, (path, kept) in numbers.items():
        depth = len(network.get_submodule(path))
        steps[word] = _is_due(word, depth, kept, surgery.counts.get(word))
    cut_off = bool(numbers) and not any(due for due in steps.values())
    units = []
    for name, kept in surgery.kept.items():
        place = _place(name, groups, dict(numbers.values()), cut_off)
        if place is None:
            continue
        steps[name] = _is_due(name, groups[place][0].count, kept, surgery.counts.get(name))
        units.append((groups[place], kept))
    hidden = None
    if surgery.hidden is not None:
        hidden = find_hidden(network, [block for group in groups.values() for block in group])
        before = surgery.counts.get("hidden")
        steps["hidden"] = _is_due("hidden", hidden.width, surgery.hidden, before)
    due = [name for name, step in steps.items() if step]
    done = [name for name, step in steps.items() if step is False]
    if due and done:
        raise ValueError(
            f"{done[0]} has only what is to be kept already, and {due[0]} has more: the network "
            "was pruned otherwise; start anew from one that was not, or from an export"
        )
    if not due:
        return None
    return Removal(
        [(group, kept) for group, kept in units if len(kept) < group[0].count],
        hidden if "hidden" in due else None,
        any(word in due for word in numbers),
    )


def layers_to_keep(network: Any, layers: Any) -> dict[str, tuple[str, list[int]]]:
    """Return which layers to keep by stack: `"layers"`, or `"encoder layers"` and the decoder's.

    Args:
        network: of transformers.
        layers: as `keep_layers` takes them, or `None`.

    Returns:
        The dotted name of the list of layers, and the numbers; nothing of a stack that stays whole.

    Raises:
        ValueError: there is no such stack.
    """
    if layers is None:
        return {}
    paths = stack_paths(network)
    if isinstance(layers, Mapping) and (unknown := layers.keys() - paths.keys()):
        there = " and ".join(filter(None, paths)) or "one: give a list of numbers"
        raise ValueError(f"layers names the stack {min(unknown)!r}; there is {there}")
    chosen = layers if isinstance(layers, Mapping) else dict.fromkeys(paths, layers)
    return {
        f"{stack} layers".strip(): (path, list(chosen[stack]))
        for stack, path in paths.items()
        if stack in chosen
    }


def _groups(network: Any) -> dict[str, list[Block]]:
    blocks = find_blocks(network)
    check_blocks(network, blocks)
    return {group[0].reader: group for group in group_blocks(blocks)}


def _place(
    name: str, groups: Mapping[str, list[Block]], numbers: Mapping[str, list[int]], cut_off: bool
) -> str | None:
    """Return the name that units of before have now; `None` for those of a layer that goes."""
    for path, kept in numbers.items():
        match = re.fullmatch(rf"{re.escape(path)}\.(\d+)\.(.+)", name)
        if not match:
            continue
        number, rest = int(match[1]), match[2]
        # What all layers share is named by the first of them, also when that one goes.
        shared = [n for n, g in groups.items() if g[0].shared and _tail(path, n) == rest]
        if shared:
            return shared[0]
        if number not in kept:
            return None
        if cut_off:
            name = f"{path}.{kept.index(number)}.{rest}"
    if name not in groups:
        near = difflib.get_close_matches(name, groups, n=2) or list(groups)[:2]
        raise NothingMatchedError(
            f"there are no units {name!r}; names that are near: {', '.join(near)}"
        )
    return name


def _tail(path: str, name: str) -> str | None:
    match = re.fullmatch(rf"{re.escape(path)}\.\d+\.(.+)", name)
    return match[1] if match else None


def _is_due(name: str, now: int, kept: Sequence[int], before: int | None) -> bool | None:
    """Whether units are still to be removed; `None` if none are.

    Args:
        name: for messages.
        now: how many there are.
        kept: the indices of those to keep.
        before: how many there were, if that is known.

    Raises:
        ValueError: there were others.
    """
    whole = before == len(kept) or (before is None and list(kept) == list(range(now)))
    if now == len(kept):
        return None if whole else False
    if not whole and (now == before or (before is None and now > kept[-1])):
        return True
    of = f"{before}" if before is not None else f"at least {kept[-1] + 1}"
    raise ValueError(
        f"of {name} there are {now}, and the surgery keeps {len(kept)} of {of}: the network was "
        "pruned otherwise, or is another one; start anew from one that was not pruned, or from an "
        "export"
    )
