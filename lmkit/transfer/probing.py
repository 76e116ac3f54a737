"""`lmkit.transferability`: encoders beside one another by what they know of a task."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, get_args

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from ..datamodules import TokenClassificationDataModule
from ..functional.transferability import leave_one_out, log_evidence
from ..model_names import named_models
from ..modules.checks import check_device, require_tokenizer
from ..modules.network import usable_positions
from ..surgery.arguments import check_whole
from .features import (
    Items,
    Pooling,
    check_model,
    encode_items,
    open_encoder,
    quick_tokenizer,
)
from .results import TransferReport, TransferRow, score_of
from .target import FEWEST, TargetTask, check_count, drawn_examples, rows_of, target_data

__all__ = ["transferability"]


def transferability(
    models: Mapping[str, Any] | Sequence[str] | str,
    data: LightningDataModule | str | os.PathLike[str],
    task: TargetTask | None = None,
    examples: int = 1000,
    pooling: Pooling | None = None,
    batch_size: int = 32,
    seed: int = 0,
    device: str | None = None,
) -> TransferReport:
    r"""Measure how much frozen encoders know of a task: which of them to train on it.

    Each encoder reads the same training examples by its own tokenizer, once. Its last states (of a
    text one, of tagged words that of the first piece of each) are the features $F$, and the labels
    the targets: a column for each class, or the value. Of these are said

    - LogME: the largest evidence of a Bayesian linear model, in nats an example, the mean over the
      columns (You et al. 2021, arXiv:2102.11005);
    - what a ridge regression says of each example that learned from all others: accuracy, of
      several labels micro F1, of values $R^2$.

    Nothing is trained, and no weight changes. The figures compare encoders on one task, and do not
    tell how good a fine-tuned one will be.

    Args:
        models: by name: modules, checkpoints, folders (of exports with or without their head) or
            hub names; or one or several of the latter, each `"NAME=MODEL"` or named by the last
            part of its path.
        data: a data module of classification, regression or tagging; the `config.yaml` of a run,
            for its data; or a file with labels.
        task: of a file what its rows are; by default `"tagging"` of `.conll` and `.conllu`, and
            `"single_label"` of others.
        examples: training examples at most, which are drawn; of tagging whole sentences, until they
            have so many words.
        pooling: what stands for a text: its `"first"` token, the `"mean"` of all or the `"last"`
            one; by default what the head for sequences of each architecture takes.
        batch_size: of examples.
        seed: of the draw.
        device: where models that are loaded run; by default CUDA, if it is there.

    Returns:
        The report, best LogME first, which prints as a table: `.rows`, `.table()` (rich),
        `.to_json(path)`.

    Raises:
        TypeError: `models` is none of these, a model is neither a module nor a path, or the data
            are of another kind.
        FileNotFoundError: there is no such file or checkpoint.
        ValueError: an argument lies outside its range; a model has no encoder; or there are fewer
            than ten examples with labels, or only one class or value among them. Names the model
            if it is not of the data alone.

    Example:
        >>> transferability({}, "train.csv")
        Traceback (most recent call last):
        ...
        ValueError: models must name at least one model, e.g. {'before': 'bert-base-uncased'}
    """
    models = _by_name(models)
    if not models:
        raise ValueError(
            "models must name at least one model, e.g. {'before': 'bert-base-uncased'}"
        )
    for word, number, least in (("examples", examples, FEWEST), ("batch_size", batch_size, 1)):
        check_whole(word, number, least)
    check_whole("seed", seed, 0)
    if pooling is not None and pooling not in get_args(Pooling):
        raise ValueError(f"pooling must be one of {', '.join(get_args(Pooling))}, got {pooling!r}")
    check_device(device)
    target = target_data(data, task)
    kind = "tagging" if isinstance(target, TokenClassificationDataModule) else target.task
    for name, given in models.items():
        with _named(name):
            check_model(given)
    # What is wrong with the data is better known before a model is loaded.
    for name, given in models.items():
        with _named(name):
            tokenizer = quick_tokenizer(given)
            if tokenizer is not None:
                target.check_tokenizer(tokenizer)
        if tokenizer is not None:
            drawn_examples(rows_of(target, tokenizer), examples, seed)
            break
    rows = []
    for name, given in models.items():
        with _named(name):
            module = open_encoder(given, kind, device)
            tokenizer = require_tokenizer(module)
            target.check_tokenizer(tokenizer)
        own = rows_of(target, tokenizer, usable_positions(module.network))
        places = drawn_examples(own, examples, seed)
        with _named(name):
            items = encode_items(module, own, places, kind, pooling, batch_size, name)
        check_count(len(items.labels))
        targets = _targets(items.labels, kind)
        with _named(name):
            rows.append(_row(name, items, targets, kind))
    settings = {"task": kind, "examples": examples, "pooling": pooling, "seed": seed}
    return TransferReport.of(rows, settings)


def _by_name(models: Any) -> Mapping[str, Any]:
    if isinstance(models, Mapping):
        return models
    several = [models] if isinstance(models, str | os.PathLike) else models
    if isinstance(several, Sequence) and all(isinstance(m, str | os.PathLike) for m in several):
        return named_models(several)
    raise TypeError(
        "models must be a mapping of names to models, as in {'before': 'bert-base-uncased'}, or "
        f"one or several paths or hub names, got {models!r:.80}"
    )


@contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _row(name: str, items: Items, targets: Tensor, kind: str) -> TransferRow:
    features, count = items.features, len(items.features)
    evidence = float(log_evidence(features, targets).value.mean())
    left_out = leave_one_out(features, targets)
    score, baseline = score_of(left_out.predictions, targets, kind)
    return TransferRow(name, evidence, score, baseline, left_out.penalty, count, features.shape[1])


def _targets(labels: Tensor, kind: str) -> Tensor:
    """Return the columns that features are to say, `[N, C]`, without those that say nothing."""
    if kind in ("single_label", "tagging"):
        labels = torch.nn.functional.one_hot(labels)
    columns = labels.double().reshape(len(labels), -1)
    varied = columns[:, (columns != columns[:1]).any(0)]
    if not varied.shape[1]:
        word = "value" if kind == "regression" else "class"
        raise ValueError(f"the examples have only one {word}, and so nothing to tell apart")
    return varied
