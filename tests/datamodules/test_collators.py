"""Batches made of rows: masks, labels and what comes with them."""

import pickle

import numpy as np
import pytest
import torch

from lmkit.datamodules.batch_plan import BatchPlan
from lmkit.datamodules.collators import CausalCollator, MaskingCollator
from lmkit.datamodules.loader import PlannedLoader
from lmkit.datamodules.prompts import PromptCollator
from lmkit.datamodules.row_table import row_table
from lmkit.datamodules.rows import SegmentRows
from lmkit.datamodules.text_rows import Text
from lmkit.datamodules.token_writer import write_stores
from lmkit.tokenization import EncodedText

PAD, UNK, CLS, SEP, MASK = SPECIAL = range(5)
VOCABULARY = 60
LENGTHS = np.random.default_rng(1).integers(0, 22, 300).tolist()
WIDTH = 24


def make_rows(folder, batching, lengths=LENGTHS, width=WIDTH, prefix=(CLS,), suffix=(SEP,)):
    """Documents of random ids, and now and then an unknown one; words of one to three tokens."""
    rng = np.random.default_rng(0)
    encoded = []
    for length in lengths:
        ids = rng.integers(5, VOCABULARY, length)
        ids[rng.random(length) < 0.05] = UNK
        starts = rng.random(length) < 0.5
        starts[:1] = True
        encoded.append(EncodedText(ids.tolist(), starts, np.arange(1, length + 1)))
    store = write_stores(
        [Text(str(number), "f", 1) for number in range(len(lengths))],
        {"train": folder / "store"},
        encode=lambda texts: [encoded[int(text)] for text in texts],
        separator=SEP,
        vocab_size=VOCABULARY,
        words=True,
    )["train"]
    affixes = len(prefix) + len(suffix)
    table = row_table(store, batching, width - affixes, affixes, folder / "cache")
    return SegmentRows(store, table, prefix=prefix, suffix=suffix, pad_id=PAD, words=True)


@pytest.fixture
def chunks(tmp_path):
    """A stream of 1004 tokens and a separator, in rows of ten."""
    return make_rows(tmp_path, "chunk", [1004], width=12)


@pytest.fixture(params=["pack", "bucket", "chunk"])
def rows(request, tmp_path):
    return make_rows(tmp_path, request.param)


@pytest.fixture
def packed(tmp_path):
    return make_rows(tmp_path, "pack")


def masking(rows, **options):
    return MaskingCollator(
        rows,
        **{
            "mask_id": MASK,
            "special_ids": SPECIAL,
            "vocab_size": VOCABULARY,
            "seed": 1,
            **options,
        },
    )


def unmasked(batch):
    return torch.where(batch["labels"] >= 0, batch["labels"], batch["input_ids"])


def by_row(loader):
    seen = {}
    for batch in loader:
        for place, row in enumerate(batch["index"].tolist()):
            if row >= 0:
                length = int(batch["attention_mask"][place].sum())
                seen[row] = [
                    batch[name][place, :length].tolist() for name in ("input_ids", "labels")
                ]
    return seen


def test_masking_undone_is_the_text_with_its_affixes(chunks):
    batch = masking(chunks)(0, torch.tensor([0, 100]))
    ids = unmasked(batch)
    text = chunks.store.ids.tolist()
    assert ids[0].tolist() == [CLS, *text[:10], SEP]
    assert ids[1].tolist() == [CLS, *text[1000:], SEP, *[PAD] * 5]
    assert batch["attention_mask"].tolist() == [[1] * 12, [1] * 7 + [0] * 5]


def test_masking_undone_is_the_row(rows):
    every = torch.arange(len(rows))
    made, batch = rows.gather(every), masking(rows)(0, every)
    assert torch.equal(unmasked(batch), made.input_ids)
    assert torch.equal(batch["attention_mask"], (made.segment_ids > 0).long())
    assert ("segment_ids" in batch) == ("position_ids" in batch) == rows.packed
    if rows.packed:
        assert torch.equal(batch["segment_ids"], made.segment_ids)
        assert torch.equal(batch["position_ids"], made.position_ids)


