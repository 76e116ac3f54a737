"""Two plain files that belong together line by line."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from lmkit.datamodules.parallel_text import (
    AlignedRecords,
    LineRecords,
    ParallelOptions,
    read_aligned,
)
from lmkit.datamodules.records import FileRecords, Record
from lmkit.datamodules.text_rows import BadRows


def write(folder: Path, name: str, *lines: str) -> Path:
    path = folder / name
    data = "".join(line + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def aligned(one: Path, other: Path, policy: Any = "error") -> tuple[list[Record], BadRows]:
    bad = BadRows(policy)
    return list(read_aligned(one, other, "utf-8", bad)), bad


def test_lines_stand_together_and_know_their_number(tmp_path: Path) -> None:
    one = write(tmp_path, "a.en.gz", "one", "", "two")
    other = write(tmp_path, "a.de", "eins", " ", "zwei")
    records, _ = aligned(one, other)
    assert [(r.values, r.line) for r in records] == [
        ({"source": "one", "target": "eins"}, 1),
        ({"source": "two", "target": "zwei"}, 3),
    ]


def test_unequal_numbers_of_lines_name_both_files_even_when_rows_are_skipped(
    tmp_path: Path,
) -> None:
    one, other = write(tmp_path, "a.en", "one", "two"), write(tmp_path, "a.de", "eins")
    with pytest.raises(ValueError, match=r"a\.en has 2 lines and .*a\.de 1:"):
        aligned(one, other, "skip")


def test_a_blank_side_names_the_file_that_is_blank(tmp_path: Path) -> None:
    one, other = write(tmp_path, "a.en", "one", "two"), write(tmp_path, "a.de", "eins", "")
    with pytest.raises(ValueError, match=r"a\.de, line 2: the line is blank, and that of .*a\.en"):
        aligned(one, other)
    records, bad = aligned(one, other, "skip")
    assert len(records) == 1 and bad.count == 1


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_line_that_cannot_be_decoded_moves_no_other(place: int, tmp_path: Path) -> None:
    lines = [b"eins", b"zwei", b"drei"]
    lines[place] = b"\xff\xfe"
    one = write(tmp_path, "a.en", "one", "two", "three")
    (tmp_path / "a.de").write_bytes(b"\n".join(lines) + b"\n")
    records, bad = aligned(one, tmp_path / "a.de", "skip")
    pairs = dict(zip(["one", "two", "three"], ["eins", "zwei", "drei"], strict=True))
    assert bad.count == 1 and len(records) == 2
    assert all(pairs[r.values["source"]] == r.values["target"] for r in records)
    with pytest.raises(ValueError, match=rf"a\.de, line {place + 1}: byte 0xff"):
        aligned(one, tmp_path / "a.de")


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    one, other = write(tmp_path, "a.en", "one"), write(tmp_path, "a.de")
    with pytest.raises(ValueError, match=r"a\.de is empty"):
        aligned(one, other)


def files(*names: str) -> tuple[Path, ...]:
    return tuple(map(Path, names))


def test_two_plain_files_are_source_and_target_in_this_order() -> None:
    found = ParallelOptions().of_files(files("x.de", "x.en"))
    assert isinstance(found, AlignedRecords) and found.files == files("x.de", "x.en")


def test_languages_tell_which_files_belong_together() -> None:
    options = ParallelOptions(source_lang="en", target_lang="de")
    found = options.of_files(files("b.de.gz", "a.de", "a.en", "b.en.gz"))
    assert isinstance(found, AlignedRecords)
    assert found.files == files("b.en.gz", "b.de.gz", "a.en", "a.de")
    # Two files of other names are taken in order.
    assert options.of_files(files("in.txt", "out.txt")).files == files("in.txt", "out.txt")


def test_a_file_without_a_partner_is_named() -> None:
    options = ParallelOptions(source_lang="en", target_lang="de")
    with pytest.raises(ValueError, match=r"b\.en has no partner that ends in \.de"):
        options.of_files(files("a.en", "a.de", "b.en"))


def test_three_plain_files_need_languages() -> None:
    with pytest.raises(ValueError, match=r"3 plain files.*pass source_lang and target_lang"):
        ParallelOptions().of_files(files("a.en", "a.de", "a.fr"))


def test_tables_and_plain_files_do_not_mix() -> None:
    with pytest.raises(ValueError, match=r"a\.en is plain text, and .*b\.csv a table"):
        ParallelOptions().of_files(files("a.en", "b.csv"))
    assert type(ParallelOptions().of_files(files("a.csv", "b.tsv.gz"))) is FileRecords


def test_a_plain_file_alone_has_sources(tmp_path: Path) -> None:
    found = ParallelOptions().of_files((write(tmp_path, "ask.txt", "a\tb", "", "c"),))
    assert isinstance(found, LineRecords)
    records = list(found.records(BadRows()))
    assert [(r.values["source"], r.line) for r in records] == [("a\tb", 1), ("c", 3)]


def test_a_content_has_a_key_of_its_own(tmp_path: Path) -> None:
    one, other = write(tmp_path, "a.en", "one"), write(tmp_path, "a.de", "eins")
    keys = {ParallelOptions().of_files(pair).key(tmp_path) for pair in ((one, other), (other, one))}
    write(tmp_path, "a.de", "zwei")
    keys.add(ParallelOptions().of_files((one, other)).key(tmp_path))
    assert len(keys) == 3
