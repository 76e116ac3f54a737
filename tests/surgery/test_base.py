"""What every surgery shares."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from lmkit.surgery import NothingMatchedError, from_spec, match_modules, replace_module, to_spec
from tests.tiny import Residual


def network() -> nn.Sequential:
    block = nn.ModuleDict({"query": nn.Linear(2, 2), "out": nn.Linear(2, 3)})
    return nn.Sequential(block, nn.ModuleDict({"query": nn.Linear(2, 2)}))


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["query"], ["0.query", "1.query"]),
        (["0.*"], ["0.query", "0.out"]),
        (["1.query", "out"], ["0.out", "1.query"]),
    ],
)
def test_patterns_match_whole_names_and_their_ends(
    patterns: list[str], expected: list[str]
) -> None:
    assert list(match_modules(network(), patterns, nn.Linear)) == expected


def test_a_pattern_does_not_match_a_part_of_a_name() -> None:
    with pytest.raises(NothingMatchedError, match=r"\['uery'\]; nearest names: .*query"):
        match_modules(network(), ["uery"])


def test_a_replacement_takes_the_place_and_the_mode() -> None:
    whole = network().eval()
    replace_module(whole, "1.query", nn.Dropout())
    assert isinstance(whole.get_submodule("1.query"), nn.Dropout)
    assert not whole.get_submodule("1.query").training


def test_a_surgery_survives_being_written_as_plain_data() -> None:
    again = from_spec(to_spec(Residual(patterns=("query",), rank=3)))
    assert isinstance(again, Residual) and again.rank == 3
    assert to_spec(again) == to_spec(Residual(patterns=("query",), rank=3))


def test_a_surgery_that_holds_more_than_plain_data_is_refused() -> None:
    @dataclass(frozen=True)
    class Live:
        weight: torch.Tensor

        def __call__(self, network: nn.Module) -> None: ...

    with pytest.raises(TypeError, match="Live must hold plain data"):
        to_spec(Live(torch.ones(1)))


@pytest.mark.parametrize("path", ["os.system", "lmkit.surgery.base.to_spec", "this.s", "nowhere"])
def test_only_surgeries_that_are_there_can_be_named(path: str) -> None:
    with pytest.raises(ValueError, match="not to be had"):
        from_spec({"class_path": path, "init_args": {}})
