"""A store is the same whatever happens to its writer, and takes no wrong batch."""

import errno
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from lmkit.cache import BusyError
from lmkit.modules import store_writer
from lmkit.modules.store_runs import Runs
from lmkit.modules.store_writer import StoreWriter
from lmkit.modules.teacher_store import TeacherStore

KEY = {"teacher": "a"}
DRAW = np.random.default_rng(0)
LENGTHS = DRAW.integers(0, 5, 11)
HIDDEN = [DRAW.normal(size=(k, 3)).astype(np.float32) for k in LENGTHS]
ORDER = DRAW.permutation(11)
BATCHES = [np.append(ORDER, -1)[first : first + 3] for first in range(0, 12, 3)]


def write(writer, numbers):
    rows = [HIDDEN[n] if n >= 0 else np.ones((1, 3), np.float32) for n in numbers]
    writer.write(numbers, {"hidden": rows, "length": LENGTHS[numbers]})


def build(folder):
    with StoreWriter(folder, 11, KEY, {"hidden": "float16"}) as writer:
        for position in range(writer.position, len(BATCHES)):
            write(writer, BATCHES[position])
            if position % 2:
                writer.commit()
        return writer.finish()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def killed(folder, steps):
    """Build in a process that is killed at such a step of its way; whether it came so far."""
    child = os.fork()
    if not child:
        try:
            _die_at(steps)
            build(folder)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def _die_at(steps):
    left = steps

    def step():
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    def stepped(function):
        def call(*arguments, **options):
            step()
            return function(*arguments, **options)

        return call

    def append(stream, values, whole=store_writer._append):
        octets = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        whole(stream, octets[: len(octets) // 2])
        step()
        whole(stream, octets[len(octets) // 2 :])

    store_writer._append = append
    np.save = stepped(np.save)
    os.truncate = stepped(os.truncate)
    os.fsync = stepped(lambda _: None)  # a process that is killed loses nothing that was written
    Path.replace, Path.unlink = stepped(Path.replace), stepped(Path.unlink)


def test_killed_at_any_step_the_store_is_that_of_an_uninterrupted_writer(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    expected = contents(build(tmp_path / "whole").path)
    assert set(expected) == {
        "meta.json",
        *(f"{n}.{end}" for n in ("hidden", "length") for end in ("bin", "index.npy")),
    }
    steps = 1
    while killed(folder := tmp_path / str(steps), steps):
        assert contents(build(folder).path) == expected
        steps += 1
    assert steps > 40 and contents(folder) == expected


def test_killed_again_and_again_it_comes_to_its_end(tmp_path):
    expected = contents(build(tmp_path / "whole").path)
    kills = 0
    while killed(tmp_path / "store", 30) and kills < 9:
        kills += 1
    assert 1 < kills < 9 and contents(tmp_path / "store") == expected


def test_what_was_not_committed_is_written_again(tmp_path):
    with StoreWriter(tmp_path, 11, KEY) as writer:
        write(writer, BATCHES[0])
        writer.commit()
        write(writer, BATCHES[1])
        assert writer.position == 1 and not writer.lacks(BATCHES[1]).any()
    with StoreWriter(tmp_path, 11, KEY) as writer:
        assert writer.position == 1 and not writer.finished
        assert writer.lacks(BATCHES[1]).all() and not writer.lacks(BATCHES[0]).any()
        assert writer.lacks(np.array([[-1, BATCHES[0][0]], [BATCHES[3][0], -1]])).tolist() == [
            [False, False],
            [True, False],
        ]


def test_batches_of_another_size_go_on_with_what_lacks(tmp_path):
    with StoreWriter(tmp_path / "store", 11, KEY) as writer:
        write(writer, BATCHES[0])
        writer.commit()
    with StoreWriter(tmp_path / "store", 11, KEY) as writer:
        for numbers in np.array_split(np.arange(11), 2):
            numbers[~writer.lacks(numbers)] = -1
            write(writer, numbers)
        store = writer.finish()
    expected = build(tmp_path / "whole").rows("length", range(11))
    assert np.array_equal(store.rows("length", range(11)), expected)


def test_examples_that_lack_are_counted(tmp_path):
    with StoreWriter(tmp_path, 11, KEY) as writer:
        for numbers in BATCHES[1:]:
            write(writer, numbers)
        with pytest.raises(
            ValueError, match=f"3 of 11 examples lack, .* number {min(BATCHES[0])};"
        ):
            writer.finish()
        write(writer, BATCHES[0])
        assert writer.finish().examples == 11


def test_a_finished_store_is_found_finished(tmp_path):
    before = contents(build(tmp_path).path)
    with StoreWriter(tmp_path, 11, KEY) as writer:
        assert writer.finished and writer.position == len(BATCHES) and not writer.lacks(ORDER).any()
        with pytest.raises(RuntimeError, match="finished"):
            write(writer, [-1])
        writer.commit()
        assert np.array_equal(writer.finish().rows("hidden", [3])[0], HIDDEN[3].astype(np.float16))
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("numbers", "fields", "message"),
    [
        ([0, 3], {}, r"written once: 1 of these .* number 3"),
        ([0, 0], {}, r"written once: 1 of these .* number 0"),
        ([11, 0], {}, r"numbers must lie below 11, got 11"),
        ([0, 1], {"hidden": np.zeros((2, 1, 4))}, r"hidden \(float64 \[3\]\).*\(float64 \[4\]\)"),
        ([0, 1], {"hidden": np.zeros((2, 1, 3), np.float32)}, r"got hidden \(float32 \[3\]\)"),
        ([0, 1], {"more": np.zeros((2, 1))}, r"those of the batches before.* more \(float64"),
        ([0, 1], {"hidden": np.zeros((3, 1, 3))}, r"hidden must have counts of 2 examples"),
        ([0, 1], {"ids": np.full((2, 1), 2**31)}, r"do not fit int32"),
    ],
)
def test_a_wrong_batch_is_refused_and_leaves_nothing(tmp_path, numbers, fields, message):
    right = {"hidden": np.ones((2, 1, 3)), "ids": np.ones((2, 1), np.int64)}
    with StoreWriter(tmp_path, 11, KEY, {"ids": "int32"}) as writer:
        writer.write([2, 3], right)
        writer.commit()
        before = contents(tmp_path)
        with pytest.raises(ValueError, match=message):
            writer.write(numbers, right | fields)
        assert contents(tmp_path) == before and writer.lacks([0, 1]).all()
        writer.write([0, 1], right)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"../a": np.zeros((1, 1))}, "named by letters and digits, got '../a'"),
        ({"a": np.array([["x"]])}, "rows of numbers are kept"),
        ({"a": np.zeros((1, 1, 0))}, r"rows of numbers are kept, got a \(float64 \[0\]\)"),
        ({}, r"those of dtypes, \[\], or more, got \[\]"),
    ],
)
def test_fields_that_cannot_be_kept_are_refused(tmp_path, fields, message):
    with StoreWriter(tmp_path, 2, KEY) as writer:
        with pytest.raises(ValueError, match=message):
            writer.write([0], fields)
        writer.write([0], {"b": [[1]]})
    with (
        StoreWriter(tmp_path / "other", 2, KEY, {"hiden": "float16"}) as writer,
        pytest.raises(ValueError, match=r"those of dtypes, \['hiden'\], or more, got \['hidden'\]"),
    ):
        writer.write([0], {"hidden": [[1.0]]})


