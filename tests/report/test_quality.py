"""What a model is worth is what its own evaluation says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule

import lmkit
from lmkit.report.contenders import Contender
from lmkit.report.quality import evaluate, judge, rows_for, split_of
from tests import tiny
from tests.cases import CASES, make_trainer
from tests.report.test_scores import TASKS, shaken, trained


@pytest.mark.parametrize("name", TASKS)
def test_figures_are_those_of_a_validation(name: str, tmp_path: Path) -> None:
    module = trained(name, tmp_path)
    data = TASKS[name].make_data(tmp_path)
    (expected,) = make_trainer().validate(module, TASKS[name].make_data(tmp_path), verbose=False)
    found = evaluate(module.eval(), rows_for(data, module), "val")
    for metric, value in expected.items():
        assert found[metric.removeprefix("val/")] == pytest.approx(value, nan_ok=True, rel=1e-6)
    assert not module.training and not module.network.training


def test_test_rows_come_first_and_a_missing_split_is_named(tmp_path: Path) -> None:
    module, case = trained("sequence_classification", tmp_path), TASKS["sequence_classification"]
    only_val = rows_for(case.make_data(tmp_path), module)
    assert split_of(only_val, None) == "val"
    with pytest.raises(ValueError, match="split is 'test', and there are no test examples"):
        split_of(only_val, "test")
    rows = (tmp_path / "val-rows.csv").read_text()
    (tmp_path / "test.csv").write_text(rows)
    both = rows_for(case.make_data(tmp_path, test_file=str(tmp_path / "test.csv")), module)
    assert split_of(both, None) == "test" and split_of(both, "val") == "val"
    assert evaluate(module, both, "test")["loss"] == pytest.approx(
        evaluate(module, both, "val")["loss"]
    )


def test_a_data_module_of_ones_own_is_taken_as_it_is(tmp_path: Path) -> None:
    module = trained("sequence_classification", tmp_path)
    inner = rows_for(TASKS["sequence_classification"].make_data(tmp_path), module)

    class Own(LightningDataModule):
        def setup(self, stage: str | None = None) -> None:
            self.ready = True

        def val_dataloader(self) -> Any:
            return inner.val_dataloader()

    rows = rows_for(Own(), module)
    assert rows.ready and split_of(rows, "val") == "val"
    judged = judge(Contender("it", tmp_path, module), Own(), "val", None)
    assert judged.fields["agreement"] == 1.0 and judged.fields["items"] == 13


def test_a_task_without_scores_is_evaluated_and_not_compared(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "replaced_token")
    module = case.make_module()
    make_trainer(max_steps=1).fit(module, case.make_data(tmp_path))
    contender = Contender("it", tmp_path, module.eval())
    judged = judge(contender, case.make_data(tmp_path), None, None)
    assert judged.said is None and "discriminator_accuracy" in judged.fields["metrics"]
    assert contender.notes == ["not compared: ReplacedTokenModule does not say what its scores are"]


def test_other_items_are_noted_and_leave_the_figures(tmp_path: Path) -> None:
    module = trained("causal_lm", tmp_path)
    data = TASKS["causal_lm"].make_data(tmp_path)
    dense = judge(Contender("dense", tmp_path, module), data, None, None)
    folder = lmkit.export(module, tmp_path / "out")
    small, _ = lmkit.trimming.trim(folder, tmp_path / "small", ["the fox", "a dog"])
    other = Contender("small", small, lmkit.load(small))
    judged = judge(other, data, None, dense.said)
    assert "agreement" not in judged.fields and judged.fields["metrics"]["perplexity"] > 0
    assert other.notes[0].startswith("not compared: it")


def test_texts_alone_give_agreement(tmp_path: Path) -> None:
    module = trained("sequence_classification", tmp_path)
    texts = tiny.sentences(9, seed=3)
    dense = judge(Contender("dense", tmp_path, module), texts, None, None)
    assert dense.fields == {"metrics": {}, "agreement": 1.0, "divergence": 0.0, "items": 9}
    other = judge(Contender("other", tmp_path, shaken(module)), texts, None, dense.said)
    assert other.fields["divergence"] > 0 and other.fields["items"] == 9
    assert torch.is_inference_mode_enabled() is False
