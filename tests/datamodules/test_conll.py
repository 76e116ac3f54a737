"""Columns of tagged words, as they come."""

import gzip
import logging
import os
from pathlib import Path

import pytest

from lmkit.datamodules.conll import read_conll
from lmkit.datamodules.text_rows import BadRows
from lmkit.functional.tagging import find_spans

DATA = Path(os.environ.get("LMKIT_DATA", Path(__file__).parents[3] / "shared" / "data"))


def read(path: Path, text: str | bytes, **how):
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return [(sentence.words, sentence.tags) for sentence in read_conll(path, **how)]


def test_the_first_column_is_the_word_and_the_last_the_tag(tmp_path):
    text = "EU NNP I-NP B-ORG\nrejects VBZ I-VP O\n\nPeter NNP I-NP B-PER\n\n"
    expected = [(["EU", "rejects"], ["B-ORG", "O"]), (["Peter"], ["B-PER"])]
    assert read(tmp_path / "a.txt", text) == expected
    tags = [tags for _, tags in read(tmp_path / "a.txt", text, tag_column=1)]
    assert tags == [["NNP", "VBZ"], ["NNP"]]
    words = [words for words, _ in read(tmp_path / "a.txt", text, word_column=-2)]
    assert words == [["I-NP", "I-VP"], ["I-NP"]]


def test_document_starts_are_no_words_whatever_their_columns(tmp_path):
    text = "-DOCSTART- -X- O O\n\nEU O\n\n-DOCSTART- O\n\n-DOCSTART-\nPeter B-PER\n"
    assert read(tmp_path / "a.conll", text) == [(["EU"], ["O"]), (["Peter"], ["B-PER"])]


def test_the_last_sentence_needs_no_blank_line_and_more_make_no_sentence(tmp_path):
    text = "\n\na O\n\n \n\t\nb O\nc O"
    assert [words for words, _ in read(tmp_path / "a.conll", text)] == [["a"], ["b", "c"]]


def test_marks_line_ends_encodings_and_gzip_make_no_difference(tmp_path):
    expected = [(["Zoë", "x"], ["B-PER", "O"])]
    text = "Zoë\tB-PER\r\nx\tO\r\n\r\n"
    assert read(tmp_path / "a.conll", b"\xef\xbb\xbf" + text.encode()) == expected
    assert read(tmp_path / "b.conll", text.encode("latin-1"), encoding="latin-1") == expected
    assert read(tmp_path / "c.conll.gz", gzip.compress(text.encode())) == expected
    with pytest.raises(ValueError, match=r"d\.conll, line 1: byte 0xeb .* encoding='latin-1'"):
        read(tmp_path / "d.conll", text.encode("latin-1"))


def test_hashes_quotes_and_odd_spaces_are_words(tmp_path):
    text = '# O\n#tag B-x\n" O\n\xa0 O\na\xa0b O\n'
    assert read(tmp_path / "a.conll", text)[0][0] == ["#", "#tag", '"', "\xa0", "a\xa0b"]
    text = '#\tO\n\xa0\tO\nNew York\tB-LOC\n"\tO\n'
    assert read(tmp_path / "b.conll", text)[0][0] == ["#", "\xa0", "New York", '"']


CONLLU = """# newdoc id = a
# sent_id = a-1
# text = don't go
1-2\tdon't\t_\t_\t_\t_\t_\t_\t_\t_
1\tdo\tdo\tAUX\tVB\t_\t3\taux\t_\t_
2\tn't\tnot\tPART\tRB\t_\t3\tadvmod\t_\t_
3\tgo\tgo\tVERB\tVB\t_\t0\troot\t_\t_
3.1\tgo\tgo\tVERB\tVB\t_\t_\t_\t_\t_

# sent_id = a-2
1\t#\t#\tSYM\tNN\t_\t0\troot\t_\t_
"""


@pytest.mark.parametrize("name", ["a.conllu", "a.txt"])
def test_conllu_has_words_and_neither_tokens_of_several_nor_empty_nodes(name, tmp_path):
    expected = [(["do", "n't", "go"], ["AUX", "PART", "VERB"]), (["#"], ["SYM"])]
    assert read(tmp_path / name, CONLLU) == expected
    assert read(tmp_path / name, CONLLU, tag_column="xpos")[1][1] == ["NN"]
    assert read(tmp_path / name, CONLLU, word_column="LEMMA", tag_column=7)[0] == (
        ["do", "not", "go"],
        ["aux", "advmod", "root"],
    )


