"""Texts with labels from any table: which columns, which labels, and which rows are bad."""

import json

import pytest

from lmkit.datamodules.labelled_texts import TextColumns, read_labelled_texts
from lmkit.datamodules.records import RecordOptions
from lmkit.datamodules.text_rows import BadRows


@pytest.fixture
def read(tmp_path):
    def read(
        content, name="a.csv", labelled=True, bad=None, encoding="utf-8", names=None, **columns
    ):
        path = tmp_path / name
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        path.write_text(content, encoding=encoding)
        options = RecordOptions(encoding, column_names=names)
        source = options.of_files((path,))
        return read_labelled_texts(source, TextColumns(**columns), labelled, bad or BadRows())

    return read


def short(examples):
    return [(e.text, e.pair, e.labels if e.value is None else e.value) for e in examples]


@pytest.mark.parametrize(
    ("header", "row", "expected"),
    [
        ("text,label", "a b,x", ("a b", None, ("x",))),
        ("label,text", "x,a b", ("a b", None, ("x",))),
        ("id,Sentence,Label", "1,a b,x", ("a b", None, ("x",))),
        ("product,review,score", "B0,a b,great", ("a b", None, ("great",))),
        ("sentence1,sentence2,label", "a,b,1", ("a", "b", ("1",))),
        ("index,premise,hypothesis,gold_label", "0,a,b,c", ("a", "b", ("c",))),
        ("question1,question2,label", "a,b,1", ("a", "b", ("1",))),
        ("question,sentence,label", "a,b,1", ("a", "b", ("1",))),
        ("passage,question,label", "a,b,1", ("b", "a", ("1",))),
        ("sentence_A,sentence_B,entailment_label", "a,b,x", ("a", "b", ("x",))),
        ("text,text_pair,label", "a,b,x", ("a", "b", ("x",))),
        ("label,whatever", "x,a b", ("a b", None, ("x",))),
    ],
)
def test_columns_with_usual_names_are_found(read, header, row, expected):
    assert short(read(f"{header}\n{row}\n")) == [expected]


def test_columns_are_those_that_are_named(read):
    table = "a,b,c\none,two,three\n"
    assert short(read(table, text="b", label="c")) == [("two", None, ("three",))]
    assert short(read(table, text="a", pair="c", label="b")) == [("one", "three", ("two",))]
    # A column that usually is a label can be the text.
    assert short(read("text,label\nx,a b\n", text="label", label="text")) == [("a b", None, ("x",))]


@pytest.mark.parametrize(
    ("table", "columns", "message"),
    [
        (
            "a,b,label\n1,2,x\n",
            {},
            r"a\.csv: which column is the text\? There are 'a', 'b', 'label'",
        ),
        ("text,y\na,x\n", {}, r"a\.csv: which column is the label\? There are 'text', 'y'"),
        ("text,y\na,x\n", {"label": "yy"}, r"no column 'yy' \(label_column\).*did you mean 'y'"),
        ("text,label\na,x\n", {"text": "txt"}, r"no column 'txt' \(text_column\)"),
        ("text,label\na,x\n", {"pair": "b"}, r"no column 'b' \(text_pair_column\)"),
        (
            "good film,1\nbad film,0\n",
            {},
            r"which column is the label\?.*if the file has no header",
        ),
    ],
)
def test_columns_that_are_not_obvious_are_asked_for(read, table, columns, message):
    with pytest.raises(ValueError, match=message):
        read(table, **columns)


def test_names_of_columns_stand_for_a_header(read):
    found = read("1,good film\n0,bad film\n", names=("label", "text"))
    assert short(found) == [("good film", None, ("1",)), ("bad film", None, ("0",))]


def test_a_text_column_that_is_guessed_by_elimination_is_told(read, caplog):
    with caplog.at_level("WARNING", logger="lmkit"):
        found = read("Arrived broken.\nVery good.\n", "a.csv", labelled=False)
    assert [example.text for example in found] == ["Very good."]
    assert "the column 'Arrived broken.' is taken for the text" in caplog.text


