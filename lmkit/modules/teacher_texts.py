"""What a teacher writes in place of the targets of the data, written once and kept."""

from __future__ import annotations

from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from ..types import Batch
from .base import LMModule
from .stored_teacher import cache_of, passing_over, store_key, whole_store, writer_of
from .teacher import Teacher
from .teacher_store import TeacherStore, store_folder
from .written_targets import check_writes, with_targets, write_targets

__all__ = ["TeacherTexts"]


class TeacherTexts:
    """Targets by a teacher: sequence-level distillation (Kim and Rush, arXiv:1606.07947).

    The teacher writes one target for each training row, by its own search, and the student learns
    these as if they were those of the data.

    Args:
        task: the student.
        datamodule: its training rows have to be the same in each epoch.
        prompt_share: of a causal language model, how much of each row is its prompt.
        cache_dir: where the texts are kept; by default in the cache of the data module.
    """

    def __init__(
        self, task: LMModule, datamodule: Any, prompt_share: float, cache_dir: str | None
    ) -> None:
        check_writes(task)
        self.task, self.datamodule, self.prompt_share = task, datamodule, prompt_share
        self.cache = cache_of(datamodule, cache_dir)
        self._store: TeacherStore | None = None

    def write(self, teacher: Teacher) -> None:
        """Let the teacher write what is not there yet; what was interrupted goes on."""
        key = self._key(teacher)
        folder = store_folder(self.cache, key)
        self._store = whole_store(folder, key)
        if self._store is not None:
            return
        with writer_of(folder, self.datamodule.row_count("train"), key) as writer:
            words = f"texts by {teacher.name}"
            for batch in passing_over(self.datamodule, "train", writer, words):
                moved = {name: t.to(teacher.module.device) for name, t in batch.items()}
                written = write_targets(teacher.module, moved, self.prompt_share, draw=False)
                rows = [np.asarray(row, np.int32) for row in written]
                writer.write(batch["index"], {"written": rows})
            self._store = writer.finish()
        rank_zero_info(f"what {teacher.name} wrote of the training rows is in {folder}")

    def open(self, teacher: Teacher) -> None:
        """Open what was written."""
        key = self._key(teacher)
        self._store = TeacherStore.open(store_folder(self.cache, key), key)

    def replace(self, batch: Batch) -> Batch:
        """Return a training batch with the teacher's targets."""
        assert self._store is not None
        numbers = batch["index"].cpu().numpy()
        runs = self._store.segments("written", numbers[np.newaxis])[0]
        ends = np.cumsum(self._store.counts("written", numbers))
        rows = [each.tolist() for each in np.split(runs, ends[:-1])]
        return with_targets(self.task, batch, rows, self.prompt_share)

    def _key(self, teacher: Teacher) -> dict[str, Any]:
        generation = teacher.module.network.generation_config
        settings = {} if generation is None else generation.to_diff_dict()
        share = self.prompt_share if self.task.is_causal else None
        return {
            **store_key(teacher, self.datamodule, "train"),
            "prompt_share": share,
            "generation": {k: v for k, v in settings.items() if k != "transformers_version"},
        }
