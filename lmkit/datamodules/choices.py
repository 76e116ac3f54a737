"""Questions with choices, as rows of the usual data sets have them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .records import Record, RecordSource, choose_column
from .text_rows import BadRows

__all__ = ["ChoiceColumns", "ChoiceQuestion", "read_choices"]

_CONTEXTS = ("context", "article", "passage", "premise", "ctx", "sent1", "startphrase")
_QUESTIONS = ("question", "query", "sent2", "goal", "sentence", "stem", "prompt")
_LISTS = ("choices", "options", "endings", "candidates", "answers")
_LABELS = ("label", "answerkey", "answer", "correct", "gold", "target")
# choice1, ending0, option_a, sol2, answerB, opa, and bare letters.
_NUMBERED = re.compile(
    r"(?:choice|ending|option|sol|answer|alternative|op)[_ ]?([0-9]{1,2}|[a-h])|([a-h])",
    re.IGNORECASE,
)


class ChoiceColumns(NamedTuple):
    """Names of the columns, where the user gives them, and the number of the first choice."""

    context: str | None = None
    question: str | None = None
    choices: tuple[str, ...] | None = None
    label: str | None = None
    first_label: int = 0


class ChoiceQuestion(NamedTuple):
    """A question with its choices.

    Attributes:
        context: "" where there is none.
        question: "" where there is none.
        choices: at least two.
        label: place of the right one, from 0; `None` where it is not known.
        file: where it stands.
        line: its line there.
    """

    context: str
    question: str
    choices: tuple[str, ...]
    label: int | None
    file: str
    line: int


def read_choices(
    source: RecordSource, columns: ChoiceColumns, labelled: bool, bad: BadRows
) -> list[ChoiceQuestion]:
    """Read the questions of a source.

    Args:
        source: its rows.
        columns: those that the user names; the others are guessed when obvious.
        labelled: whether each question must have a label; without it labels are not looked at.
        bad: told of each row that is no question with choices.

    Raises:
        ValueError: a named column is not there; names those that are.
    """
    questions = []
    for record in source.records(bad):
        try:
            questions.append(_question(record, columns, labelled))
        except _Fault as fault:
            bad(record.file, record.line, str(fault), "Correct the row")
    return questions


class _Fault(Exception):
    """What is wrong with a row."""


def _question(record: Record, columns: ChoiceColumns, labelled: bool) -> ChoiceQuestion:
    values, place = record.values, f"{record.file}, line {record.line}"
    names = list(values)
    context = choose_column(names, columns.context, _CONTEXTS, "context_column", place)
    asked = choose_column(names, columns.question, _QUESTIONS, "question_column", place)
    texts = [str(values[name] or "").strip() if name else "" for name in (context, asked)]
    if not any(texts):
        found = ", ".join(map(repr, names))
        raise _Fault(f"there is neither a context nor a question (columns: {found})")
    choices, marks = _choices(values, columns.choices, place)
    kept = [number for number, choice in enumerate(choices) if choice]
    if len(kept) < 2:
        raise _Fault(f"expected two or more choices, got {len(kept)} (columns: {', '.join(names)})")
    label = None
    if labelled:
        column = choose_column(names, columns.label, _LABELS, "label_column", place)
        if column is None:
            raise _Fault(f"no column of labels (columns: {', '.join(map(repr, names))})")
        label = _label(values[column], choices, marks, columns.first_label)
        if label not in kept:
            raise _Fault(f"the right choice, number {label + columns.first_label}, is blank")
        label = kept.index(label)
    return ChoiceQuestion(
        texts[0], texts[1], tuple(choices[n] for n in kept), label, record.file, record.line
    )


def _choices(
    values: Mapping[str, Any], wanted: Sequence[str] | None, place: str
) -> tuple[list[str], list[str]]:
    """Return the choices, and what labels call them where the row says so."""
    names = list(values)
    if wanted and len(wanted) > 1:
        for name in wanted:
            choose_column(names, name, (), "choice_columns", place)
        return [_plain(values[name]) for name in wanted], []
    given = choose_column(names, wanted[0] if wanted else None, _LISTS, "choice_columns", place)
    if given is None:
        numbered = {n: m for n in names if (m := _NUMBERED.fullmatch(n)) is not None}
        ordered = sorted(numbered, key=lambda name: _rank(numbered[name]))
        if len(ordered) < 2:
            found = ", ".join(map(repr, names))
            raise _Fault(f"no column of choices (columns: {found}); pass choice_columns")
        return [_plain(values[name]) for name in ordered], []
    value = values[given]
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise _Fault(f"{given!r} is a text and no list of choices: {value[:40]!r}") from None
    marks: list[str] = []
    if isinstance(value, Mapping):
        marks, value = [str(mark) for mark in value.get("label") or []], value.get("text")
    if isinstance(value, list) and all(isinstance(v, Mapping) for v in value):
        marks = [str(v.get("label", "")) for v in value]
        value = [v.get("text") for v in value]
    if not isinstance(value, list):
        raise _Fault(f"expected a list of choices in {given!r}, got {type(value).__name__}")
    return [_plain(choice) for choice in value], marks


def _rank(match: re.Match[str]) -> tuple[int, str]:
    mark = (match[1] or match[2]).lower()
    return (int(mark), "") if mark.isdecimal() else (0, mark)


def _label(value: Any, choices: Sequence[str], marks: Sequence[str], first: int) -> int:
    """Return the place of the right choice: by its mark, number, letter or text."""
    text = _plain(value)
    if text in marks:
        return list(marks).index(text)
    if isinstance(value, float) and value.is_integer():
        text = str(int(value))
    if text.lstrip("-").isdecimal():
        number = int(text) - first
    elif len(text) == 1 and text.isalpha():
        number = ord(text.upper()) - ord("A")
    elif text and list(choices).count(text) == 1:
        return list(choices).index(text)
    else:
        raise _Fault(f"the label {value!r} is no number, letter or text of one of the choices")
    if not 0 <= number < len(choices):
        raise _Fault(
            f"the label {value!r} names none of {len(choices)} choices, of which the first is "
            f"{first} or 'A' (first_label)"
        )
    return number


def _plain(value: Any) -> str:
    return "" if value is None else str(value).strip()
