"""What a teacher says of each row, written down once and looked up in place of the teacher."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ..cache import BusyError, cache_folder
from ..functional.distillation_top_k import TopK, top_k_of
from ..types import Batch
from .base import LMModule
from .captures import Place
from .scores import Scores
from .store_runs import Runs, example_counts, to_float16, token_runs, token_slots
from .store_writer import StoreWriter
from .teacher import Teacher
from .teacher_store import HalfWrittenError, TeacherStore, store_folder
from .teacher_view import present

if TYPE_CHECKING:
    from .teacher_options import TeacherOptions
    from .teacher_texts import TeacherTexts

__all__ = [
    "StoredTeacher",
    "cache_of",
    "passing_over",
    "store_key",
    "whole_store",
    "write_teacher",
    "writer_of",
]

# What a kill may cost.
_COMMIT_SECONDS = 10.0
# For another process that writes the same.
_WAIT_SECONDS = 24 * 3600.0
# In a batch what has only the items and tokens that count, see `teacher_view`.
_RUNS = "runs."


class StoredTeacher:
    """A teacher that is not there: what it said of each row is read from disk.

    Args:
        store: written by `write_teacher`.
    """

    def __init__(self, store: TeacherStore) -> None:
        self.store = store

    @classmethod
    def open(
        cls,
        teacher: Teacher,
        datamodule: Any,
        split: str,
        places: Sequence[Place],
        options: TeacherOptions,
    ) -> StoredTeacher:
        """Open the store of a teacher and of the data.

        Raises:
            FileNotFoundError: it was never written.
            HalfWrittenError: it is not whole.
        """
        key = _key(teacher, datamodule, split, places, options)
        folder = store_folder(cache_of(datamodule, options.cache_folder), key)
        return cls(TeacherStore.open(folder, key))

    def read(self, batch: Batch) -> dict[str, Tensor]:
        """Return what the teacher said of a batch: items and tokens that count, end to end."""
        numbers = _examples(batch)[np.newaxis]
        device = batch["input_ids"].device
        said = {}
        for name in self.store.fields:
            found = torch.from_numpy(self.store.segments(name, numbers)[0])
            kind = torch.int64 if name == "ids" else torch.float32
            said[f"{_RUNS}{name}"] = found.to(device, kind)
        return said


def write_teacher(
    teacher: Teacher,
    task: LMModule,
    datamodule: Any,
    split: str,
    places: Sequence[Place],
    options: TeacherOptions,
    texts: TeacherTexts | None = None,
) -> StoredTeacher:
    """Let a teacher go over all rows of a split, and write down what it says.

    What was interrupted goes on where it stopped, and what is there is taken as it is.

    Args:
        teacher: live, on the device where it is to run.
        task: the student, which prepares the batches.
        datamodule: its rows have to be the same in each epoch.
        split: `"train"` or `"val"`.
        places: what to keep of its inside, beside its logits.
        options: precision, and how many of the logits.
        texts: what it wrote in place of the targets.

    Raises:
        ValueError: the rows are not the same in each epoch, or attention maps are to be kept.
    """
    if any(place.kind == "attention" for place in places):
        raise ValueError(
            "attention maps are not written down: they grow with the square of the length. Leave "
            "cache out, or take RelationLoss in place of AttentionLoss"
        )
    key = _key(teacher, datamodule, split, places, options)
    folder = store_folder(cache_of(datamodule, options.cache_folder), key)
    if (store := whole_store(folder, key)) is not None:
        return StoredTeacher(store)
    with writer_of(folder, datamodule.row_count(split), key) as writer:
        for batch in passing_over(datamodule, split, writer, f"{split} rows to {teacher.name}"):
            moved = {name: tensor.to(teacher.module.device) for name, tensor in batch.items()}
            prepared = task.prepare(moved)
            prepared = prepared if texts is None else texts.replace(prepared)
            scores, kept = teacher.run(prepared, places)
            writer.write(*_fields(batch, scores, kept, options))
        store = writer.finish()
    rank_zero_info(
        f"what {teacher.name} says of {store.examples:,} {split} rows is in {folder} "
        f"({store.disk_bytes / 2**20:.1f} MiB)"
    )
    return StoredTeacher(store)


def _fields(
    batch: Batch, scores: Scores, kept: dict[str, Tensor], options: TeacherOptions
) -> tuple[Tensor, dict[str, Runs]]:
    """Return the examples of a batch, int64 `[B]`, and the runs of each field in their order."""
    slots, valid = _item_slots(batch, scores), scores.valid
    logits = scores.logits[valid].float()
    of_items = slots[valid]
    if scores.ragged:
        there = present(scores)
        each = scores.logits.reshape(len(valid), -1, there.shape[1]).transpose(1, 2)
        of_items, parts = slots.repeat_interleave(there.sum(1)), {"choices": each[there].float()}
    elif options.cache_top_k is None or scores.kind != "classes":
        parts = {"logits": logits}
    else:
        k = min(options.cache_top_k, logits.shape[-1])
        parts = dict(zip(TopK._fields, top_k_of(logits, k), strict=True))
    numbers, counts = example_counts(of_items, batch)
    fields = {name: Runs(_kept(part, options), counts) for name, part in parts.items()}
    for name, tensor in kept.items():
        tokens = scores.written if name.startswith("decoder_") else scores.tokens
        assert tokens is not None
        _, fields[name] = token_runs(_kept(tensor, options), batch, tokens)
    return numbers, fields


def _item_slots(batch: Batch, scores: Scores) -> Tensor:
    """Return for each item, int64 `[N]`, which of the batch's examples it is of."""
    slots = token_slots(batch, scores.tokens)
    # Where texts share rows, items are tokens.
    return slots.flatten() if "segment_index" in batch else slots[scores.rows, 0]


