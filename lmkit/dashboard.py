"""Logger-neutral dashboards: one call that reaches every logger of a run and a file beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

__all__ = [
    "is_dry_run",
    "log_config",
    "log_figure",
    "log_stride",
    "log_table",
    "run_directory",
]


def run_directory(trainer: Trainer) -> Path:
    """Return the folder of a run, which is `trainer.default_root_dir`."""
    return Path(trainer.default_root_dir)


def log_stride(trainer: Trainer) -> int:
    """Return after how many optimizer steps figures are logged, at least 1."""
    return max(1, getattr(trainer, "log_every_n_steps", 1))


def is_dry_run(trainer: Trainer) -> bool:
    """Return whether this is a `fast_dev_run`, which leaves no files."""
    return bool(getattr(trainer, "fast_dev_run", False))


def log_table(
    trainer: Trainer,
    name: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    step: int | None = None,
) -> Path | None:
    r"""Show a table on every logger, and append it to `<run>/tables/<name>.jsonl`.

    W&B and MLflow get a table, TensorBoard gets Markdown; other loggers know no tables, and the
    file serves instead. Cells that are lists or dictionaries are kept as they are in the file and
    written as JSON text on the loggers.

    Args:
        trainer: whose loggers and folder are meant. Only global rank 0 writes.
        name: a name such as `samples/masked_lm`; its `/` makes folders.
        columns: the names of the columns.
        rows: one sequence of plain data a row, as long as `columns`.
        step: the optimizer step; that of the trainer by default.

    Returns:
        The file, or `None` on other ranks.

    Raises:
        ValueError: a row has another length than `columns`.

    Example:
        >>> import tempfile
        >>> trainer = Trainer(default_root_dir=tempfile.mkdtemp(), logger=False,
        ...                   enable_checkpointing=False, accelerator="cpu")
        >>> path = log_table(trainer, "words", ["word", "count"], [["a", 3]], step=7)
        >>> path.read_text()
        '{"step": 7, "word": "a", "count": 3}\n'
    """
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(
                f"table {name!r} has the columns {list(columns)}, but a row has {len(row)} cells: "
                f"{list(row)}"
            )
    if not trainer.is_global_zero:
        return None
    step = trainer.global_step if step is None else step
    path = run_directory(trainer) / "tables" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for row in rows:
            record = {"step": step, **dict(zip(columns, row, strict=True))}
            file.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")
    cells = [[_cell(value) for value in row] for row in rows]
    for logger in trainer.loggers:
        _show_table(logger, name, list(columns), cells, step)
    return path


def log_figure(trainer: Trainer, name: str, figure: Any, step: int | None = None) -> Path | None:
    """Show a matplotlib figure on every logger, and write it to `<run>/figures/<name>.png`.

    Only global rank 0 writes. W&B, TensorBoard and MLflow take figures.

    Args:
        trainer: whose loggers and folder are meant.
        name: a name such as `test/confusion`; its `/` makes folders.
        figure: a `matplotlib.figure.Figure`.
        step: the optimizer step; that of the trainer by default.

    Returns:
        The file, or `None` on other ranks.
    """
    if not trainer.is_global_zero:
        return None
    step = trainer.global_step if step is None else step
    path = run_directory(trainer) / "figures" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key=name, images=[str(path)], step=step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_artifact(logger.run_id, str(path), "figures")
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(name, figure, global_step=step)
    return path


def log_config(trainer: Trainer, config: Mapping[str, Any]) -> None:
    """Add `config`, nested plain data, to the configuration that every logger shows.

    Only global rank 0 writes.
    """
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            logger.log_hyperparams(dict(config))


def _show_table(
    logger: Logger, name: str, columns: list[str], cells: list[list[Any]], step: int
) -> None:
    if isinstance(logger, WandbLogger):
        logger.log_table(key=name, columns=columns, data=cells, step=step)
    elif isinstance(logger, MLFlowLogger):
        # The layout of a table that MLflow's page shows; `log_table` itself would need pandas.
        table = {"columns": columns, "data": cells}
        logger.experiment.log_dict(logger.run_id, table, f"{name}/step_{step:08d}.json")
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_text(name, _markdown(columns, cells), global_step=step)


def _cell(value: Any) -> str | int | float | bool | None:
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _markdown(columns: Sequence[str], cells: Sequence[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *cells]
    return "\n".join(
        "| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in line) + " |"
        for line in lines
    )
