"""A run has one folder, resumes exactly after SIGKILL, and its checkpoint speaks for itself."""

import csv
import json
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import TQDMProgressBar

from lmkit.cli_checkpoint import flags_of
from lmkit.lightning_cli import _word, build
from tests.tiny_run import checkpoint, lmkit, same_state, start, write_config

TRAINED = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch")

# A callback of the user's own, found in the working directory.
KILLER = """
import os
from lightning.pytorch import Callback

class Kill(Callback):
    def __init__(self, at: int):
        self.at = at

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.at and "KILL" in os.environ:
            if signal := int(os.environ["KILL"]):
                os.kill(os.getpid(), signal)
            else:
                raise OSError("died")
"""


def killed_at(step, folder):
    (folder / "killer.py").write_text(KILLER)
    return [{"class_path": "killer.Kill", "init_args": {"at": step}}]


@pytest.fixture(autouse=True)
def own_imports(monkeypatch):
    """Forget the folder of the test and what was imported from it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("killer", None)


def equal(one, other):
    return all(same_state(one[key], other[key]) for key in TRAINED)


def figures(folder, name):
    """A metric by step, over all starts of a run."""
    found = {}
    for path in sorted(Path(folder).glob("csv/*/metrics.csv")):
        with path.open() as file:
            found |= {int(row["step"]): row[name] for row in csv.DictReader(file) if row.get(name)}
    return found


@pytest.fixture
def run(tmp_path):
    """A finished run in `runs/tiny`."""
    write_config(tmp_path)
    assert lmkit("fit -c tiny.yaml --checkpoint.every_n_train_steps=2") == 0
    return tmp_path / "runs" / "tiny"


def test_a_run_leaves_all_it_made_in_one_folder(run):
    left = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert left == {
        "checkpoints/last.ckpt",
        "config.yaml",
        "csv/version_0/hparams.yaml",
        "csv/version_0/metrics.csv",
        "provenance.json",
    } | {str(p.relative_to(run)) for p in run.glob("checkpoints/best-*")}


def test_the_config_that_is_saved_runs_again(run):
    first = checkpoint(run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["init_args"]["schedule"] == "linear"
    assert config["trainer"]["default_root_dir"] == "runs/tiny"
    again = f"fit -c {run / 'config.yaml'} --trainer.default_root_dir=again"
    assert lmkit(again) == 0
    assert equal(first, checkpoint("again"))


def test_print_config_prints_all_and_runs_nothing(tmp_path, capsys):
    write_config(tmp_path)
    assert lmkit("fit -c tiny.yaml --model.learning_rate=3 --print_config") == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["init_args"]["learning_rate"] == 3
    assert config["checkpoint"]["monitor"] == "val/loss"
    assert not Path("runs").exists()


def test_the_csv_figures_of_the_beginning_survive_a_resume(run):
    assert lmkit("fit -c tiny.yaml --ckpt_path last --trainer.max_steps=8") == 0
    assert sorted(figures(run, "train/loss")) == list(range(8))


def test_the_progress_bar_suits_a_file(tmp_path):
    write_config(tmp_path, enable_progress_bar=True)
    bar = build(["fit", "-c", "tiny.yaml"]).trainer.progress_bar_callback
    assert type(bar) is TQDMProgressBar


def test_a_progress_bar_of_ones_own_is_kept(tmp_path):
    bar = {"class_path": "TQDMProgressBar", "init_args": {"refresh_rate": 7}}
    write_config(tmp_path, enable_progress_bar=True, callbacks=[bar])
    trainer = build(["fit", "-c", "tiny.yaml"]).trainer
    assert trainer.progress_bar_callback.refresh_rate == 7


def test_lightnings_advertisements_are_not_shown(tmp_path, caplog):
    write_config(tmp_path, max_steps=1)
    assert lmkit("fit -c tiny.yaml") == 0
    assert "GPU available" in caplog.text
    assert "Tip" not in caplog.text


def test_a_run_without_logger_stays_without(tmp_path):
    write_config(tmp_path, logger=False)
    assert lmkit("fit -c tiny.yaml") == 0
    assert not Path("runs/tiny/csv").exists()


@pytest.mark.parametrize(
    "options",
    [
        "--trainer.fast_dev_run=true",
        "--trainer.barebones=true --trainer.log_every_n_steps=0",
        "--trainer.enable_checkpointing=false",
    ],
)
def test_the_trainers_short_cuts_work(options, tmp_path):
    write_config(tmp_path)
    assert lmkit(f"fit -c tiny.yaml {options}") == 0
    assert not list(Path().rglob("*.ckpt"))


def test_a_new_run_in_the_folder_of_an_earlier_one_sets_that_aside(run, capsys):
    first = checkpoint("runs/tiny")
    assert lmkit("fit -c tiny.yaml --seed_everything=1 --trainer.max_steps=4") == 0
    assert "whose checkpoints are now in runs/tiny/earlier-1/checkpoints" in capsys.readouterr().err
    assert equal(checkpoint("runs/tiny/earlier-1"), first)
    assert checkpoint("runs/tiny")["global_step"] == 4
    assert yaml.safe_load((run / "earlier-1" / "config.yaml").read_text())["seed_everything"] == 42
    assert lmkit("validate --ckpt_path runs/tiny/earlier-1/checkpoints/last.ckpt") == 0
    assert lmkit("fit -c tiny.yaml --ckpt_path last") == 0
    assert not (run / "earlier-2").exists()


def test_a_fit_that_fails_before_training_leaves_the_earlier_run_as_it_was(run, capsys):
    first, config = checkpoint("runs/tiny"), (run / "config.yaml").read_text()
    wrong = "--trainer.callbacks+=LoRACallback --trainer.callbacks.targets=[nothing_like_it]"
    assert lmkit(f"fit -c tiny.yaml {wrong}") == 1
    assert "no module matches" in capsys.readouterr().err
    assert not (run / "earlier-1").exists()
    assert equal(checkpoint("runs/tiny"), first)
    assert (run / "config.yaml").read_text() == config
    assert lmkit("fit -c tiny.yaml --ckpt_path last --trainer.max_steps=8") == 0
    assert checkpoint("runs/tiny")["global_step"] == 8
    assert not (run / "earlier-1").exists()


def test_a_dry_run_sets_nothing_aside(run):
    first = checkpoint("runs/tiny")
    assert lmkit("fit -c tiny.yaml --trainer.fast_dev_run=true") == 0
    assert equal(checkpoint("runs/tiny"), first)


def test_a_run_that_was_never_started_starts_with_last(tmp_path, capsys):
    write_config(tmp_path, max_steps=1)
    assert lmkit("fit -c tiny.yaml --ckpt_path last") == 0
    assert "no checkpoint in runs/tiny/checkpoints yet: starting from the beginning" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("word", ["last", "best"])
def test_an_evaluation_does_not_start_without_a_checkpoint(word, tmp_path, capsys):
    write_config(tmp_path)
    assert lmkit(f"validate -c tiny.yaml --ckpt_path {word}") == 2
    assert "there is no checkpoint in runs/tiny/checkpoints" in capsys.readouterr().err


def test_a_path_that_is_no_checkpoint_is_named_without_a_config_too(tmp_path, capsys):
    assert lmkit("predict --ckpt_path runs/none.ckpt --data.predict_file=texts.txt") == 2
    assert "there is no checkpoint at runs/none.ckpt" in capsys.readouterr().err


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path):
    # Windows of two batches; the checkpoint is of step 8, in the middle of the second epoch.
    options = {"accumulate_grad_batches": 2, "val_check_interval": 1.0}
    write_config(tmp_path, max_steps=12, callbacks=killed_at(9, tmp_path), **options)
    line = "fit -c tiny.yaml --checkpoint.every_n_train_steps=4"
    process = start(line, KILL="9")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, errors
    assert checkpoint("runs/tiny")["global_step"] == 8
    assert lmkit(f"{line} --ckpt_path last") == 0
    assert lmkit(f"{line} --trainer.default_root_dir=whole") == 0
    assert equal(checkpoint("runs/tiny"), checkpoint("whole"))


@pytest.mark.parametrize("end", ["max_steps", "max_epochs"])
@pytest.mark.parametrize(
    ("validate_every", "window", "save_every", "dies_at"),
    [
        (1.0, 1, 100, 12),
        (4, 2, 3, 9),
        pytest.param(3, 2, 1, 4, marks=pytest.mark.slow),
        pytest.param(0.5, 1, 5, 9, marks=pytest.mark.slow),
    ],
)
def test_validations_and_best_checkpoints_survive_too(
    end, validate_every, window, save_every, dies_at, tmp_path, monkeypatch
):
    # An epoch has 11 batches; the last case of each kind dies right behind its end.
    write_config(
        tmp_path,
        max_steps=25 if end == "max_steps" else -1,
        max_epochs=3 if end == "max_epochs" else -1,
        val_check_interval=validate_every,
        accumulate_grad_batches=window,
        callbacks=killed_at(dies_at, tmp_path),
    )
    line = f"fit -c tiny.yaml --checkpoint.every_n_train_steps={save_every}"
    with monkeypatch.context() as dying:
        dying.setenv("KILL", "0")
        assert lmkit(line) == 1
    assert lmkit(f"{line} --ckpt_path last") == 0
    assert lmkit(f"{line} --trainer.default_root_dir=whole") == 0
    assert equal(checkpoint("runs/tiny"), checkpoint("whole"))
    assert figures("runs/tiny", "val/loss") == figures("whole", "val/loss")
    names = [sorted(p.name for p in Path(f).glob("checkpoints/*")) for f in ("runs/tiny", "whole")]
    assert names[0] == names[1]


def test_ctrl_c_finishes_the_step_and_saves_it(tmp_path):
    write_config(tmp_path, callbacks=killed_at(3, tmp_path))
    process = start("fit -c tiny.yaml", KILL="2")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "--ckpt_path last goes on" in errors
    assert checkpoint("runs/tiny")["global_step"] == 4
    assert lmkit("fit -c tiny.yaml --ckpt_path last") == 0
    assert lmkit("fit -c tiny.yaml --trainer.default_root_dir=whole") == 0
    assert equal(checkpoint("runs/tiny"), checkpoint("whole"))


@pytest.mark.slow
def test_a_run_killed_at_any_moment_goes_on(tmp_path):
    write_config(tmp_path, max_steps=-1, max_epochs=15)
    line = "fit -c tiny.yaml --checkpoint.every_n_train_steps=1 --data.num_workers=2"
    process = start(line)
    last = Path("runs/tiny/checkpoints/last.ckpt")
    deadline = time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.7)
    process.kill()
    process.communicate()
    step = checkpoint("runs/tiny")["global_step"]
    line = line.replace("every_n_train_steps=1", "every_n_train_steps=50")
    assert lmkit(f"{line} --ckpt_path last") == 0
    assert lmkit(f"{line} --trainer.default_root_dir=whole") == 0
    assert 0 < step < checkpoint("whole")["global_step"]
    assert equal(checkpoint("runs/tiny"), checkpoint("whole"))


def test_a_checkpoint_needs_no_config(run, capsys):
    assert lmkit("validate --ckpt_path runs/tiny/checkpoints/last.ckpt") == 0
    assert "val/perplexity" in capsys.readouterr().out
    config = yaml.safe_load((run / "config.validate.yaml").read_text())
    assert config["model"]["class_path"] == "lmkit.modules.MaskedLMModule"


def test_a_checkpoint_alone_needs_no_config_either(run, tmp_path, capsys):
    alone = (run / "checkpoints" / "last.ckpt").rename(tmp_path / "alone.ckpt")
    assert lmkit(f"test --ckpt_path {alone} --trainer.accelerator=cpu") == 0
    assert "test/perplexity" in capsys.readouterr().out


def test_a_run_can_be_moved(run, tmp_path):
    moved = run.rename(tmp_path / "moved")
    assert lmkit("validate -c tiny.yaml --ckpt_path best --trainer.default_root_dir=moved") == 0
    assert lmkit(f"validate --ckpt_path {moved / 'checkpoints' / 'last.ckpt'}") == 0
    assert not run.exists()


def test_predictions_reach_a_file(run, tmp_path, capsys):
    (tmp_path / "ask.txt").write_text("the [MASK] fox\na lazy [MASK]\n")
    line = "predict --ckpt_path runs/tiny/checkpoints/last.ckpt --data.predict_file=ask.txt"
    assert lmkit(f"{line} --model.fill_count=2") == 0
    rows = [json.loads(line) for line in (run / "predictions.jsonl").open()]
    assert [len(row["fills"][0]) for row in rows] == [2, 2]
    assert "model.fill_count is 2; the checkpoint" in capsys.readouterr().err


def test_a_prediction_needs_no_training_text(run, tmp_path, capsys):
    (tmp_path / "ask.txt").write_text("the [MASK] fox\n")
    line = "predict --ckpt_path runs/tiny/checkpoints/last.ckpt --data.train_file=gone.txt"
    assert lmkit(f"{line} --data.predict_file=ask.txt") == 0
    assert len((run / "predictions.jsonl").read_text().splitlines()) == 1
    assert lmkit(line) != 0
    assert "pass predict_file" in capsys.readouterr().err


def test_flags_that_the_checkpoint_overrides_are_named(run, capsys):
    line = (
        "fit -c tiny.yaml --ckpt_path last --trainer.max_steps=7 --model.init_args.learning_rate=1"
    )
    assert lmkit(line) == 0
    said = capsys.readouterr().err
    assert "model.learning_rate=1.0 is overridden by 0.0005 of the checkpoint runs/tiny" in said
    assert "model.warmup" not in said
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["init_args"]["learning_rate"] == 0.0005


def test_the_structure_comes_from_the_checkpoint_even_in_an_evaluation(run, tmp_path, capsys):
    path = tmp_path / "tiny.yaml"
    path.write_text(path.read_text().replace("hidden_size: 16", "hidden_size: 32"))
    assert lmkit("validate -c tiny.yaml --ckpt_path last") == 0
    assert "model.model={" in capsys.readouterr().err


def test_a_checkpoint_of_another_class_is_refused(run, tmp_path, capsys):
    write_config(tmp_path, "causal")
    assert lmkit("fit -c tiny.yaml --ckpt_path last") == 2
    assert "is a checkpoint of MaskedLMModule, and the config is for CausalLMModule" in (
        capsys.readouterr().err
    )


def test_a_checkpoint_cut_short_is_refused(run, capsys):
    last = run / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    for line in ("fit -c tiny.yaml --ckpt_path last", f"validate --ckpt_path {last}"):
        assert lmkit(line) == 2
        assert "(1000 bytes) is cut short" in capsys.readouterr().err
    assert lmkit(f"export --ckpt {last} --output out") == 1
    assert "cut short" in capsys.readouterr().err


class Trap:
    def __reduce__(self):
        return Path.write_text, (Path("sprung"), "code was run")


def test_code_in_a_checkpoint_is_not_run(run, capsys):
    last = run / "checkpoints" / "last.ckpt"
    torch.save({**checkpoint(run), "trap": Trap()}, last)
    for line in ("fit -c tiny.yaml --ckpt_path last", f"predict --ckpt_path {last}"):
        assert lmkit(line) == 2
        assert "could run code, so it is refused" in capsys.readouterr().err
    assert lmkit(f"export --ckpt {last} --output out") == 1
    assert not Path("sprung").exists()


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, monkeypatch, capsys):
    write_config(tmp_path, limit_val_batches=0)
    save, full = torch.save, OSError(28, "No space left on device")

    def fail_late(content, file, *args, **options):
        if content["global_step"] >= 4:
            file.write(b"half of it")
            raise full
        save(content, file, *args, **options)

    monkeypatch.setattr("torch.save", fail_late)
    assert lmkit("fit -c tiny.yaml --checkpoint.every_n_train_steps=2") == 1
    assert "No space left on device" in capsys.readouterr().err
    assert [path.name for path in Path("runs/tiny/checkpoints").iterdir()] == ["last.ckpt"]
    assert checkpoint("runs/tiny")["global_step"] == 2


def test_an_export_is_made_from_a_checkpoint(run, capsys):
    line = "export --ckpt runs/tiny/checkpoints/last.ckpt --output out"
    assert lmkit(line) == 0
    assert capsys.readouterr().out.strip() == "out"
    assert Path("out/model.safetensors").is_file()
    assert lmkit(line) == 2
    assert lmkit(f"{line} --overwrite") == 0


@pytest.mark.parametrize(
    ("class_path", "word"),
    [
        ("lmkit.modules.MaskedLMModule", "masked_lm"),
        ("lmkit.modules.Seq2SeqModule", "seq2_seq"),
        ("mine.Classifier", "classifier"),
    ],
)
def test_a_run_without_a_recipe_is_named_after_its_module(class_path, word):
    assert _word(class_path) == word


def test_flags_of_a_section_are_found_in_every_spelling():
    words = [
        "--model.a=1",
        "--model.init_args.b",
        "2",
        "--model.c.d=3",
        "--data.e=4",
        "--model",
        "X",
    ]
    assert flags_of(words) == {"a", "b", "c"}
