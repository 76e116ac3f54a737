"""Which labelled examples are held out for validation, and which few are trained on."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

__all__ = ["Example", "few_of_each", "hold_out_examples"]


class Example(Protocol):
    """What a task reads a row as: a named tuple that ends with where it stands."""

    @property
    def file(self) -> str:
        """File or data set."""

    @property
    def line(self) -> int:
        """Line there, from 1."""

    def _replace(self, **changes: Any) -> Any: ...


Kind = TypeVar("Kind", bound=Example)
Classes = tuple[str, ...] | None


def hold_out_examples(
    examples: Sequence[Kind],
    fraction: float,
    stratum: Callable[[Kind], Classes],
    group: Callable[[Kind], str | None] = lambda _: None,
) -> tuple[list[Kind], list[Kind]]:
    """Split examples in two, with as large a share of each class held out, and at least one.

    Which ones is decided by a hash of their content: it is the same in every run, and equal
    examples are on the same side. A class with a single example is trained on.

    Args:
        examples: all of them.
        fraction: to be held out, in `(0, 1)`.
        stratum: the class, or classes, of an example; `None` for all where there are none.
        group: what has to stay together, such as the questions on one text; `None` for nothing.

    Returns:
        Those to train on and those held out, each in the order that they had.

    Raises:
        ValueError: nothing can be held out.
    """
    classes: dict[Classes, list[tuple[int, int]]] = defaultdict(list)
    kinds: dict[str, Classes] = {}
    for place, example in enumerate(examples):
        kind, key = stratum(example), group(example)
        digest = _hash(example) if key is None else _digest(key)
        # A group goes with its first example, or each class would cut it somewhere else.
        kind = kind if key is None else kinds.setdefault(key, kind)
        classes[kind].append((digest, place))
    held: set[int] = set()
    for members in classes.values():
        members.sort()
        wanted = max(1, round(fraction * len(members)))
        while 0 < wanted < len(members) and members[wanted][0] == members[wanted - 1][0]:
            wanted += 1
        if wanted < len(members):
            held.update(place for _, place in members[:wanted])
    if not held:
        raise ValueError(
            f"val split is empty: {len(examples)} examples are too few to hold any out; pass "
            "val_file, or val_fraction=0 to train without validation"
        )
    kept = [example for place, example in enumerate(examples) if place not in held]
    return kept, [example for place, example in enumerate(examples) if place in held]


def few_of_each(
    examples: Sequence[Kind], count: int, seed: int, stratum: Callable[[Kind], Classes]
) -> list[Kind]:
    """Take `count` examples of each class, or all that it has, drawn by a seed.

    With more of them the ones taken before are among them.

    Args:
        examples: all of them.
        count: per class, at least 1.
        seed: of the draw.
        stratum: the class, or classes, of an example.

    Returns:
        The chosen ones in the order that they had.
    """
    classes: dict[Classes, list[tuple[int, int]]] = defaultdict(list)
    for place, example in enumerate(examples):
        classes[stratum(example)].append((_hash(example, seed), place))
    chosen = {place for members in classes.values() for _, place in sorted(members)[:count]}
    return [example for place, example in enumerate(examples) if place in chosen]


def _hash(example: Example, seed: int | None = None) -> int:
    return _digest(repr((seed, *example._replace(file="", line=0))))


def _digest(content: str) -> int:
    digest = hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")
