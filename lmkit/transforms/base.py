"""What every transform is: a function from words to words that labels can follow."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from .arguments import check_rate
from .changes import Change, perform
from .edits import Edit
from .labels import are_bio, entity_ids, tags_after

__all__ = ["Transform", "Transformed", "WordTransform", "plain_data"]


class Transformed(NamedTuple):
    """What a transform returns.

    Attributes:
        words: the changed row.
        labels: one for each word, or `None` if none were given.
        edits: what became of which words, in their order; empty if nothing was changed.
    """

    words: list[str]
    labels: list[str] | None
    edits: list[Edit]


class Transform(ABC):
    """Changes a row of words at random; a pure function of the row and of a generator.

    A subclass keeps each argument of its constructor under its own name, as plain data: from these
    come `spec`, `fingerprint()`, equality and what is pickled. Most are a `WordTransform`.

    What holds for all of them: there are as many labels as words; BIO stays BIO; protected words
    are neither changed nor deleted nor swapped; at least one word is left; a strength of 0 changes
    nothing.

    Example:
        >>> from lmkit.transforms import RandomDeletion
        >>> RandomDeletion(rate=1.0)(["a", "b"], ["B-X", "I-X"], np.random.default_rng(0)).labels
        ['B-X']
    """

    def __call__(
        self,
        words: Sequence[str],
        labels: Sequence[str] | None,
        rng: np.random.Generator,
        protected: Sequence[bool] | None = None,
        strength: float = 1.0,
    ) -> Transformed:
        """Return the changed words, their labels, and the edits.

        Args:
            words: the row; may be empty.
            labels: one for each word, BIO (IOB2) or plain tags such as parts of speech, or `None`.
            rng: a generator of numpy, see `example_rng`.
            protected: whether each word must stay; `None` for no word.
            strength: in `[0, 1]`, what the rates are multiplied by; 0 changes nothing.

        Raises:
            ValueError: there are not as many labels or flags as words, tags are of a scheme such as
                IOBES, or `strength` lies outside its range.
        """
        row = list(words)
        if type(strength) is not float or not 0.0 <= strength <= 1.0:
            check_rate("strength", strength)
        for name, given in (("labels", labels), ("protected", protected)):
            if given is not None and len(given) != len(row):
                raise ValueError(f"{name} must be one for each of {len(row)} words: {len(given)}")
        if strength > 0:
            return self.transform(row, labels, rng, protected, float(strength))
        return Transformed(row, None if labels is None else list(labels), [])

    @abstractmethod
    def transform(
        self,
        words: list[str],
        labels: Sequence[str] | None,
        rng: np.random.Generator,
        protected: Sequence[bool] | None,
        strength: float,
    ) -> Transformed:
        """Do what `__call__` says, of arguments that have been checked and a strength above 0."""

    @property
    def arguments(self) -> dict[str, Any]:
        """What the constructor was given, or its defaults."""
        names = list(inspect.signature(type(self).__init__).parameters)[1:]
        return {name: getattr(self, name) for name in names}

    @property
    def spec(self) -> dict[str, Any]:
        """The transform as plain data, from which `transforms_from` makes it again."""
        kind, package = type(self), __name__.rpartition(".")[0]
        public = getattr(sys.modules[package], kind.__qualname__, None) is kind
        return {
            "class_path": f"{package if public else kind.__module__}.{kind.__qualname__}",
            "init_args": {name: plain_data(value) for name, value in self.arguments.items()},
        }

    def sources(self) -> dict[str, str]:
        """Return digests of the files that it reads, by name; they count in the fingerprint."""
        return {}

    def fingerprint(self) -> str:
        """Return a digest of what it does: equal for equal arguments in any process.

        Example:
            >>> from lmkit.transforms import RandomSwap
            >>> RandomSwap(0.1).fingerprint() == RandomSwap(alpha=0.1).fingerprint()
            True
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        known = json.dumps([self.spec, self.sources()], sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(known.encode()).hexdigest()[:32]

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.spec == getattr(other, "spec", None)

    def __hash__(self) -> int:
        return hash(json.dumps(self.spec, sort_keys=True))

    def __repr__(self) -> str:
        listed = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{type(self).__name__}({listed})"

    def __reduce__(self) -> tuple[Any, ...]:
        # Not what was computed: a worker reads tables itself, once for each process.
        return _rebuild, (type(self), self.arguments)


class WordTransform(Transform):
    """A transform that only says what is to be changed; words, labels and edits follow."""

    @abstractmethod
    def changes(
        self,
        words: list[str],
        free: list[int],
        rng: np.random.Generator,
        strength: float,
        groups: list[int] | None,
    ) -> list[Change]:
        """Return what shall be changed, in the order of the words and without overlaps.

        Args:
            words: at least one.
            free: places of the words that may be changed, in their order; at least one.
            rng: all that is drawn comes from it.
            strength: in `(0, 1]`; rates are multiplied by it.
            groups: words may be swapped if their numbers are equal; `None` where all are.
        """

    def transform(
        self,
        words: list[str],
        labels: Sequence[str] | None,
        rng: np.random.Generator,
        protected: Sequence[bool] | None,
        strength: float,
    ) -> Transformed:
        """Do what `changes` says, see `Transform.transform`."""
        if protected is None:
            free = list(range(len(words)))
        else:
            free = [place for place, fixed in enumerate(protected) if not fixed]
        bio = labels is not None and are_bio(labels)
        changes: list[Change] = []
        if free:
            groups = entity_ids(labels) if bio and labels is not None else None
            changes = self.changes(words, free, rng, strength, groups)
        if not changes:
            return Transformed(words, None if labels is None else list(labels), [])
        made, edits = perform(words, changes)
        return Transformed(
            made, None if labels is None else tags_after(labels, changes, bio), edits
        )


def _rebuild(kind: type[Transform], arguments: dict[str, Any]) -> Transform:
    return kind(**arguments)


def plain_data(value: Any) -> Any:
    """Return what an argument holds with each transform in it as its `spec`."""
    if isinstance(value, Transform):
        return value.spec
    if isinstance(value, dict):
        return {str(name): plain_data(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain_data(part) for part in value]
    return value
