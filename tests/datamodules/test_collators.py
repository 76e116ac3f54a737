import pickle

import numpy as np
import pytest
import torch

from lmkit.datamodules.collators import CausalCollator, ChunkRows, MaskingCollator, PromptCollator
from lmkit.datamodules.loader import BatchPlan, PlannedLoader
from lmkit.datamodules.text_rows import Text
from lmkit.datamodules.token_writer import write_stores

PAD, UNK, CLS, SEP, MASK = range(5)
VOCABULARY = 60


def make_store(folder, tokens):
    """A store of one document with the given ids; SEP closes it."""
    return write_stores(
        [Text("x", "f", 1)],
        {"train": folder / "store"},
        encode=lambda texts: [list(tokens)],
        separator=SEP,
        vocab_size=VOCABULARY,
    )["train"]


@pytest.fixture
def chunks(tmp_path):
    rng = np.random.default_rng(0)
    return ChunkRows(make_store(tmp_path, rng.integers(5, VOCABULARY, 1004).tolist()), body=10)


def masking(chunks, **options):
    return MaskingCollator(
        chunks,
        **{
            "prefix": [CLS],
            "suffix": [SEP],
            "pad_id": PAD,
            "mask_id": MASK,
            "special_ids": [PAD, UNK, CLS, SEP, MASK],
            "vocab_size": VOCABULARY,
            "seed": 1,
            **options,
        },
    )


def by_row(loader):
    rows = {}
    for batch in loader:
        for place, row in enumerate(batch["index"].tolist()):
            if row >= 0:
                rows[row] = (batch["input_ids"][place].tolist(), batch["labels"][place].tolist())
    return rows


def test_rows_are_the_stream_cut_in_pieces(chunks):
    ids, length = chunks.gather(torch.arange(len(chunks)))
    whole = torch.cat([row[:n] for row, n in zip(ids, length.tolist(), strict=True)])
    assert whole.tolist() == chunks.store.ids.tolist()
    assert length.tolist() == [10] * 100 + [5]


def test_masking_undone_is_the_text_with_its_affixes(chunks):
    batch = masking(chunks)(0, torch.tensor([0, 100]))
    ids = torch.where(batch["labels"] >= 0, batch["labels"], batch["input_ids"])
    text = chunks.store.ids.tolist()
    assert ids[0].tolist() == [CLS, *text[:10], SEP]
    assert ids[1].tolist() == [CLS, *text[1000:], SEP, *[PAD] * 5]
    assert batch["attention_mask"].tolist() == [[1] * 12, [1] * 7 + [0] * 5]


def test_special_tokens_are_never_chosen(chunks):
    batch = masking(chunks, mask_rate=1.0)(0, torch.arange(len(chunks)))
    chosen = batch["labels"] >= 0
    assert chosen.sum() == 1004  # every token of the text, and not its separator
    assert not torch.isin(batch["labels"][chosen], torch.arange(5)).any()


@pytest.mark.parametrize("settings", [(1, 0, 1), (7, 0, 1), (8, 2, 1), (4, 0, 2), (3, 2, 3)])
def test_masks_do_not_depend_on_batch_size_workers_or_ranks(chunks, settings):
    batch_size, workers, world = settings
    collate = masking(chunks)
    expected = by_row(PlannedLoader(BatchPlan(len(chunks), 16, seed=2), collate))
    seen = {}
    for rank in range(world):
        plan = BatchPlan(len(chunks), batch_size, rank, world, seed=2)
        seen.update(by_row(PlannedLoader(plan, collate, workers)))
    assert seen == expected and len(seen) == len(chunks)


def test_masks_differ_by_epoch_and_seed(chunks):
    rows = torch.arange(len(chunks))

    def chosen(epoch, seed):
        return masking(chunks, seed=seed)(epoch, rows)["labels"] >= 0

    base = chosen(0, 1)
    assert torch.equal(base, chosen(0, 1))
    for other in (chosen(1, 1), chosen(0, 2)):
        # Two independent draws at rate p overlap in p / (2 - p) of what either chose.
        overlap = (base & other).sum() / (base | other).sum()
        assert abs(overlap - 0.15 / 1.85) < 0.06


def test_random_words_come_from_what_is_not_special(chunks):
    rows = torch.arange(len(chunks))
    options = {"mask_rate": 1.0, "mask_share": 0.0, "random_share": 1.0}
    batch = masking(chunks, **options)(0, rows)
    assert (batch["input_ids"][batch["labels"] >= 0] > MASK).all()
    batch = masking(chunks, **options, any_random=True)(0, rows)
    assert (batch["input_ids"][batch["labels"] >= 0] <= MASK).any()


@pytest.mark.parametrize("make", [masking, lambda chunks: CausalCollator(chunks, pad_id=PAD)])
def test_a_filler_row_has_no_target_and_attends_to_something(chunks, make):
    batch = make(chunks)(0, torch.tensor([3, -1]))
    assert (batch["labels"][1] == -100).all()
    assert batch["attention_mask"][1].sum() >= 1
    assert batch["index"].tolist() == [3, -1]


def test_causal_labels_are_the_text_without_padding(chunks):
    batch = CausalCollator(chunks, pad_id=PAD)(0, torch.tensor([0, 100]))
    text = chunks.store.ids.tolist()
    assert batch["input_ids"][0].tolist() == batch["labels"][0].tolist() == text[:10]
    assert batch["input_ids"][1].tolist() == [*text[1000:], *[PAD] * 5]
    assert batch["labels"][1].tolist() == [*text[1000:], *[-100] * 5]
    assert batch["attention_mask"].tolist() == [[1] * 10, [1] * 5 + [0] * 5]


def test_prompts_are_padded_on_the_asked_side():
    texts = [[7, 8, 9], [6]]
    left = PromptCollator(texts, pad_id=PAD, left=True)(0, torch.tensor([0, 1, -1]))
    assert left["input_ids"].tolist() == [[7, 8, 9], [0, 0, 6], [0, 0, 0]]
    assert left["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1], [0, 0, 1]]
    right = PromptCollator(texts, pad_id=PAD, left=False)(0, torch.tensor([1, 0]))
    assert right["input_ids"].tolist() == [[6, 0, 0], [7, 8, 9]]
    assert right["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]


def test_a_collator_travels_as_the_path_of_its_tokens(chunks):
    collate = masking(chunks)
    expected = collate(0, torch.arange(4))
    parcel = pickle.dumps(collate)
    assert len(parcel) < 5000
    again = pickle.loads(parcel)(0, torch.arange(4))
    assert all(torch.equal(again[name], expected[name]) for name in expected)