def test_constructor_arguments_are_checked(tmp_path):
    with pytest.raises(ValueError, match="examples must be at least 1, got 0"):
        StoreWriter(tmp_path, 0, KEY)
    StoreWriter(tmp_path / "store", 3, KEY).close()
    with pytest.raises(ValueError, match="is of 3 examples, and not of 4"):
        StoreWriter(tmp_path / "store", 4, KEY)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").write_text("dear")
    with pytest.raises(ValueError, match="home has letter, and is no store"):
        StoreWriter(tmp_path / "home", 3, KEY)
    assert contents(tmp_path / "home") == {"letter": b"dear"}


def test_tensors_of_a_network_are_taken_as_they_are(tmp_path):
    logits = torch.linspace(-1e5, 1e5, 12, dtype=torch.bfloat16).reshape(4, 3).requires_grad_()
    with StoreWriter(tmp_path, 2, KEY, {"logits": "float16"}) as writer:
        runs = Runs(logits, torch.tensor([3, 1]))
        writer.write(torch.tensor([1, 0]), {"logits": runs})
        store = writer.finish()
    expected = logits.detach().float().clamp(-65504, 65504).half().numpy()
    assert np.array_equal(store.rows("logits", [1])[0], expected[:3])
    assert np.array_equal(store.rows("logits", [0])[0], expected[3:])


