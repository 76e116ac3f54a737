"""WordNet read from its own files: synonyms of a word in the form that it stands in."""

from __future__ import annotations

import hashlib
import mmap
import os
import sys
import zipfile
from collections.abc import Iterator
from functools import cached_property, lru_cache
from pathlib import Path

from .morphology import inflect, regular_lemmas

__all__ = ["WordNet", "open_wordnet", "wordnet_places"]

PARTS = ("noun", "verb", "adj", "adv")
#: In keys of senses: satellites (5) are adjectives.
_PART_OF = {"1": "noun", "2": "verb", "3": "adj", "4": "adv", "5": "adj"}


def wordnet_places() -> list[Path]:
    """Return the folders and archives in which WordNet is looked for, the first one first.

    `$WORDNET_HOME` and `$WNSEARCHDIR`, the system's, and the data folders of NLTK.
    """
    places = []
    for variable in ("WNSEARCHDIR", "WORDNET_HOME"):
        if home := os.environ.get(variable):
            places += [Path(home), Path(home) / "dict"]
    places += [Path("/usr/share/wordnet"), Path("/usr/local/WordNet-3.0/dict")]
    folders = [Path(f) for f in os.environ.get("NLTK_DATA", "").split(os.pathsep) if f]
    folders += [Path.home() / "nltk_data", Path(sys.prefix) / "nltk_data"]
    folders += [Path(f"/usr/{f}/nltk_data") for f in ("share", "local/share", "lib", "local/lib")]
    for folder in folders:
        places += [folder / "corpora" / "wordnet", folder / "corpora" / "wordnet.zip"]
    return places


def open_wordnet(folder: str | None = None) -> WordNet:
    """Return WordNet, which is opened once in a process.

    Args:
        folder: with `index.noun`, `data.noun` and so on, or a zip archive of these; `None` for the
            first of `wordnet_places()`.

    Raises:
        FileNotFoundError: it is nowhere; names the places and how it is installed.
    """
    places = wordnet_places() if folder is None else [Path(folder), Path(folder) / "dict"]
    for place in places:
        if (place / "index.noun").is_file() or (place.suffix == ".zip" and place.is_file()):
            return _opened(str(place))
    raise FileNotFoundError(
        f"WordNet was not found: there is no index.noun in {', '.join(map(str, places))}. Install "
        "it (`apt install wordnet-base` on Debian and Ubuntu), or set $WORDNET_HOME to its folder"
    )


@lru_cache(maxsize=4)
def _opened(place: str) -> WordNet:
    return WordNet(place)


