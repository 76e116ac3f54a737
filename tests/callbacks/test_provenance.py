"""A run tells what it came from, and no secret."""

import json
import subprocess

import pytest
from lightning.pytorch.loggers import CSVLogger

from lmkit.callbacks import CheckpointCallback, ProvenanceCallback
from lmkit.callbacks.provenance import hide_secrets


def records(tmp_path):
    return json.loads((tmp_path / "provenance.json").read_text())


def test_the_file_holds_what_a_run_came_from(fit, tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    fit(ProvenanceCallback(), max_steps=1)
    (record,) = records(tmp_path)
    assert record["parameters"] == {"total": 4, "trainable": 2}
    assert record["seed"] == 7
    assert record["git"] is None  # the test's folder is no repository
    assert {"python", "lmkit", "torch", "lightning", "transformers"} <= set(record["versions"])


def test_a_changed_working_directory_is_dirty(fit, tmp_path):
    (tmp_path / "code.py").write_text("1\n")
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "code.py"], [*identity, "commit", "-qm", "one"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    fit(ProvenanceCallback(), max_steps=1)
    (tmp_path / "code.py").write_text("2\n")
    fit(ProvenanceCallback(), max_steps=1)
    clean, dirty = (record["git"] for record in records(tmp_path))
    assert len(clean["revision"]) == 40
    assert (clean["dirty"], dirty["dirty"]) == (False, True)


def test_a_resumed_run_keeps_the_facts_of_its_beginning(fit, tmp_path):
    fit(ProvenanceCallback(), CheckpointCallback(), max_steps=1, max_epochs=-1)
    last = tmp_path / "checkpoints" / "last.ckpt"
    fit(ProvenanceCallback(), CheckpointCallback(), max_steps=2, max_epochs=-1, ckpt_path=last)
    first, second = records(tmp_path)
    assert first["resumed_from"] is None
    assert second["resumed_from"] == str(last)


def test_every_logger_gets_the_facts(fit, tmp_path):
    logger = CSVLogger(tmp_path)
    fit(ProvenanceCallback(), logger=logger, max_steps=1)
    assert logger.experiment.hparams["provenance"]["parameters"]["total"] == 4


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (["--trainer.logger.init_args.api_key=abc"], "--trainer.logger.init_args.api_key=***"),
        (["--password", "abc", "--x"], "--password *** --x"),
        (["--hub_token=abc"], "--hub_token=***"),
        (["--data.tokenizer=abc"], "--data.tokenizer=abc"),
        (["--model.max_new_tokens=8"], "--model.max_new_tokens=8"),
        (["--model.mask_token", "[MASK]"], "--model.mask_token '[MASK]'"),
        (["http://me:pw@host/x"], "http://***@host/x"),
        (["hf_abcdefghijklmnop"], "***"),
    ],
)
def test_secrets_are_hidden(line, shown):
    assert hide_secrets(line) == shown
