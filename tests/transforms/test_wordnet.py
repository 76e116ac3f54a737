"""WordNet's files are read right, in a tiny copy and in the real one."""

from __future__ import annotations

import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from lmkit.transforms import RandomInsertion, SynonymReplacement
from lmkit.transforms.morphology import inflect, regular_lemmas
from lmkit.transforms.wordnet import PARTS, WordNet, open_wordnet
from tests.transforms.tiny_wordnet import write_wordnet


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """Make WordNet be found nowhere."""
    monkeypatch.delenv("WORDNET_HOME", raising=False)
    monkeypatch.delenv("WNSEARCHDIR", raising=False)
    monkeypatch.setattr(
        "lmkit.transforms.wordnet.wordnet_places", lambda: [tmp_path / "a", tmp_path / "b.zip"]
    )


@pytest.mark.parametrize(
    ("word", "synonyms"),
    [
        ("car", ["auto"]),
        ("cars", ["autos"]),
        ("movies", ["films"]),
        ("city", []),  # `metropolis` was never met.
        ("planned", ["designed"]),
        ("planning", ["designing"]),
        ("designs", ["plans"]),
        ("went", ["moved", "traveled"]),
        ("big", ["adult", "large"]),
        ("bigger", ["larger"]),
        ("quickly", ["rapidly"]),
        ("better", ["fuller"]),
        ("unknown", []),
        ("ca", []),
        ("", []),
        (" 1", []),
    ],
)
def test_synonyms(tmp_path, word, synonyms):
    assert WordNet(write_wordnet(tmp_path)).synonyms(word) == synonyms


def test_senses_are_taken_by_how_often_they_were_met(tmp_path):
    counted = WordNet(write_wordnet(tmp_path / "a"))
    # The verb was met 7 times, the noun 3 times.
    assert counted.synonyms("film", senses=1) == ["shoot"]
    assert counted.synonyms("film", senses=2) == ["movie", "shoot"]
    plain = WordNet(write_wordnet(tmp_path / "b", counts=False))
    assert plain.synonyms("film", senses=1) == ["movie"]
    assert counted.synonyms("big", senses=1) == ["large"]


def test_rare_words(tmp_path):
    wordnet = WordNet(write_wordnet(tmp_path))
    assert wordnet.synonyms("city", rare=True) == ["metropolis"]
    assert wordnet.synonyms("movie", senses=1, rare=True) == ["film", "flick"]


def test_an_archive_is_the_same(tmp_path):
    folder = Path(write_wordnet(tmp_path / "wordnet"))
    with zipfile.ZipFile(tmp_path / "wordnet.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, f"wordnet/{path.name}")
    packed, plain = open_wordnet(str(tmp_path / "wordnet.zip")), open_wordnet(str(folder))
    assert packed.synonyms("film") == plain.synonyms("film") != []
    assert packed.digest == plain.digest


@pytest.mark.parametrize("variable", ["WORDNET_HOME", "WNSEARCHDIR", "NLTK_DATA"])
def test_places(tmp_path, monkeypatch, variable):
    for name in ("WORDNET_HOME", "WNSEARCHDIR", "NLTK_DATA"):
        monkeypatch.delenv(name, raising=False)
    inside = "corpora/wordnet" if variable == "NLTK_DATA" else "dict"
    folder = write_wordnet(tmp_path / inside)
    monkeypatch.setenv(variable, str(tmp_path))
    from lmkit.transforms.wordnet import wordnet_places

    found = [place for place in wordnet_places() if (place / "index.noun").is_file()]
    assert Path(folder) in found
    if variable != "NLTK_DATA":
        assert open_wordnet() is open_wordnet() and open_wordnet().place == folder


def test_it_says_what_is_missing(nowhere, tmp_path):
    for call in (open_wordnet, SynonymReplacement().fingerprint):
        with pytest.raises(FileNotFoundError, match=r"b\.zip.*apt install wordnet-base"):
            call()
    with pytest.raises(FileNotFoundError, match="apt install wordnet-base"):
        SynonymReplacement()(["film"], None, np.random.default_rng(0))
    with pytest.raises(FileNotFoundError, match="no-such-folder"):
        RandomInsertion(source="no-such-folder")(["film"], None, np.random.default_rng(0))
    folder = Path(write_wordnet(tmp_path / "cut"))
    (folder / "data.verb").unlink()
    with pytest.raises(FileNotFoundError, match=r"cut has no data\.verb"):
        WordNet(str(folder)).synonyms("plan")


def test_files_that_do_not_belong_together(tmp_path):
    folder = Path(write_wordnet(tmp_path))
    (folder / "data.noun").write_text("x" + (folder / "data.noun").read_text())
    with pytest.raises(ValueError, match=r"data\.noun does not belong to index\.noun"):
        WordNet(str(folder)).synonyms("car")


@pytest.mark.parametrize(
    ("lemma", "part", "form", "made"),
    [
        ("box", "noun", "s", "boxes"),
        ("boy", "noun", "s", "boys"),
        ("cry", "verb", "s", "cries"),
        ("cry", "verb", "ed", "cried"),
        ("play", "verb", "ed", "played"),
        ("lie", "verb", "ing", "lying"),
        ("see", "verb", "ing", "seeing"),
        ("stop", "verb", "ing", "stopping"),
        ("rain", "verb", "ing", "raining"),
        ("quit", "verb", "ing", "quitting"),
        ("open", "verb", "ed", "opened"),
        ("show", "verb", "ed", "showed"),
        ("hot", "adj", "er", "hotter"),
        ("nice", "adj", "est", "nicest"),
        ("happy", "adj", "er", "happier"),
        ("famous", "adj", "er", None),
        ("quickly", "adv", "er", None),
    ],
)
def test_endings(lemma, part, form, made):
    assert inflect(lemma, part, form) == made
    if made:
        doubled = made[: -len(form)][-1:] == made[: -len(form)][-2:-1] and lemma[-1] != "e"
        assert doubled or lemma == "lie" or (lemma, form) in regular_lemmas(made, part)


def test_irregular_forms():
    known = {"child": ["children"], "go": ["gone", "went"], "make": ["made", "making"]}
    assert inflect("child", "noun", "s", known) == "children"
    assert inflect("go", "verb", "ed", known) is None
    assert inflect("go", "verb", "ing", known) == "going"
    assert inflect("make", "verb", "ed", known) == "made"
    assert inflect("make", "verb", "s", known) == "makes"


def test_the_real_one():
    try:
        wordnet = open_wordnet()
    except FileNotFoundError as error:
        pytest.skip(f"needs WordNet: {error}")
    start = time.process_time()
    fresh = WordNet(wordnet.place)
    assert {"film", "picture"} <= set(fresh.synonyms("movie"))
    assert {"films", "pictures"} <= set(fresh.synonyms("movies"))
    assert "kids" in fresh.synonyms("children")
    assert "purchased" in fresh.synonyms("bought")
    assert fresh.synonyms("large") == ["big"]
    assert time.process_time() - start < 2
    # Each entry is found where a search from the beginning finds it.
    for part in PARTS:
        lines = fresh._bytes(f"index.{part}")[:].decode().splitlines()
        lines = [line for line in lines if not line.startswith("  ")]
        for line in [*lines[:3], *lines[:: len(lines) // 50], *lines[-3:]]:
            assert fresh._line(f"index.{part}", line.split()[0]) == line
