"""Questions are read from all their layouts, and bad ones are named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from lmkit.datamodules.records import FileRecords, RecordOptions
from lmkit.datamodules.squad import Question, QuestionColumns, read_questions
from lmkit.datamodules.text_rows import BadRows

CONTEXT = "The quick fox jumps over  the lazy dog."


def question(number: int, *answers: tuple[str, int], **more: Any) -> dict[str, Any]:
    given = [{"text": text, "answer_start": start} for text, start in answers]
    return {"id": f"q{number}", "question": f"Who {number} ?", "answers": given, **more}


def nested(*questions: dict[str, Any]) -> dict[str, Any]:
    paragraph = {"context": CONTEXT, "qas": list(questions)}
    return {"version": "1.1", "data": [{"title": "fox", "paragraphs": [paragraph]}]}


def read(path: Path, labelled: bool = True, bad: BadRows | None = None) -> list[Question]:
    bad = bad or BadRows()
    source = FileRecords((path,), RecordOptions(on_bad_row=bad.policy))
    return list(read_questions(source, QuestionColumns(), labelled, bad))


def write(path: Path, content: Any, **how: Any) -> Path:
    path.write_text(json.dumps(content, **how), encoding="utf-8")
    return path


def plain(questions: list[Question]) -> list[tuple[Any, ...]]:
    return [(q.id, q.question, q.context, q.answers) for q in questions]


def test_nested_json_is_read_with_its_lines(tmp_path: Path) -> None:
    content = nested(question(1, ("fox", 10)), question(2, ("quick", 4), ("lazy dog", 30)))
    found = read(write(tmp_path / "train.json", content, indent=1))
    assert [(q.id, [(a.text, a.start) for a in q.answers or ()]) for q in found] == [
        ("q1", [("fox", 10)]),
        ("q2", [("quick", 4), ("lazy dog", 30)]),
    ]
    lines = (tmp_path / "train.json").read_text().split("\n")
    assert [json.dumps(q.id) in lines[q.line - 1] for q in found] == [True, True]


def test_unanswerable_questions_have_no_answers(tmp_path: Path) -> None:
    content = nested(
        question(1, is_impossible=True, plausible_answers=[{"text": "dog", "answer_start": 35}]),
        question(2, ("fox", 10), is_impossible=False),
        question(3, ("fox", 10), is_impossible=True),
    )
    assert [len(q.answers or ()) for q in read(write(tmp_path / "v2.json", content))] == [0, 1, 0]


def test_all_layouts_say_the_same(tmp_path: Path) -> None:
    expected = plain(read(write(tmp_path / "a.json", nested(question(1, ("fox", 10))))))
    row = {"id": "q1", "question": "Who 1 ?", "context": CONTEXT}
    lists = {**row, "answers": {"text": ["fox"], "answer_start": [10]}}
    layouts = {
        "b.jsonl": json.dumps(lists),
        "c.json": json.dumps({**row, "answers": [{"text": "fox", "answer_start": 10}]}) + "\n",
        "d.json": json.dumps([lists]),
        "e.json": json.dumps({"data": [lists]}, indent=2),
        "f.csv": 'id,question,context,answer,answer_start\nq1,Who 1 ?,"' + CONTEXT + '",fox,10\n',
        "g.tsv": f"id\tquestion\tcontext\tanswers\nq1\tWho 1 ?\t{CONTEXT}\tfox\n",
    }
    for name, text in layouts.items():
        (tmp_path / name).write_text("\ufeff" + text, encoding="utf-8")
        assert plain(read(tmp_path / name)) == expected, name
    with gzip.open(tmp_path / "h.json.gz", "wt", encoding="utf-8") as file:
        file.write((tmp_path / "a.json").read_text())
    assert plain(read(tmp_path / "h.json.gz")) == expected


@pytest.mark.parametrize(
    ("text", "start", "found"),
    [
        ("fox", 9, ("fox", 10)),
        ("fox", 14, ("fox", 10)),
        (" fox ", 10, ("fox", 10)),
        ("over the lazy", 20, ("over  the lazy", 20)),
        ("quick\nfox", 4, ("quick fox", 4)),
        ("the", 20, ("the", 26)),
    ],
)
def test_an_answer_a_few_characters_off_is_moved(
    text: str, start: int, found: tuple[str, int], tmp_path: Path
) -> None:
    (one,) = read(write(tmp_path / "a.json", nested(question(1, (text, start)))))
    assert one.answers is not None
    (answer,) = one.answers
    assert (answer.text, answer.start, answer.is_moved) == (*found, True)
    assert CONTEXT[answer.start : answer.start + len(answer.text)] == answer.text


BAD = {
    "not there": (question(1, ("cat", 10)), "'cat' is not at answer_start 10.*does not hold it"),
    "far off": (question(1, ("dog", 0)), "'dog' is not at answer_start 0.*it stands at 35"),
    "empty": (question(1, (" ", 3)), "an answer is an empty text"),
    "no number": (question(1, ("fox", "x")), "answer_start is 'x', and not a number"),  # type: ignore[arg-type]
    "no answers": ({"id": "q1", "question": "Who ?"}, "no column of answers"),
    "no question": ({"id": "q1", "answers": []}, "no column of the question"),
    "blank question": ({"id": "q1", "question": " ", "answers": []}, "and not a text"),
    "uneven": (
        {"id": "q1", "question": "Who ?", "answers": {"text": ["fox"], "answer_start": []}},
        "as many 'text' as 'answer_start'",
    ),
    "bare texts": ({"id": "q1", "question": "Who ?", "answers": ["fox"]}, "got 'fox'"),
    "a number": ({"id": "q1", "question": "Who ?", "answers": 5}, "a list of answers, got 5"),
}


@pytest.mark.parametrize(("row", "fault"), BAD.values(), ids=BAD)
def test_a_bad_question_is_named_with_its_file_or_skipped(
    row: dict[str, Any], fault: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.json", nested(row, question(2, ("fox", 10))))
    with pytest.raises(ValueError, match=rf"a\.json, line \d+: question 'q1': .*{fault}"):
        read(path)
    bad = BadRows("skip")
    assert [q.id for q in read(path, bad=bad)] == ["q2"] and bad.count == 1


def test_an_answer_without_a_place_must_stand_once_in_its_context(tmp_path: Path) -> None:
    row = {"question": "Who ?", "context": CONTEXT, "answer": "the"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    assert (read(tmp_path / "a.jsonl")[0].answers or [None])[0] == ("the", 26, False)
    (tmp_path / "b.jsonl").write_text(json.dumps({**row, "answer": "o"}) + "\n")
    with pytest.raises(ValueError, match="no answer_start and stands 3 times"):
        read(tmp_path / "b.jsonl")


@pytest.mark.parametrize("text", ['{"data": [', "[1, 2]", '{"data": 3}', "not json"])
def test_a_file_that_is_no_json_of_questions_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"a\.json.*(neither one JSON|expected a list)"):
        read(tmp_path / "a.json")


def test_an_article_without_paragraphs_is_bad(tmp_path: Path) -> None:
    document = nested(question(2, ("fox", 10)))
    document["data"].insert(0, {"title": "Moons", "paragraphs": None})
    path = write(tmp_path / "a.json", document)
    with pytest.raises(ValueError, match=r"a\.json, line \d+: the 'paragraphs' of 'Moons' are no"):
        read(path)
    bad = BadRows("skip")
    assert [q.id for q in read(path, bad=bad)] == ["q2"] and bad.count == 1


def test_answers_are_not_read_for_prediction(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", nested({"id": "x", "question": "Who ?"}, question(2)))
    assert [(q.id, q.answers) for q in read(path, labelled=False)] == [("x", None), ("q2", None)]


def test_xquad_has_the_questions_that_its_readme_counts(data_folder: Path) -> None:
    path = data_folder / "xquad-en" / "xquad.en.json"
    if not path.is_file():
        pytest.skip(f"no {path}")
    found = read(path)
    assert len(found) == 1190 and len({q.context for q in found}) == 240
    assert not any(a.is_moved for q in found for a in q.answers or ())
    assert all(q.context[a.start :].startswith(a.text) for q in found for a in q.answers or ())
