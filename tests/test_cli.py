"""The command answers at once, finds recipes by their word, and says what was perhaps meant."""

import json
import re
import subprocess
import sys

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping

from lmkit import __version__, cli
from tests.tiny_run import ROOT, lmkit

# Run inside the process that is measured, so that it is its own CPU time that counts.
MEASURE = """
import json, resource, sys
from lmkit.cli import main
code = main(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF)
slow = [m for m in ("torch", "transformers", "lightning", "datasets") if m in sys.modules]
print(json.dumps([code, used.ru_utime + used.ru_stime, slow]), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("", 0),
        ("--help", 0),
        ("--version", 0),
        ("recipes", 0),
        ("recipes masked_lm", 0),
        ("fitt", 2),
        ("fit -c maskd_lm", 2),
        ("fit -c missing.yaml", 2),
        ("export --ckpt missing.ckpt --output out", 2),
        ("export --help", 0),
    ],
)
def test_light_commands_cost_no_torch(line, code):
    command = [sys.executable, "-c", MEASURE, *line.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    returned, seconds, slow = json.loads(done.stderr.splitlines()[-1])
    assert (returned, slow) == (code, [])
    assert seconds < 0.3


def test_version_is_printed(capsys):
    assert lmkit("--version") == 0
    assert capsys.readouterr().out == f"lmkit {__version__}\n"


def test_help_names_every_command(capsys):
    lmkit("--help")
    shown = capsys.readouterr().out
    assert all(f"\n  {command} " in shown for command in cli.COMMANDS)


def test_recipes_are_listed_with_their_one_line(capsys):
    assert lmkit("recipes") == 0
    shown = capsys.readouterr().out
    assert re.search(r"^masked_lm +Pre-train a small encoder", shown, re.MULTILINE)
    assert all(f"\n{word} " in f"\n{shown}" for word in cli.recipes())


def test_a_recipe_is_printed(capsys):
    assert lmkit("recipes causal_lm") == 0
    assert "class_path: CausalLMModule" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("fti -c masked_lm", "there is no command 'fti'; did you mean 'fit'?"),
        ("fit -c maskd_lm", "no recipe 'maskd_lm'; did you mean 'masked_lm'?"),
        ("recipes casual_lm", "no recipe 'casual_lm'; did you mean 'causal_lm'?"),
        ("fit --config=folder/mine.yaml", "there is no config file folder/mine.yaml"),
        ("fit -c", "-c needs a config file or the word of a recipe"),
        ("export --ckpt a.ckpt --output out", "there is no checkpoint at a.ckpt"),
    ],
)
def test_a_wrong_word_is_answered_with_the_nearest(line, message, capsys):
    assert lmkit(line) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: [\n", "bad.yaml, line 3: this is no YAML"),
        ("a:\n  ner: 1\n  qa: 2\n  ner: 3\n", "bad.yaml, line 4: 'ner' stands twice here"),
        ("- a\n", "bad.yaml must hold settings such as"),
        (b"\xff\xfe\xff", "bad.yaml is no YAML"),
    ],
)
def test_a_config_that_is_no_yaml_is_named_with_its_line(text, message, tmp_path, capsys):
    content = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "bad.yaml").write_bytes(content)
    assert lmkit("fit -c bad.yaml") == 2
    assert message in capsys.readouterr().err


def test_a_file_of_ones_own_wins_over_a_recipe(tmp_path):
    (tmp_path / "masked_lm").write_text("trainer: {}\n")
    assert str(cli.find_recipe("masked_lm")) == "masked_lm"


def test_a_folder_does_not_hide_a_recipe(tmp_path):
    (tmp_path / "masked_lm").mkdir()
    assert cli.find_recipe("masked_lm") == cli.recipes()["masked_lm"]


def raising(error):
    def run():
        raise error

    return run


@pytest.mark.parametrize("error", [ValueError("too much"), OSError("disk full")])
def test_an_error_of_the_user_is_one_line(error, capsys):
    assert cli._guard(lambda: raising(error), 2) == 1
    assert capsys.readouterr().err == f"lmkit: error: {error}\n"


def test_an_error_before_the_run_has_another_code():
    assert cli._guard(raising(ValueError("no")), 2) == 2


def test_ctrl_c_before_the_run_has_the_code_of_a_shell():
    assert cli._guard(raising(KeyboardInterrupt()), 2) == 130


def test_a_bug_shows_its_trace():
    with pytest.raises(TypeError, match="unsupported"):
        cli._guard(raising(TypeError("unsupported")), 2)


def test_a_metric_to_watch_that_is_not_there_is_no_bug(capsys):
    def watch():
        stop = EarlyStopping("val/f1", strict=True)
        stop._validate_condition_metric({"val/loss": torch.zeros(())})

    assert cli._guard(lambda: watch, 2) == 1
    assert "`val/f1` which is not available" in capsys.readouterr().err


def test_debug_shows_the_trace_of_every_error(monkeypatch):
    monkeypatch.setenv("LMKIT_DEBUG", "1")
    with pytest.raises(ValueError, match="no"):
        cli._guard(raising(ValueError("no")), 2)


def test_an_export_does_not_replace_a_folder_unasked(tmp_path, capsys):
    (tmp_path / "a.ckpt").write_bytes(b"")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("")
    assert lmkit("export --ckpt a.ckpt --output out") == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
