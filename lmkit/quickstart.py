"""`lmkit quickstart`: pre-train a small BERT on the CPU, and show on one screen what it learned."""

from __future__ import annotations

import argparse
import logging
import math
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from transformers import pipeline
from transformers.utils import logging as transformers_logging

from .callbacks import CheckpointCallback, LossPlotCallback
from .dashboard import log_stride
from .datamodules import MaskedLMDataModule
from .exporting import export
from .modules import MaskedLMModule
from .trainer import Trainer as FastTrainer

__all__ = ["main"]

# ModernBERT (arXiv:2412.13663) and not the BERT of 2018: with rotary positions and normalization
# before each block it learns to look at neighbouring words within 300 steps. BERT's own layout
# stays at word frequencies (a loss of 5.8) for as long as this run lasts.
MODEL = {
    "model_type": "modernbert",
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 64,
    "local_attention": 16,
    "global_attn_every_n_layers": 2,
    # 0.02 suits a width of 768; a narrow network starts better from larger weights.
    "initializer_range": 0.05,
    "initializer_cutoff_factor": 3.0,
}

#: In the manner of the corpus, which is Python's own documentation, and not taken from it.
SENTENCES = (
    "Return a list of all the {mask} in the file.",
    "If the value is not a string, an exception is {mask}.",
    "This method should {mask} be called by a subclass.",
    "The default value {mask} None.",
)

NEXT = """\
[bold]lmkit fit -c masked_lm --data.source=YOUR_TEXT.txt[/]   pre-train on your own text;
    the same with [bold]--ckpt_path last[/] goes on after an interruption
[bold]lmkit recipes[/]                                        what else there is
[bold]lmkit predict --ckpt_path {checkpoint} --data.predict_file=TEXTS.txt[/]
    fill the masks in texts of your own"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the quickstart.

    Args:
        argv: `--steps`, `--output`, `--seed`; those of the process by default.

    Returns:
        The exit code, 0.

    Raises:
        RuntimeError: the export does not do in plain `transformers` what the module does.
    """
    parser = argparse.ArgumentParser(
        prog="lmkit quickstart", description="Pre-train a small BERT on the CPU in two minutes."
    )
    parser.add_argument("--steps", type=int, default=500, help="optimizer steps (default: 500)")
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart"), metavar="DIR")
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args(argv)
    if options.steps < 1:
        parser.error(f"--steps must be at least 1, got {options.steps}")
    _quieten()
    _run(options.steps, options.output, options.seed, Console(highlight=False))
    return 0


def _run(steps: int, output: Path, seed: int, console: Console) -> None:
    began = time.monotonic()
    # More threads gain little on a network this narrow, and lose much on a busy machine.
    torch.set_num_threads(1)
    console.rule("[bold]lmkit quickstart")
    console.print("Reading Python's own documentation and training a tokenizer on it ...")
    seed_everything(seed, verbose=False)
    # A folder of an earlier quickstart would be continued in numbered files.
    shutil.rmtree(output / "checkpoints", ignore_errors=True)

    data = MaskedLMDataModule(max_length=64, batch_size=32, vocab_size=2048)
    module = MaskedLMModule(model=MODEL, learning_rate=5e-3, warmup=0.1)
    plot = LossPlotCallback() if find_spec("matplotlib") else None
    trainer = _trainer(steps, output, [CheckpointCallback(), *([plot] if plot else [])], console)

    data.prepare_data()
    data.setup("fit")
    console.print(_facts(data, steps))
    (first,) = trainer.validate(module, datamodule=data, verbose=False)
    before = fill_masks(module)
    trainer.fit(module, datamodule=data)
    (last,) = trainer.validate(module, datamodule=data, verbose=False)
    after = fill_masks(module)

    folder = export(module, output / "export", overwrite=True)
    _check_export(folder, after)
    console.print(_loss_table(first, last, plot))
    console.print(_fill_table(before, after))
    checkpoint = output / "checkpoints" / "last.ckpt"
    console.print(_files(output, checkpoint, plot is not None))
    console.print(Panel(NEXT.format(checkpoint=checkpoint), title="next", title_align="left"))
    console.print(f"[green]Done in {time.monotonic() - began:.0f} seconds.[/]")


def fill_masks(module: MaskedLMModule) -> list[list[dict[str, Any]]]:
    """Fill the mask of each of `SENTENCES`: for each the likeliest tokens and probabilities."""
    tokenizer = module.tokenizer
    assert tokenizer is not None
    texts = [sentence.format(mask=tokenizer.mask_token) for sentence in SENTENCES]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    names = ("input_ids", "attention_mask")
    batch = {name: batch[name].to(module.device) for name in names}
    with torch.no_grad():
        return [row["fills"][0] for row in module.predict_step(batch, 0)]


