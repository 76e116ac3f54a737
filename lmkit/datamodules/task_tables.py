"""From sources of labelled rows to encoded tables, each made once and kept by content."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from transformers import PreTrainedTokenizerBase

from ..cache import building_folder, cache_folder, put_in_place
from .example_choice import few_of_each, hold_out_examples
from .example_table import ExampleTable
from .label_names import align_labels, network_labels, warn_of_unlikely_labels
from .records import DatasetRecords, RecordSource
from .source import expand_files, short_hash
from .source_resolution import resolve_sources
from .task_tokenizer import take_task_tokenizer
from .text_rows import BadRows

if TYPE_CHECKING:
    from .task import TaskDataModule

__all__ = [
    "EXAMPLES_VERSION",
    "TaskData",
    "TaskTables",
    "describe_tables",
    "encode_table",
    "prediction_table",
    "task_data",
    "task_tables",
]

#: Part of every key: raise it when examples are read or encoded otherwise.
EXAMPLES_VERSION = 2


class TaskTables(NamedTuple):
    """What a data module opens.

    Attributes:
        tables: split -> its examples.
        labels: names of the classes, in order.
    """

    tables: dict[str, ExampleTable]
    labels: list[str]

    @property
    def unlabelled_rows(self) -> int:
        """How many examples of the training have no label: its last ones."""
        return int(self.tables["train"].meta.get("unlabelled", 0)) if "train" in self.tables else 0


class TaskData(NamedTuple):
    """All that a data module is set up with.

    Attributes:
        tables: split -> its examples.
        labels: names of the classes, in order.
        unlabelled_rows: how many training examples have no label.
        facts: what decides which examples there are, and the seed of their order, as plain data.
        statistics: see `describe_tables`, and `words`.
        words: a sentence.
    """

    tables: dict[str, ExampleTable]
    labels: list[str]
    unlabelled_rows: int
    facts: dict[str, Any]
    statistics: dict[str, int | float | str]
    words: str


def task_data(data: TaskDataModule, tokenizer: PreTrainedTokenizerBase | None) -> TaskData:
    """Return what a data module is set up with; its tokenizer and its labels are set here.

    Args:
        data: reads and encodes.
        tokenizer: given by the caller, if one was.

    Raises:
        ValueError: there are no data, a row of them is bad, or the tokenizer cannot be used.
    """
    cache = cache_folder(data.cache_dir)
    sources = resolve_sources(data.source, data.files, data.record_options, cache)
    facts = {
        **{f"{split} text": source.key(cache) for split, source in sources.items()},
        "tokenizer": take_task_tokenizer(data, tokenizer, sources.get("train")),
        "val_fraction": data.val_fraction,
        "examples_per_class": data.examples_per_class,
        "max_length": data.max_length,
        **data.settings(),
        **({} if data.augmentation is None else data.augmentation.facts()),
    }
    drawn = data.seed if data.draws_rows else None
    found = task_tables(data, sources, [facts, drawn], cache)
    tables, labels = dict(found.tables), found.labels
    warn_of_unlikely_labels(str(facts.get("task", "")), labels)
    facts = {**facts, "labels": data.labels, "seed": data.seed}
    said = describe_tables(tables, data.labels, sources)
    return TaskData(tables, labels, found.unlabelled_rows, facts, *said)


def prediction_table(data: TaskDataModule) -> ExampleTable:
    """Return the encoded rows of a data module's `predict_file`.

    Raises:
        ValueError: there is no such file, no row in it, or a row is bad; names file and line.
    """
    if not data.predict_file:
        raise ValueError("pass predict_file (--data.predict_file=FILE), the rows to predict on")
    if data.tokenizer is None:
        take_task_tokenizer(data, None, None)
        data.labels, _ = network_labels(data.trainer and data.trainer.lightning_module)
    files = expand_files(data.predict_file, "predict_file", data.record_options.endings)
    rows = _read_unlabelled(data, data.record_options.of_files(files), "predict_file")
    return encode_table(data, rows, "predict")


def task_tables(
    data: TaskDataModule, sources: Mapping[str, RecordSource], facts: Any, cache: Path
) -> TaskTables:
    """Return the tables of a data module, from the cache or made now.

    Args:
        data: reads and encodes; its tokenizer is set, and its labels are set here.
        sources: split -> its rows.
        facts: plain data on which the tables depend, beside the labels of the network.
        cache: folder of the cache.

    Raises:
        ValueError: a split has no example, or a row is bad; names file and line.
    """
    own, trained = network_labels(data.trainer and data.trainer.lightning_module)
    key = short_hash(["examples", EXAMPLES_VERSION, type(data).__name__, facts, own, trained])
    final = cache / "examples" / key
    try:
        found = _open(final)
    except FileNotFoundError:
        made = _make(data, sources, own, trained)
        building = building_folder(final)
        try:
            for split, table in made.tables.items():
                table.save(building / split)
            entry = {"labels": made.labels, "splits": list(made.tables)}
            (building / "meta.json").write_text(json.dumps(entry))
            found = put_in_place(building, final, _open)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    data.labels = found.labels
    return found


def encode_table(data: TaskDataModule, examples: list[Any], split: str) -> ExampleTable:
    """Encode the examples of a split, and count what was cut, skipped and seen of each class.

    Raises:
        ValueError: no example is left.
    """
    bad = BadRows(data.record_options.on_bad_row)
    columns = dict(data.encode(examples, bad))
    bad.report()
    truncated, unlabelled = (columns.pop(name, ()) for name in ("truncated", "unlabelled"))
    meta: dict[str, Any] = {
        "truncated": int(sum(map(bool, truncated))),
        "classes": dict(Counter(name for e in examples for name in data.stratum(e) or ())),
    }
    if any(unlabelled):
        meta["unlabelled"] = int(sum(map(bool, unlabelled)))
    table = ExampleTable.of(columns, meta)
    if not len(table):
        raise ValueError(f"{split}: there is no example left that could be encoded")
    return table


def describe_tables(
    tables: Mapping[str, ExampleTable], labels: list[str], sources: Mapping[str, RecordSource]
) -> tuple[dict[str, int | float | str], str]:
    """Return the statistics of the data as plain data, and a sentence that says them."""
    name = next(iter(sources.values())).name
    statistics: dict[str, int | float | str] = {"source": name, "labels": ", ".join(labels)}
    words = []
    for split, table in tables.items():
        lengths = table.ragged("input_ids").lengths
        statistics[f"{split}/examples"] = len(table)
        statistics[f"{split}/tokens"] = int(lengths.sum())
        statistics[f"{split}/longest"] = int(lengths.max())
        statistics[f"{split}/truncated"] = table.meta["truncated"]
        for label, count in table.meta["classes"].items():
            statistics[f"{split}/label/{label}"] = count
        cut = table.meta["truncated"]
        if bare := table.meta.get("unlabelled", 0):
            statistics[f"{split}/unlabelled"] = bare
        words.append(
            f"{split} {len(table):,} examples"
            + (f" ({bare:,} of them without a label)" if bare else "")
            + f", {int(lengths.sum()):,} tokens"
            + (f" ({cut:,} examples longer than max_length cut)" if cut else "")
        )
    shown = ", ".join(labels[:10]) + (" ..." if len(labels) > 10 else "")
    classes = f"; {len(labels)} labels: {shown}" if labels else ""
    return statistics, f"data from {name}: {'; '.join(words)}{classes}"


def _make(
    data: TaskDataModule, sources: Mapping[str, RecordSource], own: list[str], trained: bool
) -> TaskTables:
    examples: dict[str, list[Any]] = {}
    for split, source in sources.items():
        if split == "unlabelled":
            continue
        if split == "test" and _has_no_labels(source):
            rank_zero_info(f"{source.name} has no labels, and is not tested on")
            continue
        bad = BadRows(data.record_options.on_bad_row)
        examples[split] = data.read(source, True, bad)
        bad.report()
        if not examples[split]:
            raise ValueError(f"{split}: there is no example in {source.name}")
    # Before any are held out: a rare class may stand among those alone.
    named = examples.get("train") or next(iter(examples.values()), [])
    if "train" in examples and "val" not in examples and data.val_fraction:
        examples["train"], examples["val"] = hold_out_examples(
            examples["train"], data.val_fraction, data.stratum, data.group
        )
    if data.examples_per_class is not None and "train" in examples:
        examples["train"] = few_of_each(
            examples["train"], data.examples_per_class, data.seed, data.stratum
        )
    # Those to validate on do not tell which classes there are to train.
    alone = "unlabelled" in sources and "train" not in examples
    data.labels = align_labels(data.label_names([] if alone else named), own, trained)
    if alone and data.has_classes and not data.labels:
        raise ValueError(
            "unlabelled_file alone does not tell which classes there are, and the network has no "
            "names for them; pass train_file (--data.train_file=FILE) too, or name them in the "
            "model's config as id2label"
        )
    if data.augmentation is not None and "train" in examples:
        examples["train"] = data.augmentation.with_copies(data, examples["train"])
    if "unlabelled" in sources:
        # Behind the others, whose order and numbers stay as they are.
        more = _read_unlabelled(data, sources["unlabelled"], "unlabelled_file")
        examples["train"] = [*examples.get("train", []), *more]
    tables = {split: encode_table(data, rows, split) for split, rows in examples.items()}
    seen = tables["train"].meta["classes"] if "train" in tables else {}
    if seen and (lacking := [name for name in data.labels if name not in seen]):
        rank_zero_warn(
            f"no training example has the label {', '.join(map(repr, lacking))}: the model cannot "
            "learn it"
        )
    return TaskTables(tables, list(data.labels))


def _read_unlabelled(data: TaskDataModule, source: RecordSource, argument: str) -> list[Any]:
    """Read rows whose labels are not looked at; `argument` names them in errors."""
    bad = BadRows(data.record_options.on_bad_row)
    try:
        examples = data.read(source, False, bad)
    except ValueError as error:
        raise ValueError(f"{argument}: {error}") from error
    bad.report()
    if not examples:
        raise ValueError(f"{argument}: there is no row in {source.name}")
    return examples


def _has_no_labels(source: RecordSource) -> bool:
    """Whether all class labels, or values, of a data set are -1, as in the tests of GLUE."""
    if not isinstance(source, DatasetRecords):
        return False
    kinds = {name: getattr(f, "dtype", "") for name, f in source.dataset.features.items()}
    value = ["label"] if kinds.get("label", "").startswith("float") else []
    columns = source.class_columns() or value
    return bool(columns) and all(set(source.dataset[column]) == {-1} for column in columns)


def _open(folder: Path) -> TaskTables:
    try:
        entry = json.loads((folder / "meta.json").read_text())
        splits = list(entry["splits"])
        return TaskTables({s: ExampleTable.open(folder / s) for s in splits}, list(entry["labels"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileNotFoundError(f"no whole tables of examples at {folder}") from error
