"""Pairs of segments for next-sentence and sentence-order prediction."""

import itertools
import random
from typing import Any

import numpy as np
import pytest

from lmkit.functional import plan_pairs
from lmkit.functional.sentence_pairs import SentencePairs, _Draws, _trim

ROOM = 125


def corpus(
    count: int = 300, seed: int = 0, most: int = 30, longest: int = 25
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Documents of sentences of 5 to 25 tokens, a separator after each; and whose each token is."""
    rng = random.Random(seed)
    starts, lengths, documents, owner = [], [], [0], []
    for document in range(count):
        for _ in range(rng.randint(1 if document % 7 else 0, most)):
            starts.append(len(owner))
            lengths.append(rng.randint(5, longest))
            owner += [document] * lengths[-1]
        documents.append(len(starts))
        owner.append(-1)
    return np.array(starts), np.array(lengths), np.array(documents), np.array(owner)


def plan(objective: Any, seed: int = 1, room: int = ROOM, **how: int) -> SentencePairs:
    return plan_pairs(*corpus(**how)[:3], room, objective, seed=seed)


def owners(start: int, length: int, owner: np.ndarray) -> set[int]:
    return set(owner[start : start + length].tolist())


@pytest.mark.parametrize("objective", ["next_sentence", "sentence_order"])
@pytest.mark.parametrize(("room", "longest"), [(ROOM, 25), (20, 60), (7, 9)])
def test_pairs_fit_the_room_and_neither_half_is_empty(
    objective: str, room: int, longest: int
) -> None:
    pairs = plan(objective, room=room, longest=longest)
    assert (pairs.a_length >= 1).all() and (pairs.b_length >= 1).all()
    assert (pairs.a_length + pairs.b_length <= room).all()
    assert all(part.dtype == np.int64 for part in pairs)


def test_next_sentence_is_random_if_and_only_if_it_is_of_another_document() -> None:
    owner = corpus()[3]
    pairs = plan("next_sentence")
    for a_start, a_length, b_start, b_length, label in zip(*pairs, strict=True):
        first, second = owners(a_start, a_length, owner), owners(b_start, b_length, owner)
        assert len(first) == len(second) == 1 and -1 not in first | second
        assert (first != second) == bool(label)
        if not label:
            assert b_start >= a_start + a_length


def reference(documents: list[list[int]], room: int, mode: str, rng: random.Random) -> list[int]:
    """Labels of the pairs that the published loops make, with sentences given by their lengths."""
    labels = []
    for _number, document in enumerate(documents):
        target = rng.randint(2, room) if rng.random() < 0.1 else room
        chunk: list[int] = []
        i = 0
        while i < len(document):
            chunk.append(document[i])
            if i == len(document) - 1 or sum(chunk) >= target:
                cut = rng.randint(1, len(chunk) - 1) if len(chunk) > 1 else 1
                label = 0
                if mode == "next_sentence" and (len(chunk) == 1 or rng.random() < 0.5):
                    label = 1
                    i -= len(chunk) - cut
                elif mode == "sentence_order":
                    label = int(rng.random() < 0.5)
                if mode == "next_sentence" or len(chunk) > 1:
                    labels.append(label)
                chunk = []
            i += 1
    return labels


@pytest.mark.parametrize("objective", ["next_sentence", "sentence_order"])
def test_as_many_pairs_and_labels_as_by_the_published_loops(objective: str) -> None:
    _, lengths, documents, _ = corpus(2000)
    bounds = itertools.pairwise(documents)
    expected = reference(
        [lengths[low:high].tolist() for low, high in bounds], ROOM, objective, random.Random(5)
    )
    label = plan(objective, count=2000).label
    assert len(label) == pytest.approx(len(expected), rel=0.02)
    assert abs(label.mean() - np.mean(expected)) < 4 * np.sqrt(0.5 / len(label))
    if objective == "next_sentence":
        assert 0.5 < label.mean() < 0.6  # half of them, and all of lone sentences


def test_no_document_is_lost_and_unused_sentences_come_back() -> None:
    starts, lengths, documents, owner = corpus()
    pairs = plan("next_sentence")
    assert set(owner[pairs.a_start].tolist()) == set(np.flatnonzero(np.diff(documents)).tolist())
    # Every sentence is in a first segment, or in a second that follows one, but for trimmed ones.
    used = np.zeros(len(owner), bool)
    for a_start, a_length, b_start, b_length, label in zip(*pairs, strict=True):
        assert not used[a_start : a_start + a_length].any()
        used[a_start : a_start + a_length] = True
        if not label:
            assert not used[b_start : b_start + b_length].any()
            used[b_start : b_start + b_length] = True
    seen = [
        used[start : start + length].any() for start, length in zip(starts, lengths, strict=True)
    ]
    assert np.mean(seen) > 0.99


def test_sentence_order_is_told_by_the_label_and_both_halves_are_of_one_document() -> None:
    owner = corpus()[3]
    pairs = plan("sentence_order")
    for a_start, a_length, b_start, b_length, label in zip(*pairs, strict=True):
        first, second = owners(a_start, a_length, owner), owners(b_start, b_length, owner)
        assert first == second and len(first) == 1
        assert (a_start < b_start) == (not label)
    sigma = 0.5 / np.sqrt(len(pairs.label))
    assert abs(pairs.label.mean() - 0.5) < 4 * sigma


def test_a_lone_sentence_has_no_order() -> None:
    starts, lengths = np.array([0, 6, 11, 20]), np.array([5, 5, 4, 6])
    pairs = plan_pairs(starts, lengths, np.array([0, 1, 3, 4]), 50, "sentence_order", seed=0)
    assert sorted([pairs.a_start.tolist(), pairs.b_start.tolist()]) == [[6], [11]]
    with pytest.raises(
        ValueError, match=r"no pair of sentences: every document has one .*max_length"
    ):
        plan_pairs(starts, lengths, np.arange(5), 50, "sentence_order", seed=0)


def test_one_document_has_no_other_for_next_sentence() -> None:
    starts, lengths = np.array([0, 6]), np.array([5, 5])
    for documents in ([0, 2], [0, 0, 2, 2]):
        with pytest.raises(ValueError, match=r"has one document; cut .* or use sentence_order"):
            plan_pairs(starts, lengths, np.array(documents), 50, "next_sentence", seed=0)


def test_documents_with_a_shorter_target_make_more_and_shorter_pairs() -> None:
    full, some, all_short = (
        plan_pairs(*corpus(2000)[:3], ROOM, "sentence_order", seed=1, short_share=share)
        for share in (0.0, 0.1, 1.0)
    )
    mean = [float((p.a_length + p.b_length).mean()) for p in (full, some, all_short)]
    assert 0.9 * mean[0] < mean[1] < mean[0] and mean[2] < 0.75 * mean[0]


def test_the_plan_is_a_function_of_the_seed() -> None:
    first, again, other = plan("next_sentence"), plan("next_sentence"), plan("next_sentence", 2)
    assert all(np.array_equal(x, y) for x, y in zip(first, again, strict=True))
    assert first.label.tolist() != other.label.tolist()


def test_trimming_takes_from_the_longer_end_by_end() -> None:
    """Against the loop of BERT's code."""
    counts = np.zeros(2)
    for key in range(300):
        rng = random.Random(key)
        a, b, room = rng.randint(1, 90), rng.randint(1, 90), rng.randint(2, 60)
        a_start, a_length, b_start, b_length = _trim((0, a), (1000, b), room, _Draws(key))
        left = [a, b]
        while sum(left) > room:
            left[0 if left[0] > left[1] else 1] -= 1
        assert [a_length, b_length] == left
        assert 0 <= a_start <= a - a_length and 0 <= b_start - 1000 <= b - b_length
        counts += a_start + b_start - 1000, a + b - sum(left)
    assert abs(counts[0] / counts[1] - 0.5) < 4 * 0.5 / np.sqrt(counts[1])


def test_settings_outside_their_range_are_refused() -> None:
    data = corpus(5)[:3]
    with pytest.raises(ValueError, match="objective must be one of next_sentence, sentence_order"):
        plan_pairs(*data, 50, "nsp", seed=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="room must be at least 2"):
        plan_pairs(*data, 1, "next_sentence", seed=0)
