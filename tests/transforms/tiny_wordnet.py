"""A WordNet of a few entries, in the layout of the real one."""

from __future__ import annotations

from pathlib import Path

LICENCE = "  1 This is a licence that stands before the entries.\n" * 3
SENSES = {
    # Part of speech: words of each sense; how often the first of them was met.
    "noun": [["car", "auto", "motor_car"], ["film", "movie", "flick"], ["city", "metropolis"]],
    "verb": [["plan", "design"], ["go", "move", "travel"], ["film", "shoot"]],
    "adj": [["big", "large"], ["good(a)", "full"], ["big", "adult", "Grown"]],
    "adv": [["quickly", "rapidly"], ["well", "good"]],
}
EXCEPTIONS = {
    "noun": "children child\n",
    "verb": "gone go\nwent go\nplanned plan\nplanning plan\nshot shoot\n",
    "adj": "bigger big\nbetter good\nbest good\n",
    "adv": "better well\n",
}
#: Keys of senses, their numbers, and how often they were met.
COUNTS = "big%3:00:01:: 1 90\nbig%3:00:02:: 2 8\nfilm%1:00:00:: 1 3\nfilm%2:00:00:: 1 7\n"
TYPES = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}


def write_wordnet(folder: Path, counts: bool = True) -> str:
    """Write the files; words of the lists above are met but `metropolis` and `flick`."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, senses in SENSES.items():
        data, offsets = LICENCE, {}
        for words in senses:
            offset = len(data.encode())
            listed = " ".join(f"{word} 0" for word in words)
            data += f"{offset:08d} 00 {TYPES[part]} {len(words):02x} {listed} 000 | a gloss  \n"
            for word in words:
                offsets.setdefault(word.split("(")[0].lower(), []).append(f"{offset:08d}")
        lines = []
        for word, found in offsets.items():
            met = 0 if word in ("metropolis", "flick") else 1
            n = len(found)
            lines.append(f"{word} {TYPES[part]} {n} 1 @ {n} {met} {' '.join(found)}  \n")
        (folder / f"data.{part}").write_text(data)
        # As `LC_ALL=C sort` has them.
        (folder / f"index.{part}").write_text(LICENCE + "".join(sorted(lines)))
        (folder / f"{part}.exc").write_text(EXCEPTIONS[part])
    if counts:
        (folder / "cntlist.rev").write_text(COUNTS)
    return str(folder)
