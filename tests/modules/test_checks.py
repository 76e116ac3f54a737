"""What a module says of data that it cannot use."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
from lightning.pytorch import LightningDataModule

from lmkit.callbacks import UDACallback
from lmkit.modules import LMModule
from tests import task_files
from tests.cases import CASES, make_trainer

CASE = next(case for case in CASES if case.name == "sequence_classification")
FOUND = r"13 training examples have no label \(unlabelled_file\), and SequenceClassificationModule "


def parts(folder: Path) -> tuple[LMModule, LightningDataModule]:
    unlabelled = task_files.labelled_texts(folder)["val_file"]
    return CASE.make_module(), CASE.make_data(folder, unlabelled_file=unlabelled)


def test_a_module_that_learns_nothing_from_rows_without_a_label_says_so_once(
    tmp_path: Path,
) -> None:
    module, data = parts(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_trainer(max_steps=1).fit(module, data)
    told = [str(w.message) for w in caught if "have no label" in str(w.message)]
    assert len(told) == 1 and re.match(FOUND, told[0])


def test_a_module_that_uses_rows_without_a_label_and_an_evaluation_say_nothing(
    tmp_path: Path,
) -> None:
    module, data = parts(tmp_path)
    module.uses_unlabelled = True
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*have no label")
        trainer = make_trainer(max_steps=1)
        trainer.fit(module, data)
        inside = CASE.make_module()
        inside.trainer = trainer
        inside.setup("fit")
        module.uses_unlabelled = False
        make_trainer().validate(module, data, verbose=False)


@pytest.mark.parametrize("reader", [False, True])
def test_views_that_nothing_reads_are_warned_of(reader: bool, tmp_path: Path) -> None:
    how = {"transforms": ["RandomSwap"], "transform_options": {"view": True}}
    module, data = CASE.make_module(), CASE.make_data(tmp_path, **how)
    callbacks = [UDACallback()] if reader else []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = make_trainer(*callbacks, max_steps=1)
        trainer.fit(module, data)
        trainer.validate(module, data, verbose=False)
    assert sum("another view of each example" in str(w.message) for w in caught) == (not reader)
