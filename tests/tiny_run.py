"""A run of the command line that takes a second: its config, its text, and how to call it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from lmkit.cli import main
from tests.tiny import CAUSAL, MASKED, write_text

ROOT = Path(__file__).resolve().parent.parent


def write_config(folder: Path, kind: str = "masked", **trainer: Any) -> Path:
    """Write `tiny.yaml` and its text; `trainer` changes settings of the Trainer."""
    write_text(folder / "text.txt", 60)
    data = {"source": "text.txt", "vocab_size": 200, "max_length": 16, "batch_size": 4}
    config = {
        "model": {
            "class_path": "MaskedLMModule" if kind == "masked" else "CausalLMModule",
            "init_args": {"model": MASKED["bert"] if kind == "masked" else CAUSAL["gpt2"]},
        },
        "data": {
            "class_path": "MaskedLMDataModule" if kind == "masked" else "CausalLMDataModule",
            "init_args": data | {"val_fraction": 0.2},
        },
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 6,
            "val_check_interval": 3,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "enable_model_summary": False,
            "enable_progress_bar": False,
        }
        | trainer,
    }
    path = folder / "tiny.yaml"
    path.write_text("# Tiny: a run of a second.\n" + yaml.safe_dump(config))
    return path


def lmkit(line: str) -> int:
    """Run a command in this process, as from a shell."""
    return main(line.split())


def start(line: str, **environment: str) -> subprocess.Popen[str]:
    """Start a command in a process of its own, in the working directory."""
    return subprocess.Popen(
        [sys.executable, "-m", "lmkit", *line.split()],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A job in the background of a shell ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        text=True,
    )


def checkpoint(folder: str, name: str = "last.ckpt") -> dict[str, Any]:
    """Load a checkpoint of a run."""
    path = Path(folder) / "checkpoints" / name
    loaded: dict[str, Any] = torch.load(path, weights_only=True)
    return loaded


def same_state(one: Any, other: Any) -> bool:
    """Whether two nested states are equal, bit for bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_state(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same_state, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)
