"""What Lightning and lmkit cost per step over a plain PyTorch loop that does the same.

Step by step in turn in one process: after each training step of the Trainer, with its default
logging and checkpoints, a callback does one step of the plain loop on a copy of the network with
the same batches, and both are timed in CPU seconds.

    python benchmarks/overhead.py --steps 300 --json overhead.json
"""

from __future__ import annotations

import copy
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from measure import arguments, median, write_json

from lmkit.datamodules import MaskedLMDataModule
from lmkit.functional import schedule_factor
from lmkit.modules import MaskedLMModule


class PlainLoop(Callback):
    """Does a step of the plain loop after each step of the Trainer, and times both."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.plain: list[float] = []
        self.ours: list[float] = []
        self._mark: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Copy the network, and make what the plain loop needs."""
        self.network = copy.deepcopy(pl_module.network)
        decay = [p for p in self.network.parameters() if p.ndim > 1]
        rest = [p for p in self.network.parameters() if p.ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": decay, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}],
            lr=5e-4,
            betas=(0.9, 0.98),
            eps=1e-6,
            fused=True,
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: schedule_factor(step, self.steps, 10)
        )
        self.batches = iter(trainer.datamodule.train_dataloader())

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Do one step of the plain loop between two of the Trainer."""
        now = time.process_time()
        if self._mark is not None:
            self.ours.append(now - self._mark)
        batch = next(self.batches)
        loss = self.network(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            labels=batch["labels"],
        ).loss
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self._mark = time.process_time()
        self.plain.append(self._mark - now)


def main() -> None:
    """Run the Trainer with the plain loop in it."""
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--hidden-size", type=int, default=128, help="128 gives 100 ms or so")
    parser.add_argument("--batch-size", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seed_everything(0)
    data = MaskedLMDataModule(max_length=128, batch_size=options.batch_size, num_workers=0)
    module = MaskedLMModule(
        {
            "model_type": "bert",
            "hidden_size": options.hidden_size,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 4 * options.hidden_size,
        },
        warmup=10,
    )
    loop = PlainLoop(options.steps)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_steps=options.steps,
            accelerator="cpu",
            gradient_clip_val=1.0,
            default_root_dir=folder,
            logger=CSVLogger(folder),
            callbacks=[loop],
            limit_val_batches=0,
        )
        trainer.fit(module, data)
        checkpoints = len(list(Path(folder).rglob("*.ckpt")))
    pairs = list(zip(loop.ours[10:], loop.plain[11:], strict=True))
    figures = {
        "plain_ms": 1e3 * median([plain for _, plain in pairs]),
        "lmkit_ms": 1e3 * median([ours for ours, _ in pairs]),
        "difference_ms": 1e3 * median([ours - plain for ours, plain in pairs]),
        "ratio": median([ours / plain for ours, plain in pairs]),
        "steps": len(pairs),
        "checkpoints": checkpoints,
    }
    write_json(options.json, "overhead", options, figures)


if __name__ == "__main__":
    main()
