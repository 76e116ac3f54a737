"""Which translations of a text stay: not equal, not again, of like length, and near enough."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from torchmetrics.functional.text import chrf_score
from tqdm import tqdm

from .modules.sentence_vectors import SentenceVectors

__all__ = ["Made", "filter_translations"]

# Pairs between two moves of the progress bar; chrF takes some 30 milliseconds for a long sentence.
_AT_ONCE = 64


class Made(NamedTuple):
    """A translation: of which row, which of its copies, and how near it is to the original."""

    row: int
    copy: int
    text: str
    similarity: float = 0.0


def filter_translations(
    texts: Sequence[str],
    made: Sequence[Made],
    encoder: SentenceVectors | None,
    least: float,
    ratio: tuple[float, float],
) -> tuple[list[Made], Counter[str]]:
    """Return what stays, with its similarity, and how many do not, by reason.

    Args:
        texts: the originals, by row.
        made: translations, in the order of rows and copies.
        encoder: whose cosine is the similarity; without it, it is chrF in `[0, 1]`.
        least: similarity of what stays.
        ratio: least and greatest length, in characters, as a multiple of the original's.

    Example:
        >>> texts = ["a small cat"]
        >>> made = [Made(0, n, text) for n, text in enumerate(["A small  cat", "the small cat"])]
        >>> kept, dropped = filter_translations(texts, made, None, 0.3, (0.5, 2.0))
        >>> [each.text for each in kept], dict(dropped)
        (['the small cat'], {'equal': 1})
    """
    dropped: Counter[str] = Counter()
    seen = {(row, _plain(text)): "equal" for row, text in enumerate(texts)}
    left = []
    for each in made:
        key = each.row, _plain(each.text)
        reason = "blank" if not key[1] else seen.get(key)
        if reason is None and not ratio[0] <= len(each.text) / len(texts[each.row]) <= ratio[1]:
            reason = "length"
        if reason is None:
            left.append(each)
        else:
            dropped[reason] += 1
        seen.setdefault(key, "repeated")
    kept = []
    pairs = [(texts[each.row], each.text) for each in left]
    for each, value in zip(left, _similarities(pairs, encoder), strict=True):
        if value < least:
            dropped["similarity"] += 1
        else:
            kept.append(each._replace(similarity=value))
    return kept, dropped


def _similarities(pairs: Sequence[tuple[str, str]], encoder: SentenceVectors | None) -> list[float]:
    if not pairs:
        return []
    if encoder is None:
        values: list[float] = []
        bar = tqdm(range(0, len(pairs), _AT_ONCE), desc="comparing", disable=None)
        for first in bar:
            some = pairs[first : first + _AT_ONCE]
            originals = [[before] for before, _ in some]
            written = [after for _, after in some]
            _, each = chrf_score(written, originals, return_sentence_level_score=True)
            values += each.flatten().tolist()
        return values
    distinct = list(dict.fromkeys(text for pair in pairs for text in pair))
    vectors, place = encoder(distinct), {text: at for at, text in enumerate(distinct)}
    return [float(vectors[place[a]] @ vectors[place[b]]) for a, b in pairs]


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()
