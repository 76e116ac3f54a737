"""Back-translation: a file of texts said in other words, by way of another language."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from .back_translation_filter import Made, filter_translations
from .back_translation_rows import read_rows, row_lines
from .cache import write_whole
from .datamodules.batch_plan import check_positive
from .datamodules.source import expand_files, short_hash
from .functional.random import mix
from .journal import Journal
from .modules.checks import check_device
from .modules.sentence_vectors import SentenceVectors
from .translators import Translator, make_translator, translator_name

__all__ = ["BackTranslation", "back_translate"]

log = logging.getLogger("lmkit")

# Without and with an encoder; chosen by hand on a few paraphrases, not measured.
_MIN_CHRF, _MIN_COSINE = 0.3, 0.7


class BackTranslation(NamedTuple):
    """What a pass over a file gave.

    Attributes:
        path: of the file that was written.
        rows: that were read.
        translations: that were made, `copies` for each row whose text is not blank.
        written: how many of them are in the file.
        dropped: how many are not, by reason: `"blank"`, `"equal"`, `"repeated"`, `"length"` and
            `"similarity"`.
    """

    path: Path
    rows: int
    translations: int
    written: int
    dropped: dict[str, int]

    @property
    def reasons(self) -> str:
        """What was dropped and why, as words."""
        return ", ".join(f"{count:,} {why}" for why, count in self.dropped.items()) or "none"


def back_translate(
    files: str | os.PathLike[str] | Sequence[str | Path],
    output: str | os.PathLike[str],
    there: str | os.PathLike[str] | Sequence[str] | Translator,
    back: str | os.PathLike[str] | Sequence[str] | Translator,
    text_column: str | None = None,
    copies: int = 1,
    temperature: float = 0.9,
    beams: int | None = None,
    max_new_tokens: int | None = None,
    there_prefix: str = "",
    back_prefix: str = "",
    similarity_model: str | None = None,
    min_similarity: float | None = None,
    length_ratio: tuple[float, float] = (0.5, 2.0),
    batch_size: int = 32,
    seed: int = 0,
    device: str | None = None,
    encoding: str = "utf-8",
    overwrite: bool = False,
) -> BackTranslation:
    r"""Write the rows of files with their texts translated into another language and back.

    Both ways draw by default, so that `copies` of a text differ (arXiv:1511.06709 for the idea,
    arXiv:1904.12848 for drawing in augmentation). Written is a `.jsonl` with all columns of the
    rows; the text is replaced, `source_index` is the number of its row, from 0, and `similarity`
    how near it is to the original.

    A translation is dropped if it is blank, equal to the original but for case and white space, a
    repetition of an earlier one of the row, shorter or longer than `length_ratio` in characters
    allows, or less similar than `min_similarity`.

    What is translated is kept in the folder `OUTPUT.partial` until all is done. A pass that was
    killed goes on with the same call, and writes what it would have written; the thresholds may be
    others then.

    Args:
        files: paths, globs or folders of `.jsonl`, `.csv`, `.tsv`, `.parquet`, or `.txt` with a
            text a line.
        output: the `.jsonl` to write.
        there: folder or hub name of an encoder-decoder, the words of a command that reads and
            writes lines, or a function from a list of texts to a list of as many.
        back: the same for the way back.
        text_column: the column of the text, if it is not obvious.
        copies: translations of each row.
        temperature: of the draws of models.
        beams: models search with this many beams instead of drawing; then there is one copy.
        max_new_tokens: that models write for a text at most; by default 16 more than twice as many
            as the longest text of a batch has.
        there_prefix: stands before each text on the way there, as T5 wants it.
        back_prefix: the same on the way back.
        similarity_model: folder or hub name of an encoder, whose mean-pooled vectors are compared
            by their cosine. Without it similarity is chrF, of characters, in `[0, 1]`.
        min_similarity: by default 0.7 with a `similarity_model` and 0.3 without.
        length_ratio: of translation to original.
        batch_size: texts that are translated at a time; of a command, in one run of it.
        seed: of the draws.
        device: of the models; by default CUDA, if it is there.
        encoding: of the files.
        overwrite: replace a file that is there already.

    Returns:
        How many rows were read, translated, written and dropped, and why.

    Raises:
        ValueError: an argument lies outside its range; the output does not end in `.jsonl`, or is a
            folder; a file is empty or broken, or has no such column; a model is no encoder-decoder;
            a command fails or writes another number of lines; no translation is left; or
            `OUTPUT.partial` was begun otherwise.
        FileExistsError: the output is there already.
        BusyError: another process writes the same output.

    Example:
        >>> import json, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.csv").write_text("text,label\na small cat,x\n")
        ...     made = back_translate(f"{folder}/a.csv", f"{folder}/b.jsonl",
        ...         there=["cat"], back=lambda texts: [text + " sat" for text in texts])
        ...     print(made.written, json.loads(made.path.read_text())["text"])
        1 a small cat sat
    """
    least = min_similarity
    if least is None:
        least = _MIN_COSINE if similarity_model else _MIN_CHRF
    _check(copies, temperature, beams, max_new_tokens, batch_size, length_ratio, least)
    target = Path(output)
    # A file that is there, a PathLike or a list of such.
    names = [files] if isinstance(files, str | os.PathLike) else files
    found = expand_files([Path(name) for name in names], "files")
    if target.resolve() in {path.resolve() for path in found}:
        raise ValueError(f"the output {target} is one of the files; give another name")
    if target.suffix not in (".jsonl", ".json"):
        raise ValueError(f"the output {target} must end in .jsonl: what is written are JSON lines")
    if target.is_dir():
        raise ValueError(f"the output {target} is a folder; give the name of a file")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} is there already; give another output or overwrite it")
    check_device(device)
    rows, column = read_rows(found, text_column, encoding)
    header = {
        "there": translator_name(there),
        "back": translator_name(back),
        "there_prefix": there_prefix,
        "back_prefix": back_prefix,
        "copies": copies,
        "temperature": temperature,
        "beams": beams,
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
        "seed": seed,
        "texts": short_hash([row.values[column] for row in rows]),
    }
    texts = [str(row.values[column]) for row in rows]
    with Journal(target.with_name(f"{target.name}.partial"), header) as journal:
        search = temperature, beams, max_new_tokens, device
        plan = _plan(texts, copies, batch_size)
        if len(journal.entries) < len(plan):
            with _seeded(seed):  # to load a model draws numbers too
                ways = [
                    make_translator(there, "there", there_prefix, *search),
                    make_translator(back, "back", back_prefix, *search),
                ]
            _translate(texts, plan, ways, seed, journal)
        made = _in_order(plan, journal.entries)
        encoder = (
            SentenceVectors.load(similarity_model, device=device) if similarity_model else None
        )
        kept, dropped = filter_translations(texts, made, encoder, least, length_ratio)
        result = BackTranslation(target, len(rows), len(made), len(kept), dict(dropped))
        if not kept:
            raise ValueError(
                f"of {len(made):,} translations none is left (dropped: {result.reasons}). Lower "
                f"min_similarity ({least}) or widen length_ratio, which costs no further "
                f"translation, or look at what the models write in {journal.folder}"
            )
        write_whole(target, "".join(row_lines(rows, column, kept)))
        journal.remove()
    log.info(
        "%s: %d of %d translations (dropped: %s)", target, len(kept), len(made), result.reasons
    )
    return result


def _plan(texts: Sequence[str], copies: int, batch_size: int) -> list[list[tuple[int, int]]]:
    """Return batches of (row, copy), of like length, the longest first."""
    there = [row for row, text in enumerate(texts) if text.strip()]
    there.sort(key=lambda row: -len(texts[row]))
    batches = [there[at : at + batch_size] for at in range(0, len(there), batch_size)]
    return [[(row, copy) for row in batch] for copy in range(copies) for batch in batches]


def _translate(
    texts: Sequence[str],
    plan: Sequence[Sequence[tuple[int, int]]],
    ways: Sequence[Translator],
    seed: int,
    journal: Journal,
) -> None:
    done = len(journal.entries)
    if done:
        log.info("going on at batch %d of %d, from %s", done, len(plan), journal.folder)
    with tqdm(total=len(plan), initial=done, desc="translating", unit="batch", disable=None) as bar:
        for number in range(done, len(plan)):
            batch = [texts[row] for row, _ in plan[number]]
            for turn, translate in enumerate(ways):
                with _seeded(mix(seed, number, turn)):
                    # What became blank on the way stays so; no model says something of nothing.
                    full = [place for place, text in enumerate(batch) if text.strip()]
                    made = translate([batch[place] for place in full]) if full else []
                batch = [""] * len(batch)
                for place, text in zip(full, made, strict=True):
                    batch[place] = text
            journal.add({"texts": batch})
            bar.update()


def _in_order(
    plan: Sequence[Sequence[tuple[int, int]]], entries: Sequence[Mapping[str, Any]]
) -> list[Made]:
    """Return the translations in the order of rows and copies."""
    made = [
        Made(row, copy, text)
        for batch, entry in zip(plan, entries, strict=True)
        for (row, copy), text in zip(batch, entry["texts"], strict=True)
    ]
    return sorted(made, key=lambda each: each[:2])


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def _check(
    copies: int,
    temperature: float,
    beams: int | None,
    max_new_tokens: int | None,
    batch_size: int,
    length_ratio: tuple[float, float],
    least: float,
) -> None:
    check_positive(copies=copies, batch_size=batch_size)
    check_positive(beams=beams, max_new_tokens=max_new_tokens)
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}; to search, give beams")
    if beams is not None and copies > 1:
        raise ValueError(
            f"beams={beams} finds the same text each time, and copies={copies} were asked for: "
            "leave beams out to draw, or ask for one"
        )
    if len(length_ratio) != 2 or not 0 <= length_ratio[0] <= length_ratio[1]:
        raise ValueError(f"length_ratio must be two numbers, 0 <= low <= high, got {length_ratio}")
    if not -1 <= least <= 1:
        raise ValueError(f"min_similarity must lie in [-1, 1], got {least}")
