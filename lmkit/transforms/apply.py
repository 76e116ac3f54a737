"""Transforms on texts, on tagged words, and on texts that an answer lies in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray

from .base import Transform, Transformed
from .edits import Edit, span_after
from .gaps import gaps_after
from .protection import Protection
from .words import join_words, split_words

__all__ = ["check_seed", "example_rng", "transform_answer", "transform_tagged", "transform_text"]

Protect = Callable[[Sequence[str]], list[bool]]
_DEFAULT = Protection()
_WORD = (1 << 64) - 1


class _NoSeed(ISeedSequence):
    """Stands where numpy wants a seed that is overwritten."""

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> NDArray[Any]:
        """Return zeros."""
        return np.zeros(n_words, dtype)


_NO_SEED: Any = _NoSeed()


def example_rng(seed: int, epoch: int, index: int, salt: int = 0) -> np.random.Generator:
    """Return the generator of one example in one epoch, which depends on these numbers alone.

    Philox, whose streams are apart by their key (seed, index) and their counter (epoch, salt): no
    two of them share a number, and neither workers nor ranks nor an interrupted run change them.

    Args:
        seed: of the run, 64 bits.
        epoch: from 0.
        index: of the example in the data set.
        salt: tells several uses of one example apart.

    Raises:
        ValueError: a number is negative or has more than 64 bits.

    Example:
        >>> example_rng(1, 2, 3).random() == example_rng(1, 2, 3).random()
        True
    """
    for name, value in (("seed", seed), ("epoch", epoch), ("index", index), ("salt", salt)):
        if not 0 <= value <= _WORD:
            _refuse(name, value)
    bits = np.random.Philox(_NO_SEED)
    # Draws count up the lowest of the counter's four words. Set so, and not by the constructor's
    # `key`, for which numpy asks the system for an entropy that is not used.
    state: Any = {
        "bit_generator": "Philox",
        "state": {"counter": (0, 0, epoch, salt), "key": (seed, index)},
        "buffer": (0, 0, 0, 0),
        "buffer_pos": 4,
        "has_uint32": 0,
        "uinteger": 0,
    }
    bits.state = state
    return np.random.Generator(bits)


def check_seed(seed: int) -> None:
    """Check that `example_rng` can draw by a seed.

    Raises:
        ValueError: it is negative or has more than 64 bits.
    """
    if not 0 <= seed <= _WORD:
        _refuse("seed", seed)


def _refuse(name: str, value: object) -> None:
    raise ValueError(f"{name} must be a whole number of 64 bits from 0 on, got {value!r}")


def transform_text(
    transform: Transform,
    text: str,
    rng: np.random.Generator,
    protection: Protect | None = _DEFAULT,
    strength: float = 1.0,
) -> str:
    """Return the changed text.

    White space stays where it is. An inserted word gets a space, a word that goes takes one gap
    with it. Where nothing is changed, the same text comes back.

    Args:
        transform: what to do.
        text: any; an empty one comes back.
        rng: see `example_rng`.
        protection: which words stay; `None` for no word.
        strength: in `[0, 1]`.

    Example:
        >>> from lmkit.transforms import RandomDeletion
        >>> transform_text(RandomDeletion(1.0), "One  (two), 3.", example_rng(0, 0, 0))
        '(), 3.'
    """
    words, gaps = split_words(text)
    protected = None if protection is None else protection(words)
    made, _, edits = transform(words, None, rng, protected, strength)
    return join_words(made, gaps_after(words, gaps, made, edits)) if edits else text


def transform_tagged(
    transform: Transform,
    words: Sequence[str],
    tags: Sequence[str],
    rng: np.random.Generator,
    protection: Protect | None = _DEFAULT,
    strength: float = 1.0,
) -> Transformed:
    """Return changed words with their tags, as many of these as of those, see `Transform`.

    Args:
        transform: what to do.
        words: of a sentence.
        tags: one for each, BIO or plain.
        rng: see `example_rng`.
        protection: which words stay; `None` for no word.
        strength: in `[0, 1]`.

    Example:
        >>> from lmkit.transforms import RandomDeletion
        >>> made = transform_tagged(
        ...     RandomDeletion(1.0), ["in", "New", "York"], ["O", "B-LOC", "I-LOC"],
        ...     example_rng(0, 0, 0))
        >>> made.words, made.labels
        (['New', 'York'], ['B-LOC', 'I-LOC'])
    """
    protected = None if protection is None else protection(words)
    return transform(words, tags, rng, protected, strength)


def transform_answer(
    transform: Transform,
    context: str,
    answer_start: int,
    answer_text: str,
    rng: np.random.Generator,
    protection: Protect | None = _DEFAULT,
    strength: float = 1.0,
) -> tuple[str, int]:
    """Return the changed context and where the same answer begins in it.

    The words of the answer are protected. Where a change touches them all the same, as an
    insertion between them does, the context comes back as it was.

    Args:
        transform: what to do.
        context: the text.
        answer_start: character at which the answer begins.
        answer_text: the answer; an empty one is none, and `answer_start` comes back.
        rng: see `example_rng`.
        protection: which other words stay; `None` for no other word.
        strength: in `[0, 1]`.

    Raises:
        ValueError: the answer is not there.

    Example:
        >>> from lmkit.transforms import RandomDeletion
        >>> transform_answer(
        ...     RandomDeletion(1.0), "we went home today", 8, "home", example_rng(0, 0, 0))
        ('home', 0)
    """
    answer_stop = answer_start + len(answer_text)
    if answer_text and (answer_start < 0 or context[answer_start:answer_stop] != answer_text):
        raise ValueError(
            f"answer_text must stand at answer_start: {answer_text!r} is not at character "
            f"{answer_start} of a context of {len(context)}"
        )
    words, gaps = split_words(context)
    protected = [False] * len(words) if protection is None else protection(words)
    start, stop, before = _words_at(words, gaps, answer_start, answer_stop)
    protected[start:stop] = [True] * (stop - start)
    made, _, edits = transform(words, None, rng, protected, strength)
    if not edits:
        return context, answer_start
    new_gaps = gaps_after(words, gaps, made, edits)
    changed = join_words(made, new_gaps)
    if not answer_text:
        return changed, answer_start
    place = _place_after(edits, start, stop, made, new_gaps)
    moved = -1 if place is None else place + answer_start - before
    if moved >= 0 and changed[moved : moved + len(answer_text)] == answer_text:
        return changed, moved
    return context, answer_start


def _words_at(words: list[str], gaps: list[str], start: int, stop: int) -> tuple[int, int, int]:
    """Return first word, last word + 1 that characters touch, and where the first one begins."""
    first = last = begin = position = 0
    for place, (gap, word) in enumerate(zip(gaps, words, strict=False)):
        position += len(gap)
        if position >= stop:
            break
        if position + len(word) > start:
            if last == 0:
                first, begin = place, position
            last = place + 1
        position += len(word)
    return first, last, begin


def _place_after(
    edits: Sequence[Edit], start: int, stop: int, made: list[str], gaps: list[str]
) -> int | None:
    """Return the character at which the first word of a span is now, `None` if it was touched."""
    moved = span_after(edits, start, stop) if stop > start else None
    if moved is None:
        return None
    return sum(map(len, made[: moved[0]])) + sum(map(len, gaps[: moved[0] + 1]))
