"""A folder with an ONNX file, run by ONNX Runtime; without torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..onnx_session import open_session

__all__ = ["OnnxRunner", "onnx_file"]


def onnx_file(folder: str | os.PathLike[str]) -> Path | None:
    """Return the ONNX file of a folder: `model.onnx`, or else the only one; `None` without one.

    Raises:
        ValueError: there are several, and none is called so.
    """
    found = sorted(Path(folder).glob("*.onnx")) if Path(folder).is_dir() else []
    named = [path for path in found if path.name == "model.onnx"]
    if len(found) > 1 and not named:
        raise ValueError(
            f"{folder} has several ONNX files ({', '.join(path.name for path in found)}): put the "
            "one that is meant into a folder with its config.json and tokenizer"
        )
    return next(iter(named or found), None)


class OnnxRunner:
    """A session of ONNX Runtime on the processor.

    Args:
        folder: with an ONNX file, and the `config.json` that it was made of.
        threads: of the session.

    Raises:
        ImportError: the extra `onnx` is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str], threads: int) -> None:
        self.file = onnx_file(folder)
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        self.vocabulary = int(config.get("vocab_size", 2))
        self.session = open_session(self.file or folder, threads)
        self.inputs = {entry.name: len(entry.shape) for entry in self.session.get_inputs()}
        self.outputs = [entry.name for entry in self.session.get_outputs()]

    def example(self, rows: int, length: int) -> dict[str, NDArray[np.int64]]:
        """Make inputs of random tokens, without padding; of choices one for each row."""
        draw = np.random.default_rng(0)
        made: dict[str, NDArray[np.int64]] = {}
        for name, rank in self.inputs.items():
            shape = (rows, 1, length) if rank == 3 else (rows, length)
            whole = {"input_ids": draw.integers(self.vocabulary, size=shape)}
            default = np.ones(shape) if name == "attention_mask" else np.zeros(shape)
            made[name] = whole.get(name, default).astype(np.int64)
        return made

    def run(self, inputs: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
        """Return the outputs by name; inputs that the file does not have are left out."""
        feed = {name: inputs[name] for name in self.inputs}
        return dict(zip(self.outputs, self.session.run(None, feed), strict=True))
