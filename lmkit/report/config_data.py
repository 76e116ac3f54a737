"""The data module that the config of a run names."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningDataModule

from .. import datamodules

__all__ = ["data_from_config"]


def data_from_config(path: str | os.PathLike[str]) -> LightningDataModule:
    """Make the data module of the section `data` of a config, e.g. `runs/.../config.yaml`.

    Args:
        path: a YAML file; its `data` has a `class_path`, the name of a data module of lmkit or the
            dotted path of another, and perhaps `init_args`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has no such section, the class is not there, or does not take the arguments.
    """
    place = Path(path)
    if not place.is_file():
        raise FileNotFoundError(f"there is no config file {place}")
    try:
        content: Any = yaml.safe_load(place.read_text(encoding="utf-8"))
        section = content["data"]
        class_path, arguments = str(section["class_path"]), dict(section.get("init_args") or {})
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{place} has no section 'data' with a class_path, as the config.yaml of a run has"
        ) from error
    name, (module, _, last) = class_path, class_path.rpartition(".")
    try:
        home: Any = importlib.import_module(module) if module else datamodules
        cls = getattr(home, last)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{place}: there is no data module {name!r}") from error
    if not (isinstance(cls, type) and issubclass(cls, LightningDataModule)):
        raise ValueError(f"{place}: {name!r} is no data module")
    try:
        made: LightningDataModule = cls(**arguments)
    except TypeError as error:
        raise ValueError(f"{place}: {error}") from error
    return made