@pytest.mark.parametrize("options", [{}, {"exact": False}, {"masking": "whole_word"}])
def test_special_tokens_and_padding_are_never_chosen(rows, options):
    batch = masking(rows, mask_rate=1.0, **options)(0, torch.arange(len(rows)))
    ids = rows.gather(torch.arange(len(rows))).input_ids
    assert torch.equal(batch["labels"] >= 0, ids > MASK)
    assert torch.equal(batch["input_ids"][ids <= MASK], ids[ids <= MASK])


@pytest.mark.parametrize("rate", [0.05, 0.15, 0.4])
def test_each_row_has_the_rounded_share_of_its_own_tokens(rows, rate):
    every = torch.arange(len(rows))
    candidates = (rows.gather(every).input_ids > MASK).sum(1).tolist()
    chosen = (masking(rows, mask_rate=rate)(0, every)["labels"] >= 0).sum(1).tolist()
    assert chosen == [max(1, round(rate * n)) if n else 0 for n in candidates]


def test_a_binomial_number_is_chosen_where_it_is_asked_for(packed):
    every = torch.arange(len(packed))
    candidates = (packed.gather(every).input_ids > MASK).sum()
    batch = masking(packed, exact=False)(0, every)
    share = (batch["labels"] >= 0).sum() / candidates
    assert abs(share - 0.15) < 4 * (0.15 * 0.85 / candidates) ** 0.5
    assert len(set((batch["labels"] >= 0).sum(1).tolist())) > 3
    assert "label_positions" not in batch


@pytest.mark.parametrize("kind", ["token", "whole_word", "span", "n_gram"])
def test_label_positions_point_at_exactly_the_labels(rows, kind):
    every = torch.cat([torch.arange(len(rows)), torch.tensor([-1])])
    collate = masking(rows, masking=kind)
    for some in every.split(16):
        batch = collate(0, some)
        positions, labels = batch["label_positions"], batch["labels"]
        assert positions.shape == (len(some), max(1, round(0.15 * labels.shape[1])))
        for columns, row in zip(positions.tolist(), labels, strict=True):
            labelled = [column for column in columns if row[column] >= 0]
            assert labelled == (row >= 0).nonzero().flatten().tolist()


@pytest.mark.parametrize("kind", ["whole_word", "span", "n_gram"])
def test_words_are_masked_whole_and_inside_one_text(packed, kind):
    every = torch.arange(len(packed))
    made = packed.gather(every)
    labelled = masking(packed, masking=kind)(0, every)["labels"] >= 0
    plain = made.input_ids > MASK
    chosen = 0
    for row in range(len(packed)):
        hit = set(made.words[row][labelled[row]].tolist())
        chosen += len(hit)
        whole = sum(made.words[row] == word for word in hit) > 0 if hit else labelled[row]
        assert torch.equal(labelled[row], whole & plain[row])
    assert chosen > len(packed)


@pytest.mark.parametrize("settings", [(1, 0, 1), (7, 0, 1), (16, 2, 1), (4, 0, 2), (3, 0, 3)])
@pytest.mark.parametrize("exact", [True, False])
def test_masks_do_not_depend_on_batch_size_workers_or_ranks(packed, settings, exact):
    batch_size, workers, world = settings
    collate = masking(packed, exact=exact)
    expected = by_row(PlannedLoader(BatchPlan(len(packed), 13, seed=2), collate))
    seen = {}
    for rank in range(world):
        plan = BatchPlan(len(packed), batch_size, rank, world, seed=2)
        seen.update(by_row(PlannedLoader(plan, collate, workers)))
    assert seen == expected and len(seen) == len(packed)


def test_masks_of_a_row_do_not_depend_on_how_far_it_is_padded(tmp_path):
    rows = make_rows(tmp_path, "bucket")
    collate = masking(rows)
    alone = collate(0, torch.tensor([0]))
    beside = collate(0, torch.tensor([0, len(rows) - 1]))
    short, wide = alone["labels"].shape[1], beside["labels"].shape[1]
    assert short < wide
    assert torch.equal(beside["labels"][0, :short], alone["labels"][0])
    assert torch.equal(beside["input_ids"][0, :short], alone["input_ids"][0])


