"""Which stretches of the text are in which row, and the table of them on disk."""

import json
import multiprocessing
import pickle
from itertools import accumulate

import numpy as np
import pytest

from lmkit.datamodules import row_layout
from lmkit.datamodules import row_table as tables
from lmkit.datamodules.row_table import ChunkTable, RowTable, row_table
from lmkit.datamodules.stream_window import TextWindow
from lmkit.datamodules.token_store import TokenStore

from .small_store import documents, write

# Empty, a token, just a row, one more, several rows, the last one: with rows of 10 tokens.
LENGTHS = [3, 0, 1, 10, 11, 7, 35, 2, 20, 0, 5, 4, 30, 9, 12]
BODY, AFFIXES = 10, 2
SEPARATE = ("pack", "bucket")


def make_store(folder, lengths=LENGTHS):
    return write(documents(*("x" * length for length in lengths)), folder)


def pieces_by_hand(lengths, body):
    """Start and length of each piece: of each document in order, separators left out."""
    begins = accumulate((length + 1 for length in lengths), initial=0)
    return [
        (begin + cut, min(body, length - cut))
        for begin, length in zip(begins, lengths, strict=False)
        for cut in range(0, length, body)
    ]


def rows_of(table):
    """Each row as a list of (start, length)."""
    count, start, length = table.segments(np.arange(len(table)))
    flat = iter(list(zip(start.tolist(), length.tolist(), strict=True)))
    return [[next(flat) for _ in range(n)] for n in count.tolist()]


def pieces_of(table):
    return [piece for row in rows_of(table) for piece in row]


def build(folder, batching, body=BODY, affixes=AFFIXES, lengths=LENGTHS):
    store = make_store(folder, lengths)
    return row_table(store, batching, body, affixes, folder / "cache")


def tables_in(folder):
    return sorted(path.name for path in (folder / "cache" / "rows").iterdir())


@pytest.mark.parametrize("body", [1, 10, 64])
@pytest.mark.parametrize("batching", SEPARATE)
def test_every_piece_of_every_document_is_in_one_row(tmp_path, batching, body):
    table = build(tmp_path, batching, body)
    assert sorted(pieces_of(table)) == pieces_by_hand(LENGTHS, body)


@pytest.mark.parametrize("batching", SEPARATE)
def test_only_documents_longer_than_a_row_are_cut_and_they_are_counted(tmp_path, batching):
    table = build(tmp_path, batching)
    assert table.cut == sum(length > BODY for length in LENGTHS) == 5
    assert build(tmp_path / "wide", batching, body=35).cut == 0


@pytest.mark.parametrize("lengths", [[4], [25], [0, 0, 4], [4, 0]])
@pytest.mark.parametrize("batching", SEPARATE)
def test_one_document_is_enough(tmp_path, batching, lengths):
    table = build(tmp_path, batching, lengths=lengths)
    assert sorted(pieces_of(table)) == pieces_by_hand(lengths, BODY)


@pytest.mark.parametrize("batching", SEPARATE)
def test_documents_are_cut_alike_however_many_are_held_at_a_time(tmp_path, batching, monkeypatch):
    whole = rows_of(build(tmp_path / "whole", batching))
    monkeypatch.setattr(row_layout, "_BLOCK", 4)
    assert rows_of(build(tmp_path / "blocks", batching)) == whole


@pytest.mark.parametrize("batching", ["pack", "bucket", "chunk"])
def test_a_window_of_a_stream_has_the_rows_of_a_store(tmp_path, batching):
    window = TextWindow([[5] * length for length in LENGTHS], separator=3)
    table = row_table(window, batching, BODY, AFFIXES, tmp_path / "unused")
    assert not (tmp_path / "unused").exists()
    stored = build(tmp_path, batching)
    assert rows_of(table) == rows_of(stored) and table.widths() == stored.widths()
    assert (table.cut, table.packed) == (stored.cut, stored.packed)
    assert rows_of(pickle.loads(pickle.dumps(table))) == rows_of(stored)


def test_a_packed_row_holds_as_many_pieces_as_fit_with_their_special_tokens(tmp_path):
    table = build(tmp_path, "pack")
    loads = [sum(length + AFFIXES for _, length in row) for row in rows_of(table)]
    assert max(loads) <= BODY + AFFIXES and table.packed
    assert table.widths() == [(len(table), BODY + AFFIXES)]
    assert any(len(row) > 1 for row in rows_of(table))


def test_packed_rows_are_full_over_many_windows(tmp_path):
    lengths = np.random.default_rng(0).integers(1, 126, 5000, endpoint=True)
    table = build(tmp_path, "pack", 126, 2, lengths.tolist())
    assert (lengths.sum() + 2 * len(lengths)) / (128 * len(table)) >= 0.98
    assert sorted(pieces_of(table)) == pieces_by_hand(lengths.tolist(), 126)


def test_the_texts_of_a_packed_row_come_from_all_over_the_corpus(tmp_path):
    rows = rows_of(build(tmp_path, "pack", 30, 2, [6] * 4000))
    far = [max(row)[0] - min(row)[0] for row in rows if len(row) > 1]
    assert np.median(far) > 7 * 4000 / 4


