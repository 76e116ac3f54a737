"""Pairs of texts as batches."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerFast

from lmkit.datamodules.seq2seq import Seq2SeqDataModule
from lmkit.tokenization import train_tokenizer
from lmkit.tokenization.text_ends import close_texts, require_end
from tests import tiny


def write_pairs(folder: Path, count: int = 40) -> list[str]:
    sources = tiny.sentences(count)
    (folder / "train.en").write_text("".join(f"{text}\n" for text in sources))
    (folder / "train.de").write_text("".join(f"{text.upper()}\n" for text in sources))
    return [str(folder / "train.en"), str(folder / "train.de")]


def ready(**settings: Any) -> Seq2SeqDataModule:
    data = Seq2SeqDataModule(**{"vocab_size": 320, "batch_size": 8, "seed": 1, **settings})
    data.prepare_data()
    data.setup("fit")
    return data


def test_a_batch_holds_sources_and_targets_each_as_wide_as_its_longest(tmp_path: Path) -> None:
    data = ready(train_file=write_pairs(tmp_path), val_fraction=0)
    seen = []
    for batch in data.train_dataloader():
        source, target = batch["attention_mask"].sum(1), (batch["labels"] != -100).sum(1)
        assert batch["input_ids"].shape[1] == source.max()
        assert batch["labels"].shape[1] == target.max()
        for row, index in enumerate(batch["index"].tolist()):
            words = data.tokenizer.decode(batch["input_ids"][row], skip_special_tokens=True)
            labels = batch["labels"][row][batch["labels"][row] != -100]
            written = data.tokenizer.decode(labels, skip_special_tokens=True)
            assert written == words.upper() == data.table("train").text("target", index)
            assert labels[-1] == require_end(data.tokenizer)
        seen += batch["index"].tolist()
    assert sorted(seen) == list(range(40))


def test_pairs_meet_at_random_in_training_and_of_one_length_in_evaluation(tmp_path: Path) -> None:
    files = write_pairs(tmp_path, 64)
    data = ready(train_file=files, val_file=files)
    lengths = data.lengths(data.table("train"))

    def spread(batches: Any) -> float:
        ranges = [np.ptp(lengths[batch["index"].numpy()]) for batch in batches]
        return float(np.mean(ranges))

    assert spread(data.val_dataloader()) < 0.3 * np.ptp(lengths)
    assert spread(data.train_dataloader()) > 0.6 * np.ptp(lengths)


def test_fillers_have_no_target(tmp_path: Path) -> None:
    data = ready(train_file=write_pairs(tmp_path, 9), val_fraction=0)
    batches = list(data.train_dataloader())
    filler = next(b for b in batches if (b["index"] < 0).any())
    rows = filler["index"] < 0
    assert (filler["labels"][rows] == -100).all()
    assert (filler["attention_mask"][rows].sum(1) == 1).all()


def test_long_texts_are_cut_before_their_end_counted_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = write_pairs(tmp_path)
    with caplog.at_level(logging.INFO):
        data = ready(train_file=files, val_fraction=0, max_length=8, max_target_length=6)
    assert data.statistics["train/truncated"] > 0
    assert "longer than max_length cut" in caplog.text
    table, end = data.table("train"), require_end(data.tokenizer)
    for column, most in (("input_ids", 8), ("labels", 6)):
        rows = [table.ragged(column)[i] for i in range(len(table))]
        assert max(map(len, rows)) == most and all(row[-1] == end for row in rows)


def test_the_prefix_stands_before_each_source_and_counts(tmp_path: Path) -> None:
    data = ready(train_file=write_pairs(tmp_path), prefix="shout: ", val_fraction=0)
    batch = next(iter(data.train_dataloader()))
    text = data.tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True)
    assert text.startswith("shout: ")
    assert data.table("train").text("source", int(batch["index"][0])) == text[len("shout: ") :]
    assert data.network_settings()["seq2seq"]["prefix"] == "shout: "


def test_a_tokenizer_is_trained_on_both_sides(tmp_path: Path) -> None:
    rows = [{"source": "lower words", "target": "UPPER LETTERS"}] * 20 + [
        {"source": "lower", "target": "UPPER"}
    ]
    data = ready(source=Dataset.from_list(rows), vocab_size=300)
    for text in ("lower", "UPPER"):
        assert len(data.tokenizer(text, add_special_tokens=False).input_ids) <= 2


def test_tables_hub_data_and_plain_files_give_the_same_pairs(tmp_path: Path) -> None:
    files = write_pairs(tmp_path)
    sources, targets = (Path(name).read_text().splitlines() for name in files)
    pairs = list(zip(sources, targets, strict=True))
    (tmp_path / "a.tsv").write_text("src\ttgt\n" + "".join(f"{s}\t{t}\n" for s, t in pairs))
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": s, "summary": t}) + "\n" for s, t in pairs)
    )
    hub = Dataset.from_list([{"translation": {"en": s, "de": t}} for s, t in pairs])
    made = [
        ready(train_file=files),
        ready(train_file=str(tmp_path / "a.tsv")),
        ready(train_file=str(tmp_path / "a.jsonl")),
        ready(source=DatasetDict(train=hub), source_lang="en", target_lang="de"),
    ]
    rows = []
    for data in made:
        table = data.table("train")
        found = {(table.text("source", i), table.text("target", i)) for i in range(len(table))}
        held = data.table("val")
        rows.append(
            found | {(held.text("source", i), held.text("target", i)) for i in range(len(held))}
        )
    assert all(found == set(pairs) for found in rows)


def test_a_folder_of_languages_is_sorted_into_splits(tmp_path: Path) -> None:
    for split in ("train", "val", "test_2016"):
        for lang in ("en", "de", "fr"):
            (tmp_path / f"{split}.{lang}").write_text(f"{split} {lang}\n" * 3)
    data = ready(source=str(tmp_path), source_lang="en", target_lang="de")
    for split in ("train", "val", "test"):
        table = data.table(split)
        assert len(table) == 3 and table.text("source", 0).endswith("en")
        assert table.text("target", 0).endswith("de")


def test_prediction_needs_sources_alone(tmp_path: Path) -> None:
    (tmp_path / "ask.txt").write_text("a small text\n\nthe quick fox\n")
    files = write_pairs(tmp_path)
    data = ready(train_file=files, predict_file=str(tmp_path / "ask.txt"))
    (batch,) = data.predict_dataloader()
    assert batch["index"].tolist() == [0, 1, *[-1] * 6]
    assert [data.inputs(i)["source"] for i in range(2)] == ["a small text", "the quick fox"]


def test_targets_are_those_of_the_file(tmp_path: Path) -> None:
    files = write_pairs(tmp_path)
    data = ready(train_file=files, val_file=files, tokenizer_kind="wordpiece")
    lines = Path(files[1]).read_text().splitlines()
    assert [data.target("val", i) for i in range(3)] == lines[:3]
    assert data.target("test", 0) == lines[0]


def test_another_length_of_targets_is_another_data_set(tmp_path: Path) -> None:
    files = write_pairs(tmp_path)
    prints = {ready(train_file=files, max_target_length=n).fingerprint for n in (16, 32)}
    prints.add(ready(train_file=files, max_target_length=16, prefix="x ").fingerprint)
    assert len(prints) == 3


def test_training_on_a_single_plain_file_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"which column is the target\?"):
        ready(train_file=write_pairs(tmp_path)[0])


def test_no_data_says_what_to_pass() -> None:
    with pytest.raises(ValueError, match="pass train_file"):
        ready()


def test_a_target_length_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="max_target_length must be at least 4, got 2"):
        Seq2SeqDataModule(max_target_length=2)


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    endless = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="a")
    with pytest.raises(ValueError, match=r"know where a text ends \(eos_token or sep_token\)"):
        close_texts(endless)
    endless.save_pretrained(tmp_path / "endless")
    with pytest.raises(ValueError, match="know where a text ends"):
        ready(train_file=write_pairs(tmp_path), tokenizer=str(tmp_path / "endless"))


def test_a_tokenizer_that_does_not_end_its_texts_is_told_to_and_keeps_it(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(tiny.sentences(50), "bpe", vocab_size=300, affixes=False)
    end = close_texts(tokenizer)
    assert tokenizer("the fox").input_ids[-1] == end == tokenizer.eos_token_id
    assert close_texts(tokenizer) == end and tokenizer("the fox").input_ids.count(end) == 1
    tokenizer.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert again("the fox").input_ids == tokenizer("the fox").input_ids


def test_bad_pairs_are_skipped_counted_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.csv").write_text("source,target\n" + "one,eins\n" * 9 + "two,\n")
    with pytest.raises(ValueError, match=r"a\.csv, line 11: the target .* is blank"):
        ready(train_file=str(tmp_path / "a.csv"))
    with caplog.at_level(logging.WARNING, "lmkit"):
        data = ready(
            train_file=str(tmp_path / "a.csv"), val_file=str(tmp_path / "a.csv"), on_bad_row="skip"
        )
    assert len(data.table("train")) == 9 and "skipped 1 bad rows" in caplog.text
