"""Tags of words: schemes, the entities that they spell, and how many of these were found."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "EntityCounts",
    "Scheme",
    "Span",
    "bio_tags",
    "count_entities",
    "detect_scheme",
    "entity_starts",
    "find_spans",
    "parse_tag",
    "to_bio",
]

#: How tags spell entities. `bio` is IOB2; `iobes` is also BILOU, whose L and U are E and S; `none`
#: are tags that spell none, such as parts of speech.
Scheme = Literal["bio", "iob1", "iobes", "none"]

_TAG = re.compile(r"([BIESLU])(?:-(.*))?", re.DOTALL)
_ALIKE = {"L": "E", "U": "S"}


class Span(NamedTuple):
    """An entity.

    Attributes:
        start: its first word.
        end: the word after its last one.
        type: what it is; `_` where the tags name no type.
    """

    start: int
    end: int
    type: str


class EntityCounts(NamedTuple):
    """How many entities of each type there are, int64 `[T]` each.

    Attributes:
        hits: predicted with the right first word, last word and type.
        predicted: predicted at all.
        gold: in the data.
    """

    hits: Tensor
    predicted: Tensor
    gold: Tensor


def parse_tag(tag: str) -> tuple[str, str]:
    """Return a tag's prefix, one of `O B I E S`, and its type, "" for `O` and `_` for none.

    Raises:
        ValueError: it is no tag of an entity.

    Example:
        >>> parse_tag("B-creative-work"), parse_tag("U-PER"), parse_tag("O")
        (('B', 'creative-work'), ('S', 'PER'), ('O', ''))
    """
    if tag == "O":
        return "O", ""
    match = _TAG.fullmatch(tag)
    if match is None:
        raise ValueError(
            f"{tag!r} is no tag of an entity, which is 'O' or a prefix of B, I, E, S, L, U with a "
            "type, such as 'B-PER'"
        )
    return _ALIKE.get(match[1], match[1]), match[2] or "_"


def find_spans(tags: Sequence[str], strict: bool = False) -> list[Span]:
    """Return the entities that the tags of one sentence spell.

    As `seqeval` reads them. By default any scheme: an entity begins at B or S, behind `O`, E or S,
    and where the type changes; it ends before the next one, before `O`, and behind E or S. So an I
    that nothing comes before begins an entity, as the `conlleval` of CoNLL-2000 has it.

    Args:
        tags: one a word.
        strict: read IOB2 alone: an entity is a B and the I of the same type behind it, and any
            other I belongs to none (`mode="strict", scheme=IOB2`).

    Raises:
        ValueError: a tag is none of an entity.

    Example:
        >>> find_spans(["I-PER", "I-PER", "O", "B-LOC"])
        [Span(start=0, end=2, type='PER'), Span(start=3, end=4, type='LOC')]
        >>> find_spans(["I-PER", "I-PER", "O", "B-LOC"], strict=True)
        [Span(start=3, end=4, type='LOC')]
    """
    spans: list[Span] = []
    start = -1
    before, before_type = "O", ""
    for place, (prefix, kind) in enumerate([*map(parse_tag, tags), ("O", "")]):
        goes_on = prefix in "IE" and before in "BI" and kind == before_type
        if not goes_on:
            if start >= 0:
                spans.append(Span(start, place, before_type))
            opens = prefix == "B" if strict else prefix != "O"
            start = place if opens else -1
        before, before_type = prefix, kind
    return spans


def bio_tags(spans: Iterable[Span], length: int) -> list[str]:
    """Return the tags in BIO (IOB2) that spell some entities.

    Args:
        spans: entities that do not overlap.
        length: number of words.

    Example:
        >>> bio_tags([Span(0, 2, "PER"), Span(2, 3, "PER")], 4)
        ['B-PER', 'I-PER', 'B-PER', 'O']
    """
    tags = ["O"] * length
    for start, end, kind in spans:
        ending = "" if kind == "_" else f"-{kind}"
        tags[start:end] = [f"B{ending}", *[f"I{ending}"] * (end - start - 1)]
    return tags


def to_bio(tags: Sequence[str]) -> list[str]:
    """Return the tags of one sentence in BIO, of whatever scheme they are.

    The schemes differ in how they write an entity, not in which ones they can write: IOB1, IOBES,
    BILOU and BIO whose entities begin with I all go through `find_spans`.

    Example:
        >>> to_bio(["I-PER", "I-PER", "B-PER"]), to_bio(["B-LOC", "L-LOC", "U-PER"])
        (['B-PER', 'I-PER', 'B-PER'], ['B-LOC', 'I-LOC', 'B-PER'])
    """
    return bio_tags(find_spans(tags), len(tags))


def detect_scheme(sentences: Iterable[Sequence[str]]) -> Scheme:
    """Return the scheme of a data set's tags.

    They spell entities if all of them could be read so, or if there is `O` beside tags such as
    `B-PER`. With E, S, L or U they are `iobes`. With an entity that begins with I they are `iob1`,
    if B stands between neighbours of one type only, and else `bio`.

    Args:
        sentences: the tags of each.

    Example:
        >>> detect_scheme([["B-PER", "O"]]), detect_scheme([["I-PER", "O"]])
        ('bio', 'iob1')
        >>> detect_scheme([["NOUN", "VERB"]])
        'none'
    """
    rows = [list(tags) for tags in sentences]
    found = {tag for tags in rows for tag in tags}
    typed = {tag for tag in found if len(tag) > 1 and tag[1] == "-" and _TAG.fullmatch(tag)}
    bare = found - typed - {"O"}
    if bare and not (typed and "O" in found) and not _spell_without_types(found):
        return "none"
    prefixes = {tag[0] for tag in found if _TAG.fullmatch(tag)}
    if prefixes & set("ESLU"):
        return "iobes"
    return "iob1" if "I" in prefixes and _begins_with_inside(rows) else "bio"


def _spell_without_types(found: Collection[str]) -> bool:
    return {"O", "B"} <= set(found) <= {"O", "B", "I", "E", "S", "L", "U"}


def _begins_with_inside(rows: list[list[str]]) -> bool:
    """Return whether every B stands behind an entity of its type, and some I begins an entity."""
    seen = False
    for tags in rows:
        for before, tag in zip(["O", *tags], tags, strict=False):
            same = before[:1] in "BI" and before[1:] == tag[1:]
            if tag[:1] == "B" and not same:
                return False
            seen |= tag[:1] == "I" and not same
    return seen


def entity_starts(prefixes: Tensor, types: Tensor, strict: bool = False) -> tuple[Tensor, Tensor]:
    """Return where entities begin, and where what begins at a word ends; `find_spans` in tensors.

    Args:
        prefixes: int64 `[B, W]`, the place of a word's prefix in `OBIES`.
        types: int64 `[B, W]`, a number for its type; of `O` any.
        strict: read IOB2 alone.

    Returns:
        Where an entity begins, bool `[B, W]`, and the word after the last one of the stretch that
        a word is in, int64 `[B, W]`.
    """
    before, before_type = prefixes.roll(1, 1), types.roll(1, 1)
    inside = (prefixes == 2) | (prefixes == 3)
    goes_on = inside & ((before == 1) | (before == 2)) & (types == before_type)
    goes_on[:, :1] = False
    width = prefixes.shape[1]
    place = torch.arange(width, device=prefixes.device)
    # The next place at which something new begins, from right to left.
    breaks = place.masked_fill(goes_on, width)
    next_break = breaks.flip(1).cummin(1).values.flip(1).roll(-1, 1)
    next_break[:, -1:] = width
    opens = prefixes == 1 if strict else prefixes != 0
    return opens & ~goes_on, next_break


def count_entities(
    predictions: Tensor,
    labels: Tensor,
    prefixes: Tensor,
    types: Tensor,
    type_count: int,
    strict: bool = False,
) -> EntityCounts:
    r"""Count entities of each type: right, predicted and in the data.

    With these, precision is hits / predicted, recall hits / gold, and
    $F_1 = 2 \cdot \text{hits} / (\text{predicted} + \text{gold})$, as in CoNLL-2003 and `seqeval`.

    Args:
        predictions: int64 `[B, W]`, a label for each word; -1 counts as `O`.
        labels: int64 `[B, W]`; -100 where there is no word: what stands around it are neighbours.
        prefixes: int64 `[C]`, of each label the place of its prefix in `OBIES`.
        types: int64 `[C]`, of each label the number of its type, in `[0, type_count)`.
        type_count: $T$.
        strict: read IOB2 alone.

    Example:
        >>> prefixes, types = torch.tensor([0, 1, 2]), torch.tensor([0, 0, 0])
        >>> counts = count_entities(torch.tensor([[1, 2, 0, 1]]), torch.tensor([[1, 2, 0, 2]]),
        ...     prefixes, types, 1, strict=True)
        >>> counts.hits.item(), counts.predicted.item(), counts.gold.item()
        (1, 2, 1)
    """
    word = labels != -100
    order = (~word).int().argsort(dim=1, stable=True)
    predictions, labels, word = (t.gather(1, order) for t in (predictions, labels, word))

    def read(tags: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        known = word & (tags >= 0)
        tags = tags.clamp(min=0)
        kinds = types[tags]
        starts, ends = entity_starts(prefixes[tags].masked_fill(~known, 0), kinds, strict)
        return starts, ends, kinds

    starts, ends, kinds = read(predictions)
    gold_starts, gold_ends, gold_kinds = read(labels)
    hits = starts & gold_starts & (ends == gold_ends) & (kinds == gold_kinds)

    def count(where: Tensor, of: Tensor) -> Tensor:
        # Not by bincount, which has no deterministic form on CUDA; types are few.
        each = torch.arange(type_count, device=of.device)
        return (of[where].unsqueeze(1) == each).sum(0)

    return EntityCounts(count(hits, kinds), count(starts, kinds), count(gold_starts, gold_kinds))
