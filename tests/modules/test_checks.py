"""What a module says of data that it cannot use."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

from lightning.pytorch import LightningDataModule

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