def test_a_second_process_is_refused_until_the_first_is_done_or_dead(tmp_path):
    ready, tell = os.pipe()
    child = os.fork()
    if not child:
        with StoreWriter(tmp_path, 11, KEY):
            os.write(tell, b"!")
            time.sleep(60)
        os._exit(0)
    try:
        os.read(ready, 1)
        with pytest.raises(BusyError, match=f"process {child} on .* is writing to "):
            StoreWriter(tmp_path, 11, KEY)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert (tmp_path / "lock").exists()
    assert build(tmp_path).examples == 11


def test_one_that_waits_finds_the_store_of_the_first(tmp_path):
    child = os.fork()
    if not child:
        with StoreWriter(tmp_path, 11, KEY) as writer:
            (tmp_path.parent / "ready").touch()
            time.sleep(0.3)
            for numbers in BATCHES:
                write(writer, numbers)
            writer.finish()
        os._exit(0)
    while not (tmp_path.parent / "ready").exists():
        time.sleep(0.01)
    with StoreWriter(tmp_path, 11, KEY, wait=30) as writer:
        assert writer.finished
    os.waitpid(child, 0)


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["write", "commit"])
def test_on_a_full_disk_what_was_committed_stays(tmp_path, monkeypatch, where):
    with StoreWriter(tmp_path / "store", 11, KEY) as writer:
        write(writer, BATCHES[0])
        writer.commit()
        with monkeypatch.context() as patch:
            if where == "write":
                patch.setattr(store_writer, "_append", full_disk)
            else:
                write(writer, BATCHES[1])
                patch.setattr(os, "fsync", full_disk)
            with pytest.raises(OSError, match=r"what the teacher says .*No space left.* MiB free"):
                writer.commit() if where == "commit" else write(writer, BATCHES[1])
        # What the system has of the files now, nobody knows.
        for call in (writer.commit, writer.finish, lambda: write(writer, BATCHES[2])):
            with pytest.raises(RuntimeError, match="broken off: open it anew"):
                call()
    assert np.array_equal(
        build_on(tmp_path / "store").rows("hidden", range(11)),
        build_on(tmp_path / "whole").rows("hidden", range(11)),
    )


def build_on(folder):
    with StoreWriter(folder, 11, KEY) as writer:
        for numbers in BATCHES[writer.position :]:
            write(writer, numbers)
        return writer.finish()


def test_a_closed_writer_takes_and_keeps_nothing_more(tmp_path):
    with StoreWriter(tmp_path, 11, KEY) as writer:
        write(writer, BATCHES[0])
    for call in (writer.commit, writer.finish, lambda: write(writer, BATCHES[1])):
        with pytest.raises(RuntimeError, match="was closed"):
            call()
    assert not (tmp_path / "lock").exists()
    with pytest.raises(RuntimeError, match="0 of 11"):
        TeacherStore.open(tmp_path)
