"""Questions on texts, as SQuAD has them: nested JSON of 1.1 and 2.0, or one question a row."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .records import DatasetRecords, RecordSource, choose_column
from .table_files import Record, read_records
from .text_lines import numbered_lines
from .text_rows import BadRows

__all__ = ["Answer", "Question", "QuestionColumns", "read_questions"]

# How far, in characters, an answer may stand from where it is said to stand.
_NEAR = 10

_REMEDY = "Correct the row"


class Answer(NamedTuple):
    """A right answer.

    Attributes:
        text: as it stands in the context.
        start: its first character there.
        is_moved: whether it was found near where it was said to be, and not there.
    """

    text: str
    start: int
    is_moved: bool = False


class Question(NamedTuple):
    """A question on a text.

    Attributes:
        id: as the file has it, or the line.
        question: its text.
        context: where the answer is to be found.
        answers: the right ones; an empty tuple where the context does not hold one, `None` where
            they are not known.
        file: where it stands.
        line: its line there.
    """

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...] | None
    file: str
    line: int


class QuestionColumns(NamedTuple):
    """Names of the columns of rows, where the user gives them."""

    question: str | None = None
    context: str | None = None
    answers: str | None = None


def read_questions(
    source: RecordSource, columns: QuestionColumns, labelled: bool, bad: BadRows
) -> Iterator[Question]:
    """Yield the questions of a source.

    Nested is `{"data": [{"paragraphs": [{"context", "qas": [{"id", "question", "answers",
    "is_impossible"}]}]}]}`. A row has `id`, `question`, `context` and `answers`, which are
    `{"text": [...], "answer_start": [...]}`, a list of `{"text", "answer_start"}`, or a text
    beside a column `answer_start`. No answers, or `is_impossible`, make a question that its context
    does not answer.

    Args:
        source: files (JSON, JSON lines, csv, tsv, parquet; also `.gz`) or a data set.
        columns: of rows.
        labelled: whether the answers are read; without it they are `None`.
        bad: told of each question that is none, or whose answer is not in its context.

    Raises:
        ValueError: a file is not JSON; names file, line and remedy.
    """
    if isinstance(source, DatasetRecords):
        records = source.records(bad)
        yield from _of_records(records, columns, labelled, bad)
        return
    for path in source.files:
        endings = [suffix.lower() for suffix in path.suffixes]
        if ".json" in endings[-2:] and path.stat().st_size:
            records = _whole_file(path, source.options.encoding, bad)
        else:
            records = read_records(
                path,
                encoding=source.options.encoding,
                column_names=source.options.column_names,
                bad=bad,
            )
        yield from _of_records(records, columns, labelled, bad)


def _whole_file(path: Path, encoding: str, bad: BadRows) -> Iterator[Record]:
    """Yield the rows of one JSON document; of nested ones a row for each question."""
    text = "\n".join(line for _, line in numbered_lines(path, encoding, bad))
    try:
        document = json.loads(text)
    except ValueError as error:
        first = text.lstrip().partition("\n")[0]
        if first.startswith("{") and _is_json(first):
            yield from read_records(path, encoding=encoding, bad=bad)
            return
        line = getattr(error, "lineno", 1)
        raise ValueError(
            f"{path}, line {line}: neither one JSON document nor one object per line ({error}). "
            "Correct the file or fetch it again"
        ) from error
    rows = document.get("data", [document]) if isinstance(document, dict) else document
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(
            f"{path}: expected a list of articles or questions under 'data', got "
            f"{type(rows).__name__}"
        )
    lines = _Lines(text)
    for row in rows:
        for values in _questions_of(row, path, lines, bad):
            yield Record(values, str(path), lines.of(values.get("id")))


def _questions_of(
    article: dict[str, Any], path: Path, lines: _Lines, bad: BadRows
) -> Iterator[dict[str, Any]]:
    if "paragraphs" not in article:
        yield article
        return
    paragraphs = article["paragraphs"]
    if not isinstance(paragraphs, list):
        fault = f"the 'paragraphs' of {article.get('title')!r} are no list"
        bad(path, lines.line, fault, "Correct it")
        return
    for number, paragraph in enumerate(paragraphs, 1):
        context = paragraph.get("context") if isinstance(paragraph, dict) else None
        questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
        if not isinstance(context, str) or not isinstance(questions, list):
            fault = (
                f"paragraph {number} of {article.get('title')!r} has no 'context' with a list 'qas'"
            )
            bad(path, lines.line, fault, "Correct it")
            continue
        for question in questions:
            yield {**question, "context": context} if isinstance(question, dict) else {}


class _Lines:
    """Finds the lines of ids, in the order in which they stand in a text."""

    def __init__(self, text: str) -> None:
        self.text, self.place, self.line = text, 0, 1

    def of(self, name: Any) -> int:
        """Return the line of an id behind the last one; the last line where it is not found."""
        place = self.text.find(json.dumps(name), self.place) if name is not None else -1
        if place >= 0:
            self.line += self.text.count("\n", self.place, place)
            self.place = place
        return self.line


def _of_records(
    records: Iterator[Record], columns: QuestionColumns, labelled: bool, bad: BadRows
) -> Iterator[Question]:
    for record in records:
        names, place = list(record.values), f"{record.file}, line {record.line}"
        wanted = (
            (columns.question, ("question", "query"), "question_column"),
            (columns.context, ("context", "passage", "paragraph", "document"), "context_column"),
            (columns.answers, ("answers", "answer"), "answers_column"),
        )
        asked, context, answers = (
            choose_column(names, name, usual, argument, place)
            if labelled or argument != "answers_column"
            else None
            for name, usual, argument in wanted
        )
        key = str(record.values.get("id") or record.line)
        try:
            texts = [_text(record.values, name, i) for i, name in enumerate((asked, context))]
            values = record.values.get(answers) if answers else None
            if record.values.get("is_impossible") in (True, "True", "true", 1):
                values = None
            elif labelled and answers is None and "is_impossible" not in record.values:
                raise ValueError(f"no column of answers (columns: {_listed(names)})")
            found = tuple(_answers(values, record.values, texts[1])) if labelled else None
        except ValueError as error:
            bad(record.file, record.line, f"question {key!r}: {error}", _REMEDY)
            continue
        yield Question(key, texts[0], texts[1], found, record.file, record.line)


def _text(values: Mapping[str, Any], column: str | None, which: int) -> str:
    what = ("question", "context")[which]
    if column is None:
        raise ValueError(f"no column of the {what} (columns: {_listed(list(values))})")
    value = values[column]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"the {what} {column!r} is {value!r}, and not a text")
    return value


def _answers(given: Any, row: Mapping[str, Any], context: str) -> Iterator[Answer]:
    if isinstance(given, str) and given.strip()[:1] in ("{", "[") and _is_json(given):
        given = json.loads(given)
    if isinstance(given, str):
        given = [{"text": given, "answer_start": row.get("answer_start")}] if given.strip() else []
    if isinstance(given, Mapping):
        texts, starts = given.get("text"), given.get("answer_start")
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            raise ValueError(
                "expected answers of as many 'text' as 'answer_start', in lists, got "
                f"{json.dumps(given, default=str)[:80]}"
            )
        given = [{"text": t, "answer_start": s} for t, s in zip(texts, starts, strict=True)]
    if given is not None and not isinstance(given, list | tuple):
        raise ValueError(f"expected a list of answers, got {given!r}")
    for answer in given or ():
        if not isinstance(answer, Mapping) or not isinstance(answer.get("text"), str):
            raise ValueError(f"expected an answer with a 'text', got {answer!r}")
        yield _located(answer["text"], answer.get("answer_start"), context)


def _located(text: str, start: Any, context: str) -> Answer:
    """Find an answer at its place, or within a few characters of it, white space apart."""
    words = r"\s+".join(map(re.escape, text.split()))
    if not words:
        raise ValueError("an answer is an empty text; leave it out where there is no answer")
    if start in (None, ""):
        found = list(re.finditer(words, context))
        if len(found) == 1:
            return Answer(found[0][0], found[0].start())
        raise ValueError(
            f"the answer {text!r} has no answer_start and stands {len(found)} times in its context"
        )
    try:
        start = int(start)
    except (TypeError, ValueError):
        raise ValueError(f"answer_start is {start!r}, and not a number of a character") from None
    if start >= 0 and context[start : start + len(text)] == text:
        return Answer(text, start)
    window = slice(max(0, start - _NEAR), max(0, start) + len(text) + _NEAR)
    near = [m.start() for m in re.finditer(f"(?={words})", context[window])]
    if not near:
        shown = context[max(0, start) : max(0, start) + len(text)]
        elsewhere = context.find(text)
        hint = f"; it stands at {elsewhere}" if elsewhere >= 0 else "; its context does not hold it"
        raise ValueError(f"the answer {text!r} is not at answer_start {start} ({shown!r}){hint}")
    place = min((window.start + at for at in near), key=lambda at: abs(at - start))
    match = re.compile(words).match(context, place)
    assert match is not None
    return Answer(match[0], place, is_moved=True)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