@pytest.mark.parametrize("exact", [True, False])
def test_masks_differ_by_epoch_and_seed(chunks, exact):
    rows = torch.arange(len(chunks))

    def chosen(epoch, seed):
        return masking(chunks, seed=seed, exact=exact)(epoch, rows)["labels"] >= 0

    base = chosen(0, 1)
    assert torch.equal(base, chosen(0, 1))
    rate = base.sum() / 1004
    for other in (chosen(1, 1), chosen(0, 2)):
        # Two independent draws at rate p overlap in p / (2 - p) of what either chose.
        overlap = (base & other).sum() / (base | other).sum()
        assert abs(overlap - rate / (2 - rate)) < 0.06


def test_random_words_come_from_what_is_not_special(chunks):
    rows = torch.arange(len(chunks))
    options = {"mask_rate": 1.0, "mask_share": 0.0, "random_share": 1.0}
    batch = masking(chunks, **options)(0, rows)
    assert (batch["input_ids"][batch["labels"] >= 0] > MASK).all()
    batch = masking(chunks, **options, any_random=True)(0, rows)
    assert (batch["input_ids"][batch["labels"] >= 0] <= MASK).any()


def test_nothing_is_masked_at_rate_zero(packed):
    batch = masking(packed, mask_rate=0.0)(0, torch.arange(4))
    assert (batch["labels"] == -100).all() and batch["label_positions"].shape == (4, 1)


@pytest.mark.parametrize("make", [masking, CausalCollator])
def test_a_filler_row_has_no_target_and_attends_to_something(rows, make):
    last = len(rows) - 1 if rows.table.packed or len(rows.widths()) > 1 else 3  # a long one
    batch = make(rows)(0, torch.tensor([last, -1]))
    assert (batch["labels"][0] >= 0).any() and (batch["labels"][1] == -100).all()
    assert batch["attention_mask"][1].sum() >= 1
    assert batch["index"].tolist() == [last, -1]


def test_causal_labels_are_the_text_without_padding_and_what_nothing_precedes(tmp_path):
    chunks = make_rows(tmp_path, "chunk", [1004], width=10, prefix=(), suffix=())
    batch = CausalCollator(chunks)(0, torch.tensor([0, 100]))
    text = chunks.store.ids.tolist()
    assert batch["input_ids"].tolist() == [text[:10], [*text[1000:], *[PAD] * 5]]
    assert batch["labels"].tolist() == [[-100, *text[1:10]], [-100, *text[1001:], *[-100] * 5]]
    assert batch["attention_mask"].tolist() == [[1] * 10, [1] * 5 + [0] * 5]
    assert set(batch) == {"input_ids", "labels", "attention_mask", "index"}


def test_the_first_token_of_each_packed_text_is_no_causal_target(tmp_path):
    packed = make_rows(tmp_path, "pack", prefix=())
    batch = CausalCollator(packed)(0, torch.arange(len(packed)))
    ids, segments, labels = batch["input_ids"], batch["segment_ids"], batch["labels"]
    before = torch.nn.functional.pad(segments, (1, 0))[:, :-1]
    first = segments != before
    assert torch.equal(labels >= 0, (segments > 0) & ~first)
    assert torch.equal(labels[labels >= 0], ids[labels >= 0])
    # Each text and its separator, but for the first token of each piece.
    assert (labels >= 0).sum() == sum(LENGTHS)


def test_prompts_are_padded_on_the_asked_side():
    texts = [[7, 8, 9], [6]]
    left = PromptCollator(texts, pad_id=PAD, left=True)(0, torch.tensor([0, 1, -1]))
    assert left["input_ids"].tolist() == [[7, 8, 9], [0, 0, 6], [0, 0, 0]]
    assert left["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1], [0, 0, 1]]
    right = PromptCollator(texts, pad_id=PAD, left=False)(0, torch.tensor([1, 0]))
    assert right["input_ids"].tolist() == [[6, 0, 0], [7, 8, 9]]
    assert right["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]


def test_a_collator_travels_as_the_path_of_its_tokens(packed):
    collate = masking(packed)
    expected = collate(0, torch.arange(4))
    parcel = pickle.dumps(collate)
    assert len(parcel) < 5000
    again = pickle.loads(parcel)(0, torch.arange(4))
    assert all(torch.equal(again[name], expected[name]) for name in expected)