def test_each_file_has_columns_of_its_own(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\na,x\n")
    (tmp_path / "b.tsv").write_text("class\tsentence\nx\tb\n")
    source = RecordOptions().of_files((tmp_path / "a.csv", tmp_path / "b.tsv"))
    found = read_labelled_texts(source, TextColumns(), True, BadRows())
    assert short(found) == [("a", None, ("x",)), ("b", None, ("x",))]
    assert [(e.file, e.line) for e in found] == [
        (str(tmp_path / "a.csv"), 2),
        (str(tmp_path / "b.tsv"), 2),
    ]


def test_one_label_in_different_types_is_one_label(read):
    values = [1, 1.0, "1", " 1 "]
    found = read([{"text": "a", "label": value} for value in values], "a.jsonl")
    assert {e.labels for e in found} == {("1",)}
    found = read([{"text": "a", "label": value} for value in (True, "true", False)], "b.jsonl")
    assert [e.labels for e in found] == [("true",), ("true",), ("false",)]
    (half,) = read([{"text": "a", "label": 0.5}], "c.jsonl")
    assert half.labels == ("0.5",)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "", "label": "x"}, "the text 'text' is empty"),
        ({"text": " \n", "label": "x"}, "the text 'text' is empty"),
        ({"text": None, "label": "x"}, "the text 'text' is missing"),
        ({"label": "x"}, "the text 'text' is missing"),
        ({"text": 3, "label": "x"}, "the text 'text' is no text but 3"),
        ({"text": "a", "label": ""}, "the label 'label' is missing"),
        ({"text": "a", "label": None}, "the label 'label' is missing"),
        ({"text": "a"}, "the label 'label' is missing"),
        ({"text": "a", "label": float("nan")}, "the label 'label' is missing"),
        ({"text": "a", "label": ["x", "y"]}, "must be one name or number, .* task='multi_label'"),
        ({"text": "a", "label": {"x": 1}}, "must be one name or number"),
    ],
)
def test_a_bad_row_names_file_and_line_or_is_skipped(read, row, message):
    rows = [{"text": "a", "label": "x"}, row]
    with pytest.raises(ValueError, match=rf"a\.jsonl, line 2: .*{message}.*on_bad_row='skip'"):
        read(rows, "a.jsonl")
    bad = BadRows("skip")
    assert len(read(rows, "a.jsonl", bad=bad)) == bad.count == 1


def test_a_pair_needs_both_texts(read):
    with pytest.raises(ValueError, match=r"line 2: the text 'sentence2' is empty"):
        read("sentence1,sentence2,label\na,,x\n")


MULTI = {"multi_label": True}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["a", "b"], ("a", "b")),
        (["a", "a"], ("a",)),
        ([1, 1.0, "2"], ("1", "2")),
        ([], ()),
        ("a, b", ("a", "b")),
        ("", ()),
        ("a,,b,", ("a", "b")),
    ],
)
def test_several_labels_come_in_a_list_or_between_separators(read, value, expected):
    (found,) = read([{"text": "t", "labels": value}], "a.jsonl", **MULTI)
    assert found.labels == expected


def test_the_separator_can_be_another_one(read):
    (found,) = read("text\tlabels\nt\ta|b, c\n", "a.tsv", separator="|", **MULTI)
    assert found.labels == ("a", "b, c")


@pytest.mark.parametrize("value", [None, 3, {"a": 1}])
def test_labels_that_are_no_list_are_bad(read, value):
    with pytest.raises(ValueError, match=r"line 1: the labels 'labels' must be a list"):
        read([{"text": "t", "labels": value}], "a.jsonl", **MULTI)


def test_several_labels_come_from_columns_of_0_and_1(read):
    table = "id,text,toxic,threat\n1,a,1,0\n2,b,0,0\n3,c,True,yes\n4,d,,1.0\n"
    found = read(table, label=("toxic", "threat"), **MULTI)
    assert [e.labels for e in found] == [("toxic",), (), ("toxic", "threat"), ("threat",)]
    rows = [{"text": "a", "x": True, "y": 0.0}, {"text": "b", "x": 0, "y": 1}]
    found = read(rows, "a.jsonl", label=("x", "y"), **MULTI)
    assert [e.labels for e in found] == [("x",), ("y",)]


