from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmkit.datamodules import CausalLMDataModule, corpus
from lmkit.datamodules.corpus import token_stores, trained_tokenizer
from lmkit.datamodules.source import FileSource, TextOptions
from tests.tiny import sentences, tokenizer

from .small_data import both_objectives, ready


def test_held_out_documents_are_disjoint_and_stay_where_they_are(tmp_path, train):
    def texts(data, split):
        store = data._stores[split]
        bounds = [*store.offsets.tolist(), store.tokens]
        return {
            data.tokenizer.decode(store.ids[start : end - 1].tolist())
            for start, end in pairwise(bounds)
        }

    data = ready(CausalLMDataModule, train_file=str(train), val_fraction=0.3)
    held_out, kept = texts(data, "val"), texts(data, "train")
    assert held_out and not held_out & kept
    assert held_out | kept == set(train.read_text().splitlines())
    more = tmp_path / "more.txt"
    more.write_text("\n".join(sentences(20, seed=8)) + "\n" + train.read_text())
    later = ready(CausalLMDataModule, train_file=str(more), val_fraction=0.3)
    assert held_out <= texts(later, "val")


def test_few_documents_still_hold_one_out(tmp_path):
    path = tmp_path / "few.txt"
    path.write_text("one text\nanother text\na third text\n")
    data = ready(CausalLMDataModule, train_file=str(path), val_fraction=0.001)
    assert data.statistics["val/documents"] == 1 and data.statistics["train/documents"] == 2


def test_one_document_cannot_be_held_out(tmp_path):
    path = tmp_path / "one.txt"
    path.write_text("the only text\nthe only text\n")
    with pytest.raises(ValueError, match=r"val split is empty: .*one document; pass val_file"):
        ready(CausalLMDataModule, train_file=str(path))
    data = ready(CausalLMDataModule, train_file=str(path), val_fraction=0)
    assert data.val_dataloader() == []


@both_objectives
def test_the_second_run_tokenizes_nothing(make, train, monkeypatch):
    first = ready(make, train_file=str(train))
    monkeypatch.setattr(corpus, "train_tokenizer", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(corpus, "write_stores", lambda *_, **__: 1 / 0)
    second = ready(make, train_file=str(train))
    assert second.fingerprint == first.fingerprint
    assert second.statistics == first.statistics


def test_changed_content_is_tokenized_anew(train):
    before = ready(CausalLMDataModule, train_file=str(train))
    train.write_text(train.read_text() + "a new document\n")
    after = ready(CausalLMDataModule, train_file=str(train))
    assert after.fingerprint != before.fingerprint
    assert after.statistics["train/tokens"] != before.statistics["train/tokens"]


def test_a_file_of_blank_lines_is_refused(tmp_path, train):
    (tmp_path / "blank.txt").write_text("\n \n\t\n")
    with pytest.raises(ValueError, match=r"val: there is no text in .*blank\.txt"):
        ready(CausalLMDataModule, train_file=str(train), val_file=str(tmp_path / "blank.txt"))


def test_words_have_a_store_of_their_own_and_do_not_change_the_tokens(tmp_path, train):
    source = FileSource((train,), TextOptions())
    stores = [
        token_stores({"train": source}, None, tokenizer(), 3, tmp_path, **asked)["train"]
        for asked in ({}, {"words": True}, {"words": True, "sentences": True})
    ]
    assert len({store.path for store in stores}) == 3
    assert stores[0].ids.tolist() == stores[1].ids.tolist() == stores[2].ids.tolist()
    assert [store.has_words for store in stores] == [False, True, True]
    assert stores[2].sentences.tolist() == stores[2].offsets.tolist()
    names = tokenizer().convert_ids_to_tokens(stores[1].ids.tolist())
    starts = stores[1].starts_word(np.arange(stores[1].tokens)).tolist()
    assert starts == [not name.startswith("##") for name in names]


def test_a_damaged_tokenizer_in_the_cache_is_trained_again(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a cat sat\nthe dog ran\n" * 20)
    source = FileSource((tmp_path / "a.txt",), TextOptions())
    settings: dict[str, Any] = {"kind": "wordpiece", "vocab_size": 60, "affixes": True}
    first = trained_tokenizer(source, None, cache=tmp_path / "cache", **settings)
    (kept,) = (tmp_path / "cache" / "tokenizers").iterdir()
    (kept / "tokenizer.json").write_text('{"version": "1.0", "trunc')
    again = trained_tokenizer(source, None, cache=tmp_path / "cache", **settings)
    assert again.get_vocab() == first.get_vocab()
    assert trained_tokenizer(source, None, cache=tmp_path / "cache", **settings) is not None
