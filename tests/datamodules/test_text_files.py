import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmkit.datamodules.text_files import read_texts
from lmkit.datamodules.text_rows import BadRows


def texts(path, **options):
    return [text.text for text in read_texts(path, **options)]


def save(tmp_path, name, content):
    path = tmp_path / name
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "one\n\n  \ntwo\r\n"),
        ("a.txt.gz", "one\ntwo"),
        ("a.log", "one\ntwo"),
        ("a.jsonl", '{"text": "one", "id": 1}\n\n{"text": "two"}\n'),
        ("a.json", '{"text": "one"}\n{"text": "two"}'),
        ("a.jsonl.gz", '{"sentence": "one"}\n{"sentence": "two"}\n'),
        ("a.csv", 'id,text\n1,one\n2,"two"\n'),
        ("a.csv.gz", "content\none\ntwo\n"),
        ("a.tsv", "text\tlabel\none\t1\ntwo\t0\n"),
        ("a.tsv.gz", "words\none\ntwo\n"),
    ],
)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_every_format_gives_its_texts(tmp_path, name, content, mark):
    assert texts(save(tmp_path, name, mark + content.encode())) == ["one", "two"]


def test_parquet_gives_its_texts(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1, 2, 3], "body": ["one", "", "two"]}), path)
    assert texts(path) == ["one", "two"]


def test_a_document_is_a_line_a_paragraph_or_a_file(tmp_path):
    path = save(tmp_path, "a.txt", "\none\ntwo\n\n\nthree\n\n")
    assert texts(path, document="line") == ["one", "two", "three"]
    assert texts(path, document="paragraph") == ["one\ntwo", "three"]
    assert texts(path, document="file") == ["one\ntwo\n\n\nthree"]


def test_a_long_document_comes_in_pieces(tmp_path):
    lines = [f"line {number} " + "x" * 1000 for number in range(3000)]
    path = save(tmp_path, "a.txt", "\n".join(lines))
    pieces = list(read_texts(path, document="file"))
    assert [piece.ends for piece in pieces] == [False, False, True]
    assert "".join(piece.text for piece in pieces) == "\n".join(lines)


def test_unbalanced_quotes_in_tsv_swallow_nothing(tmp_path):
    path = save(tmp_path, "a.tsv", 'text\tlabel\nsay "hi\t1\n"no\t0\nyes\t1\n')
    assert texts(path) == ['say "hi', '"no', "yes"]


def test_csv_fields_may_hold_lines_and_be_long(tmp_path):
    long = "x" * 200_000
    path = save(tmp_path, "a.csv", f'text,label\n"one\ntwo ""three""",1\n{long},0\n')
    assert texts(path) == ['one\ntwo "three"', long]


BROKEN = [
    ("a.txt", b"fine\nna\xefve\n", r"a\.txt, line 2: byte 0xef .* not utf-8.*encoding='latin-1'"),
    ("a.jsonl", '{"text": "a"}\n{"text": \n', r"line 2: not valid JSON"),
    ("a.jsonl", '{"text": "a"}\n["b"]\n', r"line 2: expected an object .* got list"),
    ("a.jsonl", '{"text": "a"}\n{"txt": "b"}\n', r"line 2: no key 'text' \(keys: 'txt'\)"),
    ("a.jsonl", '{"text": "a"}\n{"text": null}\n', r"line 2: .*'text' is NoneType, not a string"),
    ("a.jsonl", '{"text": "a"}\n{"text": 3}\n', r"line 2: .*'text' is int, not a string"),
    ("a.csv", "text,label\na,1\nb\n", r"line 3: 1 fields, and the header has 2"),
    ("a.csv", 'text,label\na,1\n"b"c,1\n', r"line 3: not valid csv"),
    ("a.tsv", "text\tlabel\na\t1\tx\n", r"line 2: 3 fields, and the header has 2"),
]


@pytest.mark.parametrize(("name", "content", "message"), BROKEN)
def test_a_bad_row_is_an_error_with_its_place(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message) as error:
        texts(save(tmp_path, name, content))
    assert "on_bad_row='skip'" in str(error.value)


@pytest.mark.parametrize(("name", "content", "message"), BROKEN)
def test_bad_rows_are_skipped_and_counted_when_asked(tmp_path, name, content, message, caplog):
    bad = BadRows("skip")
    good = texts(save(tmp_path, name, content), bad=bad)
    assert len(good) in (0, 1) and bad.count == 1
    bad.report()
    assert "skipped 1 bad rows; the first:" in caplog.text
    assert bad.count == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", r"a\.txt is empty"),
        ("a.txt.gz", b"plain", r"not a gzip file"),
        ("a.json", '[{"text": "a"}]', r"one JSON document.*jq"),
        ("a.json", '[\n  {"text": "a"}\n]', r"one JSON document.*jq"),
        ("a.csv", 'text,label\n"open,1\nmore,1\n', r"line 2: a quote is opened and never closed"),
        ("a.parquet", b"no parquet", r"no readable parquet"),
        ("a.csv", "a,b\n1,2\n", r"which column is the text\? .* 'a', 'b'"),
    ],
)
def test_what_cannot_be_skipped_is_an_error_in_any_case(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        texts(path, bad=BadRows("skip"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv"])
def test_an_unknown_column_names_those_there_are(tmp_path, name):
    row = {"titel": "x", "body": "y"}
    content = {
        "a.jsonl": json.dumps(row),
        "a.csv": "titel,body\nx,y",
        "a.tsv": "titel\tbody\nx\ty",
    }[name]
    with pytest.raises(ValueError, match=r"'title'; text columns: .*did you mean 'titel'\?"):
        texts(save(tmp_path, name, content), text_column="title")
    assert texts(tmp_path / name, text_column="body") == ["y"]


def test_a_missing_value_in_parquet_names_its_row(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["one", None]}), path)
    with pytest.raises(ValueError, match=r"a\.parquet, line 2: the value of 'text' is missing"):
        texts(path)
