"""Tagging words: loss, scores of whole sentences, and what is said of raw text."""

import json
import logging
import random

import pytest
import torch
from lightning.pytorch import Callback
from seqeval.metrics import f1_score
from torch.nn.functional import cross_entropy

import lmkit.modules.token_classification as subject
from lmkit.datamodules.example_collator import ExampleCollator
from lmkit.datamodules.token_classification import TokenClassificationDataModule
from lmkit.modules.token_classification import TokenClassificationModule
from lmkit.modules.word_predictions import TaggedRow, row_record, word_choices
from tests import tiny
from tests.cases import make_trainer

ANIMALS = {"fox": "B-ANIMAL", "dog": "B-ANIMAL", "birds": "B-ANIMAL", "quick": "I-ANIMAL"}

VAL = tiny.sentences(12, 1)


def drawn_tag(word, rng):
    """The tag of a word, in a quarter of the cases another one."""
    return ANIMALS.get(word, "O") if rng.random() < 0.75 else rng.choice(["O", "B-ANIMAL"])


def write(path, count, seed=0, pos=False):
    """Sentences with animals; the tag of a word follows from the word."""
    lines = []
    for sentence in tiny.sentences(count, seed):
        for word in sentence.split():
            tag = f"L{len(word) % 4}" if pos else ANIMALS.get(word, "O")
            lines.append(f"{word} {tag}")
        lines.append("")
    path.write_text("\n".join(lines))
    return str(path)


def make(folder, pos=False, model="bert", **options):
    tokenizer = tiny.tokenizer_folder(folder / "tokenizer")
    data = TokenClassificationDataModule(
        **{
            "train_file": write(folder / "train.conll", 60, pos=pos),
            "val_file": write(folder / "val.conll", 12, 1, pos),
            "tokenizer": tokenizer,
            "max_length": 24,
            "batch_size": 8,
            "seed": 3,
            "cache_dir": str(folder / "cache"),
            **options,
        }
    )
    module = TokenClassificationModule(tiny.MASKED[model], learning_rate=1e-2, warmup=0)
    return module, data


def fitted(folder, steps=40, **options):
    module, data = make(folder, **options)
    trainer = make_trainer(max_steps=steps, max_epochs=-1)
    trainer.fit(module, data)
    return module, data, {k: float(v) for k, v in trainer.callback_metrics.items()}


def test_it_learns_entities_and_tags(tmp_path):
    _, _, scores = fitted(tmp_path)
    assert min(scores[f"val/{n}"] for n in ("f1", "precision", "recall", "accuracy")) > 0.95
    folder = tmp_path / "pos"
    folder.mkdir()
    module, _, scores = fitted(folder, pos=True)
    assert scores["val/accuracy"] > 0.95 and "val/f1" not in scores
    assert module.network.config.id2label == dict(enumerate(["L0", "L1", "L2", "L3"]))


def test_loss_is_the_mean_over_labelled_pieces(tmp_path):
    module, data = make(tmp_path)
    trainer = make_trainer(max_steps=1)
    trainer.fit(module, data)
    module.eval()
    batch = next(iter(data.train_dataloader()))
    output = module.step(batch)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    logits = module.network(**inputs).logits
    chosen = batch["labels"] != -100
    expected = cross_entropy(logits[chosen], batch["labels"][chosen])
    assert torch.allclose(output.loss, expected, atol=1e-6)
    assert output.items == chosen.sum()
    theirs = module.network(**inputs, labels=batch["labels"]).loss
    assert torch.allclose(output.loss, theirs, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 5, 12])
def test_scores_are_those_of_seqeval_on_whole_sentences(tmp_path, batch_size):
    """Also where each sentence is cut into windows, and in any batch size."""
    noisy, rng = tmp_path / "noisy.conll", random.Random(0)
    lines = ["".join(f"{w} {drawn_tag(w, rng)}\n" for w in s.split()) for s in VAL]
    noisy.write_text("\n".join(lines))
    options = {"max_length": 9, "eval_batch_size": batch_size, "val_file": str(noisy)}
    module, data, _ = fitted(tmp_path, **options)
    scores = make_trainer().validate(module, data, verbose=False)[0]
    gold, guess = {}, {}
    module.eval()
    for batch in data.val_dataloader():
        with torch.no_grad():
            choices = word_choices(module.step(batch).logits, batch["word_positions"])
        for row, number in enumerate(batch["index"].tolist()):
            words = batch["word_labels"][row] >= 0
            if number >= 0:
                gold[number] = [data.labels[i] for i in batch["word_labels"][row][words]]
                guess[number] = [data.labels[i] for i in choices[row][words]]
    assert sum(map(len, gold.values())) == sum(len(s.split()) for s in VAL)
    expected = f1_score(list(gold.values()), [guess[n] for n in gold])
    assert scores["val/f1"] == pytest.approx(expected, abs=1e-6)
    assert 0 < expected < 1


