"""Memory is that of a process of its own."""

from __future__ import annotations

import json
import mmap
from pathlib import Path

import pytest

import lmkit
from lmkit.modules import MaskedLMModule
from lmkit.report.memory import main, peak_memory, resident_memory
from tests import tiny
from tests.callbacks.tuned import fit


def test_the_peak_stays_when_memory_is_given_back() -> None:
    before = resident_memory(peak=True)
    # Mapped by hand: a tuned allocator keeps what is given back.
    size = 300 * 2**20
    held = mmap.mmap(-1, size)
    held.write(bytes(size))
    high = resident_memory()
    held.close()
    assert resident_memory() < high - 200e6
    # The system counts in batches of pages.
    assert resident_memory(peak=True) >= max(before, high) - 20e6


def test_what_is_printed_is_what_was_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module, _ = fit(tmp_path, max_steps=1)
    folder = lmkit.export(module, tmp_path / "out")
    capsys.readouterr()
    main([json.dumps([str(folder), [[1, 8], [2, 4]], 1])])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["bytes"] >= 0


@pytest.mark.slow
def test_a_larger_model_needs_more_and_at_least_its_weights(tmp_path: Path) -> None:
    found = []
    for rows in (1_000, 300_000):
        module = MaskedLMModule({**tiny.MASKED["bert"], "hidden_size": 64, "vocab_size": rows})
        module.tokenizer = tiny.tokenizer()
        module.configure_model()
        folder = lmkit.export(module, tmp_path / str(rows))
        found.append(peak_memory(folder, [(1, 8)], 1))
    gap = 4 * 64 * 299_000  # 77 MB
    assert found[1] - found[0] > 0.9 * gap


@pytest.mark.slow
def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"could not be measured: .*config\.json"):
        peak_memory(tmp_path, [(1, 8)], 1)
