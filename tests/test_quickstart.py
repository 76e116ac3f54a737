"""The first thing that a newcomer runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmkit.quickstart import SENTENCES, main


@pytest.mark.filterwarnings("ignore")
def test_it_shows_what_was_learned_and_leaves_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    # It would hush the loggers of the tests that come after.
    monkeypatch.setattr("lmkit.quickstart._quieten", lambda: None)
    run = tmp_path / "run"
    for _ in range(2):  # a second time in the same folder, too
        assert main(["--steps", "3", "--output", str(run)]) == 0
    shown = capsys.readouterr().out
    assert all(sentence.format(mask="____") in shown for sentence in SENTENCES)
    assert "perplexity" in shown
    assert "Done in" in shown
    assert sorted(path.name for path in (run / "checkpoints").iterdir())[-1] == "last.ckpt"
    assert {"loss.png", "metrics.csv", "export"} <= {path.name for path in run.iterdir()}


def test_a_run_without_steps_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--steps", "0"])
    assert "--steps must be at least 1, got 0" in capsys.readouterr().err
