"""What an evaluation says of student and teacher, against plain networks and plain counting."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy

from lmkit.callbacks import FiguresCallback
from lmkit.modules import LogitLoss
from tests import lessons, tiny
from tests.cases import make_trainer
from tests.lessons import fit
from tests.modules.test_distillation_losses import REFERENCES, run, taken_apart

NAME = "sequence_classification"


def networks(name: str, module: Any) -> tuple[Any, Any]:
    cls = module.auto_class
    teacher = cls.from_pretrained(lessons.teacher(name), dtype=torch.float64).eval()
    plain = cls.from_config(module.network.config, dtype=torch.float64)
    plain.load_state_dict(module.network.state_dict())
    return plain.eval(), teacher


def validation(module: Any, data: Any) -> dict[str, float]:
    (found,) = make_trainer().validate(module, data, verbose=False)
    return dict(found)


def fitted(name: str, folder: Path, **settings: Any) -> Any:
    module = lessons.distill(name, pupil={"learning_rate": 1e-3}, **settings)
    fit(module, lessons.data(name, folder), max_steps=1)
    return module


@pytest.mark.parametrize("size", [3, 8, 13])
def test_divergence_agreement_and_retention_are_those_of_plain_networks(
    size: int, tmp_path: Path
) -> None:
    module = fitted(NAME, tmp_path)
    found = validation(module, lessons.data(NAME, tmp_path, eval_batch_size=size))
    student, teacher = networks(NAME, module)
    logits: list[tuple[Any, Any]] = []
    labels = []
    for batch in make_loader(NAME, tmp_path):
        for text in taken_apart(batch):
            with torch.no_grad():
                ours, theirs = (run(each, text).logits[0] for each in (student, teacher))
            logits.append((ours, theirs.flip(-1)))
            labels.append(int(text["labels"]))
    assert len(logits) == 13
    ours, theirs = (torch.stack(each) for each in zip(*logits, strict=True))
    q, p = theirs.softmax(-1), ours.softmax(-1)
    divergence = (q * (q / p).log()).sum(-1).mean()
    assert found["val/teacher_divergence"] == pytest.approx(float(divergence), rel=1e-5)
    same = (ours.argmax(-1) == theirs.argmax(-1)).double().mean()
    assert 0 < same < 1 and found["val/agreement"] == pytest.approx(float(same))
    gold = torch.tensor(labels)
    shares = [float((each.argmax(-1) == gold).double().mean()) for each in (ours, theirs)]
    assert found["val/accuracy"] == pytest.approx(shares[0])
    assert found["val/retention"] == pytest.approx(shares[0] / shares[1])
    assert float(multiclass_accuracy(ours, gold, 3, average="micro")) == pytest.approx(shares[0])


def make_loader(name: str, folder: Path) -> Any:
    data = lessons.data(name, folder)
    data.setup("validate")
    return data.val_dataloader()


@pytest.mark.parametrize("name", lessons.LESSONS)
def test_the_divergence_is_over_all_items_of_a_validation(name: str, tmp_path: Path) -> None:
    """Of batches of one size and of another; and that of plain networks where that is at T = 1."""
    module = fitted(name, tmp_path)
    fields = ["val/teacher_divergence", *(["val/agreement"] if name != "regression" else [])]
    found = [
        validation(module, lessons.data(name, tmp_path, eval_batch_size=size)) for size in (4, 7)
    ]
    for field in fields:
        assert found[0][field] == pytest.approx(found[1][field], rel=1e-5)
    if name not in ("masked_lm", "chunks", "causal_lm", "packed_causal", "denoising", "seq2seq"):
        return
    student, teacher = networks(name, module)
    data = lessons.data(name, tmp_path)
    data.setup("validate")
    items = []
    with torch.no_grad():
        for batch in data.val_dataloader():
            for text in taken_apart(module.task_module.prepare(batch)):
                items += REFERENCES[name](student, teacher, text)
    mean = torch.stack([each for _, each in items]).mean()
    assert found[0]["val/teacher_divergence"] == pytest.approx(float(mean), rel=1e-5)


@pytest.mark.parametrize(
    "name", ["token_classification", "question_answering", "multiple_choice", "multi_label"]
)
def test_retention_is_the_share_of_what_the_teacher_reaches_itself(
    name: str, tmp_path: Path
) -> None:
    module = fitted(name, tmp_path)
    data = lessons.data(name, tmp_path)
    found = validation(module, data)
    alone = lessons.LESSONS[name].module(lessons.teacher(name))
    theirs = validation(alone, lessons.data(name, tmp_path))
    main = next(n for n in ("f1", "accuracy") if f"val/{n}" in found)
    if theirs[f"val/{main}"] == 0:
        assert "val/retention" not in found
    else:
        share = found[f"val/{main}"] / theirs[f"val/{main}"]
        assert found["val/retention"] == pytest.approx(share, rel=1e-5)


def test_a_test_tells_on_which_examples_both_differ(tmp_path: Path) -> None:
    module = fitted(NAME, tmp_path)
    rows_file = str(tmp_path / "val-rows.csv")
    data = lessons.data(NAME, tmp_path, test_file=rows_file)
    trainer = make_trainer(FiguresCallback(draw=False), default_root_dir=tmp_path)
    trainer.test(module, data, verbose=False)
    rows = module.tables()["differences"]
    student, teacher = networks(NAME, module)
    expected = {}
    for batch in data.test_dataloader():
        for text in taken_apart(batch):
            with torch.no_grad():
                ours, theirs = (run(each, text).logits[0] for each in (student, teacher))
            theirs = theirs.flip(-1)
            q, p = theirs.softmax(-1), ours.softmax(-1)
            if int(ours.argmax()) != int(theirs.argmax()):
                both = int(text["labels"]), int(ours.argmax()), int(theirs.argmax())
                expected[int(text["index"])] = (*both, float((q * (q / p).log()).sum()))
    assert rows and [row["example"] for row in rows] == sorted(
        expected, key=lambda number: -expected[number][3]
    )
    names = ("fox", "moons", "trees")
    texts = [line.split(",")[0] for line in Path(rows_file).read_text().splitlines()[1:]]
    for row in rows:
        label, ours, theirs, divergence = expected[row["example"]]
        said = (row["label"], row["student"], row["teacher"])
        assert said == (names[label], names[ours], names[theirs])
        assert row["divergence"] == pytest.approx(divergence, rel=1e-5)
        assert row["text"] == texts[row["example"]]
    (path,) = tmp_path.rglob("differences.jsonl")
    written = [json.loads(line) for line in path.read_text().splitlines()]
    assert [each["example"] for each in written] == [row["example"] for row in rows]


def test_a_second_test_begins_its_table_anew(tmp_path: Path) -> None:
    module = fitted(NAME, tmp_path)
    for _ in range(2):
        data = lessons.data(NAME, tmp_path, test_file=str(tmp_path / "val-rows.csv"))
        make_trainer().test(module, data, verbose=False)
        numbers = [row["example"] for row in module.tables()["differences"]]
        assert len(numbers) == len(set(numbers)) > 0


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("name", ["multiple_choice", "masked_lm", "question_answering"])
def test_the_tables_of_other_tasks_can_be_asked_for(name: str, size: int, tmp_path: Path) -> None:
    module = fitted(name, tmp_path)
    write = lessons.LESSONS[name].files
    rows_file = write(tmp_path)["val_file"] if write else str(tmp_path / "val.txt")
    data = lessons.data(name, tmp_path, test_file=rows_file, eval_batch_size=size)
    make_trainer().test(module, data, verbose=False)
    rows = module.tables()["differences"]
    for row in rows:
        assert row["student"] != row["teacher"]


@pytest.mark.skipif(sys.platform != "linux", reason="forks with gloo")
def test_two_ranks_with_uneven_rows_say_what_one_says(tmp_path: Path) -> None:
    found = []
    for devices in (1, 2):
        module = lessons.distill(NAME, losses=[LogitLoss()], pupil={"learning_rate": 0.0})
        module.tokenizer = tiny.tokenizer()
        torch.manual_seed(5)
        module.configure_model()
        how = {"devices": devices, "strategy": "ddp_fork" if devices > 1 else "auto"}
        data = lessons.data(NAME, tmp_path, batch_size=8 // devices, eval_batch_size=4)
        trainer = fit(module, data, max_steps=1, val_check_interval=1, **how)
        names = ("val/agreement", "val/teacher_divergence", "val/retention")
        found.append({name: float(trainer.callback_metrics[name]) for name in names})
    assert found[0] == pytest.approx(found[1], rel=1e-5)
