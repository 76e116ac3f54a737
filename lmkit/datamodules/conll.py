"""Read CoNLL columns and CoNLL-U: a word a line, a blank line behind each sentence."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .text_lines import numbered_lines
from .text_rows import BadRows

__all__ = ["Column", "TaggedWords", "read_conll"]

#: A column by its place, from 0 (-1 is the last one), or in CoNLL-U by its name.
Column = int | str

_CONLLU = ("ID", "FORM", "LEMMA", "UPOS", "XPOS", "FEATS", "HEAD", "DEPREL", "DEPS", "MISC")
_UPOS = _CONLLU.index("UPOS")
# A word; a token of several words; a word that the text leaves out.
_CONLLU_ID = re.compile(r"\d+(-\d+|\.\d+)?")
_BLANKS = re.compile(r"[ \t]+")


class TaggedWords(NamedTuple):
    """A sentence.

    Attributes:
        words: its words.
        tags: a tag for each; empty where they were not asked for.
        lines: the line of each word, from 1.
    """

    words: list[str]
    tags: list[str]
    lines: list[int]


def read_conll(
    path: Path,
    *,
    encoding: str = "utf-8",
    word_column: Column | None = None,
    tag_column: Column | None = None,
    labelled: bool = True,
    bad: BadRows | None = None,
) -> Iterator[TaggedWords]:
    """Read one file sentence by sentence.

    The fields of a line are parted by tabs, if there is one in the file's first line with a word,
    else by blanks. A line `-DOCSTART-`, with whatever columns, is no word. A file is CoNLL-U if it
    is called `.conllu`, or has ten fields a line parted by tabs and the first one is a number; its
    comments are skipped, and of a token `1-2` the words 1 and 2 are taken, and no empty node `8.1`.

    Args:
        path: the file, also `.gz`.
        encoding: of the characters; a byte-order mark is taken off.
        word_column: the first by default, in CoNLL-U `FORM`.
        tag_column: the last by default, in CoNLL-U `UPOS`.
        labelled: whether there must be tags; without, a line may be a word alone.
        bad: what to do with a bad line: its whole sentence is skipped, for the rest of one could
            spell other entities.

    Raises:
        ValueError: a line has one column, or another number than those before it, or an empty
            word; there is no such column, or no word at all. Names file, line and remedy.
    """
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty; remove it from the list or fill it")
    bad = bad or BadRows()
    layout: _Layout | None = None
    sentence, broken, seen = TaggedWords([], [], []), False, False
    for number, line in numbered_lines(path, encoding, bad):
        if not line.strip():
            if sentence.words and not broken:
                yield sentence
            sentence, broken = TaggedWords([], [], []), False
            continue
        if line.startswith("-DOCSTART-") or _is_comment(line, path, layout):
            continue
        seen = True
        fields = layout.split(line) if layout else _split_for(line)(line)
        if labelled and len(fields) == 1:
            fault, remedy = _one_column(line, fields[0], layout)
        else:
            place = f"{path}, line {number}"
            layout = layout or _layout(
                line, path.name, word_column, tag_column if labelled else word_column, place
            )
            if layout.is_conllu and any(sign in fields[0] for sign in "-."):
                continue
            fault, remedy = layout.fault(fields), "Correct the line"
        if fault:
            broken = True
            bad(path, number, fault, remedy)
            continue
        assert layout is not None
        sentence.words.append(fields[layout.word])
        sentence.lines.append(number)
        if labelled:
            sentence.tags.append(fields[layout.tag])
    if sentence.words and not broken:
        yield sentence
    if not seen:
        raise ValueError(f"{path} holds no sentence; a line should have a word and its tag")


@dataclass(frozen=True)
class _Layout:
    """How the lines of a file are to be read.

    Attributes:
        split: from a line to its fields.
        is_conllu: whether there are numbers, comments and empty nodes.
        width: how many fields a line has.
        word: which of them is the word.
        tag: which of them is the tag.
    """

    split: Callable[[str], list[str]]
    is_conllu: bool
    width: int
    word: int
    tag: int

    def fault(self, fields: list[str]) -> str:
        """Return what is wrong with a line, "" for nothing."""
        if len(fields) != self.width:
            return f"{len(fields)} columns, and there are {self.width} in the lines before"
        if self.is_conllu and not _CONLLU_ID.fullmatch(fields[0]):
            return f"expected the number of the word in the first column, got {fields[0]!r}"
        if not fields[self.word]:
            return "the word is empty"
        tag = fields[self.tag]
        if not tag or (self.is_conllu and self.tag == _UPOS and tag == "_"):
            return f"the word {fields[self.word]!r} has no tag"
        return ""


def _layout(
    line: str, name: str, word_column: Column | None, tag_column: Column | None, place: str
) -> _Layout:
    split = _split_for(line)
    fields = split(line)
    width = len(fields)
    numbered = "\t" in line and width == len(_CONLLU) and bool(_CONLLU_ID.fullmatch(fields[0]))
    is_conllu = numbered or _is_called_conllu(name)
    usual: tuple[Column, Column] = ("FORM", "UPOS") if is_conllu else (0, -1)
    word, tag = (
        _place(usual[i] if given is None else given, argument, width, is_conllu, place)
        for i, (given, argument) in enumerate(
            ((word_column, "word_column"), (tag_column, "tag_column"))
        )
    )
    return _Layout(split, is_conllu, len(_CONLLU) if is_conllu else width, word, tag)


def _place(column: Column, argument: str, width: int, is_conllu: bool, place: str) -> int:
    if isinstance(column, str):
        if is_conllu and column.upper() in _CONLLU:
            return _CONLLU.index(column.upper())
        known = f"one of {', '.join(_CONLLU)} or a number" if is_conllu else "a number"
        raise ValueError(f"{place}: {argument} must be {known} from 0, got {column!r}")
    if not -width <= column < width:
        raise ValueError(
            f"{place}: there is no column {column} ({argument}), but {width} columns; they are "
            "numbered from 0, and -1 is the last"
        )
    return column % width


def _one_column(line: str, word: str, layout: _Layout | None) -> tuple[str, str]:
    by_tabs = layout is not None and layout.split is _by_tabs
    fault = f"expected a word and its tag in columns, got one column, {word!r}"
    if by_tabs and _BLANKS.search(line.strip()):
        return fault, "Put a tab between the columns, as in the lines before"
    return fault, "Put the tag behind the word, or a blank line between sentences"


def _is_comment(line: str, path: Path, layout: _Layout | None) -> bool:
    if not line.startswith("#") or "\t" in line:
        return False
    if layout is not None:
        return layout.is_conllu
    # Before the first word only the form of CoNLL-U's comments tells one from the word "#".
    return _is_called_conllu(path.name) or bool(re.match(r"# ?(new(doc|par)\b|[\w:]+ =)", line))


def _is_called_conllu(name: str) -> bool:
    return name.lower().removesuffix(".gz").endswith(".conllu")


def _split_for(line: str) -> Callable[[str], list[str]]:
    return _by_tabs if "\t" in line.rstrip() else _by_blanks


def _by_tabs(line: str) -> list[str]:
    return [field.strip(" ") for field in line.rstrip("\t ").split("\t")]


def _by_blanks(line: str) -> list[str]:
    # Not `split()`: a no-break space is part of a word.
    return _BLANKS.split(line.strip(" \t"))
