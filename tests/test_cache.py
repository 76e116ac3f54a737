"""Where the cache is, and that a folder in it is whole or not there."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from lmkit import cache
from lmkit.cache import (
    BusyError,
    FolderLock,
    building_folder,
    cache_folder,
    put_in_place,
    write_whole,
    writing_to,
)


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


def dead_process():
    made = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=-1)
    return int(made.stdout)


def test_what_a_dead_process_left_is_removed_and_what_a_living_one_builds_is_not(tmp_path):
    host, dead = socket.gethostname(), dead_process()
    left = tmp_path / f".building-{host}-{dead}-0"
    alive = tmp_path / f".building-{host}-{os.getpid()}-0"
    elsewhere = tmp_path / f".building-not-{host}-{dead}-0"
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


def test_a_file_has_its_old_content_until_it_has_all_of_the_new(tmp_path, monkeypatch):
    path = tmp_path / "entry.json"
    write_whole(path, "old")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("full")))
        write_whole(path, "new")
    assert path.read_text() == "old"
    write_whole(path, "né")
    assert path.read_text(encoding="utf-8") == "né"
    assert [file.name for file in tmp_path.iterdir()] == ["entry.json"]


def test_a_full_disk_is_told_with_its_folder_and_a_remedy(tmp_path):
    with (
        pytest.raises(
            OSError, match=r"cannot write a song to .*No space left.* MiB free.*LMKIT_CACHE"
        ),
        writing_to(tmp_path, "a song"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")


def without_locks(*_):
    raise OSError(errno.ENOLCK, "No locks available")


#: A system with locks, one that has none, and a file system that has none.
LOCKS = {
    "locks": cache.fcntl,
    "no_locks": None,
    "no_locks_here": SimpleNamespace(flock=without_locks, LOCK_EX=2, LOCK_NB=4),
}


@pytest.mark.parametrize("locks", LOCKS)
def test_a_folder_has_one_writer_at_a_time(tmp_path, monkeypatch, locks):
    monkeypatch.setattr(cache, "fcntl", LOCKS[locks])
    first = FolderLock(tmp_path)
    me = f"process {os.getpid()} on {socket.gethostname()} is writing to {tmp_path}"
    before = time.monotonic()
    with pytest.raises(BusyError, match=me):
        FolderLock(tmp_path, wait=0.2)
    assert first.held and time.monotonic() - before > 0.19
    first.release()
    first.release()
    assert not first.held and not (tmp_path / "lock").exists()
    second = FolderLock(tmp_path)
    assert second.held
    second.release()


@pytest.mark.parametrize("locks", LOCKS)
@pytest.mark.parametrize("text", ["", "dead"])
def test_the_lock_of_a_dead_process_is_taken_over(tmp_path, monkeypatch, locks, text):
    monkeypatch.setattr(cache, "fcntl", LOCKS[locks])
    left = json.dumps([socket.gethostname(), dead_process()]) if text else text
    (tmp_path / "lock").write_text(left)
    lock = FolderLock(tmp_path)
    assert json.loads((tmp_path / "lock").read_text()) == [socket.gethostname(), os.getpid()]
    lock.release()


def test_without_locks_the_process_of_another_host_is_waited_for(tmp_path, monkeypatch):
    (tmp_path / "lock").write_text('["elsewhere", 1]')
    monkeypatch.setattr(cache, "fcntl", None)
    with pytest.raises(BusyError, match=r"process 1 on elsewhere .*no more, remove .*lock"):
        FolderLock(tmp_path)


def test_a_lock_is_let_go_though_a_worker_that_was_forked_has_it_open(tmp_path):
    lock = FolderLock(tmp_path)
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    try:
        lock.release()
        FolderLock(tmp_path).release()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_one_that_waits_does_not_take_a_file_that_its_owner_has_removed(tmp_path, monkeypatch):
    first = FolderLock(tmp_path)
    real = cache._lock

    def late(stream):
        if first.held:  # the owner goes between the opening and the locking
            first.release()
        return real(stream)

    monkeypatch.setattr(cache, "_lock", late)
    second = FolderLock(tmp_path)
    assert second.held
    with pytest.raises(BusyError):
        FolderLock(tmp_path)
    second.release()
