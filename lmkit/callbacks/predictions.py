"""Writes predictions to a file as they are made."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from ..dashboard import run_directory

__all__ = ["PredictionsCallback"]


class PredictionsCallback(BasePredictionWriter):
    """Writes what `predict_step` returns, one dictionary a row, to `<run>/predictions.jsonl`.

    Beside each stand the fields that the data module's `inputs(index)` has of the row, such as its
    text. A file with the ending `.csv` gets columns; lists and dictionaries stand there as JSON.

    Each rank writes a file of its own batch by batch, so that memory does not grow. At the end
    rank 0 joins them: in the order of the data, without filler rows and without the rows that a
    distributed sampler repeated, where batches have an `index` `[B]`. The file gets its name only
    when it is complete. Ranks have to share the file system.

    Args:
        output: the file, `.jsonl` or `.csv`; `<run>/predictions.jsonl` by default.

    Raises:
        ValueError: the file has another ending.
        TypeError: `predict_step` returned something other than a list of dictionaries.

    Example:
        >>> PredictionsCallback("answers.jsonl").output
        'answers.jsonl'
    """

    def __init__(self, output: str | None = None) -> None:
        super().__init__(write_interval="batch")
        if output is not None and not output.lower().endswith((".jsonl", ".csv")):
            raise ValueError(f"output must end in .jsonl or .csv, got {output!r}")
        self.output = output
        self._file: TextIO | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the file of this rank."""
        part = self._part(trainer, trainer.global_rank)
        part.parent.mkdir(parents=True, exist_ok=True)
        self._file = part.open("w", encoding="utf-8")

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write the rows of one batch."""
        if not isinstance(prediction, list) or not all(isinstance(row, dict) for row in prediction):
            raise TypeError(
                f"PredictionsCallback expects predict_step of {type(pl_module).__name__} to return "
                f"a list of dictionaries, got {type(prediction).__name__}"
            )
        indices: list[int | None] = [None] * len(prediction)
        given = batch.get("index") if isinstance(batch, dict) else None
        if given is not None and len(given) == len(prediction):
            indices = given.tolist()
        data = getattr(trainer, "datamodule", None)
        inputs: Callable[[int], dict[str, Any]] = getattr(data, "inputs", lambda _: {})
        if self._file is None:
            raise RuntimeError("PredictionsCallback was not told that the prediction started")
        for index, row in zip(indices, prediction, strict=True):
            if index is None or index >= 0:
                asked = {} if index is None else inputs(index)
                record = {"index": index, "dataloader": dataloader_idx, **asked, **row}
                self._file.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Join the files of all ranks."""
        self._close()
        trainer.strategy.barrier("predictions are written")
        if trainer.is_global_zero:
            parts = [self._part(trainer, rank) for rank in range(trainer.world_size)]
            _join(parts, self.path(trainer))
        trainer.strategy.barrier("predictions are joined")

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Close the file; what was predicted so far stays in it."""
        self._close()

    def path(self, trainer: Trainer) -> Path:
        """Return the file that the predictions of `trainer` go to."""
        return Path(self.output) if self.output else run_directory(trainer) / "predictions.jsonl"

    def _part(self, trainer: Trainer, rank: int) -> Path:
        path = self.path(trainer)
        return path.with_name(f"{path.name}.rank{rank}.part")

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _join(parts: Sequence[Path], target: Path) -> None:
    # Only places are held in memory: (data loader, row) -> (file, offset).
    places: dict[tuple[int, int], tuple[int, int]] = {}
    for number, part in enumerate(parts):
        for count, (offset, record) in enumerate(_records(part)):
            index = record["index"]
            # Rows without a number keep the order of rank and batch.
            row = index if index is not None else number * 2**40 + count
            places.setdefault((record["dataloader"], row), (number, offset))
    complete = target.with_name(f"{target.name}.part")
    files = [part.open("rb") for part in parts]
    try:

        def records() -> Iterator[dict[str, Any]]:
            for _, (number, offset) in sorted(places.items()):
                files[number].seek(offset)
                record = json.loads(files[number].readline())
                if record["index"] is None:
                    del record["index"]
                if record["dataloader"] == 0:
                    del record["dataloader"]
                yield record

        with complete.open("w", encoding="utf-8", newline="") as output:
            if target.suffix.lower() == ".csv":
                _write_csv(output, records)
            else:
                for record in records():
                    output.write(json.dumps(record, ensure_ascii=False) + "\n")
    finally:
        for file in files:
            file.close()
    complete.replace(target)
    for part in parts:
        part.unlink()


def _write_csv(output: TextIO, records: Callable[[], Iterator[dict[str, Any]]]) -> None:
    columns = dict.fromkeys(name for record in records() for name in record)
    writer = csv.DictWriter(output, list(columns))
    writer.writeheader()
    for record in records():
        writer.writerow(
            {
                name: json.dumps(value, ensure_ascii=False)
                if isinstance(value, list | dict)
                else value
                for name, value in record.items()
            }
        )


def _records(part: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with part.open("rb") as file:
        offset = 0
        for line in file:
            yield offset, json.loads(line)
            offset += len(line)
