"""A wrong config is answered in one line that names the nearest right one, with exit code 2."""

import pytest
import yaml

from tests.tiny_run import lmkit, write_config


def changed(path, section, **changes):
    config = yaml.safe_load(path.read_text())
    for key, value in changes.items():
        if key == "class_path" or section == "trainer":
            config[section][key] = value
        else:
            config[section]["init_args"][key] = value
    path.write_text(yaml.safe_dump(config))


def answer(line, capsys):
    code = lmkit(line)
    lines = capsys.readouterr().err.strip().splitlines()
    assert code == 2
    assert len(lines) == 1, lines
    return lines[0]


CALLBACK = "lmkit.callbacks.SamplesCallback"


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("model", {"learnin_rate": 1}, "no option 'learnin_rate'; did you mean 'learning_rate'?"),
        ("model", {"learning_rate": "abc"}, "learning_rate: expected a number, got 'abc'"),
        ("model", {"class_path": "MaskdLMModule"}, "did you mean 'MaskedLMModule'?"),
        ("data", {"class_path": "MaskdLMDataModule"}, "did you mean 'MaskedLMDataModule'?"),
        ("data", {"class_path": "lmkit.datamodules.Mask"}, "has no attribute 'Mask'"),
        ("data", {"batchsize": 3}, "no option 'batchsize'; did you mean 'batch_size'?"),
        ("data", {"document": "pragraph"}, "got 'pragraph'; did you mean 'paragraph'?"),
        ("trainer", {"max_epoch": 3}, "did you mean 'trainer.max_epochs'?"),
        ("trainer", {"max_epochs": "three"}, "expected a whole number or null, got 'three'"),
        ("trainer", {"precision": "bf16-mix"}, "did you mean 'bf16-mixed'?"),
        ("trainer", {"callbacks": [{"class_path": "SamplsCallback"}]}, "mean 'SamplesCallback'?"),
        ("trainer", {"logger": {"class_path": "CSVLoger"}}, "did you mean 'CSVLogger'?"),
        (
            "trainer",
            {"callbacks": [{"class_path": CALLBACK, "init_args": {"row": 3}}]},
            "SamplesCallback: there is no option 'row'; did you mean 'rows'?",
        ),
        (
            "trainer",
            {"callbacks": [{"class_path": CALLBACK, "init_args": {"rows": 0}}]},
            "lmkit: error: rows must be at least 1, got 0",
        ),
    ],
)
def test_a_wrong_setting_in_a_file(section, changes, message, tmp_path, capsys):
    changed(write_config(tmp_path), section, **changes)
    assert message in answer("fit -c tiny.yaml", capsys)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--model.learnin_rate=1", "no option 'learnin_rate'; did you mean 'learning_rate'?"),
        ("--model.init_args.warmup=x", "warmup: expected a number, got 'x'"),
        ("--model MaskedLModule", "did you mean 'MaskedLMModule'?"),
        ("--trainer.max_epoch=3", "--trainer.max_epoch; did you mean '--trainer.max_epochs'?"),
        ("--ckptpath=x", "there is no option --ckptpath; did you mean '--ckpt_path'?"),
        ("--checkpoint.mode=minn", "expected 'min' or 'max', got 'minn'; did you mean 'min'?"),
        ("--trainer.callbacks+=LearningRateMonitr", "did you mean 'LearningRateMonitor'?"),
        ("--ckpt_path=nowhere.ckpt", "there is no checkpoint at nowhere.ckpt"),
        ("--weights_only=false", "there is no option --weights_only"),
        ("--checkpoint.every_n_train_steps=0", "every_n_train_steps must be at least 1, got 0"),
    ],
)
def test_a_wrong_flag(flag, message, tmp_path, capsys):
    write_config(tmp_path)
    assert message in answer(f"fit -c tiny.yaml {flag}", capsys)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("fit", "Give a recipe or config with -c"),
        ("fit --model MaskedLMModule", "the option 'model' is missing"),
    ],
)
def test_what_is_missing_is_named(line, message, capsys):
    assert message in answer(line, capsys)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (
            "--model.losses+=FlwLoss",
            "losses: there is no class 'FlwLoss'; did you mean 'FlowLoss'?",
        ),
        ('--model.losses=[{"class_path":"LogtLoss"}]', "did you mean 'LogitLoss'?"),
        ("--model.losses.LogtLoss.weight=1", "no loss LogtLoss, did you mean LogitLoss?"),
        ("--model.losses.LogitLoss.wieght=1", "LogitLoss: there is no option 'wieght'; did you"),
        ("--model.losses.LogitLoss.temperature=-1", "error: temperature must be above 0, got -1"),
        ("--model.losses.HiddenLoss.distance=mes", "got 'mes'; did you mean 'mse'?"),
        ("--model.student=MaskdLMModule", "student: there is no class 'MaskdLMModule'; did you"),
        ("--model.student.learnin_rate=1", "'learnin_rate'; did you mean 'learning_rate'?"),
        ("--model.student.schedule=liner", "got 'liner'; did you mean 'linear'?"),
    ],
)
def test_a_wrong_loss_or_student_of_a_distillation(flag, message, capsys):
    assert message in answer(f"fit -c distillation {flag}", capsys)
