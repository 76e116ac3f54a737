"""Text augmentation: how many texts a second, against nlpaug, on sentences and on long reviews.

CPU seconds of one thread, both sides in turn, medians over rounds. Of lmkit the whole way of a data
module is measured: the generator of the example, the split into words, protection with its
defaults, the change, and the text again. Both change one word in ten, and lmkit's synonyms count
words that are rare too, as nlpaug's do.

    pip install --no-deps nlpaug==1.1.11 nltk
    python benchmarks/augmentation.py --part speed --json augmentation.json

nlpaug's synonyms need NLTK's tagger and WordNet, which NLTK downloads. WordNet is taken from where
lmkit finds it (`lexnames`, which Debian leaves out, is written). In place of the tagger every word
is a noun, at no cost: nlpaug's figure is without the time that its tagger takes.
"""

from __future__ import annotations

import csv
import gzip
import shutil
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import arguments, data_folder, median, write_json

from lmkit import transforms

RATE = 0.1
#: Names of lexicographers' files, which NLTK reads before all else; only their number is needed.
LEXNAMES = "".join(f"{number:02d}\tfile.{number}\t1\n" for number in range(45))


def sentences(count: int) -> list[str]:
    """Read sentences of customer reviews."""
    lines = (data_folder() / "cr" / "custrev.all").read_text(encoding="latin-1").splitlines()
    return [line.split(" ", 1)[1] for line in lines if " " in line][:count]


def reviews(count: int) -> list[str]:
    """Read reviews of films, of some 750 words."""
    path = data_folder() / "imdb-polarity-v2" / "movie_reviews.tsv.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [row["text"] for row, _ in zip(rows, range(count), strict=False)]


def noun_wordnet(folder: Path) -> None:
    """Let NLTK read WordNet from where lmkit does, and take each word for a noun."""
    import nltk
    import nltk.data
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    from lmkit.transforms.wordnet import open_wordnet

    for path in Path(open_wordnet().place).iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    (folder / "lexnames").write_text(LEXNAMES, encoding="ascii")
    # It reads from its own folders only.
    nltk.data.path.append(str(folder))
    # And its map to other versions needs files of those.
    WordNetCorpusReader.map_wn = lambda self, version="wordnet": None
    nltk.corpus.wordnet = WordNetCorpusReader(str(folder), None)
    nltk.pos_tag = lambda tokens: [(token, "NN") for token in tokens]


def peers(folder: Path) -> dict[str, Any]:
    """Return nlpaug's augmenters by the name of what they do."""
    # nlpaug imports a package for downloads from Google Drive, which nothing here asks for.
    sys.modules.setdefault("gdown", types.ModuleType("gdown"))
    try:
        noun_wordnet(folder)
        import nlpaug.augmenter.char as of_letters
        import nlpaug.augmenter.word as of_words
    except ImportError as error:
        print(f"without nlpaug: {error}")
        return {}
    letters = {"aug_word_p": RATE, "aug_word_max": None, "aug_char_p": RATE, "aug_char_max": None}
    words = {"aug_p": RATE, "aug_max": None}
    return {
        "keyboard": of_letters.KeyboardAug(**letters, min_char=4),
        "ocr": of_letters.OcrAug(**letters, min_char=4),
        "letter swap": of_letters.RandomCharAug(action="swap", **letters, min_char=4),
        "letter insertion": of_letters.RandomCharAug(action="insert", **letters, min_char=4),
        "letter deletion": of_letters.RandomCharAug(action="delete", **letters, min_char=4),
        "misspelling": of_words.SpellingAug(**words),
        "word swap": of_words.RandomWordAug(action="swap", **words),
        "word deletion": of_words.RandomWordAug(action="delete", **words),
        "synonyms": of_words.SynonymAug(**words),
    }


def ours() -> dict[str, transforms.Transform]:
    """Return lmkit's transforms by the same names, and one that nlpaug has no peer of."""

    def noise(kind: str) -> transforms.Transform:
        return transforms.CharacterNoise([kind], RATE, RATE, shortest=4)

    return {
        "keyboard": noise("keyboard"),
        "ocr": noise("ocr"),
        "letter swap": noise("swap"),
        "letter insertion": noise("insert"),
        "letter deletion": noise("drop"),
        "misspelling": transforms.SpellingErrors(RATE),
        "word swap": transforms.RandomSwap(RATE),
        "word deletion": transforms.RandomDeletion(RATE),
        "synonyms": transforms.SynonymReplacement(RATE, rare=True),
        "eda": transforms.EDA(RATE, RATE, RATE, RATE),
    }


def seconds(change: Callable[[int, str], Any], texts: list[str]) -> float:
    """Return the CPU seconds that one text takes."""
    start = time.process_time()
    for index, text in enumerate(texts):
        change(index, text)
    return (time.process_time() - start) / len(texts)


def speed(options: Any) -> dict[str, Any]:
    """Measure both sides in turn, after one round that fills their caches."""
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        known = peers(Path(folder))
        for kind, texts in {
            "sentences": sentences(options.sentences),
            "reviews": reviews(options.reviews),
        }.items():
            for name, transform in ours().items():
                sides: dict[str, list[float]] = {"lmkit": [], "nlpaug": []}
                for epoch in range(options.rounds + 1):

                    def change(
                        index: int,
                        text: str,
                        epoch: int = epoch,
                        transform: transforms.Transform = transform,
                    ) -> str:
                        rng = transforms.example_rng(0, epoch, index)
                        return transforms.transform_text(transform, text, rng)

                    sides["lmkit"].append(seconds(change, texts))
                    if peer := known.get(name):

                        def augment(index: int, text: str, peer: Any = peer) -> Any:
                            return peer.augment(text)

                        sides["nlpaug"].append(seconds(augment, texts))
                row: dict[str, Any] = {"texts": len(texts)}
                for side, times in sides.items():
                    if times:
                        row[f"{side} first, microseconds"] = round(times[0] * 1e6, 1)
                        row[f"{side}, microseconds"] = round(median(times[1:]) * 1e6, 1)
                if "nlpaug, microseconds" in row:
                    ratio = row["nlpaug, microseconds"] / row["lmkit, microseconds"]
                    row["times as fast"] = round(ratio, 1)
                figures[f"{kind}, {name}"] = row
    return figures


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of both sides")
    parser.add_argument("--sentences", type=int, default=500, help="short texts")
    parser.add_argument("--reviews", type=int, default=40, help="long texts")
    given = parser.parse_args()
    write_json(given.json, "augmentation", given, {"speed": speed(given)})
