"""A config names the data of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmkit.datamodules import MaskedLMDataModule
from lmkit.report.config_data import data_from_config


@pytest.mark.parametrize("name", ["MaskedLMDataModule", "lmkit.datamodules.MaskedLMDataModule"])
def test_the_section_data_of_a_run(name: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"model: 3\ndata:\n  class_path: {name}\n  init_args:\n    max_length: 16\n")
    made = data_from_config(path)
    assert type(made) is MaskedLMDataModule and made.max_length == 16
    path.write_text(f"data:\n  class_path: {name}\n")
    assert isinstance(data_from_config(path), MaskedLMDataModule)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: 3\n", "has no section 'data' with a class_path"),
        ("- a\n", "has no section 'data'"),
        ("a: [\n", "has no section 'data'"),
        ("data:\n  class_path: MaskedDataModule\n", "there is no data module 'MaskedDataModule'"),
        ("data:\n  class_path: no.such.Thing\n", "there is no data module 'no.such.Thing'"),
        ("data:\n  class_path: pathlib.Path\n", "'pathlib.Path' is no data module"),
        (
            "data:\n  class_path: MaskedLMDataModule\n  init_args:\n    maxlength: 3\n",
            "unexpected keyword argument 'maxlength'",
        ),
    ],
)
def test_what_names_none_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        data_from_config(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no config file"):
        data_from_config(tmp_path / "config.yaml")
