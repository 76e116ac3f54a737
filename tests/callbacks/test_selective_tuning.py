"""Chosen layers, norms, embeddings and modules learn, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lmkit.callbacks import SelectiveTuningCallback
from lmkit.surgery import NothingMatchedError
from lmkit.surgery.selection import Selection
from tests.callbacks.tuned import Watch, fit, learns

HEAD = {"network.classifier.weight", "network.classifier.bias"}


def test_the_top_layers_and_the_head_learn_and_have_all_the_gradients(tmp_path: Path) -> None:
    class Gradients(Watch):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            self.there = {n for n, p in pl_module.named_parameters() if p.grad is not None}

    watch = Gradients()
    module, _ = fit(tmp_path, SelectiveTuningCallback(layers=1), watch)
    layer = {n for n, _ in module.named_parameters() if ".layer.1." in n}
    assert set(learns(module)) == watch.there == layer | HEAD


def test_norms_alone_learn(tmp_path: Path) -> None:
    module, _ = fit(tmp_path, SelectiveTuningCallback(norms=True), max_steps=1)
    width = module.network.config.hidden_size
    norms = {n for n in learns(module) if "LayerNorm" in n}
    assert set(learns(module)) == norms | HEAD
    # A scale and a bias, twice in each of two layers and once behind the embeddings.
    assert sum(learns(module)[name].numel() for name in norms) == 2 * width * 5


def test_embeddings_alone_learn(tmp_path: Path) -> None:
    module, _ = fit(tmp_path, SelectiveTuningCallback(embeddings=True), max_steps=1)
    names = {n.split(".")[-2] for n in learns(module)} - {"classifier"}
    assert names == {"word_embeddings", "position_embeddings", "token_type_embeddings"}


def test_a_name_that_nothing_has_stops_the_fit_at_set_up(tmp_path: Path) -> None:
    with pytest.raises(NothingMatchedError, match=r"\['polar'\]; nearest names: .*pooler"):
        fit(tmp_path, SelectiveTuningCallback(["query", "polar"]))
    with pytest.raises(ValueError, match="layers is 9, and"):
        fit(tmp_path, SelectiveTuningCallback(layers=9))


def test_a_choice_is_asked_for() -> None:
    with pytest.raises(ValueError, match="needs a choice: patterns, layers, norms or embeddings"):
        SelectiveTuningCallback()
    with pytest.raises(ValueError, match="layers must be at least 0, got -2"):
        SelectiveTuningCallback(layers=-2)


def test_the_arguments_are_those_of_the_surgery() -> None:
    settings: dict[str, Any] = {"layers": 2, "norms": True, "embeddings": True, "head": False}
    assert SelectiveTuningCallback(["a"], **settings).surgery == Selection(("a",), **settings)