def _trainer(steps: int, output: Path, callbacks: list[Callback], console: Console) -> Trainer:
    return FastTrainer(
        accelerator="cpu",
        max_steps=steps,
        gradient_clip_val=1.0,
        val_check_interval=max(1, steps // 5),
        check_val_every_n_epoch=None,
        log_every_n_steps=10,
        num_sanity_val_steps=0,
        default_root_dir=output,
        logger=CSVLogger(output, name="", version=""),
        callbacks=[_ProgressCallback(console), *callbacks],
        enable_progress_bar=False,
        enable_model_summary=False,
    )


class _ProgressCallback(Callback):
    """One bar over all steps, and a line for each validation, which a log file keeps too."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.last_step = -1
        self.bar = Progress(
            TextColumn("  training"),
            BarColumn(bar_width=40),
            MofNCompleteColumn(),
            TextColumn("steps  loss {task.fields[loss]:.2f} "),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.task = self.bar.add_task("", total=trainer.max_steps, loss=math.nan)
        self.bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % log_stride(trainer) == 0:
            loss = float(trainer.callback_metrics["train/loss"])
            self.bar.update(self.task, completed=trainer.global_step, loss=loss)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == self.last_step:
            return
        self.last_step, metrics = trainer.global_step, trainer.callback_metrics
        loss, perplexity = float(metrics["val/loss"]), float(metrics["val/perplexity"])
        self.console.print(
            f"  step [bold]{trainer.global_step:>4}[/]   validation loss [bold]{loss:.2f}[/]"
            f"   perplexity [bold]{perplexity:>6,.0f}[/]"
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bar.stop()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self.bar.stop()


def _check_export(folder: Path, expected: list[list[dict[str, Any]]]) -> None:
    fill = pipeline("fill-mask", model=str(folder), device="cpu")
    assert fill.tokenizer is not None
    texts = [sentence.format(mask=fill.tokenizer.mask_token) for sentence in SENTENCES]
    for answers, tokens in zip(fill(texts), expected, strict=True):
        ours, theirs = tokens[0], answers[0]
        if not math.isclose(ours["probability"], theirs["score"], abs_tol=1e-4):
            raise RuntimeError(
                f"plain transformers fills {theirs['token_str']!r} with {theirs['score']:.4f} from "
                f"the export {folder}, the module {ours['token']!r} with {ours['probability']:.4f}"
            )


def _facts(data: MaskedLMDataModule, steps: int) -> str:
    facts = data.statistics
    return (
        f"{facts['train/tokens']:,} tokens in {facts['train/rows']:,} rows to train on, "
        f"{facts['val/rows']:,} rows to validate on.\n"
        f"Training a small BERT (ModernBERT's layout) from scratch for {steps} steps ..."
    )


def _loss_table(
    first: Mapping[str, float], last: Mapping[str, float], plot: LossPlotCallback | None
) -> Table:
    table = Table(title="What the validation text says", title_justify="left")
    for column in ("", "before", "after"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("loss (nats per token)", f"{first['val/loss']:.2f}", f"{last['val/loss']:.2f}")
    names = ("val/perplexity", "val/accuracy")
    table.add_row("perplexity", f"{first[names[0]]:,.0f}", f"{last[names[0]]:,.0f}")
    table.add_row("masked words right", f"{first[names[1]]:.1%}", f"{last[names[1]]:.1%}")
    if plot is not None:
        points = [loss for _, loss in plot.state_dict()["val"]]
        table.add_row("on the way", "", sparkline([first["val/loss"], *points]))
    return table


def sparkline(values: Sequence[float]) -> str:
    """Draw values as bars of text.

    Example:
        >>> sparkline([3.0, 2.0, 1.0])
        '█▄▁'
    """
    low, span = min(values), (max(values) - min(values)) or 1.0
    return "".join("▁▂▃▄▅▆▇█"[int(7 * (value - low) / span)] for value in values)


def _fill_table(before: list[list[dict[str, Any]]], after: list[list[dict[str, Any]]]) -> Table:
    table = Table(title="What it puts in the gap", title_justify="left", show_lines=True)
    table.add_column("sentence", ratio=5)
    table.add_column("before", style="dim", ratio=3)
    table.add_column("after", style="green", ratio=3)
    for sentence, old, new in zip(SENTENCES, before, after, strict=True):
        table.add_row(sentence.format(mask="[bold]____[/]"), _guesses(old), _guesses(new))
    return table


def _guesses(fills: list[dict[str, Any]]) -> str:
    return "\n".join(f"{f['token']} {f['probability']:.1%}" for f in fills[:3]).replace("[", r"\[")


def _files(output: Path, checkpoint: Path, has_plot: bool) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_row("[bold]checkpoint[/]", str(checkpoint), "to go on from")
    if has_plot:
        table.add_row("[bold]picture[/]", str(output / "loss.png"), "the loss over the steps")
    else:
        table.add_row("[bold]picture[/]", "not drawn", "needs pip install 'lmkit\\[plot]'")
    table.add_row(
        "[bold]export[/]", str(output / "export"), "plain transformers loads it (just checked)"
    )
    return table


def _quieten() -> None:
    """Leave the screen to the quickstart: what these say is for those who set up their own run."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