def test_a_word_without_a_piece_is_missed_and_not_left_out(tmp_path):
    module, _, _ = fitted(tmp_path)
    (tmp_path / "odd.conll").write_text("the O\nfox B-ANIMAL\n\x01 B-ANIMAL\n")
    data = make(tmp_path, val_file=str(tmp_path / "odd.conll"))[1]
    scores = make_trainer().validate(module, data, verbose=False)[0]
    assert (scores["val/recall"], scores["val/precision"]) == (0.5, 1.0)
    assert scores["val/accuracy"] == pytest.approx(2 / 3)


def test_windows_tag_as_one_row_does_where_the_words_agree(tmp_path):
    """The tag of a word follows from the word: windows make no difference."""
    module, _, _ = fitted(tmp_path)
    text = " ".join(tiny.sentences(20, 5)).replace("quick", "many")
    whole = module(text)
    module.tokenizer.model_max_length = 9
    cut = module(text)
    names = [[(e["start_word"], e["type"]) for e in row["entities"]] for row in (whole, cut)]
    assert names[0] == names[1] and len(names[0]) > 3


def test_raw_text_is_tagged_with_places(tmp_path):
    module, _, _ = fitted(tmp_path)
    text = "a lazy dog,  while birds sing"
    found = module(text)["entities"]
    assert [(e["text"], e["type"], e["start_word"], e["end_word"]) for e in found] == [
        ("dog", "ANIMAL", 2, 3),
        ("birds", "ANIMAL", 5, 6),
    ]
    for entity in found:
        assert text[entity["start"] : entity["end"]] == entity["text"]
        assert 0 < entity["score"] <= 1
    assert module([text, ["a", "lazy", "dog"], ""])[0] == {"entities": found}
    assert module([["a", "lazy", "dog"]])[0]["entities"][0]["start"] == 7
    assert module([]) == [] and module("") == {"entities": []}


def test_parts_of_speech_are_given_for_each_word(tmp_path):
    module, _, _ = fitted(tmp_path, pos=True)
    words = module("the quick \x01 dog")["words"]
    assert [(w["text"], w["tag"]) for w in words] == [
        ("the", "L3"),
        ("quick", "L1"),
        ("\x01", None),
        ("dog", "L3"),
    ]
    assert words[2]["score"] == 0


def test_predictions_of_a_file_are_those_of_its_texts(tmp_path):
    module, _, _ = fitted(tmp_path)
    texts = tiny.sentences(5, 8)
    (tmp_path / "ask.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    data = TokenClassificationDataModule(
        predict_file=str(tmp_path / "ask.jsonl"),
        max_length=24,
        batch_size=4,
        cache_dir=str(tmp_path / "cache"),
    )
    batches = make_trainer().predict(module, data)
    rows = [row for batch in batches for row in batch]
    assert len(rows) == 8 and rows[5:] == [{"entities": []}] * 3
    for ours, theirs in zip(rows[:5], module(texts), strict=True):
        assert [e["text"] for e in ours["entities"]] == [e["text"] for e in theirs["entities"]]
        for one, other in zip(ours["entities"], theirs["entities"], strict=True):
            assert one["score"] == pytest.approx(other["score"], abs=1e-5)
            assert {**one, "score": 0} == {**other, "score": 0}


def test_a_test_gives_a_table_of_types_or_tags(tmp_path):
    module, data, _ = fitted(tmp_path)
    assert module.tables() == {}
    make_trainer().test(module, data, verbose=False)
    rows = {row["type"]: row for row in module.tables()["entities"]}
    animals = sum(w in ANIMALS for s in VAL for w in s.split())
    assert 0 < rows["all"]["gold"] <= animals and rows["ANIMAL"]["f1"] > 0.9
    folder = tmp_path / "pos"
    folder.mkdir()
    module, data, _ = fitted(folder, pos=True)
    make_trainer().test(module, data, verbose=False)
    rows = module.tables()["tags"]
    assert [row["tag"] for row in rows] == ["L0", "L1", "L2", "L3"]
    assert sum(row["gold"] for row in rows) == sum(len(s.split()) for s in VAL)


