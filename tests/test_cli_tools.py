"""The commands that work on models that are there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import lmkit as package
from tests.callbacks.tuned import save_encoder
from tests.test_cli import MEASURE
from tests.tiny import write_text
from tests.tiny_run import ROOT, checkpoint, lmkit, write_config


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("trim --help", 0),
        ("trim", 2),
        ("trim missing.ckpt out --corpus text.txt", 2),
        ("trim model out", 2),
        ("trim model out --corpus text.txt --min_count few", 2),
        ("report --help", 0),
        ("report efficiency --help", 0),
        ("report efficiency a/it b/it", 2),
        ("probe --help", 0),
        ("probe a", 2),
        ("probe a/it b/it --data train.csv", 2),
        ("probe a --data missing.csv", 2),
        ("probe =a --data train.csv", 2),
    ],
)
def test_what_is_wrong_is_said_before_torch_is_there(line: str, code: int) -> None:
    command = [sys.executable, "-c", MEASURE, *line.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    returned, seconds, slow = json.loads(done.stderr.splitlines()[-1])
    assert (returned, slow) == (code, []) and seconds < 0.3


def test_a_checkpoint_is_trimmed_into_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(tmp_path)
    assert lmkit("fit -c tiny.yaml") == 0
    (tmp_path / "corpus.csv").write_text("first,other\nthe fox,the old dog\n")
    path = Path("runs/tiny/checkpoints/last.ckpt")
    assert checkpoint("runs/tiny")["lmkit"]["ledger"] == []
    columns = "--text_column first --text_column other"
    capsys.readouterr()
    assert lmkit(f"trim {path} small --corpus corpus.csv {columns}") == 0
    shown = capsys.readouterr().out.splitlines()
    loaded = package.load("small")
    assert loaded.tokenizer is not None
    words, rows = loaded.tokenizer.get_vocab(), loaded.network.config.vocab_size
    assert {"fox", "old", "dog", "the"} <= words.keys() and "jumps" not in words
    assert shown[-2].startswith(f"{package.load(path).network.config.vocab_size} -> {rows} tokens")
    assert shown[-1] == "small" and rows == len(words)


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("trim base there --corpus text.txt", 2, "there is there already; --overwrite replaces it"),
        ("trim missing.ckpt out --corpus text.txt", 2, "there is no checkpoint at missing.ckpt"),
        ("trim base out --corpus missing.txt", 1, "corpus: no file or folder missing.txt"),
        ("trim base out --corpus empty.txt", 1, "there is no text in empty.txt"),
        ("trim base out --corpus text.txt --min_count 0", 1, "min_count must be a whole number"),
        ("trim base out --corpus text.txt --format onnx", 1, "has no head, and only a folder"),
        ("trim ./nowhere out --corpus text.txt", 1, "./nowhere"),
    ],
)
def test_bad_input_is_answered_in_plain_words(
    line: str, code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_encoder(tmp_path / "base")
    write_text(tmp_path / "text.txt", 5)
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("mine")
    assert lmkit(line) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and (tmp_path / "there" / "file").exists()


def test_a_report_of_a_run_and_its_trimmed_export(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    write_config(tmp_path)
    assert lmkit("fit -c tiny.yaml") == 0
    path = Path("runs/tiny/checkpoints/last.ckpt")
    assert lmkit(f"export --ckpt {path} --output dense") == 0
    capsys.readouterr()
    quick = "--shapes 1x8 2x16 --rounds 2 --no_memory"
    data = "--data runs/tiny/config.yaml --metric perplexity"
    line = f"report efficiency whole={path} dense {data} {quick} --json r.json --plot r.png"
    assert lmkit(line) == 0
    shown = capsys.readouterr().out
    assert "whole" in shown and "dense" in shown and "perplexity" in shown
    assert shown.splitlines()[-2:] == ["r.json", "r.png"] and Path("r.png").stat().st_size > 1000
    read = json.loads(Path("r.json").read_text())
    assert read["dense"] == "whole" and [row["agreement"] for row in read["rows"]] == [1.0, 1.0]
    assert read["settings"]["shapes"] == [[1, 8], [2, 16]]


@pytest.mark.parametrize("device", ["cuda", "tpuu"])
def test_a_device_that_is_not_here_is_told_before_a_model_is_looked_for(
    device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.csv").write_text("text,label\n")
    assert lmkit(f"probe ./nowhere --data train.csv --device {device}") == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert f"device must be one that is here, such as cpu, got '{device}': " in said


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("report", 2, "REPORT"),
        ("report speed a", 2, "efficiency"),
        ("report efficiency", 2, "MODEL"),
        ("report efficiency a --shapes 1by2", 2, "must be ROWSxTOKENS, such as 1x32, got '1by2'"),
        ("report efficiency a/it b/it", 2, "two models are called 'it': give them names"),
        ("report efficiency a --data no.yaml", 2, "there is no config file no.yaml"),
        ("report efficiency ./nowhere", 1, "nowhere: './nowhere' is neither a checkpoint"),
        ("report efficiency a --rounds 0", 1, "rounds must be at least 1"),
    ],
)
def test_a_report_that_cannot_be_made_says_why(
    line: str, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lmkit(line) == code
    assert message in capsys.readouterr().err
