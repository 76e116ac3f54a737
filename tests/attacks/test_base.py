"""Attacks on modules and exports, what is refused, and what a report says."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import lmkit
from lmkit.attacks import AttackReport, CharacterAttack, WordAttack
from lmkit.attacks.predictors import Predictor
from lmkit.datamodules import SequenceClassificationDataModule
from lmkit.modules import MaskedLMModule, SequenceClassificationModule
from lmkit.modules.sentence_vectors import SentenceVectors
from tests import tiny
from tests.attacks.plain import Bag

CLASSES = {"id2label": {0: "calm", 1: "wild"}, "label2id": {"calm": 0, "wild": 1}}
TABLE = {word: tiny.sentences(1, seed)[0].split()[:4] for seed, word in enumerate(tiny._WORDS)}


def classifier(kind: str = "bert", **more: Any) -> SequenceClassificationModule:
    torch.manual_seed(1)
    configs = {**tiny.MASKED, **tiny.CAUSAL}
    module = SequenceClassificationModule({**configs[kind], "vocab_size": 300, **CLASSES, **more})
    module.tokenizer = tiny.tokenizer("wordpiece" if kind == "bert" else "bpe")
    module.configure_model()
    # As decided as a trained one; in double, where batches of other shapes round alike.
    with torch.no_grad():
        for parameter in module.network.parameters():
            parameter.mul_(4)
    network: Any = module.network.double().eval()
    if kind == "bert":  # by its nature it takes all texts for one class
        batch = module.tokenizer(tiny.sentences(40, 9), padding=True, return_tensors="pt")
        with torch.no_grad():
            network.classifier.bias -= network(**batch).logits.median(0).values
    return module


def own_labels(module: SequenceClassificationModule, texts: list[str]) -> list[str]:
    return [said["label"] for said in module(texts)]


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_module_is_attacked_as_the_function_that_it_is(kind: str) -> None:
    module, texts = classifier(kind), tiny.sentences(12)
    labels = own_labels(module, texts)
    assert set(labels) == {"calm", "wild"}
    attack = WordAttack(TABLE, stop_words=False, similarity="own", min_similarity=0.3)
    module.network.train()
    report = attack.run(module, texts, labels)
    assert module.network.training
    module.network.eval()
    assert report.label_names == ["calm", "wild"] and report.clean_accuracy == 1.0
    assert {"succeeded"} <= {result.status for result in report.results}
    for text, result in zip(texts, report.results, strict=True):
        for said, row in (
            (text, "probabilities"),
            (result.adversarial, "adversarial_probabilities"),
        ):
            encoded = module.tokenizer(said, return_tensors="pt")
            logits = module.network(input_ids=encoded["input_ids"]).logits[0]
            assert np.allclose(getattr(result, row), logits.softmax(-1).tolist(), atol=1e-9)
        flipped = own_labels(module, [result.adversarial])[0] != labels[result.index]
        assert flipped == (result.status == "succeeded")

    def predict(texts: list[str]) -> Any:
        rows = []
        for text in texts:
            encoded = module.tokenizer(text, return_tensors="pt")
            rows.append(module.network(input_ids=encoded["input_ids"]).logits[0].softmax(-1))
        return torch.stack(rows)

    encoder = SentenceVectors(module.network.base_model, module.tokenizer, 3)
    attack.similarity = encoder
    numbers = [["calm", "wild"].index(label) for label in labels]
    again = attack.run(predict, texts, numbers)
    for one, other in zip(report.results, again.results, strict=True):
        assert (one.adversarial, one.queries) == (other.adversarial, other.queries)
    for at_once, batch_size in ((1, 1), (5, 16)):
        attack = WordAttack(
            TABLE,
            stop_words=False,
            similarity="own",
            min_similarity=0.3,
            at_once=at_once,
            batch_size=batch_size,
        )
        other = attack.run(module, texts, labels)
        assert [r.adversarial for r in other.results] == [r.adversarial for r in report.results]
        assert [r.queries for r in other.results] == [r.queries for r in report.results]


def test_an_export_is_attacked_by_its_path(tmp_path: Path) -> None:
    module = classifier()
    module.network.float()
    lmkit.export(module, tmp_path / "export")
    texts = tiny.sentences(4)
    labels = own_labels(module, texts)
    attack = CharacterAttack(max_changed=1.0, query_budget=40)
    report = attack.run(tmp_path / "export", texts, labels)
    loaded = attack.run(lmkit.load(tmp_path / "export"), texts, labels)
    assert report.results == loaded.results
    assert [r.adversarial for r in attack.run(module, texts, labels).results] == [
        r.adversarial for r in report.results
    ]


def test_masked_words_are_the_unknown_token_of_the_tokenizer() -> None:
    module = classifier("gpt2")
    seen: list[str] = []
    encode = module.tokenizer.__class__.__call__

    def noting(self: Any, texts: Any, *args: Any, **kwargs: Any) -> Any:
        seen.extend(texts if isinstance(texts, list) else [texts])
        return encode(self, texts, *args, **kwargs)

    text = "birds sing"
    labels = own_labels(module, [text])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.tokenizer.__class__, "__call__", noting)
        WordAttack(TABLE, "masking", stop_words=False, max_changed=1.0).run(module, [text], labels)
    assert f"{module.tokenizer.unk_token} sing" in seen


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"problem_type": "multi_label_classification"}, "task is multi_label: an attack changes"),
        ({"problem_type": "regression"}, "task is regression: an attack"),
    ],
)
def test_other_tasks_are_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WordAttack({}).run(classifier(**more), ["a"], [0])


def test_what_is_no_predictor_or_label_is_refused() -> None:
    attack, module = WordAttack({}), classifier()
    with pytest.raises(TypeError, match="got a MaskedLMModule"):
        attack.run(MaskedLMModule(tiny.MASKED["bert"]), ["a"], [0])
    with pytest.raises(TypeError, match=r"predictor must be .* got int"):
        attack.run(3, ["a"], [0])
    with pytest.raises(ValueError, match="labels has 'loud', and the classes are 'calm', 'wild'"):
        attack.run(module, ["a"], ["loud"])
    with pytest.raises(ValueError, match="labels has 2, which is the number of no class of 2"):
        attack.run(module, ["a"], [2])
    with pytest.raises(ValueError, match="a function has no names: give numbers"):
        attack.run(Bag({}), ["a"], ["wild"])
    with pytest.raises(ValueError, match=r"must be names or numbers of classes, got 0\.5"):
        attack.run(Bag({}), ["a"], [0.5])
    with pytest.raises(ValueError, match="labels has 5, and the predictor says probabilities of 2"):
        attack.run(Bag({}), ["a"], [5])
    for texts, labels in (([], []), (["a"], [0, 1])):
        with pytest.raises(ValueError, match="texts and one label for each"):
            attack.run(Bag({}), texts, labels)
    with pytest.raises(TypeError, match="texts must be a list"):
        attack.run(Bag({}), "a text", [0])
    with pytest.raises(ValueError, match="is a function: give the folder"):
        WordAttack({}, similarity="own").run(Bag({}), ["a"], [0])
    module.tokenizer = None
    with pytest.raises(ValueError, match="has no tokenizer"):
        attack.run(module, ["a"], [0])


def test_texts_may_be_an_array_and_vectors_of_any_length_with_a_graph() -> None:
    bag, table = Bag({"good": 1.0}, bias=-0.5), {"good": ("fair",)}
    vectors = torch.full((1, 2), 3.0, requires_grad=True)
    attack = WordAttack(
        table, max_changed=1.0, similarity=lambda texts: vectors.expand(len(texts), 2)
    )
    made = attack.run(bag, np.array(["a good film"]), np.array([1]))  # type: ignore[arg-type]
    assert made.results[0].adversarial == "a fair film"
    assert made.results[0].similarity == pytest.approx(1.0)
    with pytest.raises(TypeError, match=r"has 'bad' for 'good'"):
        WordAttack({"good": "bad"})
    with pytest.raises(ValueError, match=r"numbers of the shape .* and returned \[\{'label'"):
        attack.run(lambda texts: [{"label": "x", "score": 0.9} for _ in texts], ["a"], [0])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[2.0, -1.0]], "returns no probabilities"),
        ([[0.7, 0.7]], r"adds up to 1.4"),
        ([[float("nan"), 1.0]], "returns no probabilities"),
        ([[0.5, 0.5], [0.5, 0.5]], r"was given 1 texts and returned .* shape \[2, 2\]"),
        ([0.5], r"shape \[1\]"),
    ],
)
def test_what_are_no_probabilities_is_refused(rows: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WordAttack({}).run(lambda texts: rows, ["a"], [0])


def report() -> AttackReport:
    """One attack that needs one word, one that needs two, one in vain, one skipped."""
    bag = Bag({"good": 1.0, "great": 1.0, "best": 9.0}, bias=-0.5)
    texts = ["a good film", "good great of it all", "best good", "a film"]
    table = {"good": ["fair"], "great": ["large"]}
    attack = WordAttack(table, max_changed=1.0, query_budget=10)
    return attack.run(bag, texts, [1, 1, 1, 1])


def test_figures_are_as_counted_by_hand() -> None:
    made = report()
    statuses = [result.status for result in made.results]
    assert statuses == ["succeeded", "succeeded", "failed", "skipped"]
    assert made.clean_accuracy == 3 / 4 and made.accuracy_under_attack == 1 / 4
    assert made.success_rate == 2 / 3
    assert made.mean_changed_share == pytest.approx((1 / 3 + 2 / 5) / 2)
    # Text, deletions, candidates: 1 + 1 + 1; 1 + 2 + 2; 1 + 1 + 1. What was wrong is not counted.
    assert [result.queries for result in made.results] == [3, 5, 3, 1]
    assert made.mean_queries == 11 / 3
    said = made.summary()
    assert said["success_rate"] == 2 / 3 and said["constraints"]["query_budget"] == 10
    assert json.loads(json.dumps(said)) == said
    skipped, words = made.results[3], made.results[2]
    assert (skipped.adversarial, skipped.changes) == ("a film", [])
    assert words.adversarial == "best fair" and words.prediction == 1


def test_a_table_shows_figures_and_constraints() -> None:
    console = Console(width=200, file=io.StringIO())
    console.print(report().table())
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("75.0%", "25.0%", "66.7% (2 of 3)", "36.7%", "query_budget=10", "WordAttack"):
        assert part in shown


def test_without_an_attack_there_is_no_rate() -> None:
    made = WordAttack({}).run(Bag({}, bias=1.0), ["a"], [0])
    assert (made.success_rate, made.mean_queries, made.mean_changed_share) == (None, None, None)
    assert made.clean_accuracy == made.accuracy_under_attack == 0.0
    made.table()
    with pytest.raises(ValueError, match="nothing to write: of 1 attacks none is succeeded"):
        made.write("none.jsonl")
    with pytest.raises(ValueError, match=r"none.csv must end in .jsonl"):
        made.write("none.csv")


def test_what_is_written_can_be_trained_on(tmp_path: Path) -> None:
    module, texts = classifier(), tiny.sentences(10)
    labels = own_labels(module, texts)
    labels[0] = {"calm": "wild", "wild": "calm"}[labels[0]]
    made = WordAttack(TABLE, stop_words=False, max_changed=1.0).run(module, texts, labels)
    count = made.count("succeeded")
    path = made.write(tmp_path / "found" / "adversarial.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == count > 2 and rows == made.rows(["succeeded"])
    for row in rows:
        assert row["label"] == labels[row["source_index"]] != row["prediction"]
        assert row["original"] == texts[row["source_index"]] != row["text"]
    assert len(made.rows()) == 10 and len(made.rows(["skipped"])) == 1
    data = SequenceClassificationDataModule(
        train_file=str(path), val_fraction=0.3, tokenizer=tiny.tokenizer_folder(tmp_path / "t")
    )
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert set(batch["labels"].tolist()) - {-100} == {0, 1}


def test_onnx_is_attacked_as_the_network_that_it_was(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    module, texts = classifier(), tiny.sentences(4)
    module.network.float()
    for form in ("onnx", "hf"):
        lmkit.export(module, tmp_path / form, format=form)
    labels = own_labels(module, texts)
    attack = WordAttack(TABLE, stop_words=False, max_changed=1.0)
    one, other = (attack.run(tmp_path / form, texts, labels) for form in ("onnx", "hf"))
    assert [r.adversarial for r in one.results] == [r.adversarial for r in other.results]
    assert any(result.changes for result in one.results)
    with pytest.raises(ValueError, match="an ONNX file gives none"):
        WordAttack(TABLE, similarity="own").run(tmp_path / "onnx", texts, labels)


def test_batches_are_as_large_as_suits_the_device() -> None:
    assert Predictor(classifier()).batch_size == 16
    assert (Predictor(Bag({})).batch_size, Predictor(Bag({}), 5).batch_size) == (64, 5)
