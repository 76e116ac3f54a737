import os
import time

import pytest

from lmkit.datamodules import source as source_file
from lmkit.datamodules.source import FileSource, TextOptions, expand_files


def write(path, text="one\ntwo\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_files_globs_folders_and_lists_are_expanded(tmp_path):
    a, b = write(tmp_path / "in" / "a.txt"), write(tmp_path / "in" / "deep" / "b.csv.gz")
    write(tmp_path / "in" / "README.md")
    write(tmp_path / "in" / ".hidden" / "c.txt")
    assert expand_files(str(tmp_path / "in"), "x") == (a, b)
    assert expand_files(str(tmp_path / "in" / "*.txt"), "x") == (a,)
    assert expand_files(str(tmp_path / "**" / "*.csv.gz"), "x") == (b,)
    assert expand_files([str(b), str(tmp_path / "in")], "x") == (b, a)


def test_a_missing_file_names_the_nearest(tmp_path):
    write(tmp_path / "train.txt")
    with pytest.raises(ValueError, match=r"train_file: no file .*trian\.txt; did you mean .*train"):
        expand_files(str(tmp_path / "trian.txt"), "train_file")
    with pytest.raises(ValueError, match=r"the folder .*nowhere does not exist"):
        expand_files(str(tmp_path / "nowhere" / "a.txt"), "train_file")


def test_nothing_found_is_an_error(tmp_path):
    write(tmp_path / "in" / "picture.png")
    with pytest.raises(ValueError, match=r"source: the folder .* holds no text files"):
        expand_files(str(tmp_path / "in"), "source")
    with pytest.raises(ValueError, match=r"val_file: no file matches .*\*\.txt"):
        expand_files(str(tmp_path / "*.txt"), "val_file")
    with pytest.raises(ValueError, match="empty list"):
        expand_files([], "val_file")


def test_options_are_checked():
    with pytest.raises(
        ValueError, match="document must be one of line, paragraph, file, got 'page'"
    ):
        TextOptions(document="page")
    with pytest.raises(ValueError, match="on_bad_row must be one of error, skip, got 'ignore'"):
        TextOptions(on_bad_row="ignore")


def key(path, cache, **options):
    return FileSource((path,), TextOptions(**options)).key(cache)


def test_keys_follow_content_and_settings_and_nothing_else(tmp_path):
    a, b = write(tmp_path / "a.txt"), write(tmp_path / "b.txt")
    assert key(a, tmp_path) == key(b, tmp_path)
    assert key(a, tmp_path) != key(a, tmp_path, document="file")
    before = key(a, tmp_path)
    write(a, "one\ntwi\n")  # the same size, within the clock's tick
    assert key(a, tmp_path) != before
    c = write(tmp_path / "c.csv")
    assert key(c, tmp_path) != key(b, tmp_path)


def test_an_unchanged_file_is_hashed_once(tmp_path, monkeypatch):
    path = write(tmp_path / "a.txt")
    old = time.time() - 100
    os.utime(path, (old, old))
    monkeypatch.setattr(source_file.time, "time_ns", lambda: int((time.time() + 10) * 1e9))
    first = key(path, tmp_path)
    monkeypatch.setattr(source_file.hashlib, "sha256", lambda *data: _Small(*data))
    assert key(path, tmp_path) == first


class _Small:
    """A hash for short strings only: it fails when a file is read again."""

    def __init__(self, data):
        import hashlib

        self.digest = hashlib.new("sha256", data).hexdigest()

    def hexdigest(self):
        return self.digest
