"""The character attack misspells the words that count, as its seed says."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from lmkit.attacks import CharacterAttack
from lmkit.transforms import Protection
from lmkit.transforms.noise import neighbours
from tests.attacks.plain import Bag, hashed

TEXT = "wonderful actors in a charming little story about autumn rivers"


def mistake(old: str, new: str) -> str:
    """The kind of the one mistake in a word; fails if there is another number of them."""
    if len(new) == len(old):
        places = [n for n in range(len(old)) if old[n] != new[n]]
        if len(places) == 1:
            assert new[places[0]] in neighbours()[old[places[0]]]
            return "keyboard"
        first, second = places
        assert second == first + 1 and new[first] + new[second] == old[second] + old[first]
        return "swap"
    longer, shorter = (old, new) if len(old) > len(new) else (new, old)
    gaps = [n for n in range(len(longer)) if longer[:n] + longer[n + 1 :] == shorter]
    assert gaps
    return "drop" if len(old) > len(new) else "insert"


def test_each_candidate_has_one_mistake_and_the_first_letter() -> None:
    attack = CharacterAttack(draws=3)
    words = TEXT.split()
    kinds = set()
    for place, word in enumerate(words):
        found = attack.candidates_of(words, place, index=7)
        assert len(found) == 12
        for new in found:
            if len(word) < 3:
                assert new == word
            elif new != word:
                assert new[0] == word[0]
                kinds.add(mistake(word, new))
    assert kinds == {"keyboard", "swap", "drop", "insert"}


def test_candidates_are_drawn_by_seed_example_and_place_alone() -> None:
    words = ["wonderful"] * 3
    first, again, other = CharacterAttack(), CharacterAttack(), CharacterAttack(seed=1)
    assert first.candidates_of(words, 0, 4) == again.candidates_of(words, 0, 4)
    # Whatever was asked before.
    assert first.candidates_of(words, 0, 4) == again.candidates_of(words, 0, 4)
    variants = [
        first.candidates_of(words, 0, 4),
        first.candidates_of(words, 1, 4),
        first.candidates_of(words, 0, 5),
        other.candidates_of(words, 0, 4),
    ]
    assert len({tuple(variant) for variant in variants}) == 4


def test_misspelt_are_the_words_that_weigh_most() -> None:
    weights = {"wonderful": 3.0, "charming": 2.0, "little": 1.0, "story": 0.5}
    bag = Bag(weights, bias=-2.0)
    result = CharacterAttack(max_changed=1.0).run(bag, [TEXT], [1]).results[0]
    assert result.status == "succeeded"
    assert [change.before for change in result.changes] == ["wonderful", "charming"]
    for change in result.changes:
        mistake(change.before, change.after)
    # The text is a head and a tail of itself.
    heads = len(TEXT.split()) + 1
    assert result.queries <= 2 * heads - 1 + 2 * 4
    short = CharacterAttack(max_changed=0.1).run(bag, [TEXT], [1]).results[0]
    assert short.status == "failed" and len(short.changes) == 1


def test_temporal_scores_are_what_a_word_adds_to_both_sides() -> None:
    rng = random.Random(0)
    for _ in range(10):
        words = rng.sample(TEXT.split(), 6)
        label = int(np.argmax(hashed([" ".join(words)])[0]))

        def sure(row: list[str], label: int = label) -> float:
            return hashed([" ".join(row)])[0][label]

        scores = [
            sure(words[: n + 1]) - sure(words[:n]) + sure(words[n:]) - sure(words[n + 1 :])
            for n in range(6)
        ]
        able = [n for n, word in enumerate(words) if len(word) >= 3]
        expected = sorted(able, key=lambda n: -scores[n])
        tried: list[int] = []

        class Noting(CharacterAttack):
            def candidates_of(self, words: list[str], place: int, index: int) -> list[str]:
                return [words[place] + "x"] if len(words[place]) >= 3 else []

        def predict(texts: list[str], words: list[str] = words, tried: Any = tried) -> Any:
            for text in texts:
                row = text.split()
                if len(row) == 6:
                    tried.extend(n for n in range(6) if row[n] != words[n] and n not in tried)
            return np.array(hashed(texts))

        attack = Noting(max_changed=1.0, protection=Protection(negations=False))
        result = attack.run(predict, [" ".join(words)], [label]).results[0]
        assert tried == expected[: len(tried)]
        assert result.status == "succeeded" or len(tried) == len(expected)


def test_seeds_decide_what_is_found() -> None:
    texts = [TEXT, "a dreadful and boring waste of everybody's evening", TEXT]
    labels = [int(np.argmax(row)) for row in hashed(texts)]
    options: dict[str, Any] = {"max_changed": 1.0, "query_budget": 30}
    first = CharacterAttack(seed=3, **options).run(hashed, texts, labels)
    again = CharacterAttack(seed=3, **options, at_once=1, batch_size=2).run(hashed, texts, labels)
    other = CharacterAttack(seed=4, **options).run(hashed, texts, labels)
    assert first.results == again.results != other.results
    assert first.results[0].adversarial != first.results[2].adversarial


def test_what_is_no_option_is_refused() -> None:
    with pytest.raises(ValueError, match="draws must be at least 1"):
        CharacterAttack(draws=0)
    with pytest.raises(ValueError, match="kinds"):
        CharacterAttack(["typo"])
    with pytest.raises(TypeError, match="kinds must be a list"):
        CharacterAttack("swap")
