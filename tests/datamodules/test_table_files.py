"""Tables row by row, and the traps of real files."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmkit.datamodules.table_files import file_format, read_records
from lmkit.datamodules.text_rows import BadRows

ROWS = [{"text": 'a "b', "label": "x"}, {"text": "naïve, or not", "label": "1"}]


def rows(path, **how):
    return [(record.line, record.values) for record in read_records(Path(path), **how)]


def values(path, **how):
    return [found for _, found in rows(path, **how)]


@pytest.fixture
def write(tmp_path):
    def write(name, content, encoding="utf-8"):
        raw = content if isinstance(content, bytes) else content.encode(encoding)
        path = tmp_path / name
        path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
        return path

    return write


CSV = 'text,label\n"a ""b",x\n"naïve, or not",1\n'
TSV = 'text\tlabel\na "b\tx\nnaïve, or not\t1\n'
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", CSV),
        ("a.tsv", TSV),
        ("a.jsonl", JSONL),
        ("a.ndjson", JSONL),
        ("a.txt", TSV),
        ("train.all", TSV),
    ],
)
@pytest.mark.parametrize("gz", ["", ".gz"])
def test_every_format_gives_the_same_rows(write, name, content, gz):
    assert values(write(name + gz, content)) == ROWS


def test_parquet_gives_the_same_rows_with_their_numbers(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert rows(tmp_path / "a.parquet") == [(1, ROWS[0]), (2, ROWS[1])]


def test_names_with_other_endings_have_no_format():
    assert file_format(Path("train.all")) is None and file_format(Path("plain")) is None
    assert file_format(Path("A.TSV.GZ")) == "tsv" and file_format(Path("x.gz")) is None


@pytest.mark.parametrize("content", [CSV, TSV, JSONL])
def test_a_byte_order_mark_and_windows_line_ends_are_taken_off(write, content):
    name = {CSV: "a.csv", TSV: "a.tsv", JSONL: "a.jsonl"}[content]
    path = write(name, "\ufeff" + content.replace("\n", "\r\n"))
    assert values(path) == ROWS


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "cp1252"])
def test_other_encodings_are_read(write, encoding):
    assert values(write("a.tsv", TSV, encoding), encoding=encoding) == ROWS


def test_latin_1_read_as_utf_8_names_line_and_remedy(write):
    with pytest.raises(ValueError, match=r"a\.tsv, line 3: .*0xef.*encoding='latin-1'"):
        rows(write("a.tsv", TSV, "latin-1"))
    bad = BadRows("skip")
    assert values(write("b.tsv", TSV, "latin-1"), bad=bad) == ROWS[:1] and bad.count == 1


def test_an_unbalanced_quote_in_tsv_swallows_nothing(write):
    text = 'text\tlabel\n"open\tx\n5\' 6" tall\ty\n"\tz\n'
    assert [row["text"] for row in values(write("a.tsv", text))] == ['"open', "5' 6\" tall", '"']


def test_an_unbalanced_quote_in_csv_names_the_line_where_it_opens(write):
    path = write("a.csv", 'text,label\nfine,x\n"open,x\nlost,y\nlost,z\n')
    for policy in ("error", "skip"):
        with pytest.raises(ValueError, match=r"a\.csv, line 3: a quote is opened and never closed"):
            rows(path, bad=BadRows(policy))


def test_a_field_of_csv_may_have_lines_of_its_own(write):
    path = write("a.csv", 'text,label\n"one\ntwo",x\n\nthree,y\n')
    found = rows(path)
    assert found == [
        (2, {"text": "one\ntwo", "label": "x"}),
        (5, {"text": "three", "label": "y"}),
    ]


def test_a_very_long_field_of_csv_is_read(write):
    assert len(values(write("a.csv", f"text,label\n{'a' * 200_000},x\n"))[0]["text"]) == 200_000


@pytest.mark.parametrize(
    ("name", "line"),
    [("a.csv", "only one"), ("a.tsv", "one\ttwo\tthree"), ("b.csv", '"a"b,x')],
)
def test_a_row_with_other_fields_is_bad(write, name, line):
    separator = "," if name.endswith("csv") else "\t"
    path = write(name, f"text{separator}label\n{line}\ngood{separator}x\n")
    with pytest.raises(ValueError, match=rf"{name}, line 2: .*on_bad_row='skip'"):
        rows(path)
    bad = BadRows("skip")
    assert rows(path, bad=bad) == [(3, {"text": "good", "label": "x"})] and bad.count == 1


def test_a_header_with_a_name_twice_is_refused(write):
    with pytest.raises(ValueError, match=r"a\.csv, line 1: the header has 'text' twice"):
        rows(write("a.csv", "text,label,text\na,b,c\n"))


def test_column_names_with_a_name_twice_are_refused(write):
    with pytest.raises(ValueError, match=r"column_names .*'text' twice"):
        rows(write("a.csv", "a,b\n"), column_names=["text", "text"])


def test_column_names_stand_for_a_header(write):
    path = write("a.csv", "good,1\nbad,0\n")
    assert values(path, column_names=["text", "label"])[0] == {"text": "good", "label": "1"}
    with pytest.raises(ValueError, match=r"line 1: 2 fields, and column_names have 3"):
        rows(path, column_names=["a", "b", "c"])


def test_spaces_around_names_of_the_header_are_taken_off(write):
    assert values(write("a.csv", "text , label\na,b\n")) == [{"text": "a", "label": "b"}]


def test_a_line_of_label_and_text_is_a_row(write):
    path = write("train.all", '0 How far ?\n\n__label__HUM:ind Who, "he" ?\n')
    assert rows(path) == [
        (1, {"label": "0", "text": "How far ?"}),
        (3, {"label": "HUM:ind", "text": 'Who, "he" ?'}),
    ]
    with pytest.raises(ValueError, match=r"line 2: expected a label, a space and the text"):
        rows(write("b.txt", "0 fine\nword\n"))


@pytest.mark.parametrize("content", ['[\n{"text": "a"}\n]', '[{"text": "a"}]', '{\n"text": "a"\n}'])
def test_one_json_document_is_refused_with_a_remedy(write, content):
    with pytest.raises(ValueError, match=r"line 1: this is one JSON document.*jq"):
        rows(write("a.json", content), bad=BadRows("skip"))


@pytest.mark.parametrize("line", ["{'text': 1}", "3", '"a"', "[1]", "null"])
def test_a_line_that_is_no_object_is_bad(write, line):
    path = write("a.jsonl", f'{line}\n{{"text": "a"}}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 1: "):
        rows(path)
    assert rows(path, bad=BadRows("skip")) == [(2, {"text": "a"})]


def test_a_line_that_is_cut_short_behind_others_is_a_bad_line_and_no_document(write):
    path = write("a.jsonl", '{"text": "a"}\n{\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: not valid JSON"):
        rows(path)
    assert rows(path, bad=BadRows("skip")) == [(1, {"text": "a"})]


def test_utf_16_read_as_utf_8_is_told(write):
    path = write("a.csv", CSV.encode("utf-16"))
    with pytest.raises(ValueError, match=r"line 1: .*perhaps encoding='utf-16'"):
        rows(path)


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("a.csv", b"", r"a\.csv is empty"),
        ("a.parquet", b"PAR1 not", "no readable parquet file"),
        ("a.csv.gz", None, "cut short or damaged"),
    ],
)
def test_broken_files_are_refused_by_name(tmp_path, name, raw, message):
    path = tmp_path / name
    path.write_bytes(gzip.compress(CSV.encode() * 99)[:-30] if raw is None else raw)
    with pytest.raises(ValueError, match=message):
        rows(path)


def test_a_cut_parquet_file_is_refused_by_name(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [str(n) * 50 for n in range(2000)]}), path)
    raw = bytearray(path.read_bytes())
    raw[50:3000] = b"\xff" * 2950
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="no readable parquet file"):
        rows(path)


def test_a_file_of_a_header_alone_has_no_rows(write):
    assert rows(write("a.csv", "text,label\n")) == []
