"""The word attack finds what plain loops find, and keeps to what it promises."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

import lmkit
from lmkit.attacks import AttackReport, WordAttack
from lmkit.modules import MaskedLMModule
from lmkit.transforms import EmbeddingNeighbours, Protection, RandomSwap, SynonymReplacement
from tests import tiny
from tests.attacks.plain import Bag, fewest_changes, hashed, plain_greedy, plain_pwws

#: Everything may be changed, so that the search alone decides.
FREE: dict[str, Any] = {
    "max_changed": 1.0,
    "stop_words": False,
    "protection": Protection(negations=False, names=False, numbers=False),
}
LETTERS = "abcdefghijklmnop"


def table_of(rng: random.Random, most: int = 3) -> dict[str, list[str]]:
    """Up to three candidates for each letter but `p`."""
    return {
        letter: [f"{letter}{n}" for n in range(rng.randint(0, most))] for letter in LETTERS[:-1]
    }


def texts_of(rng: random.Random, count: int) -> list[str]:
    return [" ".join(rng.sample(LETTERS, rng.randint(3, 9))) for _ in range(count)]


def tops(predict: Any, texts: list[str]) -> list[int]:
    return [int(np.argmax(row)) for row in predict(texts)]


@pytest.mark.parametrize("importance", ["deletion", "masking", "pwws"])
def test_greedy_finds_the_fewest_words_of_a_bag(importance: Any) -> None:
    # With candidates that weigh nothing the most important words are the best ones to replace.
    attacked = 0
    for seed in range(30):
        rng = random.Random(seed)
        words = rng.sample(LETTERS, 7)
        bag = Bag({word: rng.uniform(-0.5, 2.0) for word in words}, bias=-1.0)
        table = {word: [word + "0"] for word in words}
        expected = fewest_changes(bag, words, table)
        result = WordAttack(table, importance, **FREE).run(bag, [" ".join(words)], [1]).results[0]
        if bag.sure(" ".join(words)) < 0.5:
            assert result.status == "skipped"
            continue
        attacked += 1
        assert result.status == ("failed" if expected is None else "succeeded")
        if expected is not None:
            assert len(result.changes) == expected and bag.sure(result.adversarial) < 0.5
    assert attacked > 10


@pytest.mark.parametrize("importance", ["deletion", "masking", "pwws"])
@pytest.mark.parametrize("most", [1.0, 0.5])
def test_it_finds_what_plain_loops_find(importance: Any, most: float) -> None:
    rng = random.Random(1)
    table, texts = table_of(rng), texts_of(rng, 40)
    labels = tops(hashed, texts)
    attack = WordAttack(table, importance, **{**FREE, "max_changed": most})
    report = attack.run(hashed, texts, labels)
    statuses = set()
    for text, label, result in zip(texts, labels, report.results, strict=True):
        words = text.split()
        count = int(most * len(words))
        if importance == "pwws":
            expected = plain_pwws(hashed, words, label, table, count)
        else:
            masked = "[UNK]" if importance == "masking" else None
            expected = plain_greedy(hashed, words, label, table, count, masked)
        assert (result.adversarial, result.status == "succeeded") == expected
        statuses.add(result.status)
    assert statuses == {"succeeded", "failed"}


def vectors(texts: Any) -> torch.Tensor:
    """A vector for each text, by the share of its words that have a digit: no change is 1."""
    shares = [sum(w[-1].isdigit() for w in t.split()) / len(t.split()) for t in texts]
    angles = torch.tensor(shares, dtype=torch.float64)
    return torch.stack([angles.cos(), angles.sin()], 1)


def nearness(text: str, original: str) -> float:
    a, b = vectors([text, original])
    return float(a @ b)


def test_similarity_is_kept_and_prefers_the_nearest_flip() -> None:
    rng = random.Random(2)
    table, texts = table_of(rng), texts_of(rng, 40)
    labels = tops(hashed, texts)
    options = {**FREE, "similarity": vectors, "min_similarity": float(np.cos(0.35))}
    report = WordAttack(table, **options).run(hashed, texts, labels)
    open_report = WordAttack(table, **FREE).run(hashed, texts, labels)
    for text, label, result in zip(texts, labels, report.results, strict=True):
        expected = plain_greedy(
            hashed,
            text.split(),
            label,
            table,
            99,
            near=lambda new, old=text: nearness(new, old),
            least_near=options["min_similarity"],
        )
        assert (result.adversarial, result.status == "succeeded") == expected
        if result.changes:
            assert result.similarity == pytest.approx(nearness(result.adversarial, text))
            assert result.similarity >= options["min_similarity"] and result.changed_share <= 0.35
    assert any(result.changed_share > 0.35 for result in open_report.results)
    assert report.mean_similarity and open_report.mean_similarity is None


def test_of_equally_good_flips_the_nearest_is_taken() -> None:
    bag = Bag({"good": 2.0, "bad": -5.0, "poor": -3.0}, bias=-1.0)
    table = {"good": ["bad", "poor", "fine"]}
    near = {"a good film": 0.0, "a bad film": 1.0, "a poor film": 0.5, "a fine film": 0.6}

    def encode(texts: Any) -> torch.Tensor:
        angles = torch.tensor([near[text] for text in texts])
        return torch.stack([angles.cos(), angles.sin()], 1)

    found = WordAttack(table, similarity=encode, min_similarity=0.1, **FREE)
    assert found.run(bag, ["a good film"], [1]).results[0].adversarial == "a poor film"
    free = WordAttack(table, **FREE).run(bag, ["a good film"], [1])
    assert free.results[0].adversarial == "a bad film"


def test_queries_are_counted_as_by_hand() -> None:
    bag = Bag({"w": 3.0, "x": 2.0, "y": 1.0}, bias=-2.5)
    table = {"w": ["w1", "w2"], "x": ["x1", "x2"], "y": ["y1"]}
    result = WordAttack(table, **FREE).run(bag, ["w x y z"], [1]).results[0]
    # The text, three deletions (nothing may stand for z), two candidates of w, two of x: one word
    # is not enough, two are.
    assert (result.status, result.queries) == ("succeeded", 1 + 3 + 2 + 2)
    assert [change._asdict() for change in result.changes] == [
        {"place": 0, "before": "w", "after": "w1"},
        {"place": 1, "before": "x", "after": "x1"},
    ]
    assert (result.words, result.changed_share) == (4, 0.5)
    assert len(bag.asked) == len(set(bag.asked)) == 8
    pwws = WordAttack(table, "pwws", **FREE).run(bag, ["w x y z"], [1]).results[0]
    # The text, three masks, five candidates; the text with w1 is known, with both words it is not.
    assert (pwws.status, pwws.queries) == ("succeeded", 1 + 3 + 5 + 1)
    drawn = WordAttack(table, "random", **FREE).run(bag, ["z z"], [0]).results[0]
    assert (drawn.status, drawn.queries) == ("failed", 1)


@pytest.mark.parametrize("importance", ["deletion", "masking", "temporal", "pwws", "random"])
def test_the_budget_is_kept(importance: Any) -> None:
    rng = random.Random(3)
    table, text = table_of(rng), " ".join(LETTERS)
    label = tops(hashed, [text])[0]
    free = WordAttack(table, importance, **FREE).run(hashed, [text], [label]).results[0]
    fewer = set()
    for budget in range(1, free.queries + 2):
        asked: list[str] = []

        def predict(texts: list[str], asked: list[str] = asked) -> Any:
            asked.extend(texts)
            return hashed(texts)

        attack = WordAttack(table, importance, query_budget=budget, **FREE)
        result = attack.run(predict, [text], [label]).results[0]
        assert result.queries == len(asked) == len(set(asked)) <= budget
        # What is returned was asked about.
        assert result.adversarial_probabilities == hashed([result.adversarial])[0]
        fewer.add(result.status)
        if budget >= free.queries:
            assert result == free
    assert "failed" in fewer and (free.queries > 8 or importance == "random")


def test_protected_words_and_the_share_of_words_are_kept() -> None:
    seen: set[str] = set()

    def source(word: str) -> list[str]:
        seen.add(word)
        return [word + "0", word + "1"]

    texts = [
        "I did not like Anna 's 3 films , but the acting was great !",
        "Never see http://a.b/c or [MASK] and don't believe the reviews .",
    ]
    for most in (0.2, 0.5, 1.0):
        report = WordAttack(source, max_changed=most).run(hashed, texts, tops(hashed, texts))
        for result in report.results:
            assert result.status != "skipped" and result.changed_share <= most
            for change in result.changes:
                assert change.after == change.before + change.after[-1]
    # No negations, names, numbers, addresses, special tokens, signs or words of grammar.
    assert seen <= {"like", "'s", "films", "acting", "great", "see", "believe", "reviews"}
    assert {"like", "films", "believe"} <= seen
    report = WordAttack(
        source, protection=Protection(words=["films", "like"]), max_changed=1.0
    ).run(hashed, texts, tops(hashed, texts))
    changed = {change.before for result in report.results for change in result.changes}
    assert changed and not changed & {"films", "like"}


def test_the_rest_of_a_text_stays_to_the_byte() -> None:
    text = '  "Truly  wonderful,\tbut\n long!" '
    bag = Bag({}, bias=1.0)
    bag.sure = lambda text: 0.1 if "grand" in text else 0.9  # type: ignore[method-assign]
    result = WordAttack({"wonderful": ["grand"]}, max_changed=1.0).run(bag, [text], [1]).results[0]
    assert result.adversarial == '  "Truly  grand,\tbut\n long!" '
    upper = WordAttack(
        {"wonderful": ["grand"]}, protection=Protection(names=False), max_changed=1.0
    )
    bag.sure = lambda text: 0.1 if "GRAND" in text else 0.9  # type: ignore[method-assign]
    assert upper.run(bag, ["WONDERFUL"], [1]).results[0].adversarial == "GRAND"


def same_results(one: AttackReport, other: AttackReport) -> bool:
    return one.results == other.results


@pytest.mark.parametrize("importance", ["deletion", "temporal", "pwws", "random"])
def test_batches_and_company_change_nothing(importance: Any) -> None:
    rng = random.Random(4)
    table, texts = table_of(rng), texts_of(rng, 20)
    labels = tops(hashed, texts)
    labels[3] = (labels[3] + 1) % 3
    options = {**FREE, "similarity": vectors, "min_similarity": 0.9, "query_budget": 25}
    first = WordAttack(table, importance, **options).run(hashed, texts, labels)
    for at_once, batch_size in ((1, 1), (3, 7), (50, 1000)):
        sizes = {"at_once": at_once, "batch_size": batch_size}
        other = WordAttack(table, importance, **options, **sizes).run(hashed, texts, labels)
        assert same_results(first, other)
    # A text that has others about it, at the same place.
    company = [texts[5] if n == 5 else "p" for n in range(20)]
    alone = WordAttack(table, importance, **options).run(hashed, company, tops(hashed, company))
    labelled = first.results[5]
    assert alone.results[5] == labelled and labelled.status != "skipped"


def test_the_network_is_asked_in_full_batches_and_once_for_each_text() -> None:
    rng = random.Random(5)
    table, texts = table_of(rng), texts_of(rng, 30)
    bag = Bag({letter: rng.uniform(-0.2, 0.4) for letter in LETTERS}, bias=1.0)
    attack = WordAttack(table, **FREE, batch_size=16, at_once=30)
    report = attack.run(bag, texts + texts, [1] * 60)
    assert len(bag.asked) == len(set(bag.asked)) == report.texts_read
    assert report.results[0].queries == report.results[30].queries
    assert report.texts_read < sum(result.queries for result in report.results)
    assert max(bag.batches) == 16 and np.mean(bag.batches) > 10


def test_a_random_order_is_drawn_by_seed_and_place() -> None:
    rng = random.Random(6)
    table = {letter: [letter + "0", letter + "1"] for letter in LETTERS}
    text = " ".join(rng.sample(LETTERS, 12))
    # No word is enough, so that the order shows in what was changed.
    bag = Bag(dict.fromkeys(LETTERS, 1.0), bias=5.0)

    def changed(seed: int) -> list[list[int]]:
        attack = WordAttack(table, "random", seed=seed, **{**FREE, "max_changed": 0.3})
        report = attack.run(bag, [text, text], [1, 1])
        return [[change.place for change in result.changes] for result in report.results]

    assert changed(0) == changed(0) != changed(1)
    assert changed(0)[0] != changed(0)[1]


def test_what_is_no_option_is_refused() -> None:
    for options, message in (
        ({"importance": "gradient"}, "importance must be one of deletion, masking"),
        ({"max_changed": 0.0}, "max_changed must lie in"),
        ({"min_similarity": 2.0}, "min_similarity must lie in"),
        ({"min_similarity": 0.9}, "min_similarity=0.9 is the least of a similarity, and there is"),
        ({"query_budget": 0}, "query_budget must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"at_once": 0}, "at_once must be at least 1"),
        ({"max_candidates": 0}, "max_candidates must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            WordAttack({}, **options)  # type: ignore[arg-type]
    for source in (3, RandomSwap()):
        with pytest.raises(TypeError, match="source must be a transform with candidates"):
            WordAttack(source)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="similarity must be 'own'"):
        WordAttack({}, similarity=3)  # type: ignore[arg-type]


def test_candidates_come_from_a_transform_of_synonyms(tmp_path: Any) -> None:
    (tmp_path / "s.json").write_text('{"good": ["nice", "fine", "grand"], "the": ["this"]}')
    attack = WordAttack(SynonymReplacement(source=str(tmp_path / "s.json")), max_candidates=2)
    words = ["Good", "the", "bad"]
    assert [attack.candidates_of(words, n, 0) for n in range(3)] == [
        ["Fine", "Grand"],
        ["this"],
        [],
    ]
    assert attack.settings["source"]["init_args"]["source"].endswith("s.json")
    with pytest.raises(FileNotFoundError, match="no-such"):
        WordAttack(SynonymReplacement(source="no-such.json")).candidates_of(words, 0, 0)


def test_candidates_come_from_the_neighbours_of_embeddings(tmp_path: Any) -> None:
    module = MaskedLMModule(tiny.MASKED["bert"])
    module.tokenizer = tiny.tokenizer()
    module.configure_model()
    lmkit.export(module, tmp_path / "model")
    neighbours = EmbeddingNeighbours(str(tmp_path / "model"), top_k=5, least_cosine=0.0)
    texts = ["children read long books about stars", "green rivers near old trees"]
    labels = tops(hashed, texts)
    report = WordAttack(neighbours, max_changed=1.0).run(hashed, texts, labels)
    for result in report.results:
        assert result.changes
        for change in result.changes:
            assert change.after in neighbours.candidates[change.before]
    assert report.constraints["source"]["class_path"].endswith("EmbeddingNeighbours")
