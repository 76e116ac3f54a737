"""Tags and the entities they spell, held against seqeval."""

import random
import warnings

import pytest
import torch
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB2, Entities

from lmkit.functional.tagging import (
    Span,
    bio_tags,
    count_entities,
    detect_scheme,
    find_spans,
    parse_tag,
    to_bio,
)

ALL = ["O", *(f"{p}-{t}" for p in "BIES" for t in ("PER", "LOC", "a-b"))]
BIO = ["O", *(f"{p}-{t}" for p in "BI" for t in ("PER", "LOC", "a-b"))]


def sentences(tags: list[str], count: int = 400, seed: int = 0) -> list[list[str]]:
    rng = random.Random(seed)
    return [rng.choices(tags, k=rng.randint(1, 12)) for _ in range(count)]


def drawn_spans(rng: random.Random, length: int) -> list[Span]:
    spans, place = [], 0
    while place < length:
        size = rng.randint(1, 3)
        if rng.random() < 0.6 and place + size <= length:
            spans.append(Span(place, place + size, rng.choice(["PER", "LOC"])))
        place += size
    return spans


def as_iob1(spans: list[Span], length: int) -> list[str]:
    tags = ["O"] * length
    for i, (start, end, kind) in enumerate(spans):
        touches = i and spans[i - 1].end == start and spans[i - 1].type == kind
        tags[start:end] = [f"I-{kind}"] * (end - start)
        if touches:
            tags[start] = f"B-{kind}"
    return tags


def as_iobes(spans: list[Span], length: int, last: str = "E", single: str = "S") -> list[str]:
    tags = ["O"] * length
    for start, end, kind in spans:
        inner = ["B", *"I" * (end - start - 2), last] if end - start > 1 else [single]
        tags[start:end] = [f"{prefix}-{kind}" for prefix in inner]
    return tags


@pytest.mark.parametrize("tags", [ALL, BIO])
def test_spans_are_those_of_seqeval(tags: list[str]) -> None:
    for sentence in sentences(tags):
        expected = [(start, end + 1, kind) for kind, start, end in get_entities(sentence)]
        assert find_spans(sentence) == expected


def test_strict_spans_are_those_of_seqeval() -> None:
    for sentence in sentences(BIO):
        (found,) = Entities([sentence], IOB2).entities
        assert find_spans(sentence, strict=True) == [(e.start, e.end, e.tag) for e in found]


def test_tags_without_types_have_the_type_of_seqeval() -> None:
    for sentence in sentences(["O", "B", "I"], 50):
        expected = [(start, end + 1, kind) for kind, start, end in get_entities(sentence)]
        assert find_spans(sentence) == expected
        assert find_spans(to_bio(sentence)) == expected
    assert to_bio(["I", "B"]) == ["B", "B"]


def test_every_scheme_becomes_the_same_bio() -> None:
    rng = random.Random(1)
    for _ in range(300):
        length = rng.randint(1, 12)
        spans = drawn_spans(rng, length)
        bio = bio_tags(spans, length)
        assert find_spans(bio) == find_spans(bio, strict=True) == spans
        for tags in (
            bio,
            as_iob1(spans, length),
            as_iobes(spans, length),
            as_iobes(spans, length, "L", "U"),
        ):
            assert to_bio(tags) == bio


def test_schemes_are_told_apart() -> None:
    spans = [Span(0, 2, "PER"), Span(2, 3, "PER"), Span(4, 5, "LOC"), Span(5, 8, "PER")]
    assert detect_scheme([bio_tags(spans, 9)]) == "bio"
    assert detect_scheme([as_iob1(spans, 9)]) == "iob1"
    assert detect_scheme([as_iobes(spans, 9)]) == "iobes"
    assert detect_scheme([as_iobes(spans, 9, "L", "U")]) == "iobes"
    assert detect_scheme([["O", "O"], ["B-PER", "I-LOC"]]) == "bio"
    assert detect_scheme([["B", "I", "O"]]) == "bio"
    assert detect_scheme([["O"]]) == "bio"


def test_parts_of_speech_spell_no_entities() -> None:
    assert detect_scheme([["DET", "NOUN"], ["X"]]) == "none"
    assert detect_scheme([["B-LRB-", "NN", "IN"]]) == "none"
    assert detect_scheme([["I", "B", "VB"]]) == "none"


def test_a_misspelt_tag_among_entities_does_not_hide_them() -> None:
    assert detect_scheme([["B-PER", "I-PER", "O", "BPER"]]) == "bio"
    with pytest.raises(ValueError, match="'BPER' is no tag of an entity"):
        find_spans(["BPER"])
    with pytest.raises(ValueError, match="'X-PER'"):
        parse_tag("X-PER")


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("tags", [ALL, BIO])
def test_counts_of_a_padded_batch_are_those_of_its_sentences(tags: list[str], strict: bool) -> None:
    gold, guess = sentences(tags, 200, 1), sentences(tags, 200, 2)
    kinds = ["LOC", "PER", "a-b"]
    parsed = [parse_tag(tag) for tag in tags]
    prefixes = torch.tensor(["OBIES".index(p) for p, _ in parsed])
    types = torch.tensor([kinds.index(t) if t else 0 for _, t in parsed])
    labels = torch.full((200, 15), -100)
    predictions = torch.zeros(200, 15, dtype=torch.int64)
    expected = torch.zeros(3, 3, dtype=torch.int64)
    for row, (right, made) in enumerate(zip(gold, guess, strict=True)):
        made = (made * 12)[: len(right)]
        # What stands behind the end of a sentence must not count.
        predictions[row] = torch.randint(len(tags), (15,))
        labels[row, : len(right)] = torch.tensor([tags.index(t) for t in right])
        predictions[row, : len(right)] = torch.tensor([tags.index(t) for t in made])
        if row % 3 == 0:  # a word for which there is no prediction
            predictions[row, 0], made[0] = -1, "O"
        theirs, ours = set(find_spans(right, strict)), set(find_spans(made, strict))
        for column, spans in enumerate((theirs & ours, ours, theirs)):
            for span in spans:
                expected[column, kinds.index(span.type)] += 1
    counts = count_entities(predictions, labels, prefixes, types, 3, strict)
    assert [c.tolist() for c in counts] == expected.tolist()
    assert expected.min() > 0


def test_what_is_no_word_does_not_part_an_entity() -> None:
    prefixes, types = torch.tensor([0, 1, 2]), torch.zeros(3, dtype=torch.int64)
    labels = torch.tensor([[-100, 1, -100, 2, -100, 0]])
    predictions = torch.tensor([[2, 1, 0, 2, 1, 0]])
    counts = count_entities(predictions, labels, prefixes, types, 1, strict=True)
    assert [c.item() for c in counts] == [1, 1, 1]


def test_no_word_at_all_has_no_entity() -> None:
    empty = torch.full((2, 0), -100)
    one = torch.zeros(1, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        counts = count_entities(empty, empty, one, one, 2)
    assert [c.tolist() for c in counts] == [[0, 0]] * 3
