"""Words replaced by synonyms, and synonyms put in."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path

import numpy as np

from .arguments import check_rate, check_table, check_whole
from .base import WordTransform
from .candidates import Candidates
from .changes import Change
from .random_words import count_for, pick
from .stop_words import STOP_WORDS
from .wordnet import open_wordnet

__all__ = ["RandomInsertion", "SynonymReplacement"]


class _Synonyms(WordTransform):
    """Has a table of synonyms."""

    def __init__(
        self, alpha: float = 0.1, source: str | None = None, senses: int = 2, rare: bool = False
    ) -> None:
        check_rate("alpha", alpha)
        check_whole("senses", senses, 1)
        if source is not None and not isinstance(source, str):
            raise TypeError(f"source must be the name of a folder or file, got {source!r}")
        self.alpha, self.source, self.senses, self.rare = alpha, source, senses, rare

    @property
    def _is_table(self) -> bool:
        return self.source is not None and self.source.endswith(".json")

    @cached_property
    def candidates(self) -> Candidates:
        """The synonyms of each word, none of stop words."""
        if self._is_table:
            table = _read_table(str(self.source))
            return Candidates(lambda word: sorted(set(table.get(word, []))))
        wordnet, senses, rare = open_wordnet(self.source), self.senses, self.rare

        def find(word: str) -> list[str]:
            # Looked up are words that WordNet may hold.
            known = word not in STOP_WORDS and word.replace("-", "").isalpha()
            return wordnet.synonyms(word, senses, rare) if known else []

        return Candidates(find)

    def sources(self) -> dict[str, str]:
        """Return the digest of the table or of WordNet."""
        if self._is_table:
            _read_table(str(self.source))  # that a broken one is told before the training
            return {"synonyms": hashlib.sha256(Path(str(self.source)).read_bytes()).hexdigest()}
        return {"wordnet": open_wordnet(self.source).digest}


class SynonymReplacement(_Synonyms):
    r"""Replaces $\max(1, \lfloor \alpha L \rfloor)$ words by synonyms.

    SR of EDA (arXiv:1901.11196). $L$ is the number of words that may be changed; replaced are
    words that have a synonym and are no stop words, each by one of its own. A synonym shares one of
    the word's commonest senses in WordNet, and has its form and capitals, as far as that can be
    told.

    Args:
        alpha: in `[0, 1]`; 0 for never.
        source: a folder or zip archive with WordNet's files, or a `.json` file of
            `{word: [synonyms]}` in small letters; `None` for WordNet where it is installed.
        senses: of WordNet, how many of a word's senses count, the commonest ones; at least 1.
        rare: of WordNet, whether words count that were never met in its makers' texts.

    Raises:
        ValueError: a number lies outside its range; at first use, the file holds no table of words.
        FileNotFoundError: at first use, there is no WordNet; says how it is installed.

    Example:
        >>> SynonymReplacement(alpha=0.2, source="synonyms.json").spec["init_args"]["alpha"]
        0.2
    """

    def changes(
        self,
        words: list[str],
        free: list[int],
        rng: np.random.Generator,
        strength: float,
        groups: list[int] | None,
    ) -> list[Change]:
        """Draw words, and a synonym for each."""
        table = self.candidates
        able = [place for place in free if table[words[place]]]
        count = count_for(self.alpha, len(free), strength, rng) if able else 0
        if not count:
            return []
        places = sorted(pick(count, able, rng))
        made = []
        for place, drawn in zip(places, rng.random(len(places)).tolist(), strict=True):
            found = table[words[place]]
            made.append(Change("substitute", place, place + 1, [found[int(drawn * len(found))]]))
        return made


class RandomInsertion(_Synonyms):
    r"""Puts in $\max(1, \lfloor \alpha L \rfloor)$ synonyms of words of the row.

    RI of EDA (arXiv:1901.11196): a synonym of a random word that is no stop word comes to a random
    place. Between two protected words nothing is put, so that names of several words and answers
    stay whole. With BIO tags it belongs to an entity if it comes to stand inside of one, and else
    is `O`; of plain tags it has that of the word that it is a synonym of.

    Args:
        alpha: as of `SynonymReplacement`.
        source: as of `SynonymReplacement`.
        senses: as of `SynonymReplacement`.
        rare: as of `SynonymReplacement`.

    Raises:
        ValueError: a number lies outside its range.
        FileNotFoundError: at first use, there is no WordNet; says how it is installed.

    Example:
        >>> RandomInsertion(alpha=0.2).alpha
        0.2
    """

    def changes(
        self,
        words: list[str],
        free: list[int],
        rng: np.random.Generator,
        strength: float,
        groups: list[int] | None,
    ) -> list[Change]:
        """Draw words, a synonym for each, and places."""
        table = self.candidates
        able = [place for place in free if table[words[place]]]
        count = count_for(self.alpha, len(free), strength, rng) if able else 0
        if not count:
            return []
        if len(free) == len(words):
            rooms = list(range(len(words) + 1))
        else:
            rooms = sorted({room for place in free for room in (place, place + 1)})
        drawn = rng.random(3 * count).tolist()
        made: dict[int, tuple[list[str], list[int]]] = {}
        for first, second, third in zip(*[iter(drawn)] * 3, strict=True):
            origin = able[int(first * len(able))]
            found = table[words[origin]]
            new, origins = made.setdefault(rooms[int(third * len(rooms))], ([], []))
            new.append(found[int(second * len(found))])
            origins.append(origin)
        return [Change("insert", room, room, *parts) for room, parts in sorted(made.items())]


def _read_table(path: str) -> dict[str, list[str]]:
    try:
        table: dict[str, list[str]] = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON or of UTF-8
        raise ValueError(f"source: {path} is no JSON: {error}") from error
    check_table("source", table, f" in {path}")
    return table
