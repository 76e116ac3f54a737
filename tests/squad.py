"""Tiny questions in the layout of SQuAD, whose answers can be learned: the word after the clue."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tests.tiny import sentences


def write_questions(
    path: Path, count: int, seed: int = 0, none: int = 0, labelled: bool = True
) -> Path:
    """Write questions, two on each context, the last `none` of them without an answer."""
    rng = random.Random(seed)
    paragraphs: list[dict[str, Any]] = []
    for number in range(count):
        if number % 2 == 0:
            context = " ".join(sentences(rng.randint(1, 5), rng.randint(0, 10**6)))
            paragraphs.append({"context": context, "qas": []})
        context = paragraphs[-1]["context"]
        words = context.split()
        place = rng.randrange(len(words) - 2)
        size = rng.randint(1, 2)
        text = " ".join(words[place + 1 : place + 1 + size])
        start = len(" ".join(words[: place + 1])) + 1
        answers = [{"text": text, "answer_start": start}] if number < count - none else []
        if answers and number % 3 == 0:
            answers.append({"text": text.split()[0], "answer_start": start})
        question: dict[str, Any] = {"id": f"{path.stem}-{number}", "question": f"{words[place]} ?"}
        if labelled:
            question |= {"answers": answers, "is_impossible": not answers}
        paragraphs[-1]["qas"].append(question)
    articles = [{"title": f"article {n}", "paragraphs": [p]} for n, p in enumerate(paragraphs)]
    path.write_text(json.dumps({"version": "2.0", "data": articles}, indent=1), encoding="utf-8")
    return path