def test_each_word_knows_its_line(tmp_path):
    path = tmp_path / "a.conllu"
    path.write_text(CONLLU)
    assert [sentence.lines for sentence in read_conll(path)] == [[5, 6, 7], [11]]


def test_without_labels_a_line_may_be_a_word_alone(tmp_path):
    assert read(tmp_path / "a.conll", "a\nb\n\nc\n", labelled=False) == [
        (["a", "b"], []),
        (["c"], []),
    ]
    words = read(tmp_path / "b.conllu", CONLLU, labelled=False)
    assert words == [(["do", "n't", "go"], []), (["#"], [])]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a O\nb\n", r"line 2: expected a word and its tag in columns, got one column, 'b'\. Put"),
        ("a\nb O\n", r"line 1: expected a word and its tag in columns, got one column, 'a'"),
        ("a\tO\nb O\n", r"line 2: .*got one column, 'b O'\. Put a tab between"),
        ("a X O\nb O\n", r"line 2: 2 columns, and there are 3 in the lines before"),
        ("a\tO\n\tO\n", r"line 2: the word is empty"),
        ("", r"a\.conll is empty"),
        ("\n\n", r"a\.conll holds no sentence"),
        ("-DOCSTART- O\n", r"a\.conll holds no sentence"),
    ],
)
def test_a_fault_names_file_and_line(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "a.conll", text)


def test_faults_of_conllu_name_the_line(tmp_path):
    with pytest.raises(ValueError, match=r"line 7: the word 'go' has no tag"):
        read(tmp_path / "a.conllu", CONLLU.replace("\tgo\tVERB", "\tgo\t_", 1))
    with pytest.raises(ValueError, match=r"line 6: expected the number of the word .* got 'x'"):
        read(tmp_path / "a.conllu", CONLLU.replace("2\tn't", "x\tn't"))
    with pytest.raises(ValueError, match=r"line 7: 9 columns, and there are 10"):
        read(tmp_path / "a.conllu", CONLLU.replace("root\t_\t_", "root\t_", 1))


def test_a_column_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"line 1: there is no column 4 \(tag_column\), but 2"):
        read(tmp_path / "a.conll", "a O\n", tag_column=4)
    with pytest.raises(ValueError, match=r"word_column must be a number from 0, got 'FORM'"):
        read(tmp_path / "a.conll", "a O\n", word_column="FORM")
    with pytest.raises(ValueError, match=r"tag_column must be one of ID, FORM, .* got 'POS'"):
        read(tmp_path / "a.conllu", CONLLU, tag_column="POS")


def test_a_bad_line_takes_its_sentence_along_when_skipped(tmp_path, caplog):
    bad = BadRows("skip")
    text = "a\nb O\n\nc O\nd\ne O\n\nf O\n"
    with caplog.at_level(logging.WARNING):
        assert read(tmp_path / "a.conll", text, bad=bad) == [(["f"], ["O"])]
        bad.report()
    assert "skipped 2 bad rows" in caplog.text


needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"there are no data sets at {DATA}")


@needs_data
@pytest.mark.parametrize(
    ("name", "sentences", "words", "entities"),
    [
        ("wnut17train.conll", 3394, 62730, 1975),
        ("emerging.dev.conll", 1009, 15733, 836),
        ("emerging.test.annotated", 1287, 23394, 1079),
    ],
)
def test_wnut17_has_the_counts_that_were_published(name, sentences, words, entities):
    found = list(read_conll(DATA / "wnut17" / name))
    assert len(found) == sentences
    assert sum(len(sentence.words) for sentence in found) == words
    assert sum(len(find_spans(sentence.tags)) for sentence in found) == entities


@needs_data
@pytest.mark.parametrize(
    ("split", "sentences", "words"),
    [("train", 12544, 204577), ("dev", 2001, 25147), ("test", 2077, 25094)],
)
def test_english_ewt_has_the_counts_that_were_published(split, sentences, words):
    found = list(read_conll(DATA / "ud-english-ewt" / f"en_ewt-ud-{split}.conllu.gz"))
    assert len(found) == sentences
    assert sum(len(sentence.words) for sentence in found) == words
    assert len({tag for sentence in found for tag in sentence.tags}) == 17
