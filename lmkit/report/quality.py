"""What a model is worth: its task's own figures, and how far it agrees with the dense one."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

from lightning.pytorch import LightningDataModule

from ..modules import LMModule
from ..modules.checks import require_tokenizer
from ..trainer import Trainer
from .contenders import Contender
from .scores import Said, compare, say_of_rows, say_of_texts

__all__ = ["Judged", "evaluate", "judge", "rows_for", "split_of"]


class Judged(NamedTuple):
    """What a model is worth.

    Attributes:
        fields: of its row in the report.
        said: what it says of the items; `None` where its task has no scores to compare.
    """

    fields: dict[str, Any]
    said: Said | None


def judge(
    contender: Contender,
    data: LightningDataModule | list[str],
    split: str | None,
    dense: Said | None,
) -> Judged:
    """Evaluate a model, and compare it with the dense one; what cannot be compared is noted.

    Args:
        contender: its notes are added to.
        data: with labels; or texts.
        split: `"test"`, `"val"` or what there is.
        dense: what the dense model says; `None` if this is the dense one.
    """
    module, metrics, said = contender.module, dict[str, float](), None
    try:
        if isinstance(data, list):
            said = say_of_texts(module, data)
        else:
            rows = rows_for(data, module)
            chosen = split_of(rows, split)
            metrics = evaluate(module, rows, chosen)
            wanted = None if dense is None else dense.examples.unique()
            said = say_of_rows(module, rows, chosen, wanted)
    except NotImplementedError as error:
        contender.notes.append(f"not compared: {error}")
    fields: dict[str, Any] = {"metrics": metrics}
    if said is not None:
        try:
            made = compare(said if dense is None else dense, said)
            fields |= made._asdict()
        except ValueError as error:
            contender.notes.append(f"not compared: {error}")
    return Judged(fields, said)


def rows_for(data: LightningDataModule, module: LMModule) -> Any:
    """Return a data module with the tokens of a model; the one that was given stays as it is."""
    other: Any = copy.copy(data)
    if not hasattr(other, "use_tokenizer"):
        other.prepare_data()
        other.setup("test")
        return other
    # One that names none takes the model's, also when a Trainer sets it up once more.
    other.tokenizer_name = None
    other.use_tokenizer(require_tokenizer(module))
    return other


def split_of(data: Any, split: str | None) -> str:
    """Return `test` or `val`: the one that was asked for, or else the first that has rows.

    Raises:
        ValueError: it has none.
    """
    for each in [split] if split else ["test", "val"]:
        try:
            if not hasattr(data, "row_count") or data.row_count(each):
                return each
        except ValueError as error:
            if split:
                raise ValueError(f"split is {split!r}, and {error}") from error
    raise ValueError("the data have neither test nor validation rows: give a test_file")


def evaluate(module: LMModule, data: Any, split: str) -> dict[str, float]:
    """Let a Trainer evaluate a model, and return what it logs by name.

    Args:
        module: as it is.
        data: with its tokens, of `rows_for`.
        split: `"test"` or `"val"`.
    """
    trainer = _trainer()
    run = trainer.test if split == "test" else trainer.validate
    (logged,) = run(module, datamodule=data, verbose=False)
    module.eval()
    return {name.removeprefix(f"{split}/"): float(value) for name, value in logged.items()}


def _trainer() -> Trainer:
    return Trainer(
        accelerator="cpu",
        precision="32-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
