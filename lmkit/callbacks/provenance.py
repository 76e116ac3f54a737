"""Where a run came from: code, versions, data, seed and command line."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ..__about__ import __version__
from ..dashboard import is_dry_run, log_config, run_directory
from .efficiency import count_parameters

__all__ = ["ProvenanceCallback", "hide_secrets"]

#: The distributions whose versions change results.
DISTRIBUTIONS = ("torch", "lightning", "transformers", "tokenizers", "datasets", "torchmetrics")


class ProvenanceCallback(Callback):
    """Writes what is needed to do a run again to every logger and to `<run>/provenance.json`.

    Those are: the git revision of the working directory and whether it has uncommitted changes,
    versions, the data's fingerprint and statistics, parameter counts, the seed, and the command
    line without secrets. The file is a list with one record for each start of the run, the newest
    last, so that a resumed run keeps the facts of its beginning.

    Example:
        >>> trainer = Trainer(callbacks=[ProvenanceCallback()], logger=False, accelerator="cpu",
        ...                   enable_checkpointing=False)
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collect the facts; by now the network stands and the data is known."""
        if not trainer.is_global_zero or is_dry_run(trainer):
            return
        record = self.collect(trainer, pl_module)
        log_config(trainer, {"provenance": record})
        path = run_directory(trainer) / "provenance.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        text = json.dumps([*earlier, record], indent=2, ensure_ascii=False, default=str)
        path.write_text(text + "\n", encoding="utf-8")

    def collect(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the facts about a run that is about to start, as plain data."""
        total, trainable = count_parameters(pl_module)
        data = getattr(trainer, "datamodule", None)
        seed = os.environ.get("PL_GLOBAL_SEED")
        return {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "resumed_from": None if trainer.ckpt_path is None else str(trainer.ckpt_path),
            "resumed_at_step": _resumed_step(trainer),
            "command": hide_secrets([_program(sys.argv[0]), *sys.argv[1:]]),
            "git": _git_revision(),
            "versions": _versions(),
            "seed": None if seed is None else int(seed),
            "world_size": trainer.world_size,
            "device": str(pl_module.device),
            "precision": trainer.precision,
            "data": {
                "fingerprint": getattr(data, "fingerprint", None),
                "statistics": dict(getattr(data, "statistics", None) or {}),
            },
            "parameters": {"total": total, "trainable": trainable},
        }


def _resumed_step(trainer: Trainer) -> int:
    # The loops are restored only after `on_fit_start`.
    loaded = trainer._checkpoint_connector._loaded_checkpoint or {}
    return int(loaded.get("global_step", trainer.global_step))


def hide_secrets(arguments: Sequence[str]) -> str:
    """Join a command line, with `***` in the place of passwords, tokens and keys.

    Hidden are the values of options whose name speaks of a secret, and credentials within an
    address.

    Example:
        >>> hide_secrets(["lmkit", "fit", "--api_key", "abc", "--db=sql://me:pw@host/x"])
        'lmkit fit --api_key *** --db=sql://***@host/x'
    """
    shown: list[str] = []
    hide_next = False
    for argument in arguments:
        if hide_next and not argument.startswith("--"):
            shown.append("***")
            hide_next = False
            continue
        option, equals, _ = argument.partition("=")
        secret = argument.startswith("-") and _SECRET.search(option) is not None
        hide_next = secret and not equals
        text = f"{option}=***" if secret and equals else argument
        shown.append(_BARE_SECRET.sub("***", _CREDENTIALS.sub("//***@", text)))
    return " ".join(argument if "***" in argument else shlex.quote(argument) for argument in shown)


def _program(path: str) -> str:
    """Return the name of a program without its folder, which is only true of one machine."""
    name = Path(path).name
    return Path(path).parent.name if name == "__main__.py" else name


# `token` alone is a secret; `tokenizer`, `max_new_tokens` and `mask_token` are not.
_SECRET = re.compile(
    r"(password|passwd|secret|credential|api[_-]?key|access[_-]?key|(^|[-_.](auth|hub|hf|access|api)"
    r"[_-])token$|[-.]token$)",
    re.IGNORECASE,
)
_CREDENTIALS = re.compile(r"//[^/@\s]+@")
_BARE_SECRET = re.compile(r"\b(hf_|sk-|ghp_|github_pat_)[A-Za-z0-9_-]{8,}")


def _git_revision() -> dict[str, Any] | None:
    revision = _git("rev-parse", "HEAD")
    if revision is None:
        return None
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {"revision": revision, "dirty": bool(changes)}


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):  # no git, no repository, or no commit
        return None
    return result.stdout.strip()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "lmkit": __version__}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
