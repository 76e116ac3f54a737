"""From tags of words to numbers, and to labels of pieces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..functional.tagging import parse_tag, to_bio
from ..tokenization.word_pieces import PiecedWords
from ..types import IGNORE_INDEX
from .label_names import label_number
from .tagged_words import TaggedText
from .text_rows import BadRows

__all__ = ["inner_numbers", "piece_labels", "tag_numbers"]

# The prefixes that tags of a scheme may have.
_PREFIXES = {"auto": "BIESLU", "bio": "BI", "iob1": "BI", "iobes": "BIESLU"}


def tag_numbers(
    example: TaggedText, known: dict[str, int], scheme: str, bad: BadRows
) -> list[int] | None:
    """Return the label of each word, or report the sentence and return `None`.

    Args:
        example: a sentence; one without tags has labels that are no targets.
        known: the numbers of the tags, in BIO where they spell entities.
        scheme: of the tags; `none` where they spell no entities.
        bad: told of a tag that is none.
    """
    if (tags := example.tags) is None:
        return [IGNORE_INDEX] * len(example.words)
    if scheme != "none":
        for word, tag in enumerate(tags):
            if fault := _tag_fault(tag, scheme):
                remedy = "Correct the tag, or pass scheme='none' if tags spell no entities"
                bad(example.file, example.line_of(word), fault, remedy)
                return None
        tags = to_bio(tags)
    numbers = []
    for word, tag in enumerate(tags):
        number = label_number(tag, known, example.file, example.line_of(word), bad)
        if number is None:
            return None
        numbers.append(number)
    return numbers


def inner_numbers(known: Mapping[str, int], scheme: str) -> list[int]:
    """Return of each tag the number of the one for pieces behind the first of such a word.

    Example:
        >>> inner_numbers({"O": 0, "B-LOC": 1, "I-LOC": 2}, "bio")
        [0, 2, 2]
    """
    inner = [f"I{n[1:]}" if scheme != "none" and n.startswith("B") else n for n in known]
    return [known.get(n, number) for n, number in zip(inner, known.values(), strict=True)]


def piece_labels(
    words: PiecedWords, numbers: Sequence[int], inner: Sequence[int] | None
) -> list[int]:
    """Return the labels of pieces: those of the words at their first ones.

    Args:
        words: of a sentence.
        numbers: label of each word.
        inner: by number the label of further pieces; `None` if they have none.
    """
    labels = [IGNORE_INDEX] * len(words.ids)
    begins = [(int(s), n) for s, n in zip(words.starts, numbers, strict=True) if s >= 0]
    for place, (start, number) in enumerate(begins):
        labels[start] = number
        if inner is not None and number != IGNORE_INDEX:
            end = begins[place + 1][0] if place + 1 < len(begins) else len(labels)
            labels[start + 1 : end] = [inner[number]] * (end - start - 1)
    return labels


def _tag_fault(tag: str, scheme: str) -> str:
    try:
        parse_tag(tag)
    except ValueError as error:
        return str(error)
    if tag != "O" and tag[0] not in _PREFIXES[scheme]:
        return f"the tag {tag!r} is none of scheme={scheme!r}, whose prefixes are B and I"
    return ""