def test_a_column_of_0_and_1_with_anything_else_is_bad(read):
    with pytest.raises(ValueError, match=r"line 3: the label column 'x' must hold 0 or 1, got '2'"):
        read("text,x,y\na,1,0\nb,2,0\n", label=("x", "y"), **MULTI)
    with pytest.raises(ValueError, match=r"no column 'z' \(label_column\)"):
        read("text,x,y\na,1,0\n", label=("x", "z"), **MULTI)


def test_a_regression_reads_numbers(read):
    table = "sentence1,sentence2,score\na,b,4.5\nc,d,-1\ne,f,1e-2\n"
    assert [e.value for e in read(table, regression=True)] == [4.5, -1.0, 0.01]
    table = "sentence_A,sentence_B,entailment_label,relatedness_score\na,b,NEUTRAL,3\n"
    assert short(read(table, regression=True)) == [("a", "b", 3.0)]
    assert short(read(table)) == [("a", "b", ("NEUTRAL",))]


@pytest.mark.parametrize("value", ["good", "", "nan", "inf", "4,5", None, True, [1.0]])
def test_a_regression_refuses_what_is_no_number(read, value):
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": value}]
    with pytest.raises(ValueError, match=r"line 2: the label of a regression must be a number"):
        read(rows, "a.jsonl", regression=True)
    bad = BadRows("skip")
    assert len(read(rows, "a.jsonl", regression=True, bad=bad)) == bad.count == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("ask.txt", "one text, with a comma\n\n0 good\n"),
        ("ask", "one text, with a comma\n\n0 good\n"),
        ("ask.txt", "\ufeffone text, with a comma\n0 good\n"),
        ("ask.csv", 'text\n"one text, with a comma"\n0 good\n'),
        ("ask.tsv", "id\ttext\n1\tone text, with a comma\n2\t0 good\n"),
        ("ask.txt", "id\ttext\n1\tone text, with a comma\n2\t0 good\n"),
        ("ask.jsonl", '{"text": "one text, with a comma"}\n{"text": "0 good", "label": 7}\n'),
    ],
)
def test_texts_to_predict_on_need_no_label(read, name, content):
    found = read(content, name, labelled=False)
    assert short(found) == [("one text, with a comma", None, None), ("0 good", None, None)]


def test_labels_of_rows_to_predict_on_are_not_looked_at(read):
    table = "text,label\na,\nb,nonsense\n"
    assert short(read(table, labelled=False)) == [("a", None, None), ("b", None, None)]
    assert len(read(table, labelled=False, regression=True)) == 2


def test_a_text_that_cannot_be_decoded_is_counted_once(tmp_path):
    (tmp_path / "ask.txt").write_bytes(b"na\xefve\ngood\n")
    source = RecordOptions().of_files((tmp_path / "ask.txt",))
    bad = BadRows("skip")
    assert len(read_labelled_texts(source, TextColumns(), False, bad)) == 1
    assert bad.count == 1


def test_a_column_of_labels_is_not_the_text_of_rows_without_labels(read):
    assert short(read("intent,words\nx,a b\n", labelled=False)) == [("a b", None, None)]
    table = "mood,words\nx,a b\n"
    assert short(read(table, labelled=False, label="mood")) == [("a b", None, None)]
    assert short(read(table, labelled=False, label=("mood", "y"), multi_label=True)) == [
        ("a b", None, None)
    ]
    with pytest.raises(ValueError, match="which column is the text"):
        read(table, labelled=False)
    assert short(read("label\na b\n", labelled=False)) == [("a b", None, None)]


def test_a_line_of_a_text_file_is_the_text_whatever_its_column_is_called(read):
    lines = "a b\n\nc d\n"
    assert short(read(lines, "a.txt", labelled=False, text="question")) == [
        ("a b", None, None),
        ("c d", None, None),
    ]
    with pytest.raises(ValueError, match="text_pair_column"):
        read(lines, "a.txt", labelled=False, text="question", pair="answer")
