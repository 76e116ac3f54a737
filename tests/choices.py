"""Tiny questions with choices that can be learned: the right one repeats a word of the context."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tests.tiny import sentences


def write_choices(path: Path, count: int, seed: int = 0, labelled: bool = True) -> Path:
    """Write questions with two to four choices as JSON lines."""
    rng = random.Random(seed)
    lines = []
    for context in sentences(count, seed):
        words = context.split()
        number = rng.randint(2, 4)
        label = rng.randrange(number)
        others = sentences(1, rng.randint(0, 10**6))[0].split() * 4
        choices = [rng.choice(words[:-1]) if n == label else others[n] for n in range(number)]
        row = {"context": context, "question": "which word ?", "choices": choices}
        lines.append(json.dumps({**row, "label": label} if labelled else row))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
