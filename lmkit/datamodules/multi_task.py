"""Data of several tasks, whose batches come in turn or together."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from transformers import PreTrainedTokenizerBase

from ..functional.task_sampling import about_task, check_task_names
from ..types import Batch
from .base import LMDataModule
from .batch_plan import check_positive
from .data_facts import compare_facts
from .loader import PlannedLoader, ResumableLoader
from .multi_task_loader import training_loader
from .multi_task_plan import OneTaskCollate
from .multi_task_specs import check_tokenizers, data_from_spec, data_to_spec
from .source import short_hash
from .source_resolution import Files
from .task import TaskDataModule
from .task_sampling import Sampling, check_sampling
from .trainer_facts import TaskTrainer

__all__ = ["MultiTaskDataModule"]


class MultiTaskDataModule(LightningDataModule):
    r"""Rows of several tasks, each read by its own data module, as batches that resume exactly.

    Which task an optimizer step is of is drawn with $p_i \propto \min(n_i, K)^{1/\tau}$, where
    $n_i$ is the number of the task's training examples (T5, arXiv:1910.10683, section 3.5.2). The
    draw is a function of (seed, epoch), the same on all ranks; the ranks have different examples.
    A task whose examples are used up goes on with its next epoch, in a new order, so that small
    tasks are seen several times while a large one is seen once.

    Validation and test have a loader for each task.

    Args:
        tasks: the data module of each task by name, as `class_path` and `init_args`, or made. The
            names are those of the `MultiTaskModule`.
        sampling: `"temperature"`, as above; `"proportional"`, which is $\tau = 1$; `"uniform"`,
            all tasks as often; `"round_robin"`, in turn; `"annealed"`, $1/\tau$ falling from 1 in
            the first epoch to 0.2 in the last (BERT and PALs, arXiv:1902.02671); or `"weights"`.
        temperature: $\tau > 0$.
        cap: $K$, from which on a task counts as no larger.
        weights: of `"weights"`, how often each task is to come in relation to the others, above 0.
        batches: `"one"` for batches of one task, or `"all"` for a batch of each task in every step.
        epoch_batches: batches in an epoch; by default as many as the tasks have together, with
            `"all"` as many of each as they have on average.
        tokenizer: of all tasks that name none; by default the model's.
        max_length: tokens of an example at most, of tasks that do not say.
        batch_size: of tasks that do not say.
        eval_batch_size: of tasks that do not say.
        num_workers: processes that make batches ahead, of all loaders.
        predict_task: the task that is predicted; by default the only one with a `predict_file`.
        predict_file: its rows.
        seed: of the draws, and of tasks that do not say.
        cache_dir: of tasks that do not say.

    Attributes:
        tasks: the data modules by name.
        tokenizer: of all tasks; `None` before `setup`.
        max_length: that of the task with the longest rows.

    Raises:
        TypeError: a task is neither a data module nor plain data.
        ValueError: a name or argument is wrong; in `setup`, tasks have different tokenizers; when
            training begins, one has no training examples.

    Example:
        >>> data = MultiTaskDataModule({"topic": {"class_path": "SequenceClassificationDataModule",
        ...     "init_args": {"train_file": "topics.csv"}}}, sampling="uniform", batch_size=16)
        >>> data.tasks["topic"].batch_size
        16
    """

    def __init__(
        self,
        tasks: dict[str, Any],
        sampling: Sampling = "temperature",
        temperature: float = 2.0,
        cap: int | None = None,
        weights: dict[str, float] | None = None,
        batches: Literal["one", "all"] = "one",
        epoch_batches: int | None = None,
        tokenizer: str | None = None,
        max_length: int | None = None,
        batch_size: int | None = None,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        predict_task: str | None = None,
        predict_file: Files | None = None,
        seed: int | None = None,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        check_task_names(tasks)
        ours = TaskDataModule | LMDataModule
        made = {name: data for name, data in tasks.items() if isinstance(data, ours)}
        specs = {}
        for name, data in tasks.items():
            with about_task(name):
                specs[name] = data_to_spec(data)
        tasks = specs  # Lightning reads the arguments here, and they have to be plain data
        # Loggers merge them with the module's, and refuse two values of `tasks`.
        self.save_hyperparameters(logger=False)
        check_sampling(sampling, temperature, cap, weights, batches, list(tasks))
        check_positive(epoch_batches=epoch_batches)
        shared: dict[str, Any] = {"tokenizer": tokenizer, "max_length": max_length, "seed": seed}
        shared |= {"batch_size": batch_size, "eval_batch_size": eval_batch_size}
        shared |= {"cache_dir": cache_dir}
        self.tasks: dict[str, TaskDataModule | LMDataModule] = {}
        for name, spec in specs.items():
            with about_task(name):
                self.tasks[name] = made.get(name) or data_from_spec(spec, shared)
                self.tasks[name].num_workers = num_workers
                self.tasks[name].tokenizer_name = self.tasks[name].tokenizer_name or tokenizer
        self.sampling, self.temperature = sampling, temperature
        self.cap, self.weights = cap, weights
        self.batches, self.epoch_batches = batches, epoch_batches
        self.num_workers = num_workers
        self.predict_task = predict_task
        if predict_file is not None:
            self.tasks[self._predicted(predict_task)].predict_file = predict_file
        self.seed = seed if seed is not None else int(os.environ.get("PL_GLOBAL_SEED", 0))
        self._seed_is_given = seed is not None
        self._said = ""

    @property
    def names(self) -> list[str]:
        """The tasks by name, in the order of the numbers that batches have as `task`."""
        return list(self.tasks)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """That of all tasks; `None` before `setup`."""
        found = [d.tokenizer for d in self.tasks.values() if d.tokenizer is not None]
        return found[0] if found else None

    @property
    def max_length(self) -> int:
        """That of the task with the longest rows."""
        return max(data.max_length for data in self.tasks.values())

    @property
    def fingerprint(self) -> str:
        """Hash of what all tasks have."""
        return short_hash({name: data.fingerprint for name, data in self.tasks.items()})

    @property
    def statistics(self) -> dict[str, int | float | str]:
        """Examples, tokens and classes of each task and split, as plain data."""
        return {
            f"{name}/{word}": value
            for name, data in self.tasks.items()
            for word, value in data.statistics.items()
        }

    def prepare_data(self) -> None:
        """Read, check and encode the rows of each task; once per node."""
        for name, data in self._wanted().items():
            with about_task(name):
                data.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Open what `prepare_data` made, and check that all tasks have one tokenizer."""
        for name, data in self._wanted().items():
            with about_task(name):
                data.setup(stage or "fit")
        check_tokenizers(self.tasks)

    def use_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Take another tokenizer, e.g. a checkpoint's, and tokenize all tasks anew with it."""
        for data in self._wanted().values():
            data.use_tokenizer(tokenizer)

    def train_dataloader(self) -> ResumableLoader:
        """Return the training batches."""
        loader, words = training_loader(self, self._wanted())
        if words != self._said:
            rank_zero_info(words)
        self._said = words
        return loader

    def val_dataloader(self) -> list[PlannedLoader]:
        """Return the validation batches of each task that has some."""
        return self._evaluation("val_dataloader")

    def test_dataloader(self) -> list[PlannedLoader]:
        """Return the test batches of each task; without a test set, its validation batches."""
        return self._evaluation("test_dataloader")

    def predict_dataloader(self) -> PlannedLoader:
        """Return the rows of the task that is predicted, in order."""
        name = self._predicted(self.predict_task)
        self._wanted()
        with about_task(name):
            loader = self.tasks[name].predict_dataloader()
        loader.collate = OneTaskCollate(loader.collate, self.names.index(name))
        return loader

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Let the data module of each task do with its batches what it does."""
        if "task" in batch:
            data = self.tasks[self.names[int(batch["task"][0])]]
            return data.on_before_batch_transfer(batch, 0)
        changed: Batch = {}
        for name, data in self.tasks.items():
            start = f"{name}/"
            own = {k.removeprefix(start): v for k, v in batch.items() if k.startswith(start)}
            own = data.on_before_batch_transfer(own, 0) if own else own
            changed |= {start + entry: tensor for entry, tensor in own.items()}
        return changed

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Leave the numbers of tasks where they can be read without waiting for the device."""
        numbers = {k: v for k, v in batch.items() if k.rpartition("/")[2] == "task"}
        others = {k: v for k, v in batch.items() if k not in numbers}
        return super().transfer_batch_to_device(others, device, dataloader_idx) | numbers

    def row_count(self, split: str = "train") -> int:
        """Return how many rows all tasks have together."""
        return sum(data.row_count(split) for data in self.tasks.values())

    def inputs(self, index: int) -> dict[str, Any]:
        """Return the fields of a row of `predict_file`, to be written beside its prediction."""
        find = getattr(self.tasks[self._predicted(self.predict_task)], "inputs", None)
        return dict(find(index)) if find else {}

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run must find unchanged."""
        return {
            "facts": self._facts(),
            "tasks": {name: data.state_dict() for name, data in self.tasks.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that a resumed fit has the tasks, the data and the rule of the interrupted one.

        Raises:
            ValueError: something changed; says what.
        """
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        before = dict(state_dict["facts"])
        if not self._seed_is_given:
            # Nobody asked for a seed: the run goes on with the one that it began with.
            self.seed = int(before["seed"])
        if changed := compare_facts(before, self._facts()):
            rank_zero_warn(changed)
        for name, data in self._wanted().items():
            with about_task(name):
                data.load_state_dict(state_dict["tasks"][name])

    def _facts(self) -> dict[str, Any]:
        words = "sampling", "temperature", "cap", "weights", "epoch_batches"
        rule = {word: getattr(self, word) for word in words}
        return {"tasks": self.names, "sampling": rule, "batches": self.batches, "seed": self.seed}

    def _wanted(self) -> Mapping[str, TaskDataModule | LMDataModule]:
        """Return the tasks that are to be read, which know the Trainer by now."""
        doing = getattr(getattr(self.trainer, "state", None), "fn", None)
        for name, data in self.tasks.items():
            seen = self.trainer and TaskTrainer(self.trainer, data, name)
            data.trainer = cast(Any, seen)
        if doing != TrainerFn.PREDICTING:
            return self.tasks
        name = self._predicted(self.predict_task)
        return {name: self.tasks[name]}

    def _predicted(self, given: str | None) -> str:
        asked = [name for name, data in self.tasks.items() if data.predict_file is not None]
        if given is None and 1 in (len(asked), len(self.tasks)):
            return [*asked, *self.names][0]
        if given not in self.tasks:
            raise ValueError(
                f"predict_task must name the task to predict, one of {', '.join(self.names)}; got "
                f"{given!r}"
            )
        return given

    def _evaluation(self, hook: str) -> list[PlannedLoader]:
        loaders: list[PlannedLoader] = []
        for number, (name, data) in enumerate(self._wanted().items()):
            with about_task(name):
                found = getattr(data, hook)()
            for loader in found if isinstance(found, list) else [found]:
                loader.collate = OneTaskCollate(loader.collate, number)
                loaders.append(loader)
        return loaders
