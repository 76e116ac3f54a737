"""Rows of two segments."""

import os
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from lmkit.datamodules import sentence_pairs
from lmkit.datamodules.corpus import token_stores
from lmkit.datamodules.sentence_pairs import PairRows
from lmkit.datamodules.source import FileSource, TextOptions
from lmkit.datamodules.token_store import TokenStore
from lmkit.tokenization import pair_affixes
from tests import tiny

SEPARATOR = 3


def articles(folder, count=12):
    """Documents of two to five sentences, one a line, and blank lines between them."""
    texts = tiny.sentences(count * 4)
    parts = ["\n".join(texts[4 * i : 4 * i + 2 + i % 3]) for i in range(count)]
    (folder / "articles.txt").write_text("\n\n".join(parts) + "\n")
    return FileSource((folder / "articles.txt",), TextOptions(document="paragraph"))


def store_of(folder, kind="wordpiece", words=True) -> TokenStore:
    tokenizer = tiny.tokenizer(kind)
    asked = {"words": words, "sentences": True}
    return token_stores({"train": articles(folder)}, None, tokenizer, SEPARATOR, folder, **asked)[
        "train"
    ]


def make(folder, objective: Any = "next_sentence", kind="wordpiece", length=24, **how) -> PairRows:
    tokenizer = tiny.tokenizer(kind)
    return PairRows(
        store_of(folder, kind),
        objective,
        pair_affixes(tokenizer),
        max_length=length,
        pad_id=tokenizer.pad_token_id,
        cache=folder,
        **how,
    )


def test_the_store_knows_the_sentences_of_each_document(tmp_path):
    store = store_of(tmp_path)
    source = articles(tmp_path)
    tokenizer = tiny.tokenizer()
    starts, documents = store.sentences, np.append(store.offsets, store.tokens)
    for number, text in enumerate(source.texts()):
        lines = text.text.split("\n")
        own = [s for s in starts.tolist() if documents[number] <= s < documents[number + 1]]
        ends = [*own[1:], int(documents[number + 1]) - 1]
        cut = [store.ids[a:b].tolist() for a, b in zip(own, ends, strict=True)]
        assert cut == tokenizer(lines, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
@pytest.mark.parametrize("objective", ["next_sentence", "sentence_order"])
def test_a_row_is_what_the_tokenizer_makes_of_the_two_segments(tmp_path, kind, objective):
    rows = make(tmp_path, objective, kind, length=80)
    tokenizer = tiny.tokenizer(kind)
    batch = rows.gather(torch.arange(len(rows)))
    affixes = pair_affixes(tokenizer)
    for row in range(len(rows)):
        a_start, a_length, b_start, b_length, label = rows.plan[:, row].tolist()
        first, second = (
            rows.store.ids[start : start + length].tolist()
            for start, length in ((a_start, a_length), (b_start, b_length))
        )
        ids = [*affixes.prefix, *first, *affixes.middle, *second, *affixes.suffix]
        before, a_type, between, b_type, after = affixes.types
        types = [*before, *[a_type] * a_length, *between, *[b_type] * b_length, *after]
        padding = 80 - len(ids)
        assert padding >= 0
        assert batch.input_ids[row].tolist() == ids + [tokenizer.pad_token_id] * padding
        assert batch.extras["token_type_ids"][row].tolist() == types + [0] * padding
        assert batch.segment_ids[row].tolist() == [1] * len(ids) + [0] * padding
        assert batch.position_ids[row].tolist() == [*range(len(ids)), *[0] * padding]
        assert batch.extras["next_sentence_label"][row] == label
    assert batch.words is None
    assert 0 < batch.extras["next_sentence_label"].float().mean() < 1


def test_labels_are_true_to_the_documents(tmp_path):
    for objective in ("next_sentence", "sentence_order"):
        rows = make(tmp_path, objective)
        a_start, a_length, b_start, b_length, label = rows.plan
        first, second, a_end, b_end = (
            np.searchsorted(rows.store.offsets, place, "right")
            for place in (a_start, b_start, a_start + a_length - 1, b_start + b_length - 1)
        )
        assert (first == a_end).all() and (second == b_end).all()
        if objective == "next_sentence":
            assert ((first != second) == label).all()
        else:
            assert (first == second).all() and ((a_start > b_start) == label).all()


def test_words_are_numbered_through_both_segments(tmp_path):
    rows = make(tmp_path, words=True)
    tokenizer = tiny.tokenizer()
    batch = rows.gather(torch.arange(len(rows)))
    assert batch.words is not None
    for ids, words in zip(batch.input_ids.tolist(), batch.words.tolist(), strict=True):
        number = -1
        for column, (token, word) in enumerate(zip(ids, words, strict=True)):
            if token in tokenizer.all_special_ids and tokenizer.unk_token_id != token:
                assert word == -1
                continue
            name = tokenizer.convert_ids_to_tokens(token)
            number += not name.startswith("##") or words[column - 1] == -1
            assert word == number


def test_a_filler_is_all_padding_without_a_label(tmp_path):
    rows = make(tmp_path)
    batch = rows.gather(torch.tensor([2, -1]))
    alone = rows.gather(torch.tensor([2]))
    assert torch.equal(batch.input_ids[:1], alone.input_ids)
    assert batch.input_ids[1].eq(0).all() and batch.segment_ids[1].eq(0).all()
    assert batch.extras["token_type_ids"][1].eq(0).all()
    assert batch.extras["next_sentence_label"][1] == -100


def test_the_plan_is_made_once_and_a_broken_one_anew(tmp_path, monkeypatch):
    first = make(tmp_path)
    again = pickle.loads(pickle.dumps(first))
    assert len(pickle.dumps(first)) < 2000
    assert torch.equal(
        again.gather(torch.tensor([3])).input_ids, first.gather(torch.tensor([3])).input_ids
    )
    plan = first.plan.tolist()
    with monkeypatch.context() as patch:
        patch.setattr(sentence_pairs, "_plan", lambda *_: 1 / 0)
        assert make(tmp_path).plan.tolist() == plan
    os.truncate(first.path, first.path.stat().st_size - 8)
    assert make(tmp_path).plan.tolist() == plan
    assert [path.name for path in first.path.parent.iterdir()] == [first.path.name]


def test_a_row_too_short_for_two_segments_is_refused(tmp_path):
    with pytest.warns(UserWarning, match="random ones"):
        assert (make(tmp_path, length=5).plan[[1, 3]] == 1).all()
    with pytest.raises(ValueError, match="max_length=4 leaves no room for two segments"):
        make(tmp_path, length=4)


def test_rows_have_one_width_and_hold_one_text(tmp_path):
    rows = make(tmp_path)
    assert rows.widths() == [(len(rows), 24)] and not rows.packed and rows.cut == 0


def test_rows_that_hold_one_sentence_each_are_warned_about(tmp_path):
    with pytest.warns(UserWarning, match=r"100% of the second segments are random .*max_length"):
        make(tmp_path, length=8)
