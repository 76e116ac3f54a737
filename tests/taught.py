"""Students and teachers that the tests share."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from lmkit.modules import (
    DistillationModule,
    HiddenLoss,
    LogitLoss,
    RelationLoss,
    SequenceClassificationModule,
)
from lmkit.modules.network import build_network
from tests import tiny

NAMES = ("fox", "moons", "trees")


@cache
def teacher_folder(layers: int = 4, width: int = 24) -> str:
    """Write a teacher of three classes, in another order than the student's; without tokenizer."""
    config = {
        **tiny.MASKED["bert"],
        "vocab_size": 300,
        "num_hidden_layers": layers,
        "hidden_size": width,
        "id2label": dict(enumerate(reversed(NAMES))),
        "label2id": {name: number for number, name in enumerate(reversed(NAMES))},
        "initializer_range": 0.5,
    }
    with torch.random.fork_rng():
        torch.manual_seed(7)
        network, _ = build_network(AutoModelForSequenceClassification, config, False)
    folder = Path(tempfile.mkdtemp(prefix="lmkit-teacher-"))
    network.save_pretrained(folder)
    return str(folder)


def distilled(config: dict[str, Any], **settings: Any) -> DistillationModule:
    """Make a classifier that learns from the teacher's predictions and from its inside."""
    names = {"id2label": dict(enumerate(NAMES)), "label2id": {n: i for i, n in enumerate(NAMES)}}
    student = SequenceClassificationModule(
        {**tiny.MASKED["bert"], **names, **config}, **{"dropout": 0.1, **settings}
    )
    losses = [LogitLoss(), HiddenLoss(), RelationLoss()]
    return DistillationModule(student, teacher_folder(), losses=losses)