def _kept(tensor: Tensor, options: TeacherOptions) -> Tensor:
    """Return numbers in the type that they are kept in."""
    if not tensor.is_floating_point():
        return tensor.int()
    return to_float16(tensor) if options.cache_precision == "fp16" else tensor.float()


def _examples(batch: Batch) -> NDArray[np.int64]:
    """Return the examples of a batch in the order of its tokens, int64 `[M]`, -1 for none."""
    name = "segment_index" if "segment_index" in batch else "index"
    if name not in batch:
        raise ValueError(
            "the batch has no index, which says of each row which example it is; a cached teacher "
            "needs a data module of lmkit"
        )
    numbers: NDArray[np.int64] = batch[name].flatten().cpu().numpy()
    return numbers


def whole_store(folder: Path, key: Mapping[str, Any]) -> TeacherStore | None:
    """Return the store in a folder of the cache; `None` where it is to be written, or gone on with.

    What is damaged is removed, for the folder is the cache's own.
    """
    try:
        return TeacherStore.open(folder, key)
    except FileNotFoundError:
        strange = folder.exists() and not folder.is_dir()
        strange = strange or (folder.is_dir() and any(f.suffix == ".bin" for f in folder.iterdir()))
        fault = "its list of files is missing" if strange else ""
    except HalfWrittenError as error:
        fault = str(error) if "is half written" not in str(error) else ""
    if fault:
        rank_zero_warn(f"what a teacher has said is asked for anew: {fault}")
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
    return None


def writer_of(folder: Path, examples: int, key: Mapping[str, Any]) -> StoreWriter:
    """Open a store to write to; where another process writes it, wait until it is whole."""
    try:
        return StoreWriter(folder, examples, key)
    except BusyError as error:
        rank_zero_info(f"waiting, for {str(error).split(';')[0]}")
        return StoreWriter(folder, examples, key, wait=_WAIT_SECONDS)


def store_key(teacher: Teacher, datamodule: Any, split: str) -> dict[str, Any]:
    """Return what anything that is kept of a teacher and a split depends on."""
    rows = datamodule.rows_fingerprint(split)
    return {"teacher": teacher.facts.fingerprint, "rows": rows, "split": split}


def cache_of(datamodule: Any, cache_dir: str | None) -> Path:
    """Return the folder of the cache: the given one, or that of the data module."""
    return cache_folder(cache_dir or getattr(datamodule, "cache_dir", None))


def _key(
    teacher: Teacher,
    datamodule: Any,
    split: str,
    places: Sequence[Place],
    options: TeacherOptions,
) -> dict[str, Any]:
    written = options.prompt_share if options.sequence_level and split == "train" else None
    return {
        **store_key(teacher, datamodule, split),
        "written": written,
        "precision of the teacher": [options.precision, options.autocast],
        "inside": sorted(map(str, places)),
        "precision": options.cache_precision,
        "top_k": options.cache_top_k,
    }


def passing_over(datamodule: Any, split: str, writer: StoreWriter, words: str) -> Iterator[Batch]:
    """Yield the batches of a split that a store lacks, with a bar of all, and commit now and then.

    Args:
        datamodule: of lmkit, whose rows are the same in each epoch.
        split: `"train"` or `"val"`.
        writer: of the store.
        words: to stand before the bar.
    """
    loader = datamodule.every_row(split)
    done, committed = writer.position, monotonic()
    if done:
        rank_zero_info(f"{words}: going on at batch {done} of {len(loader)}")
    with tqdm(total=len(loader), initial=done, desc=words, unit="batch", disable=None) as bar:
        for batch in loader.starting_at(done):
            yield batch
            bar.update()
            if monotonic() - committed > _COMMIT_SECONDS:
                writer.commit()
                committed = monotonic()
