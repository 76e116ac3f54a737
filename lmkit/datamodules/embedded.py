"""The embedded corpus: the English prose of the standard library's own documentation.

It is taken at run time from the Python that runs (`pydoc_data.topics` and the docstrings of the
standard library's sources, which are parsed and never imported), so that everything works with no
network and no data in the package. It is a default to start on, not a benchmark: it is small,
about one subject, and another Python version has a slightly different one.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["embedded_corpus", "embedded_paragraphs"]

_VERSION = 1  # of the cleaning below; part of the file names in the cache

_SKIPPED = {
    "__pycache__",
    "dist-packages",
    "idle_test",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
    "turtledemo",
}
_ROLE = re.compile(r":[a-zA-Z:]+:`([^`]+)`")
_MARKUP = re.compile(r"``([^`]+)``|`([^`]+)`_?|\*\*([^*]+)\*\*|(?<!\w)\*([^*\s][^*]*)\*(?!\w)")
_BULLET = re.compile(r"^(?:[-*•+]|\d+[.)]|\(?[a-z]\))\s+")
_NO_PROSE = re.compile(r"^(?:>>>|\.\. |\.\.$|[-=~^*+#|_]{3,}|@|:\w+.*:|\$ |Traceback |\||\+--)")
_LETTERS = re.compile(r"[A-Za-z' ]")


def embedded_corpus(cache_dir: Path) -> dict[str, Path]:
    """Write the corpus under `cache_dir`, once per Python version, and return its files.

    Each paragraph is a line; a hash of it decides its split: 90 % train, 5 % val, 5 % test.

    Returns:
        The text files of `train`, `val` and `test`; about 200,000 words for Python 3.11.
    """
    version = f"{'.'.join(map(str, sys.version_info[:3]))}-v{_VERSION}"
    final = cache_dir / "embedded" / version
    files = {split: final / f"{split}.txt" for split in ("train", "val", "test")}
    if all(path.is_file() for path in files.values()):
        return files
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=".building-") as building:
        folder = Path(building) / version
        folder.mkdir()
        texts: dict[str, list[str]] = {split: [] for split in files}
        for paragraph in embedded_paragraphs():
            texts[_split_of(paragraph)].append(paragraph)
        for split, paragraphs in texts.items():
            (folder / f"{split}.txt").write_text("\n".join(paragraphs) + "\n", encoding="utf-8")
        try:
            folder.rename(final)
        except OSError:  # another process was first: its text is the same
            if not all(path.is_file() for path in files.values()):
                raise
    return files


def embedded_paragraphs() -> Iterator[str]:
    """Yield the corpus paragraph by paragraph, in a fixed order, each once."""
    seen: set[bytes] = set()
    for text in _documentation():
        for paragraph in _prose(text):
            digest = hashlib.blake2b(paragraph.lower().encode(), digest_size=16).digest()
            if digest not in seen:
                seen.add(digest)
                yield paragraph


def _documentation() -> Iterator[str]:
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield topics[name]
    root = Path(sysconfig.get_path("stdlib"))
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED)
        for name in sorted(names):
            if name.endswith(".py") and not name.startswith("test_"):
                yield from _docstrings(Path(folder) / name)


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text


def _prose(text: str) -> Iterator[str]:
    """Yield the paragraphs that are sentences: no code, table, heading, signature or directive."""
    margin, literal = 0, False
    for block in re.split(r"\n\s*\n", text.expandtabs()):
        lines = [line for line in block.split("\n") if line.strip()]
        if not lines:
            continue
        indent = len(lines[0]) - len(lines[0].lstrip())
        if literal and indent > margin:
            continue  # what follows "::" is code, as long as it is indented more
        margin, literal = indent, lines[-1].rstrip().endswith("::")
        if any(_NO_PROSE.match(line.strip()) for line in lines):
            continue
        paragraph = _BULLET.sub("", " ".join(" ".join(lines).split()))
        paragraph = _ROLE.sub(r"\1", paragraph)
        paragraph = _MARKUP.sub(lambda found: next(filter(None, found.groups())), paragraph)
        paragraph = re.sub(r"::$", ":", paragraph)
        if _is_prose(paragraph):
            yield paragraph


def _is_prose(paragraph: str) -> bool:
    words = paragraph.split()
    return (
        len(words) >= 8
        and paragraph[0].isupper()
        and paragraph[-1] in ".!?:)"
        and len(_LETTERS.findall(paragraph)) >= 0.88 * len(paragraph)
        and paragraph.isascii()
        and "``" not in paragraph
    )


def _split_of(paragraph: str) -> str:
    place = hashlib.blake2b(paragraph.encode(), digest_size=8).digest()[0] / 256
    return "train" if place < 0.9 else "val" if place < 0.95 else "test"
