"""What stands in a row, against lists built token by token."""

import pickle

import pytest
import torch

from lmkit.datamodules.row_table import row_table
from lmkit.datamodules.rows import SegmentRows

from .small_store import SEPARATOR, documents, encode_words, write

PAD = 0
BODY = 12
TEXTS = [
    "a short one",
    "",
    "b",
    "one more here",
    "twelve chars",
    "a document that is much longer than any row",
    "unbrokenwordlongerthanarow",
    "last one",
]
AFFIXES = {
    "both": ([7], [8]),
    "none": ([], []),
    "after": ([], [8]),
    "before": ([7], []),
    "several": ([7, 6], [8, 9, 9]),
}
BATCHINGS = ("pack", "bucket", "chunk")


def make_rows(folder, batching, affixes="both", words=True):
    prefix, suffix = AFFIXES[affixes]
    store = write(documents(*TEXTS), folder, encode=encode_words, words=True)
    table = row_table(store, batching, BODY, len(prefix) + len(suffix), folder / "cache")
    return SegmentRows(store, table, prefix=prefix, suffix=suffix, pad_id=PAD, words=words)


def stream_by_hand():
    """All tokens, and whether each begins a word."""
    ids, starts = [], []
    for text in TEXTS:
        ids += [*map(ord, text), SEPARATOR]
        starts += [at == 0 or text[at - 1] == " " for at in range(len(text))] + [True]
    return ids, starts


def row_by_hand(segments, prefix, suffix, width):
    """Ids, segments, positions and words of a row of segments, each a (start, length)."""
    ids, starts = stream_by_hand()
    row, word = [], -1
    for number, (begin, length) in enumerate(segments, 1):
        position = 0
        for token in prefix:
            row.append((token, number, position, -1))
            position += 1
        for place in range(begin, begin + length):
            word += starts[place] or place == begin
            row.append((ids[place], number, position, word))
            position += 1
        for token in suffix:
            row.append((token, number, position, -1))
            position += 1
    assert len(row) <= width
    return row + [(PAD, 0, 0, -1)] * (width - len(row))


def segments_of(table, row):
    _, start, length = table.segments(torch.tensor([row]).numpy())
    return list(zip(start.tolist(), length.tolist(), strict=True))


@pytest.mark.parametrize("affixes", AFFIXES)
@pytest.mark.parametrize("batching", BATCHINGS)
def test_rows_are_those_built_token_by_token(tmp_path, batching, affixes):
    rows = make_rows(tmp_path, batching, affixes)
    last = len(rows) - 1
    orders = [list(range(len(rows))), [last, -1, 0, 0, -1, last // 2], [-1, last], [last]]
    for order in orders:
        made = rows.gather(torch.tensor(order))
        width = rows.table.width(torch.tensor(order).numpy())
        assert made.input_ids.shape == (len(order), width)
        got = torch.stack([made.input_ids, made.segment_ids, made.position_ids, made.words], -1)
        for place, row in enumerate(order):
            segments = segments_of(rows.table, row) if row >= 0 else []
            expected = row_by_hand(segments, *AFFIXES[affixes], width)
            assert [tuple(token) for token in got[place].tolist()] == expected
        assert not made.extras
        assert all(part.dtype == torch.int64 for part in made[:4])


@pytest.mark.parametrize("batching", BATCHINGS)
def test_rows_together_hold_every_token_of_every_document_once(tmp_path, batching):
    made = (rows := make_rows(tmp_path, batching)).gather(torch.arange(len(rows)))
    got = sorted(made.input_ids[made.words >= 0].tolist())
    ids = stream_by_hand()[0]
    assert got == sorted(ids if batching == "chunk" else (i for i in ids if i != SEPARATOR))


@pytest.mark.parametrize("batching", ["pack", "bucket"])
def test_documents_that_fit_are_whole_and_longer_ones_are_cut_in_order(tmp_path, batching):
    rows = make_rows(tmp_path, batching)
    made = rows.gather(torch.arange(len(rows)))
    texts = [
        bytes(ids[(segments == number) & (words >= 0)].tolist()).decode()
        for ids, segments, words in zip(made.input_ids, made.segment_ids, made.words, strict=True)
        for number in range(1, int(segments.max()) + 1)
    ]
    cut = [t[i : i + BODY] for t in TEXTS for i in range(0, len(t), BODY)]
    assert sorted(texts) == sorted(cut)
    assert rows.cut == sum(len(text) > BODY for text in TEXTS)


@pytest.mark.parametrize("batching", BATCHINGS)
def test_a_batch_of_fillers_is_all_padding(tmp_path, batching):
    made = make_rows(tmp_path, batching).gather(torch.tensor([-1, -1]))
    assert (made.input_ids == PAD).all() and (made.words == -1).all()
    assert not made.segment_ids.any() and not made.position_ids.any()


def test_words_are_numbered_only_where_asked(tmp_path):
    assert make_rows(tmp_path, "pack", words=False).gather(torch.tensor([0])).words is None


def test_rows_travel_as_paths(tmp_path):
    rows = make_rows(tmp_path, "pack")
    expected = rows.gather(torch.arange(len(rows)))
    parcel = pickle.dumps(rows)
    again = pickle.loads(parcel).gather(torch.arange(len(rows)))
    assert len(parcel) < 2000
    assert all(torch.equal(a, b) for a, b in zip(again[:4], expected[:4], strict=True))


@pytest.mark.parametrize("batching", BATCHINGS)
def test_rows_say_how_they_are_laid_out(tmp_path, batching):
    rows = make_rows(tmp_path, batching)
    assert rows.packed == (batching == "pack")
    assert rows.widths() == rows.table.widths() and rows.widths()[-1] == (len(rows), BODY + 2)
