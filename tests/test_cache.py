"""Where the cache is, and that a folder in it is whole or not there."""

import os
import socket
import subprocess
import sys

import pytest

from lmkit.cache import building_folder, cache_folder, put_in_place


def test_the_cache_is_where_it_is_asked_to_be(tmp_path, monkeypatch):
    monkeypatch.setenv("LMKIT_CACHE", str(tmp_path / "env"))
    assert cache_folder() == tmp_path / "env"
    assert cache_folder(tmp_path / "own") == tmp_path / "own"
    monkeypatch.delenv("LMKIT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "lmkit"
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write to the cache .*file"):
        cache_folder(tmp_path / "file")


def test_what_a_dead_process_left_is_removed_and_what_a_living_one_builds_is_not(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=-1)
    host = socket.gethostname()
    left = tmp_path / f".building-{host}-{int(dead.stdout)}-0"
    alive = tmp_path / f".building-{host}-{os.getpid()}-0"
    elsewhere = tmp_path / f".building-not-{host}-{int(dead.stdout)}-0"
    for folder in (left, alive, elsewhere):
        folder.mkdir()
    building = building_folder(tmp_path / "key")
    assert not left.exists() and alive.exists() and elsewhere.exists()
    assert building.parent == tmp_path and not building.exists()


def test_the_first_of_two_builders_wins_and_a_broken_entry_is_replaced(tmp_path):
    final = tmp_path / "key"

    def build(text):
        building = building_folder(final)
        building.mkdir()
        (building / "text").write_text(text)
        return put_in_place(building, final, open_entry)

    def open_entry(folder):
        if not (folder / "text").is_file():
            raise FileNotFoundError
        return (folder / "text").read_text()

    assert build("first") == "first" and build("second") == "first"
    (final / "text").rename(final / "broken")
    assert build("third") == "third"
