"""Attacks of classifiers of pairs: one text is searched, the other stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmkit.attacks import CharacterAttack, WordAttack
from lmkit.datamodules import SequenceClassificationDataModule
from tests import tiny
from tests.attacks.plain import Bag, hashed, plain_greedy
from tests.attacks.test_base import TABLE, classifier

FIRST, SECOND = tiny.sentences(8, 3), tiny.sentences(8, 4)


def hashed_pairs(first: list[str], second: list[str]) -> list[list[float]]:
    return hashed([f"{one} / {other}" for one, other in zip(first, second, strict=True)])


def labels_of(first: list[str], second: list[str]) -> list[int]:
    return [int(np.argmax(row)) for row in hashed_pairs(first, second)]


def test_a_pair_is_attacked_as_plain_loops_do() -> None:
    attack = WordAttack(TABLE, stop_words=False, max_changed=1.0)
    labels = labels_of(FIRST, SECOND)
    report = attack.run(hashed_pairs, FIRST, labels, SECOND)
    statuses = set()
    for first, second, label, result in zip(FIRST, SECOND, labels, report.results, strict=True):
        # A default in place of a closure: each loop has its own first text.
        def predict(texts: list[str], first: str = first) -> Any:
            return hashed_pairs([first] * len(texts), texts)

        words = second.split()
        found, flipped = plain_greedy(predict, words, label, TABLE, len(words))
        assert (result.adversarial, result.inputs) == (found, (first, found))
        assert result.original == second and result.words == len(words) - 1
        assert result.status == ("succeeded" if flipped else "failed")
        statuses.add(result.status)
    assert "succeeded" in statuses
    assert report.summary()["constraints"]["changed"] == "second"


@pytest.mark.parametrize(
    "attack",
    [
        *(
            WordAttack(TABLE, importance=kind, stop_words=False, query_budget=30)  # type: ignore[arg-type]
            for kind in ("deletion", "masking", "pwws", "temporal", "random")
        ),
        CharacterAttack(max_changed=0.6),
    ],
    ids=lambda attack: f"{type(attack).__name__}-{attack.importance}",
)
def test_either_text_is_searched_as_if_it_were_alone(attack: Any) -> None:
    same = ["a fixed text"] * len(SECOND)
    alone = attack.run(
        lambda texts: hashed_pairs(same[:1] * len(texts), texts), SECOND, labels_of(same, SECOND)
    )
    second = attack.run(hashed_pairs, same, labels_of(same, SECOND), SECOND)
    first = attack.run(
        lambda one, other: hashed_pairs(other, one),
        SECOND,
        labels_of(same, SECOND),
        same,
        changed="first",
    )
    for one, other, swapped in zip(alone.results, second.results, first.results, strict=True):
        assert one.inputs == (one.adversarial,)
        assert other.inputs == ("a fixed text", one.adversarial)
        assert swapped.inputs == (one.adversarial, "a fixed text")
        for result in (other, swapped):
            assert (result.changes, result.queries) == (one.changes, one.queries)
            assert result.adversarial_probabilities == one.adversarial_probabilities
    assert any(result.changes for result in alone.results)


def test_similarity_is_that_of_the_changed_text() -> None:
    asked: list[str] = []
    vectors = Bag({})

    def encode(texts: Any) -> Any:
        asked.extend(texts)
        return [[1.0, 0.0] for _ in vectors(list(texts))]

    attack = WordAttack(TABLE, stop_words=False, similarity=encode)
    attack.run(hashed_pairs, FIRST, labels_of(FIRST, SECOND), SECOND)
    assert set(SECOND) & set(asked) and not set(FIRST) & set(asked)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_module_reads_pairs_as_its_tokenizer_makes_them(kind: str, tmp_path: Path) -> None:
    module = classifier(kind)
    labels = [said["label"] for said in module(FIRST, SECOND)]
    attack = WordAttack(TABLE, stop_words=False, max_changed=1.0)
    report = attack.run(module, FIRST, labels, SECOND)
    assert report.count("skipped") == 0
    for first, result in zip(FIRST, report.results, strict=True):
        encoded = module.tokenizer(
            first,
            result.adversarial,
            return_token_type_ids=kind == "bert",
            truncation=True,
            max_length=64,
            return_tensors="pt",
        )
        if kind == "bert":
            assert set(encoded["token_type_ids"][0].tolist()) == {0, 1}
        logits = module.network(**encoded).logits[0]
        assert np.allclose(result.adversarial_probabilities, logits.softmax(-1).tolist(), atol=1e-9)
    for at_once, batch_size in ((1, 1), (3, 5)):
        attack.at_once, attack.batch_size = at_once, batch_size
        assert [r.inputs for r in attack.run(module, FIRST, labels, SECOND).results] == [
            r.inputs for r in report.results
        ]


def test_pairs_that_were_found_can_be_trained_on(tmp_path: Path) -> None:
    labels = labels_of(FIRST, SECOND)
    attack = WordAttack(TABLE, stop_words=False, max_changed=1.0)
    for changed in ("first", "second"):
        report = attack.run(hashed_pairs, FIRST, labels, SECOND, changed=changed)
        path = report.write(tmp_path / f"{changed}.jsonl")
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(rows) == report.count("succeeded") > 1
        for row in rows:
            kept, moved = ("text_pair", "text") if changed == "first" else ("text", "text_pair")
            index = row["source_index"]
            given = {"text": FIRST, "text_pair": SECOND}
            assert row[kept] == given[kept][index] and row[moved] != given[moved][index]
            assert row["original"] == given[moved][index]
        data = SequenceClassificationDataModule(
            train_file=str(path), val_fraction=0, tokenizer=tiny.tokenizer_folder(tmp_path / "t")
        )
        data.prepare_data()
        data.setup("fit")
        batch = next(iter(data.train_dataloader()))
        read = data.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
        texts = [f"{row['text']} {row['text_pair']}" for row in rows]
        # A batch may have rows that fill it; and decoding takes spaces before signs away.
        assert sorted(filter(None, read)) == sorted(text.replace(" .", ".") for text in texts)


def test_what_are_no_pairs_is_refused() -> None:
    attack = WordAttack({})
    with pytest.raises(ValueError, match="got 2 texts and 1 second texts"):
        attack.run(hashed_pairs, ["a", "b"], [0, 0], ["c"])
    with pytest.raises(ValueError, match="got 1 texts and 0 second texts"):
        attack.run(hashed_pairs, ["a"], [0], [])
    with pytest.raises(TypeError, match="pairs must be a list of strings"):
        attack.run(hashed_pairs, ["a"], [0], "b")
    with pytest.raises(TypeError, match="pairs must be a list of strings"):
        attack.run(hashed_pairs, ["a"], [0], [None])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="must be 'first' or 'second', got 'both'"):
        attack.run(hashed_pairs, ["a"], [0], ["b"], changed="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="is of pairs, and there are none"):
        attack.run(Bag({}), ["a"], [0], changed="first")
