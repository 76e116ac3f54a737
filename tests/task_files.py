"""Tiny files of each downstream task; each writer returns the data module's arguments."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.choices import write_choices
from tests.squad import write_questions
from tests.tiny import sentences, write_text_pairs

__all__ = [
    "choices",
    "labelled_texts",
    "parts_of_speech",
    "questions",
    "scored_pairs",
    "tagged_words",
    "text_pairs",
]

Writer = Callable[[Path, int, int], object]


def labelled_texts(folder: Path) -> dict[str, Any]:
    """Texts with one of three classes, which a word of the text tells."""

    def write(path: Path, count: int, seed: int) -> None:
        rows = ["text,label"]
        for number, text in enumerate(sentences(count, seed)):
            kind = ("fox", "moons", "trees")[number % 3]
            rows.append(f"{text[:-2]} {kind} .,{kind}")
        path.write_text("\n".join(rows) + "\n")

    return _files(folder, "csv", write)


def scored_pairs(folder: Path, scale: float = 1.0) -> dict[str, Any]:
    """Pairs of texts with a number up to 4.5 x scale, which is higher where they are the same."""

    def write(path: Path, count: int, seed: int) -> None:
        first, other = sentences(count, seed), sentences(count, seed + 100)
        rows = [
            {
                "sentence1": a,
                "sentence2": a if n % 2 else b,
                "score": scale * (4.5 if n % 2 else 1 + n % 3),
            }
            for n, (a, b) in enumerate(zip(first, other, strict=True))
        ]
        path.write_text("\n".join(map(json.dumps, rows)) + "\n")

    return _files(folder, "jsonl", write)


def tagged_words(folder: Path) -> dict[str, Any]:
    """CoNLL columns: animals are entities, and may have an adjective."""

    def write(path: Path, count: int, seed: int) -> None:
        lines = []
        for text in sentences(count, seed):
            for word in text.split():
                tag = (
                    "B-X" if word in ("fox", "dog", "birds") else "I-X" if word == "quick" else "O"
                )
                lines.append(f"{word} {tag}")
            lines.append("")
        path.write_text("\n".join(lines))

    return _files(folder, "conll", write)


def parts_of_speech(folder: Path) -> dict[str, Any]:
    """CoNLL columns: each word with whether it is long or short."""

    def write(path: Path, count: int, seed: int) -> None:
        lines = []
        for text in sentences(count, seed):
            lines += [f"{word} {'LONG' if len(word) > 4 else 'SHORT'}" for word in text.split()]
            lines.append("")
        path.write_text("\n".join(lines))

    return _files(folder, "conll", write)


def questions(folder: Path) -> dict[str, Any]:
    """Questions in SQuAD's layout."""
    return _files(folder, "json", write_questions)


def choices(folder: Path) -> dict[str, Any]:
    """Questions with choices."""
    return _files(folder, "jsonl", write_choices)


def text_pairs(folder: Path) -> dict[str, Any]:
    """Sources and targets."""
    folder.mkdir(parents=True, exist_ok=True)
    return write_text_pairs(folder)


def _files(folder: Path, ending: str, write: Writer) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    names = {f"{split}_file": folder / f"{split}-rows.{ending}" for split in ("train", "val")}
    if not names["train_file"].exists():
        write(names["train_file"], 60, 0)
        write(names["val_file"], 13, 1)
    return {name: str(path) for name, path in names.items()}
