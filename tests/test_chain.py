"""Stages that are fit in turn: what each begins from, going on, options, and bad chains."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lmkit import load
from lmkit.chain import has_stages, read_chain
from lmkit.chain_options import find_missing
from lmkit.cli import find_recipe
from tests import task_files
from tests.test_recipes import FAST, encoder
from tests.tiny_run import checkpoint, lmkit

STAGES: dict[str, Any] = {
    "teacher": {"config": "sequence_classification"},
    "distil": {
        "config": "distillation",
        "options": {
            "model.teacher": "{teacher}",
            "model.student.model": "{teacher}",
            "model.student_layers": [0],
        },
        "checkpoint": "last",
    },
    "factors": {
        "config": "low_rank",
        "options": {
            "model.model": "{distil}",
            "trainer.callbacks.LowRankCallback.calibration_batches": 1,
        },
    },
}
ROOT = Path("runs/chain")
#: The folders of the recipe of an intermediate task.
STAGES_OF_TWO = ("1-intermediate", "2-target")


def write(stages: Any = None, **more: Any) -> Path:
    """Write a chain to the working directory."""
    path = Path("chain.yaml")
    path.write_text(yaml.safe_dump({"stages": stages or STAGES, **more}, sort_keys=False))
    return path


@pytest.fixture
def line(tmp_path: Path) -> str:
    """The command of a tiny chain."""
    named = " ".join(f"--data.{k}={v}" for k, v in task_files.labelled_texts(tmp_path).items())
    model = encoder(tmp_path / "model")
    return f"fit -c {write()} {FAST} {named} --data.max_length=32 --teacher.model.model={model}"


def test_each_stage_begins_from_what_the_one_before_exported(line, capsys):
    assert lmkit(line) == 0
    assert "stage 3 of 3, factors" in capsys.readouterr().out
    folders = ["1-teacher", "2-distil", "3-factors"]
    assert [path.name for path in sorted(ROOT.iterdir())] == folders
    layers = [
        json.loads((ROOT / name / "exported/config.json").read_text())["num_hidden_layers"]
        for name in folders
    ]
    assert layers == [2, 1, 1]
    last = checkpoint(str(ROOT / "3-factors"))
    assert last["hyper_parameters"]["model"] == str(ROOT / "2-distil/exported")
    assert [spec["class_path"].rpartition(".")[2] for spec in last["lmkit"]["ledger"]] == [
        "LowRank"
    ]
    assert [fit["module"] for fit in last["lmkit"]["history"]] == [
        "SequenceClassificationModule",
        "DistillationModule",
        "SequenceClassificationModule",
    ]
    assert (ROOT / "3-factors/exported/structure.json").is_file()


def test_a_chain_goes_on_with_the_stage_that_was_not_done(line, capsys):
    # The second stage does not begin: its layers are not there.
    assert lmkit(f"{line} --distil.model.student_layers=[7]") > 0
    assert not (ROOT / "3-factors").exists()
    before = (ROOT / "1-teacher/checkpoints/last.ckpt").read_bytes()
    assert lmkit(line) == 2
    assert "--ckpt_path last goes on" in capsys.readouterr().err
    assert lmkit(f"{line} --ckpt_path last") == 0
    assert "teacher: done before" in capsys.readouterr().out
    assert (ROOT / "1-teacher/checkpoints/last.ckpt").read_bytes() == before
    assert lmkit(f"{line} --ckpt_path=last") == 0
    assert capsys.readouterr().out.count("done before") == 3


def test_a_stage_that_was_done_with_other_options_is_not_taken_for_done(line, capsys):
    assert lmkit(line) == 0
    assert lmkit(f"{line} --ckpt_path last --distil.model.hard_weight=0.9") == 2
    said = capsys.readouterr().err
    assert "stage distil was done with other options (--model.hard_weight=0.9)" in said


def test_an_unfinished_stage_goes_on_from_its_last_checkpoint(line, capsys):
    assert lmkit(line) == 0
    # As a stage that was stopped behind its last checkpoint, before it was exported.
    (ROOT / "2-distil/stage.json").unlink()
    assert lmkit(f"{line} --ckpt_path last --distil.trainer.max_steps=6") == 2
    assert "3-factors is of a chain in which the stage distil was done" in capsys.readouterr().err
    shutil.rmtree(ROOT / "3-factors")
    assert lmkit(f"{line} --ckpt_path last --distil.trainer.max_steps=6") == 0
    assert checkpoint(str(ROOT / "2-distil"))["global_step"] == 6


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("--factors.model.learning_rat=1", "did you mean 'learning_rate'?"),
        ("--factors.trainer.callbacks.LoRACallback.rank=3", "LoRACallback"),
        ("--teachr.model.model=x", "did you mean 'teacher'? The stages are teacher, distil"),
    ],
)
def test_a_wrong_option_of_any_stage_is_refused_before_the_first(wrong, said, line, capsys):
    assert lmkit(f"{line} {wrong}") == 2
    assert said in capsys.readouterr().err
    assert not ROOT.exists()


@pytest.mark.parametrize("export", [{"format": "onx"}, {"foramt": "onnx"}])
def test_a_wrong_option_of_an_export_is_refused_before_the_first_stage(export, line, capsys):
    write({**STAGES, "factors": {**STAGES["factors"], "export": export}})
    assert lmkit(line) == 2
    said = capsys.readouterr()
    assert next(iter(export)) in said.err
    assert "export of the stage factors is wrong, and nothing was fit" in said.out
    assert not ROOT.exists()


@pytest.mark.parametrize("stage", ["teacher", "factors"])
def test_a_file_that_is_missing_is_told_before_the_first_stage(stage, line, capsys):
    assert lmkit(f"{line} --{stage}.data.unlabelled_file=no.txt") == 1
    said = capsys.readouterr().err
    assert f"stage {stage}: unlabelled_file: no file or folder no.txt; nothing was fit" in said
    assert not ROOT.exists()


def test_files_are_looked_for_at_any_depth_where_they_are_known(tmp_path):
    (tmp_path / "train.csv").touch()
    inner = {"train_file": ["train.csv", str(tmp_path)], "val_file": None, "test_file": "*.csv"}
    inner |= {"predict_file": "hf://a/b.csv", "unlabelled_file": "runs/a/made.csv", "source": "no"}
    known = {"data": {"init_args": {"tasks": [{"data": inner}]}}, "model": {"train_file": "no"}}
    assert find_missing(yaml.safe_dump(known), Path("runs")) == ""
    said = find_missing(yaml.safe_dump(known), Path("others"))
    assert said == "unlabelled_file: no file or folder runs/a/made.csv"
    inner["train_file"] = ["train.csv", "other.csv"]
    assert "train_file: no file or folder other" in find_missing(
        yaml.safe_dump(known), Path("runs")
    )
    assert find_missing("{}", Path("runs")) == ""


@pytest.mark.parametrize(("code", "how"), [(1, "put right, the command"), (130, "the same comm")])
def test_how_to_go_on_depends_on_what_stopped_a_stage(code, how, capsys):
    def command(words: list[str]) -> int:
        if "--print_config" in words:
            sys.stdout.write("data: {}\n")
            return 0
        return code

    assert read_chain(write()).planned([], command)() == code
    assert f"stopped; {how}" in capsys.readouterr().out


def test_a_stage_without_a_validation_exports_its_last_checkpoint(line):
    never = "--teacher.trainer.val_check_interval=null --teacher.trainer.limit_val_batches=0"
    path = write({"teacher": STAGES["teacher"]})
    named = line.replace("--trainer.val_check_interval=2", "")
    assert lmkit(f"{named} {never} --test_at_end=false") == 0
    assert path.is_file() and (ROOT / "1-teacher/exported/config.json").is_file()


def test_the_recipe_of_compression_makes_a_small_model_of_whole_numbers(tmp_path, capsys):
    named = " ".join(f"--data.{k}={v}" for k, v in task_files.labelled_texts(tmp_path).items())
    model = encoder(tmp_path / "model")
    command = f"fit -c compression {FAST} {named} --data.max_length=32"
    command += f" --teacher.model.model={model} --distil.model.student_layers=[0]"
    command += " --trainer.callbacks.StructuredPruningCallback.interval=1"
    command = command.replace(" --trainer.callbacks.Str", " --prune.trainer.callbacks.Str")
    assert lmkit(command) == 0
    root = Path("runs/compression")
    last = checkpoint(str(root / "4-quantize"))["lmkit"]
    kinds = [[s["class_path"].rpartition(".")[2] for s in f["surgeries"]] for f in last["history"]]
    assert kinds == [[], [], ["RemoveUnits"], ["FakeQuantize"]]
    assert last["config"]["num_hidden_layers"] == 1
    small = load(root / "4-quantize/exported")
    assert "label" in small("the quick fox")
    assert lmkit("fit -c compression --print_config") == 0
    assert "stages:" in capsys.readouterr().out


def weights(folder: Path) -> dict[str, Any]:
    """The weights of an export."""
    return dict(load_file(folder / "model.safetensors"))


def test_the_recipe_of_an_intermediate_task_begins_again_with_a_fresh_head(
    tmp_path, capsys, caplog
):
    # The two tasks have the same classes, so that a head would be kept.
    named = " ".join(f"--data.{k}={v}" for k, v in task_files.labelled_texts(tmp_path).items())
    command = f"fit -c intermediate_task {FAST} {named} --data.max_length=32"
    command += f" --intermediate.model.model={encoder(tmp_path / 'model')}"
    command += " --target.model.learning_rate=0"
    assert lmkit(command) == 0
    assert "1-intermediate/exported has no weights for classifier" in caplog.text
    first, second = (Path(f"runs/intermediate_task/{name}") for name in STAGES_OF_TWO)
    kinds = [
        json.loads((run / "exported/config.json").read_text())["architectures"][0]
        for run in (first, second)
    ]
    assert kinds == ["BertModel", "BertForSequenceClassification"]
    trained, after = weights(first / "exported"), weights(second / "exported")
    assert all(torch.equal(tensor, after[f"bert.{name}"]) for name, tensor in trained.items())
    head = checkpoint(str(first))["state_dict"]["network.classifier.weight"]
    assert not torch.equal(head, after["classifier.weight"])
    history = checkpoint(str(second))["lmkit"]["history"]
    assert [fit["module"] for fit in history] == ["SequenceClassificationModule"] * 2
    assert lmkit("fit -c intermediate_task --print_config") == 0
    assert "stages:" in capsys.readouterr().out


@pytest.mark.parametrize("dropped", [True, False])
def test_a_head_goes_on_where_it_is_not_dropped(dropped, tmp_path):
    named = " ".join(f"--data.{k}={v}" for k, v in task_files.labelled_texts(tmp_path).items())
    stages: dict[str, Any] = yaml.safe_load(find_recipe("intermediate_task").read_text())["stages"]
    stages["intermediate"]["export"] = {"head": not dropped}
    command = f"fit -c {write(stages)} {FAST} {named} --data.max_length=32"
    command += f" --intermediate.model.model={encoder(tmp_path / 'model')}"
    assert lmkit(f"{command} --target.model.learning_rate=0") == 0
    first, second = (weights(ROOT / name / "exported") for name in STAGES_OF_TWO)
    name = "classifier.weight"
    assert (name in first) is not dropped
    assert (name in first and torch.equal(first[name], second[name])) is not dropped


def test_a_stage_takes_another_config(tmp_path, capsys, caplog):
    texts = task_files.labelled_texts(tmp_path)
    words = task_files.tagged_words(tmp_path / "words")
    files = {"intermediate": words, "target": texts}
    named = " ".join(f"--{s}.data.{k}={v}" for s, of in files.items() for k, v in of.items())
    command = f"fit -c intermediate_task {FAST} {named} --data.max_length=32"
    command += f" --intermediate.model.model={encoder(tmp_path / 'model')}"
    # It counts as little as the stage's own, whatever stands before it.
    assert lmkit(f"{command} --intermediate.config=token_classification") == 0
    said = "1-intermediate/exported has no weights for bert.pooler.dense.bias, bert.pooler.dense.w"
    assert said in caplog.text  # a network of tags is built without a pooler
    run = Path("runs/intermediate_task") / STAGES_OF_TWO[1]
    history = checkpoint(str(run))["lmkit"]["history"]
    kinds = ["TokenClassificationModule", "SequenceClassificationModule"]
    assert [fit["module"] for fit in history] == kinds
    assert lmkit(f"{command} --ckpt_path last") == 2
    assert "stage intermediate was done with other options" in capsys.readouterr().err
    assert lmkit(f"{command} --target.config=nothing --trainer.default_root_dir=other") == 2
    assert "no recipe 'nothing'" in capsys.readouterr().err and not Path("other").exists()


def test_only_a_fit_takes_stages(tmp_path, capsys):
    write()
    assert lmkit("test -c chain.yaml") == 2
    assert "chain of stages, which is fit" in capsys.readouterr().err
    assert lmkit("fit -c chain.yaml -c low_rank") == 2
    assert "takes no other config" in capsys.readouterr().err
    assert lmkit("fit -c chain.yaml --ckpt_path some.ckpt") == 2
    assert "can be last alone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stages", "more", "match"),
    [
        (["distillation"], {}, "must be a mapping"),
        ({"a": {"options": {}}}, {}, "needs a config"),
        ({"a": {"config": "x", "option": {}}}, {}, "did you mean 'options'"),
        ({"a b": {"config": "x"}}, {}, "named by a word"),
        ({"model": {"config": "x"}}, {}, "named by a word"),
        ({"checkpoint": {"config": "x"}}, {}, "named by a word"),
        ({"a": {"config": "x", "checkpoint": "first"}}, {}, "must be best or last"),
        ({"a": {"config": "x", "options": {"m": "{b}"}}, "b": {"config": "x"}}, {}, "before it"),
        ({"a": {"config": "x"}}, {"model": {}}, "can be nothing, got 'model'"),
    ],
)
def test_a_bad_chain_is_refused(stages, more, match):
    path = write(stages, **more)
    assert has_stages(path)
    with pytest.raises(ValueError, match=match):
        read_chain(path)