def test_a_bucketed_row_is_one_piece_as_wide_as_it_needs(tmp_path):
    table = build(tmp_path, "bucket", 21, 2)
    rows = rows_of(table)
    assert all(len(row) == 1 for row in rows) and not table.packed
    by_hand = [min(-(-(row[0][1] + 2) // 8) * 8, 23) for row in rows]
    assert by_hand == sorted(by_hand)
    assert [table.width(np.array([row])) for row in range(len(rows))] == by_hand
    widths = sorted(set(by_hand))
    assert table.widths() == [(sum(w <= width for w in by_hand), width) for width in widths]


def test_a_batch_is_as_wide_as_its_widest_row(tmp_path):
    table = build(tmp_path, "bucket", 21, 2)
    narrow, wide = table.widths()[0], table.widths()[-1]
    assert table.width(np.array([0, wide[0] - 1, -1])) == wide[1]
    assert table.width(np.array([0, -1])) == narrow[1]


@pytest.mark.parametrize("batching", ["pack", "bucket", "chunk"])
def test_a_filler_has_no_segments(tmp_path, batching):
    table = build(tmp_path, batching)
    count, start, length = table.segments(np.array([-1, 1, -1, -1]))
    assert count.tolist() == [0, count[1], 0, 0] and count[1] == len(start) == len(length) > 0
    assert not table.segments(np.array([-1]))[0].any()


@pytest.mark.parametrize("body", [1, 10, 64, 500])
def test_chunks_are_the_stream_cut_in_pieces(tmp_path, body):
    store = make_store(tmp_path)
    table = row_table(store, "chunk", body, AFFIXES, tmp_path)
    assert isinstance(table, ChunkTable) and not table.packed and table.cut == 0
    pieces = pieces_of(table)
    assert [start for start, _ in pieces] == list(range(0, store.tokens, body))
    assert sum(length for _, length in pieces) == store.tokens == sum(LENGTHS) + len(LENGTHS)
    assert table.widths() == [(len(table), body + AFFIXES)]


def test_a_table_is_computed_once(tmp_path, monkeypatch):
    first = build(tmp_path, "pack")
    monkeypatch.setattr(row_layout, "pack_lengths", None)
    assert rows_of(build(tmp_path, "pack")) == rows_of(first)
    assert tables_in(tmp_path) == [first.path.name]


def test_other_settings_have_other_tables(tmp_path):
    builds = [("pack", 10, 2), ("bucket", 10, 2), ("pack", 11, 2), ("pack", 10, 1)]
    made = [build(tmp_path, *settings).path for settings in builds]
    other = write(documents("x" * 9), tmp_path / "other")
    other = TokenStore(other.path.rename(other.path.with_name("another")))
    made.append(row_table(other, "pack", 10, 2, tmp_path / "cache").path)
    assert len(set(made)) == len(made) == len(tables_in(tmp_path))


def _shorten(path, name):
    file = path / name
    file.write_bytes(file.read_bytes()[:-1])


DAMAGES = {
    "starts": lambda path: _shorten(path, "starts.bin"),
    "lengths": lambda path: _shorten(path, "lengths.bin"),
    "bounds": lambda path: _shorten(path, "bounds.bin"),
    "lost": lambda path: (path / "bounds.bin").unlink(),
    "half_meta": lambda path: _shorten(path, "meta.json"),
    "other_meta": lambda path: (path / "meta.json").write_text(json.dumps([1, 2])),
    "no_meta": lambda path: (path / "meta.json").unlink(),
    "bytes": lambda path: (path / "meta.json").write_bytes(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_table_is_made_anew(tmp_path, damage):
    before = rows_of(first := build(tmp_path, "pack"))
    DAMAGES[damage](first.path)
    with pytest.raises(FileNotFoundError, match="no whole table of rows at"):
        RowTable.open(first.path)
    again = build(tmp_path, "pack")
    assert rows_of(again) == before and again.path == first.path
    assert tables_in(tmp_path) == [first.path.name]


@pytest.mark.parametrize("batching", SEPARATE)
def test_what_fails_midway_leaves_nothing(tmp_path, batching, monkeypatch):
    monkeypatch.setattr(row_layout, "_write", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build(tmp_path, batching)
    assert tables_in(tmp_path) == []


def test_the_table_that_was_finished_first_stays(tmp_path, monkeypatch):
    """Another process may be reading it already."""
    store = make_store(tmp_path)
    write_rows, others = tables.write_rows, []

    def overtaken(*args):
        monkeypatch.setattr(tables, "write_rows", write_rows)
        others.append(row_table(store, "pack", BODY, AFFIXES, tmp_path / "cache"))
        others.append(others[0].path.stat().st_ino)
        return write_rows(*args)

    monkeypatch.setattr(tables, "write_rows", overtaken)
    table = row_table(store, "pack", BODY, AFFIXES, tmp_path / "cache")
    other, inode = others
    assert table.path == other.path and table.path.stat().st_ino == inode
    assert rows_of(table) == rows_of(other) and tables_in(tmp_path) == [table.path.name]


def _build_at(barrier, queue, store, cache):
    barrier.wait(timeout=30)
    table = row_table(store, "pack", BODY, AFFIXES, cache)
    queue.put((str(table.path), rows_of(table)))


def test_processes_that_build_at_once_get_one_table(tmp_path):
    store = make_store(tmp_path)
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(3), context.Queue()
    args = (barrier, queue, store, tmp_path / "cache")
    processes = [context.Process(target=_build_at, args=args) for _ in range(3)]
    for process in processes:
        process.start()
    built = [queue.get(timeout=30) for _ in processes]
    for process in processes:
        process.join(timeout=30)
    assert built[0] == built[1] == built[2]
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(tables_in(tmp_path)) == 1


def test_a_table_travels_as_its_path(tmp_path):
    table = build(tmp_path, "pack", lengths=[5] * 3000)
    rows = rows_of(table)
    parcel = pickle.dumps(table)
    assert len(parcel) < 1000 and rows_of(pickle.loads(parcel)) == rows


def test_an_unknown_way_to_make_rows_is_refused(tmp_path):
    with pytest.raises(ValueError, match="batching must be pack, bucket or chunk, got 'sorted'"):
        build(tmp_path, "sorted")
