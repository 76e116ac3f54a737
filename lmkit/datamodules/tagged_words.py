"""Sentences with a tag for each word: from CoNLL columns, lists of words, or texts with spans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from ..functional.tagging import Span, bio_tags
from ..tokenization.word_pieces import join_words, split_words
from .conll import Column, read_conll
from .records import FileRecords, Record, RecordSource, choose_column
from .table_files import file_format, read_records
from .text_lines import numbered_lines
from .text_rows import BadRows

__all__ = ["TaggedText", "TaggedWordsReader"]

_WORDS = ("tokens", "words")
_TEXT = ("text", "sentence", "content")
_TAGS = ("tags", "ner_tags", "labels", "ner", "pos_tags", "upos", "pos")
_SPANS = ("spans", "entities", "labels", "label")
_SPAN_START, _SPAN_END = ("start", "start_offset", "begin"), ("end", "end_offset", "stop")
_SPAN_TYPE = ("label", "type", "entity", "tag", "entity_group")


class TaggedText(NamedTuple):
    """A sentence.

    Attributes:
        words: its words.
        tags: a tag for each; `None` where there are none.
        text: what was split into words, "" where they came as words.
        places: the first character of each word in the text, and the one behind it.
        offsets: how many lines below `line` each word stands; empty if all stand there.
        file: where it stands.
        line: its first line there, from 1.
    """

    words: list[str]
    tags: list[str] | None
    text: str
    places: list[tuple[int, int]]
    offsets: list[int]
    file: str
    line: int

    def line_of(self, word: int) -> int:
        """Return the line that a word stands on."""
        return self.line + (self.offsets[word] if self.offsets else 0)


@dataclass(frozen=True)
class TaggedWordsReader:
    """Reads the sentences of a source.

    Attributes:
        word_column: a column's place or name; the usual ones by default.
        tag_column: likewise.
        tag_names: names of tags that are given as numbers.
        labelled: whether there must be tags; without, they are not looked at.
        bad: told of each bad row.
    """

    word_column: Column | None
    tag_column: Column | None
    tag_names: Sequence[str] | None
    labelled: bool
    bad: BadRows

    def read(self, source: RecordSource) -> Iterator[TaggedText]:
        """Yield the sentences; raises `ValueError` for bad rows, unless they are skipped."""
        if not isinstance(source, FileRecords):
            yield from self._of_records(source.records(self.bad))
            return
        for path in source.files:
            encoding = source.options.encoding
            kind = file_format(path)
            if kind in ("jsonl", "parquet", "csv"):
                yield from self._of_records(read_records(path, encoding=encoding, bad=self.bad))
            elif kind == "txt" and not self.labelled:
                for number, line in numbered_lines(path, encoding, self.bad):
                    if line.strip():
                        yield _of_text(line, None, str(path), number)
            else:
                yield from self._of_columns(path, encoding)

    def _of_columns(self, path: Path, encoding: str) -> Iterator[TaggedText]:
        for words, tags, lines in read_conll(
            path,
            encoding=encoding,
            word_column=self.word_column,
            tag_column=self.tag_column,
            labelled=self.labelled,
            bad=self.bad,
        ):
            yield TaggedText(
                words,
                tags if self.labelled else None,
                "",
                join_words(words)[1] if not self.labelled else [],
                [line - lines[0] for line in lines],
                str(path),
                lines[0],
            )

    def _of_records(self, records: Iterator[Record]) -> Iterator[TaggedText]:
        for record in records:
            made = self._of_record(record)
            if made is not None and (made.words or not self.labelled):
                yield made

    def _of_record(self, record: Record) -> TaggedText | None:
        columns = list(record.values)
        where = f"{record.file}, line {record.line}"
        wanted = None if self.word_column is None else str(self.word_column)
        column = choose_column(columns, wanted, _WORDS + _TEXT, "word_column", where)
        if column is None:
            self._without("words or the text", "word_column", record)
            return None
        words = record.values[column]
        tags = None
        if self.labelled:
            wanted = None if self.tag_column is None else str(self.tag_column)
            usual = _SPANS if isinstance(words, str) else _TAGS
            name = choose_column(columns, wanted, usual, "tag_column", where)
            if name is None:
                what = "spans of the text" if isinstance(words, str) else "tags of the words"
                self._without(what, "tag_column", record)
                return None
            tags = record.values[name]
        if isinstance(words, str):
            return self._of_spans(words, tags, record)
        return self._of_lists(words, tags, column, record)

    def _without(self, what: str, argument: str, record: Record) -> None:
        there = ", ".join(map(repr, record.values)) or "none"
        fault = f"which column has the {what}? There are {there}"
        self.bad(record.file, record.line, fault, f"Pass {argument}")

    def _of_lists(self, words: Any, tags: Any, column: str, record: Record) -> TaggedText | None:
        fault = ""
        if not _is_list(words) or not all(isinstance(word, str) and word for word in words):
            fault = f"{column!r} must be a text or a list of words that are not empty"
        elif self.labelled and not _is_list(tags):
            fault = f"the tags must be a list, one for each word, got {type(tags).__name__}"
        elif self.labelled and len(tags) != len(words):
            fault = f"{len(words)} words and {len(tags)} tags"
        elif self.labelled:
            tags = [self._tag(tag) for tag in tags]
            if None in tags:
                fault = (
                    f"the tag of {words[tags.index(None)]!r} is missing, or a number without a name"
                )
        if fault:
            remedy = "Correct the row (tags are names; or numbers, with tag_names to name them)"
            self.bad(record.file, record.line, fault, remedy)
            return None
        places = [] if self.labelled else join_words(words)[1]
        return TaggedText(list(words), tags, "", places, [], record.file, record.line)

    def _tag(self, tag: Any) -> str | None:
        if isinstance(tag, str):
            return tag or None
        if not isinstance(tag, int) or isinstance(tag, bool):
            return None
        if self.tag_names is None:
            return str(tag)
        return self.tag_names[tag] if 0 <= tag < len(self.tag_names) else None

    def _of_spans(self, text: str, spans: Any, record: Record) -> TaggedText | None:
        made = _of_text(text, None, record.file, record.line)
        if not self.labelled:
            return made
        try:
            found = sorted(_word_span(span, text, made.places) for span in _listed(spans))
            for before, after in pairwise(found):
                if after.start < before.end:
                    raise ValueError(
                        f"the spans of {before.type!r} and {after.type!r} overlap at "
                        f"{made.words[after.start]!r}"
                    )
        except ValueError as error:
            remedy = "Correct the span: entities are whole words, and do not overlap"
            self.bad(record.file, record.line, str(error), remedy)
            return None
        return made._replace(tags=bio_tags(found, len(made.words)))


def _of_text(text: str, tags: list[str] | None, file: str, line: int) -> TaggedText:
    places = split_words(text)
    words = [text[start:end] for start, end in places]
    return TaggedText(words, tags, text, places, [], file, line)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _listed(spans: Any) -> list[Any]:
    if spans is None:
        return []
    if isinstance(spans, Mapping):  # columns of lists, as `datasets` once kept lists of objects
        return [dict(zip(spans, row, strict=True)) for row in zip(*spans.values(), strict=True)]
    if not _is_list(spans):
        raise ValueError(f"the spans must be a list, got {type(spans).__name__}")
    return list(spans)


def _word_span(span: Any, text: str, places: Sequence[tuple[int, int]]) -> Span:
    """Return a span of characters as one of words."""
    start, end, kind = _parts(span)
    if not 0 <= start < end <= len(text):
        raise ValueError(
            f"the span {start} to {end} of {kind!r} is none of a text of {len(text)} characters"
        )
    inside = [n for n, (first, last) in enumerate(places) if first < end and last > start]
    if not inside:
        raise ValueError(f"the span {start} to {end} of {kind!r} holds no word")
    for number in (inside[0], inside[-1]):
        first, last = places[number]
        if first < start or last > end:
            raise ValueError(
                f"the span {start} to {end} of {kind!r}, {text[start:end]!r}, cuts the word "
                f"{text[first:last]!r} ({first} to {last})"
            )
    return Span(inside[0], inside[-1] + 1, kind)


def _parts(span: Any) -> tuple[int, int, str]:
    if isinstance(span, Mapping):
        start, end, kind = (
            next((span[name] for name in usual if name in span), None)
            for usual in (_SPAN_START, _SPAN_END, _SPAN_TYPE)
        )
    elif _is_list(span) and len(span) == 3:
        start, end, kind = span
    else:
        start = end = kind = None
    # Exact types: in JSON `true` is no place.
    if type(start) is int and type(end) is int and isinstance(kind, str) and kind:
        return start, end, kind
    raise ValueError(
        "a span is {'start': 0, 'end': 5, 'label': 'PER'} or [0, 5, 'PER'], with the place of the "
        f"first character and of the one behind the last, got {span!r}"
    )
