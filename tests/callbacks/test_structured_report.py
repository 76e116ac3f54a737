"""Figures, table and picture say what is left, without what is shut."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from lmkit.callbacks.structured_plan import StructuredPlan
from lmkit.callbacks.structured_report import StructuredReport, units_figure
from lmkit.callbacks.structured_run import StructuredRun
from lmkit.surgery.structured_pruning import removal, remove_units
from lmkit.surgery.units import find_units
from tests.surgery.pruned import build


def started(name: str, **how: Any) -> tuple[Any, StructuredReport, StructuredRun]:
    network: Any = build(name, torch.float32)
    report, run = StructuredReport("structured_pruning"), StructuredRun(StructuredPlan(**how))
    report.begin(network)
    run.look(network)
    run.start(10)
    return network, report, run


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_figures_of_what_is_shut_are_those_of_what_is_removed(name: str) -> None:
    network, report, run = started(name, ffn=8, heads=2, importance="random")
    first = report.figures(network, run)
    assert first["structured_pruning/parameters_share"] == 1.0
    run.masks.shut({u.name: torch.arange(u.count) >= u.count // 2 for u in find_units(network)})
    shut = report.figures(network, run)
    # T5 has a shared choice for all attentions of a stack, each of which has its heads.
    assert shut["structured_pruning/heads"] == first["structured_pruning/heads"] / 2
    assert shut["structured_pruning/neurons"] == first["structured_pruning/neurons"] / 2
    remove_units(network, removal(network, run.kept()))
    run.finish()
    assert report.figures(network, run) == pytest.approx(shut)
    assert 0.4 < shut["structured_pruning/parameters_share"] < 0.6


def test_the_table_has_a_line_for_each_layer_and_the_picture_two_rows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network, report, _ = started("bert", ffn=8, heads=2)
    trainer = Trainer(
        default_root_dir=tmp_path, logger=False, enable_checkpointing=False, accelerator="cpu"
    )
    units = find_units(network)
    kept = {u.name: list(range(u.count // 2)) for u in units if u.layer != 1}
    surgery = removal(network, kept)
    before = report.look(network)
    remove_units(network, surgery)
    with caplog.at_level(logging.INFO):
        report.say(trainer, before, network, surgery)
    lines = caplog.records[-1].message.splitlines()
    assert [line.split() for line in lines[1:4]] == [
        ["0", "2", "of", "4", "12", "of", "24"],
        ["1", "4", "of", "4", "24", "of", "24"],
        ["2", "2", "of", "4", "12", "of", "24"],
    ]
    assert "parameters in the layers" in lines[4] and len({len(line) for line in lines[:4]}) == 1
    assert (tmp_path / "figures/structured_pruning/units.png").stat().st_size > 1000
    figure = units_figure(before, report.look(network))
    heads, neurons = figure.axes
    assert [bar.get_height() for bar in heads.patches] == [4, 4, 4, 2, 4, 2]
    assert [bar.get_height() for bar in neurons.patches] == [24, 24, 24, 12, 24, 12]


def test_of_an_unknown_architecture_the_layers_are_told_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 3}
    network: Any = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=9, intermediate_size=8, **sizes))
    report, run = StructuredReport("structured_pruning"), StructuredRun(StructuredPlan(layers=2))
    report.begin(network)
    before = report.look(network)
    surgery = removal(network, {}, layers=[0, 2])
    remove_units(network, surgery)
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    with caplog.at_level(logging.INFO):
        report.say(trainer, before, network, surgery)
    assert "layers kept: [0, 2]" in caplog.records[-1].message
    share = report.figures(network, run)
    assert share == {"structured_pruning/parameters_share": pytest.approx(2 / 3)}


def test_layers_and_dimensions_are_told_in_words(caplog: pytest.LogCaptureFixture) -> None:
    network, report, _ = started("t5", ffn=8)
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    layers = {"encoder": [0, 2], "decoder": [1]}
    surgery = removal(network, {}, layers=layers, hidden=list(range(8)))
    before = report.look(network)
    remove_units(network, surgery)
    with caplog.at_level(logging.INFO):
        report.say(trainer, before, network, surgery)
    said = caplog.records[-1].message
    assert "layers kept of the encoder: [0, 2]" in said and "of the decoder: [1]" in said
    assert "hidden dimensions kept: 8 of 16" in said
    assert not Path("lightning_logs").exists() and not Path("figures").exists()
