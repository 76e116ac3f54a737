"""Checkpoint files: whole or not at all, and never run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lmkit.modules.checkpoint_io import AtomicCheckpointIO, read_checkpoint


class Code:
    """An object whose unpickling runs code."""

    def __reduce__(self) -> Any:
        return (os.mkdir, ("broken-into",))


def write(path: Path, value: float = 1.0) -> Path:
    AtomicCheckpointIO().save_checkpoint({"x": torch.full((50_000,), value)}, path)
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "deep" / "a.ckpt")
    assert torch.equal(read_checkpoint(path)["x"], torch.ones(50_000))
    assert [p.name for p in path.parent.iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize("keep", [0, 10, 1000, 150_000])
def test_a_checkpoint_cut_short_is_named(tmp_path: Path, keep: int) -> None:
    path = write(tmp_path / "a.ckpt")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"a\.ckpt \(\d+ bytes\) is cut short"):
        read_checkpoint(path)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "x": Code()}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="could run code, so it is refused"):
        read_checkpoint(tmp_path / "a.ckpt")
    assert not Path("broken-into").exists()


def test_a_file_that_is_no_checkpoint_of_a_fit_is_named(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"a\.ckpt is no checkpoint of a fit"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*none\.ckpt"):
        read_checkpoint(tmp_path / "none.ckpt")


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    # A limit on the size of files makes the kernel refuse a write as a full disk does.
    script = f"""
import resource, signal, torch
from lmkit.modules.checkpoint_io import AtomicCheckpointIO
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
io = AtomicCheckpointIO()
io.save_checkpoint({{"x": torch.ones(10)}}, {str(tmp_path / "a.ckpt")!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    io.save_checkpoint({{"x": torch.zeros(1_000_000)}}, {str(tmp_path / "a.ckpt")!r})
except OSError as error:
    print("refused:", error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    assert "refused: the checkpoint" in done.stdout and "still stands" in done.stdout
    assert torch.equal(read_checkpoint(tmp_path / "a.ckpt")["x"], torch.ones(10))
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


def test_a_kill_during_writing_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    script = f"""
import torch
from lmkit.modules.checkpoint_io import AtomicCheckpointIO
io = AtomicCheckpointIO()
value = 0.0
while True:
    value += 1
    io.save_checkpoint({{"x": torch.full((2_000_000,), value)}}, {str(tmp_path / "a.ckpt")!r})
    print(value, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    part = tmp_path / "a.ckpt.part"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 0) and time.monotonic() < deadline:
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    values = read_checkpoint(tmp_path / "a.ckpt")["x"]
    assert values.numel() == 2_000_000 and (values == values[0]).all()
