"""Transforms made of others."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from .arguments import check_rate
from .base import Transform, Transformed
from .edits import Edit, carry, compose
from .protection import is_special
from .specs import transform_from

__all__ = ["Chain", "OneOf", "Sometimes", "transforms_from"]


class Chain(Transform):
    """Does one transform after the other.

    Protected words stay so; words that one has changed may be changed by the next, but not special
    tokens such as `[MASK]` that it has put in.

    Args:
        transforms: transforms, or dictionaries of `class_path` and `init_args`; an empty list
            changes nothing.

    Raises:
        ValueError, TypeError: one cannot be made, see `transform_from`.

    Example:
        >>> Chain(["RandomSwap", "RandomDeletion"]).transforms[0]
        RandomSwap(alpha=0.1)
    """

    def __init__(self, transforms: Sequence[Any]) -> None:
        self.transforms = _many(transforms)

    def transform(
        self,
        words: list[str],
        labels: Sequence[str] | None,
        rng: np.random.Generator,
        protected: Sequence[bool] | None,
        strength: float,
    ) -> Transformed:
        """Do one after the other, see `Transform.transform`."""
        made = Transformed(words, None if labels is None else list(labels), [])
        edits: list[Edit] = []
        for part in self.transforms:
            made = part.transform(made.words, made.labels, rng, protected, strength)
            if made.edits:
                edits = compose(edits, made.edits, len(words))
                if protected is not None:
                    kept = carry(protected, made.edits, False)
                    both = zip(kept, made.words, strict=True)
                    protected = [fixed or is_special(word) for fixed, word in both]
        return made._replace(edits=edits)

    def sources(self) -> dict[str, str]:
        """Return the digests of the files of all."""
        return _sources(self.transforms)


class OneOf(Transform):
    """Does one transform of several, drawn anew for each row.

    Args:
        transforms: as of `Chain`, at least one.
        weights: how often each is drawn, in proportion; `None` for equally often.

    Raises:
        ValueError: there is none, there are not as many weights, or they are negative or all 0.

    Example:
        >>> OneOf(["RandomSwap", "RandomDeletion"], weights=[3, 1]).weights
        [3, 1]
    """

    def __init__(self, transforms: Sequence[Any], weights: Sequence[float] | None = None) -> None:
        self.transforms = _many(transforms)
        if not self.transforms:
            raise ValueError("transforms must name at least one transform, got none")
        self.weights = None if weights is None else list(weights)
        shares = self.weights or [1.0] * len(self.transforms)
        if len(shares) != len(self.transforms):
            raise ValueError(
                f"weights must be one for each of {len(self.transforms)} transforms, got "
                f"{len(shares)}"
            )
        if not all(0 <= share < float("inf") for share in shares) or not sum(shares):
            raise ValueError(f"weights must not be negative and not all 0, got {shares}")
        self._bounds = list(accumulate(shares))

    def transform(
        self,
        words: list[str],
        labels: Sequence[str] | None,
        rng: np.random.Generator,
        protected: Sequence[bool] | None,
        strength: float,
    ) -> Transformed:
        """Draw one and do it, see `Transform.transform`."""
        drawn = rng.random() * self._bounds[-1]
        place = next(i for i, bound in enumerate(self._bounds) if drawn < bound)
        return self.transforms[place].transform(words, labels, rng, protected, strength)

    def sources(self) -> dict[str, str]:
        """Return the digests of the files of all."""
        return _sources(self.transforms)


class Sometimes(Transform):
    """Does a transform with a probability, and else nothing.

    Args:
        transform: a transform, or a dictionary of `class_path` and `init_args`.
        probability: of a row, in `[0, 1]`. The strength is passed on and does not change it.

    Raises:
        ValueError: the probability lies outside its range.

    Example:
        >>> Sometimes("RandomSwap", probability=0.5)
        Sometimes(transform=RandomSwap(alpha=0.1), probability=0.5)
    """

    def __init__(self, transform: Any, probability: float = 0.5) -> None:
        check_rate("probability", probability)
        self.inner = transform_from(transform)
        self.probability = probability

    @property
    def arguments(self) -> dict[str, Any]:
        """What the constructor was given."""
        return {"transform": self.inner, "probability": self.probability}

    def transform(
        self,
        words: list[str],
        labels: Sequence[str] | None,
        rng: np.random.Generator,
        protected: Sequence[bool] | None,
        strength: float,
    ) -> Transformed:
        """Do it or not, see `Transform.transform`."""
        if rng.random() < self.probability:
            return self.inner.transform(words, labels, rng, protected, strength)
        return Transformed(words, None if labels is None else list(labels), [])

    def sources(self) -> dict[str, str]:
        """Return the digests of its files."""
        return self.inner.sources()


def transforms_from(specs: Any, name: str = "transforms") -> Transform:
    """Make one transform of a list: the first one, then the next.

    Args:
        specs: a list of transforms, of names of classes, or of dictionaries of `class_path` and
            `init_args`; or one of these alone.
        name: what the argument is called in errors.

    Raises:
        ValueError, TypeError: one cannot be made; says which, see `transform_from`.

    Example:
        >>> transforms_from([{"class_path": "RandomSwap", "init_args": {"alpha": 2}}])
        Traceback (most recent call last):
        ...
        ValueError: transforms[0] (RandomSwap): alpha must lie in [0, 1], got 2
    """
    if isinstance(specs, list | tuple):
        made = _many(specs, name)
        return made[0] if len(made) == 1 else Chain(made)
    return transform_from(specs, name)


def _sources(parts: Sequence[Transform]) -> dict[str, str]:
    # Two of one kind read files of one name.
    found = ((f"{n}.{name}", d) for n, p in enumerate(parts) for name, d in p.sources().items())
    return dict(found)


def _many(specs: Any, name: str = "transforms") -> list[Transform]:
    if not isinstance(specs, list | tuple):
        raise TypeError(f"{name} must be a list, got {specs!r}")
    return [transform_from(spec, f"{name}[{place}]") for place, spec in enumerate(specs)]