class WordNet:
    """Looks words up in WordNet's files, which are mapped into memory and searched by halves.

    Nothing is read ahead, so it opens at once, and processes share its pages.

    Args:
        place: folder or zip archive with the files of WordNet 2.0 to 3.1.

    Raises:
        FileNotFoundError: a file of the four parts of speech is missing.

    Example:
        >>> WordNet("no-such-folder").synonyms("car")
        Traceback (most recent call last):
        ...
        FileNotFoundError: no-such-folder has no index.noun
    """

    def __init__(self, place: str) -> None:
        self.place = place
        self._files: dict[str, bytes | mmap.mmap] = {}

    def synonyms(self, word: str, senses: int = 2, rare: bool = False) -> list[str]:
        """Return the single words that share one of the commonest senses of a word, sorted.

        Senses of all parts of speech are ordered by how often they were met (`cntlist.rev`), or,
        where that was not counted, by WordNet's order. The form is kept: plural, -s, -ed, -ing,
        -er, -est. Names, phrases and words whose form cannot be told are left out.

        Args:
            word: in small letters.
            senses: how many, at least 1.
            rare: whether words count that were never met in the texts which WordNet's makers read.
        """
        ranked = []
        for number, part in enumerate(PARTS):
            for lemma, form in self.lemmas(word, part):
                counts = self._counts(lemma)
                for rank, offset in enumerate(self._offsets(lemma, part)):
                    count = counts.get((part, rank + 1), 0)
                    ranked.append((-count, rank, number, lemma, form, part, offset))
        ranked.sort()
        found: set[str] = set()
        chosen: list[tuple[str, int]] = []
        for *_, lemma, form, part, offset in ranked:
            if (part, offset) not in chosen:
                if len(chosen) == senses:
                    break
                chosen.append((part, offset))
            for other in self._members(part, offset):
                plain = other != lemma and other.isalpha() and other.islower()
                if plain and (rare or self._was_met(other, part)):
                    shaped = inflect(other, part, form, self._irregular[part])
                    found.update([shaped] if shaped else [])
        return sorted(found - {word})

    def lemmas(self, word: str, part: str) -> list[tuple[str, str]]:
        """Return the entries that a word may be a form of, with what form: "" for the entry itself.

        Args:
            word: in small letters.
            part: `noun`, `verb`, `adj` or `adv`.
        """
        found = [(word, "")] if self._line(f"index.{part}", word) else []
        for lemma in self._exceptions[part].get(word, []):
            found.append((lemma, _form_of(word, part)))
        if len(found) == bool(found and not found[0][1]):
            known = (p for p in regular_lemmas(word, part) if self._line(f"index.{part}", p[0]))
            found += list(known)[:1]
        return found

    @cached_property
    def digest(self) -> str:
        """A digest of its index."""
        state = hashlib.sha256()
        for part in PARTS:
            state.update(self._bytes(f"index.{part}")[:])
        return state.hexdigest()

    def _was_met(self, lemma: str, part: str) -> bool:
        """Return whether an entry has a sense that was counted: the field before the offsets."""
        fields = self._line(f"index.{part}", lemma).split()
        return bool(fields) and fields[-int(fields[2]) - 1] != "0"

    def _offsets(self, lemma: str, part: str) -> list[int]:
        fields = self._line(f"index.{part}", lemma).split()
        return [int(offset) for offset in fields[-int(fields[2]) :]] if fields else []

    def _members(self, part: str, offset: int) -> list[str]:
        data = self._bytes(f"data.{part}")
        line = data[offset : data.find(b"\n", offset)].decode()
        fields = line.split(" ", 4)
        if len(fields) < 5 or fields[0] != f"{offset:08d}":
            raise ValueError(f"{self.place}: data.{part} does not belong to index.{part}")
        words = fields[4].split(" ", 2 * int(fields[3], 16))[: 2 * int(fields[3], 16) : 2]
        # Adjectives may carry where they stand: `galore(ip)`.
        return [word.split("(")[0] for word in words]

    def _counts(self, lemma: str) -> dict[tuple[str, int], int]:
        """Return how often each sense was met, by part of speech and number."""
        found: dict[tuple[str, int], int] = {}
        data = self._bytes("cntlist.rev", needed=False)
        position = _seek(data, f"{lemma}%".encode())
        while data[position : position + len(lemma.encode()) + 1] == f"{lemma}%".encode():
            end = data.find(b"\n", position)
            key, number, count = data[position : end if end >= 0 else len(data)].split()[:3]
            part = _PART_OF[key.decode()[len(lemma) + 1]]
            found[part, int(number)] = int(count)
            position = end + 1 if end >= 0 else len(data)
        return found

    def _line(self, name: str, lemma: str) -> str:
        """Return the line of an entry, "" if there is none."""
        if not lemma or " " in lemma:
            return ""  # It would be found in the licence.
        data, key = self._bytes(name), f"{lemma} ".encode()
        start = _seek(data, key)
        if data[start : start + len(key)] != key:
            return ""
        end = data.find(b"\n", start)
        return data[start : end if end >= 0 else len(data)].decode()

    @cached_property
    def _exceptions(self) -> dict[str, dict[str, list[str]]]:
        return {part: dict(self._exception_lines(part)) for part in PARTS}

    @cached_property
    def _irregular(self) -> dict[str, dict[str, list[str]]]:
        """Of each lemma its irregular forms."""
        made: dict[str, dict[str, list[str]]] = {part: {} for part in PARTS}
        for part, forms in self._exceptions.items():
            for form, lemmas in forms.items():
                for lemma in lemmas:
                    made[part].setdefault(lemma, []).append(form)
        return made

    def _exception_lines(self, part: str) -> Iterator[tuple[str, list[str]]]:
        for line in self._bytes(f"{part}.exc", needed=False)[:].decode().splitlines():
            form, *lemmas = line.split()
            yield form, lemmas

    def _bytes(self, name: str, needed: bool = True) -> bytes | mmap.mmap:
        if name not in self._files:
            self._files[name] = self._read(name, needed)
        return self._files[name]

    def _read(self, name: str, needed: bool) -> bytes | mmap.mmap:
        place = Path(self.place)
        if place.suffix == ".zip":
            with zipfile.ZipFile(place) as archive:
                inside = [n for n in archive.namelist() if n.rpartition("/")[2] == name]
                if inside:
                    return archive.read(inside[0])
        elif (place / name).is_file():
            with (place / name).open("rb") as file:
                # An empty file cannot be mapped.
                empty = os.fstat(file.fileno()).st_size == 0
                return b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if needed:
            raise FileNotFoundError(f"{self.place} has no {name}")
        return b""


def _form_of(word: str, part: str) -> str:
    """Return what form of its lemma an exception is."""
    if part == "noun":
        return "s"
    if part == "verb":
        return "ing" if word.endswith("ing") else "ed"
    return "est" if word.endswith("st") else "er"


def _seek(data: bytes | mmap.mmap, key: bytes) -> int:
    """Return where the first line that is not below a key begins, in a file of sorted lines."""
    low, high = 0, len(data)
    while low < high:
        middle = (low + high) // 2
        start = data.rfind(b"\n", low, middle) + 1 or low
        # Lines of the licence begin with a space, which is below any entry.
        if data[start : start + len(key)] < key:
            end = data.find(b"\n", middle, high)
            low = end + 1 if end >= 0 else high
        else:
            high = start
    return low