def test_a_test_gives_figures(tmp_path):
    pytest.importorskip("lmkit.figures")
    module, data, _ = fitted(tmp_path, steps=2, pos=True)
    assert module.figures() == {}
    make_trainer().test(module, data, verbose=False)
    assert set(module.figures()) == {"tags", "confusion"}


def test_samples_show_gold_and_tagged(tmp_path):
    module, data, _ = fitted(tmp_path)
    batch = next(iter(data.val_dataloader()))
    shown = module.sample(batch, 2)
    assert len(shown) == 2
    texts = VAL
    assert all(row["text"] in texts for row in shown)
    assert all(row["gold"] == row["tagged"] for row in shown)
    assert "(ANIMAL)" in shown[0]["gold"]


def test_an_untyped_or_windowless_row_can_be_written():
    row = TaggedRow(["B", "I", None], [0.5, 1.0, 0.0])
    assert row_record(row, ["O", "B", "I"], None, None) == {
        "entities": [{"type": "_", "score": 0.75, "start_word": 0, "end_word": 2}]
    }


def test_a_head_of_other_labels_is_replaced_and_one_of_these_is_kept(tmp_path, caplog):
    module, data, _ = fitted(tmp_path)
    module.network.save_pretrained(tmp_path / "saved")
    module.tokenizer.save_pretrained(tmp_path / "saved")
    again = TokenClassificationModule(str(tmp_path / "saved"))
    scores = make_trainer().validate(again, data, verbose=False)[0]
    assert scores["val/f1"] > 0.95
    folder = tmp_path / "pos"
    folder.mkdir()
    other = TokenClassificationModule(str(tmp_path / "saved"))
    with caplog.at_level(logging.INFO):
        make_trainer(max_steps=1).fit(other, make(folder, pos=True)[1])
    assert other.network.config.id2label == dict(enumerate(["L0", "L1", "L2", "L3"]))
    assert "classifier" in caplog.text


class Keep(Callback):
    """Keeps the batches of a fit."""

    def __init__(self):
        self.batches = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch)


@pytest.mark.parametrize("model", ["bert", "roberta", "distilbert", "electra", "modernbert"])
def test_sentences_that_share_a_row_are_trained_on_as_if_each_were_alone(model, tmp_path):
    module, data = make(tmp_path, model=model, batching="pack")
    keep = Keep()
    make_trainer(keep, max_steps=2).fit(module, data)
    table, module = data.table("train"), module.eval()
    assert max(int(batch["segment_ids"].max()) for batch in keep.batches) > 1
    for position, batch in enumerate(keep.batches):
        rows = data.train_dataloader().plan.batch(0, position)
        alone = ExampleCollator(table, data.tokenizer.pad_token_id, {"labels": -100})(0, rows)
        one, other = module.step(batch), module.step(alone)
        assert one.items == other.items == (alone["labels"] >= 0).sum()
        assert torch.allclose(one.loss, other.loss, atol=1e-5)


def test_sentences_have_rows_of_their_own_unless_they_are_to_share_them(tmp_path):
    module, data = make(tmp_path)
    keep = Keep()
    make_trainer(keep, max_steps=2).fit(module, data)
    assert all(len(b["index"]) == 8 and "segment_ids" not in b for b in keep.batches)
    with pytest.raises(ValueError, match="batching must be one of pad, pack, got 'bucket'"):
        make(tmp_path, batching="bucket")


def test_sentences_have_rows_of_their_own_where_the_network_would_mix_them(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise ValueError("it mixes them")

    monkeypatch.setattr(subject, "check_packing", refuse)
    module, data = make(tmp_path, batching="pack")
    keep = Keep()
    make_trainer(keep, max_steps=2).fit(module, data)
    assert all(len(b["index"]) == 8 and "segment_ids" not in b for b in keep.batches)


@pytest.mark.parametrize("model", ["roberta", "distilbert", "electra", "modernbert"])
def test_other_encoders_are_trained_too(model, tmp_path):
    _, _, scores = fitted(tmp_path, steps=8, model=model)
    assert scores["val/loss"] > 0


def test_windows_that_a_sentence_has_not_are_not_run(tmp_path, monkeypatch):
    module, data = make(tmp_path, max_length=9)
    make_trainer(max_steps=1).fit(module, data)
    batch = next(iter(data.val_dataloader()))
    assert batch["input_ids"].ndim == 3
    seen = []
    monkeypatch.setattr(
        subject, "network_inputs", lambda _, b: seen.append(len(b["input_ids"])) or dict(b)
    )
    module.eval().step(batch)
    assert seen == [int(batch["attention_mask"].any(2).sum())]
