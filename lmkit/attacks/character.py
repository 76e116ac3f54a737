"""Attacks that misspell words."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from ..transforms import CharacterNoise, Protection, example_rng
from .base import LEAST, Attack, Encoder
from .search import Importance

__all__ = ["CharacterAttack"]


class CharacterAttack(Attack):
    r"""Misspells the most important words by a letter each, until a classifier changes its mind.

    As DeepWordBug (arXiv:1801.04354): words are ranked by what they add to the words before them
    and to those behind,

    $$I_i = p_y(x_{1 \dots i}) - p_y(x_{1 \dots i-1})
    + p_y(x_{i \dots n}) - p_y(x_{i+1 \dots n}),$$

    and taken from the first one on. For each word a mistake of each kind is drawn, and the one
    that leaves the least $p_y$ stays, if it is less than before.

    Where it differs from the paper: there one kind of mistake is made in as many words as a budget
    has, without asking again; here each word's mistakes are tried. The first letter stays.

    Args:
        kinds: of mistakes, see `CharacterNoise`: `"swap"`, `"keyboard"`, `"drop"`, `"insert"`,
            `"ocr"`, `"case"`.
        draws: of each kind for a word.
        shortest: words with fewer letters are left alone.
        importance: `"temporal"`, or another of `WordAttack`.
        max_changed: as of `WordAttack`, as all further ones.
        query_budget: of one text.
        similarity: by what texts are compared.
        min_similarity: the least cosine.
        protection: which words stay; by default negations too, though a mistake does not change
            the meaning as another word does.
        seed: of the draws.
        batch_size: texts that the network reads at once.
        at_once: texts that are attacked together.

    Raises:
        ValueError: an argument lies outside its range.
        TypeError: `kinds` is a single string, or `similarity` is none of what it may be.

    Example:
        >>> def predict(texts):
        ...     return [[0.9, 0.1] if "good" in text else [0.2, 0.8] for text in texts]
        >>> report = CharacterAttack(["swap"]).run(predict, ["a good film"], [0])
        >>> report.results[0].status, len(report.results[0].changes)
        ('succeeded', 1)
    """

    def __init__(
        self,
        kinds: Sequence[str] = ("swap", "keyboard", "drop", "insert"),
        draws: int = 1,
        shortest: int = 3,
        importance: Importance = "temporal",
        max_changed: float = 0.4,
        query_budget: int | None = None,
        similarity: str | Encoder | None = None,
        min_similarity: float = LEAST,
        protection: Protection | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        at_once: int = 32,
    ) -> None:
        limits = importance, max_changed, query_budget, similarity, min_similarity
        super().__init__(*limits, protection, seed, batch_size, at_once)
        if draws < 1:
            raise ValueError(f"draws must be at least 1, got {draws}")
        CharacterNoise(kinds, shortest=shortest)  # checks them
        self.kinds, self.draws, self.shortest = list(kinds), draws, shortest

    def candidates_of(self, words: list[str], place: int, index: int) -> list[str]:
        """Draw mistakes of each kind in a word."""
        rng = example_rng(self.seed, 0, index, 1 + place)
        row = [words[place]]
        return [noise(row, None, rng).words[0] for noise in self._noises for _ in range(self.draws)]

    @property
    def settings(self) -> dict[str, Any]:
        """What the attack keeps to, as plain data."""
        return {
            **super().settings,
            "kinds": self.kinds,
            "draws": self.draws,
            "shortest": self.shortest,
        }

    @cached_property
    def _noises(self) -> list[CharacterNoise]:
        # One mistake in each word, however long it is.
        settings: dict[str, Any] = {"rate": 1.0, "character_rate": 0.0, "keep_first": True}
        return [CharacterNoise([kind], shortest=self.shortest, **settings) for kind in self.kinds]
