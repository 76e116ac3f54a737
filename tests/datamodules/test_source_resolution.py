import datasets
import pytest

from lmkit.datamodules.source import TextOptions
from lmkit.datamodules.source_resolution import resolve_sources

NO_FILES = {"train": None, "val": None, "test": None}


def write(path, text="one\ntwo\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def resolve(tmp_path, source=None, files=NO_FILES, **options):
    return resolve_sources(source, files, TextOptions(**options), tmp_path / "cache")


def contents(sources):
    return {split: [text.text for text in source.texts()] for split, source in sources.items()}


def test_a_folder_is_split_by_the_names_of_its_files(tmp_path):
    write(tmp_path / "in" / "train-0.txt", "a")
    write(tmp_path / "in" / "latest.txt", "b")
    write(tmp_path / "in" / "wiki.valid.txt", "c")
    write(tmp_path / "in" / "test.txt", "d")
    found = contents(resolve(tmp_path, str(tmp_path / "in")))
    assert found == {"train": ["b", "a"], "val": ["c"], "test": ["d"]}


def test_files_take_the_place_of_a_split(tmp_path):
    train, val = write(tmp_path / "a.txt", "a"), write(tmp_path / "b.txt", "b")
    found = resolve(tmp_path, str(train), {**NO_FILES, "val": str(val)})
    assert contents(found) == {"train": ["a"], "val": ["b"]}
    with pytest.raises(ValueError, match="both name the training text"):
        resolve(tmp_path, str(train), {**NO_FILES, "train": str(val)})


def test_datasets_objects_are_read_by_split(tmp_path):
    rows = datasets.Dataset.from_dict({"id": [1, 2, 3], "sentence": ["one", " ", "two"]})
    assert contents(resolve(tmp_path, rows)) == {"train": ["one", "two"]}
    both = datasets.DatasetDict({"train": rows, "validation": rows.select([2])})
    assert contents(resolve(tmp_path, both)) == {"train": ["one", "two"], "val": ["two"]}


def test_equal_datasets_have_equal_keys(tmp_path):
    def key(texts):
        rows = datasets.Dataset.from_dict({"text": texts})
        return resolve(tmp_path, rows)["train"].key(tmp_path)

    assert key(["a", "b"]) == key(["a", "b"]) != key(["a", "c"])


def test_bad_datasets_are_refused(tmp_path):
    rows = datasets.Dataset.from_dict({"a": ["x"], "b": ["y"]})
    with pytest.raises(ValueError, match=r"text columns: 'a', 'b'"):
        contents(resolve(tmp_path, rows))
    gap = datasets.Dataset.from_dict({"text": ["x", None]})
    with pytest.raises(ValueError, match=r"source, line 2: the value of 'text' is missing"):
        contents(resolve(tmp_path, gap))
    assert contents(resolve(tmp_path, gap, on_bad_row="skip")) == {"train": ["x"]}
    with pytest.raises(TypeError, match=r"got IterableDataset"):
        resolve(tmp_path, rows.to_iterable_dataset())
    with pytest.raises(ValueError, match=r"no split named train.*\['dialogues'\]"):
        resolve(tmp_path, datasets.DatasetDict({"dialogues": rows}))


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        ("imdb", [("imdb",)]),
        ("a/b", [("a/b",), ("a", "b")]),
        ("a/b/c", [("a/b", "c")]),
    ],
)
def test_hub_names_are_tried_in_order_and_their_failure_is_told(tmp_path, monkeypatch, name, calls):
    seen = []

    def load_dataset(*names):
        seen.append(names)
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ValueError, match=rf"source='{name}' is no local file.*no network.*pass"):
        resolve(tmp_path, name)
    assert seen == calls


def test_hub_data_are_taken_by_configuration(tmp_path, monkeypatch):
    rows = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": ["a"]})})
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, config=None: rows if config else 1 / 0
    )
    assert contents(resolve(tmp_path, "wikitext/wikitext-2-raw-v1")) == {"train": ["a"]}
