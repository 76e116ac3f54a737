"""Reads rows of text and label, or of two texts and a label, from any table."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .records import FileRecords, Record, RecordSource, choose_column
from .table_files import file_format
from .text_lines import numbered_lines
from .text_rows import BadRows

__all__ = ["LabelledText", "TextColumns", "read_labelled_texts"]

log = logging.getLogger("lmkit")

_TEXTS = ("text", "sentence", "content", "review", "tweet", "document", "question", "body")
_LABELS = ("label", "labels", "class", "category", "target", "sentiment", "intent", "score")
#: Columns that go together, first and second text; the first pair that is there is taken.
_PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("sentence_a", "sentence_b"),
    ("question", "sentence"),
    ("question", "passage"),
    ("text", "text_pair"),
)
_PAIR_LABELS = ("entailment_label", "gold_label", "relatedness_score", "similarity_score")


class LabelledText(NamedTuple):
    """One example.

    Attributes:
        text: the text.
        pair: a second text, or `None`.
        labels: the names of its classes, one but in multi-label data; `None` where it has none yet.
        value: its value in a regression, else `None`.
        file: where it stands.
        line: where it stands.
    """

    text: str
    pair: str | None
    labels: tuple[str, ...] | None
    value: float | None
    file: str
    line: int

    @property
    def is_unlabelled(self) -> bool:
        """Whether it has neither classes nor a value."""
        return self.labels is None and self.value is None


@dataclass(frozen=True)
class TextColumns:
    """Which columns to read; those that are `None` are guessed where they are obvious.

    Attributes:
        text: of the text.
        pair: of the second text.
        label: of the label; in multi-label data perhaps several, one of 0 and 1 for each class.
        regression: whether the label is a number to be predicted.
        multi_label: whether an example has any number of labels.
        separator: between the labels of one field.
    """

    text: str | None = None
    pair: str | None = None
    label: str | tuple[str, ...] | None = None
    regression: bool = False
    multi_label: bool = False
    separator: str = ","


def read_labelled_texts(
    source: RecordSource, columns: TextColumns, labelled: bool, bad: BadRows
) -> list[LabelledText]:
    """Return the examples of a source.

    Args:
        source: the rows.
        columns: which to read.
        labelled: whether there must be labels; if not, a column of labels is not looked at.
        bad: told of each row that is no example.

    Raises:
        ValueError: a column is missing or not obvious, or a row is bad and not skipped.
    """
    if isinstance(source, FileRecords):
        tagged = [path for path in source.files if path.name.endswith(source.options.endings)]
        if tagged:
            raise ValueError(
                f"{tagged[0]} holds tagged words, not texts: it is for token classification"
            )
    chosen: dict[str, _Chosen] = {}
    examples = []
    for record in source.records(bad) if labelled else _unlabelled(source, columns, bad):
        if record.file not in chosen:
            chosen[record.file] = _choose(record, columns, labelled)
        example = _example(record, chosen[record.file], columns, bad)
        if example is not None:
            examples.append(example)
    return examples


def _unlabelled(source: RecordSource, columns: TextColumns, bad: BadRows) -> Iterator[Record]:
    """Yield rows without labels: of a text file without tabs each line is a text."""
    if not isinstance(source, FileRecords):
        yield from source.records(bad)
        return
    for path in source.files:
        # Bad lines are told of when the file is read.
        lines = numbered_lines(path, source.options.encoding, BadRows("skip"))
        is_plain = file_format(path) in (None, "txt")
        if is_plain and "\t" not in next((line for _, line in lines if line.strip()), ""):
            for number, line in numbered_lines(path, source.options.encoding, bad):
                if line.strip():
                    yield Record({columns.text or "text": line.strip()}, str(path), number)
        else:
            yield from FileRecords((path,), source.options).records(bad)


class _Chosen(NamedTuple):
    text: str
    pair: str | None
    label: tuple[str, ...]


def _choose(record: Record, columns: TextColumns, labelled: bool) -> _Chosen:
    names, place = list(record.values), record.file
    label: tuple[str, ...] = ()
    if labelled and isinstance(columns.label, tuple):
        label = tuple(
            found
            for name in columns.label
            if (found := choose_column(names, name, (), "label_column", place)) is not None
        )
    elif labelled:
        usual = [*_LABELS, *_PAIR_LABELS]
        if columns.regression:
            usual = ["relatedness_score", "similarity_score", "score", "value", "rating", *usual]
        wanted = columns.label if isinstance(columns.label, str) else None
        found = choose_column(names, wanted, usual, "label_column", place)
        if found is None:
            raise ValueError(_unclear("label", place, names))
        label = (found,)
    free = [name for name in names if name not in label]
    text = choose_column(free, columns.text, (), "text_column", place)
    pair = choose_column(free, columns.pair, (), "text_pair_column", place)
    if text is None and pair is None:
        lowered = {name.lower(): name for name in free}
        for first, second in _PAIRS:
            if first in lowered and second in lowered:
                text, pair = lowered[first], lowered[second]
                break
    if text is None:
        free = [name for name in free if name != pair]
        text = choose_column(free, None, _TEXTS, "text_column", place)
    if text is None:
        strings = [name for name in free if isinstance(record.values[name], str)]
        if len(strings) > 1 and not labelled:
            strings = [name for name in strings if not _is_label(name, columns)]
        if len(strings) != 1:
            raise ValueError(_unclear("text", place, names))
        text = strings[0]
        log.warning(
            "%s: the column %r is taken for the text, as no other could be it; if this is a first "
            "row and no header, pass column_names",
            place,
            text,
        )
    return _Chosen(text, pair, label)


def _is_label(name: str, columns: TextColumns) -> bool:
    """Whether a column would hold the label in rows that have one."""
    given = columns.label if isinstance(columns.label, tuple) else (columns.label,)
    return name in given or name.lower() in (*_LABELS, *_PAIR_LABELS)


def _unclear(what: str, place: str, names: Sequence[str]) -> str:
    return (
        f"{place}: which column is the {what}? There are {', '.join(map(repr, names))}. Pass "
        f"{what}_column, or column_names if the file has no header"
    )


def _example(
    record: Record, chosen: _Chosen, columns: TextColumns, bad: BadRows
) -> LabelledText | None:
    texts: list[str] = []
    for name in (chosen.text, chosen.pair):
        value = record.values.get(name) if name is not None else None
        if name is not None and not (isinstance(value, str) and value.strip()):
            what = "missing" if value is None else f"no text but {value!r}"
            fault = f"the text {name!r} is " + ("empty" if isinstance(value, str) else what)
            bad(record.file, record.line, fault, "Fill it in")
            return None
        texts += [value] if isinstance(value, str) else []
    pair = texts[1] if chosen.pair is not None else None
    example = LabelledText(texts[0], pair, None, None, record.file, record.line)
    if not chosen.label:
        return example
    try:
        if columns.regression:
            return example._replace(value=_number(record.values.get(chosen.label[0])))
        return example._replace(labels=_labels(record, chosen.label, columns))
    except ValueError as error:
        bad(record.file, record.line, str(error), "Correct the label")
        return None


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or isinstance(value, bool):
        raise ValueError(f"the label of a regression must be a number, got {value!r}")
    return number


def _labels(record: Record, names: tuple[str, ...], columns: TextColumns) -> tuple[str, ...]:
    if len(names) > 1:
        return tuple(name for name in names if _is_set(name, record.values.get(name)))
    value = record.values.get(names[0])
    if columns.multi_label:
        parts = value.split(columns.separator) if isinstance(value, str) else value
        if not isinstance(parts, list | tuple):
            raise ValueError(f"the labels {names[0]!r} must be a list, got {value!r}")
        return tuple(dict.fromkeys(name for part in parts if (name := _name(part))))
    name = _name(value)
    if not name:
        raise ValueError(f"the label {names[0]!r} is missing")
    return (name,)


def _name(value: Any) -> str:
    """The name of a class: 1, 1.0 and "1" are one, true is "true"."""
    if isinstance(value, list | dict):
        raise ValueError(
            f"a label must be one name or number, got {value!r}; for several labels an example "
            "pass task='multi_label'"
        )
    if value is None or value != value:  # NaN, with which pandas fills gaps
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _is_set(name: str, value: Any) -> bool:
    text = str(value).strip().lower()
    if text in ("1", "1.0", "true", "yes"):
        return True
    if text in ("0", "0.0", "false", "no", ""):
        return False
    raise ValueError(f"the label column {name!r} must hold 0 or 1, got {value!r}")
