"""Which columns hold a text and what it becomes, and the pairs of a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from .records import Record, choose_column
from .text_rows import BadRows

__all__ = ["PairColumns", "TextPair", "Wanted", "pair_columns", "read_pairs"]

# Names that tell source and target without a doubt, in the order in which they are looked for.
_USUAL = (
    ("source", "target"),
    ("src", "tgt"),
    ("article", "highlights"),
    ("document", "summary"),
    ("dialogue", "summary"),
    ("text", "summary"),
    ("text", "target"),
    ("input", "target"),
    ("input", "output"),
)
_TRANSLATION = "translation"


class TextPair(NamedTuple):
    """A text, and what it is to become.

    Attributes:
        source: the text.
        target: "" where it is asked for.
        file: where they stand.
        line: the line there, from 1.
    """

    source: str
    target: str
    file: str
    line: int


class PairColumns(NamedTuple):
    """Where in a row the two texts stand.

    Attributes:
        source: column of the source.
        target: column of the target, `None` where only sources are read.
        inside: the column that holds both as a dictionary by language, as translations of the hub
            do; else `None`.
    """

    source: str
    target: str | None
    inside: str | None = None


class Wanted(NamedTuple):
    """What the user says about columns and languages."""

    source_column: str | None = None
    target_column: str | None = None
    source_lang: str | None = None
    target_lang: str | None = None


NOTHING_WANTED = Wanted()


def pair_columns(
    row: Mapping[str, Any], place: str, wanted: Wanted = NOTHING_WANTED, labelled: bool = True
) -> PairColumns:
    """Find the columns of source and target in a row.

    Columns that are named count first, then languages, then the usual names.

    Args:
        row: the first row: column -> value.
        place: file or data set, for the error.
        wanted: what the user named.
        labelled: whether there are targets.

    Raises:
        ValueError: a column that is named is not there, or none is obvious; names those that are.

    Example:
        >>> pair_columns({"id": 7, "article": "...", "highlights": "..."}, "news.jsonl")
        PairColumns(source='article', target='highlights', inside=None)
        >>> pair_columns({"translation": {"de": "Hund", "en": "dog"}}, "hub",
        ...              Wanted(source_lang="en"))
        PairColumns(source='en', target='de', inside='translation')
    """
    inner = row.get(_TRANSLATION)
    named = wanted.source_column or wanted.target_column
    if isinstance(inner, Mapping) and not named:
        source, target = _by_language(list(inner), place, wanted, labelled)
        return PairColumns(source, target, _TRANSLATION)
    columns = list(row)
    if not named and (wanted.source_lang or wanted.target_lang):
        texts = [name for name, value in row.items() if isinstance(value, str)]
        languages = (wanted.source_lang, wanted.target_lang)
        if any(lang in columns for lang in languages) or not _usual(columns, place, wanted)[0]:
            source, target = _by_language(texts, place, wanted, labelled)
            return PairColumns(source, target)
    found, written = _usual(columns, place, wanted)
    if found is None and not labelled and len(columns) == 1:
        found = columns[0]
    for column, argument in ((found, "source_column"), (written, "target_column")):
        if column is None and (labelled or argument == "source_column"):
            raise ValueError(
                f"{place}: which column is the {argument.partition('_')[0]}? Pass {argument}, or "
                "for translations source_lang and target_lang; columns: "
                f"{', '.join(map(repr, columns)) or 'none'}"
            )
    assert found is not None
    return PairColumns(found, written if labelled else None)


def read_pairs(
    records: Iterable[Record], bad: BadRows, wanted: Wanted = NOTHING_WANTED, labelled: bool = True
) -> list[TextPair]:
    """Return the pairs of a table.

    Args:
        records: its rows.
        bad: what to do with a row without a source, or without a target where there are targets.
        wanted: what the user named.
        labelled: whether there are targets.

    Raises:
        ValueError: the columns are not to be found, or a row is bad.
    """
    columns: PairColumns | None = None
    pairs = []
    for record in records:
        if columns is None:
            columns = pair_columns(record.values, record.file, wanted, labelled)
        values = record.values if columns.inside is None else record.values.get(columns.inside)
        texts = []
        for role, column in (("source", columns.source), ("target", columns.target)):
            if column is None:
                continue
            value = values.get(column) if isinstance(values, Mapping) else None
            if not isinstance(value, str) or not value.strip():
                kind = "blank" if isinstance(value, str) else "missing"
                if value is not None and not isinstance(value, str):
                    kind = f"{type(value).__name__}, not a string"
                fault = f"the {role} (column {column!r}) is {kind}"
                bad(record.file, record.line, fault, "Fill it or remove the row")
                break
            texts.append(value)
        else:
            pairs.append(TextPair(texts[0], "".join(texts[1:]), record.file, record.line))
    return pairs


def _usual(columns: list[str], place: str, wanted: Wanted) -> tuple[str | None, str | None]:
    """Return the columns that are named, or the first usual pair whose other half is there."""
    lowered = {column.lower() for column in columns}
    first, second = wanted.source_column, wanted.target_column
    for source, target in _USUAL:
        has_source = first is not None or source in lowered
        has_target = second is not None or target in lowered
        if has_source and has_target:
            break
    else:
        # Sources alone, to predict on.
        source = next((name for name, _ in _USUAL if name in lowered), "source")
        target = "target"
    return (
        choose_column(columns, first, [source], "source_column", place),
        choose_column(columns, second, [target], "target_column", place),
    )


def _by_language(
    names: list[str], place: str, wanted: Wanted, labelled: bool
) -> tuple[str, str | None]:
    source, target = wanted.source_lang, wanted.target_lang
    others = [name for name in names if name not in (source, target)]
    if len(names) == 2 and len(others) == 1:
        # Of two languages one is enough to know the other.
        source, target = source or others[0], target or others[0]
    for lang, argument in ((source, "source_lang"), (target, "target_lang")):
        if argument == "target_lang" and not labelled:
            continue
        if lang not in names:
            raise ValueError(
                f"{place}: {argument} is {lang!r}, and the languages are "
                f"{', '.join(map(repr, names)) or 'none'}; pass source_lang and target_lang"
            )
    assert source is not None
    return source, target if labelled else None
