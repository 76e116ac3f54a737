"""Virtual tokens are switched by name, and a call is read whichever way it was written."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, DynamicCache

from lmkit.surgery.virtual_tokens import (
    VirtualTokens,
    check_mask,
    lengthen,
    named_arguments,
    parameter_names,
    position_table,
    seeded,
    seen_tokens,
)
from tests import tiny


def tokens(**lengths: int) -> VirtualTokens:
    made = VirtualTokens()
    for name, length in lengths.items():
        made.add(name, nn.Linear(1, length), SimpleNamespace(length=length))
    return made


def test_all_are_active_at_first_in_the_order_in_which_they_came() -> None:
    assert tokens().count == 0 and tokens().active_adapters == {}
    both = tokens(b=2, a=3)
    assert both.adapter_names == ("b", "a") and both.count == 5
    assert both.active_adapters == {"b": 1.0, "a": 1.0}
    assert [part.out_features for part in both.active] == [2, 3]


def test_those_that_are_not_named_are_off_and_their_order_stays() -> None:
    three = tokens(a=1, b=2, c=4)
    three.use({"c": 1, "a": True, "elsewhere": 0.3})
    assert list(three.active_adapters) == ["a", "c"] and three.count == 5
    three.use({"b": 0.0})
    assert three.count == 0 and list(three.active) == []
    assert three.adapter_names == ("a", "b", "c")
    # What is active is no part of the state dict, and a copy has its own.
    other = copy.deepcopy(three)
    other.use({"b": 1})
    assert three.count == 0 and other.count == 2
    assert three.state_dict().keys() == other.state_dict().keys()


def test_half_a_token_there_is_not_and_nothing_changes() -> None:
    two = tokens(a=1, b=2)
    with pytest.raises(ValueError, match=r"the weight of 'b' must be 0 or 1.*got 0\.5"):
        two.use({"b": 0.5})
    assert two.count == 3


class Reads(nn.Module):
    def forward(self, input_ids: Tensor, mask: Tensor | None = None, *, deep: int = 1) -> Any:
        """Take three things."""


def test_a_call_is_the_same_with_and_without_names() -> None:
    network, ids, mask = Reads(), torch.ones(1), torch.zeros(1)
    assert parameter_names(network) == ("input_ids", "mask", "deep")
    expected = {"input_ids": ids, "mask": mask, "deep": 2}
    for args, kwargs in (
        ((ids, mask), {"deep": 2}),
        ((ids,), {"deep": 2, "mask": mask}),
        ((), expected),
    ):
        assert named_arguments(network, args, kwargs) == expected


def test_a_mask_tells_real_tokens_from_padding_and_no_more() -> None:
    for fine in (None, torch.ones(2, 3)):
        check_mask(fine, "it")
    with pytest.raises(ValueError, match=r"it needs one text in a row.*shape \(2, 1, 3, 3\)"):
        check_mask(torch.ones(2, 1, 3, 3), "it")
    with pytest.raises(ValueError, match="one dict"):
        check_mask({}, "it")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.bfloat16])
def test_a_longer_mask_sees_what_came_in_front(dtype: torch.dtype) -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]]).to(dtype)
    longer = lengthen(mask, 2)
    assert longer.dtype == dtype and longer.shape == (2, 5)
    assert longer[:, :2].all() and torch.equal(longer[:, 2:], mask)
    assert torch.equal(lengthen(mask, 0), mask)


def test_a_cache_says_how_much_it_has_seen() -> None:
    cache = DynamicCache()
    assert seen_tokens(None) == seen_tokens(cache) == 0
    cache.update(torch.zeros(1, 2, 7, 4), torch.zeros(1, 2, 7, 4), 0)
    assert seen_tokens(cache) == 7


@pytest.mark.parametrize(
    ("kind", "learned"),
    [("bert", True), ("gpt2", True), ("llama", False), ("modernbert", False)],
)
def test_only_learned_positions_have_a_table(kind: str, learned: bool) -> None:
    settings: dict[str, Any] = {**tiny.MASKED, **tiny.CAUSAL}[kind]
    config = AutoConfig.for_model(**{"vocab_size": 99, "pad_token_id": 0, **settings})
    table = position_table(AutoModel.from_config(config))
    expected = config.max_position_embeddings if learned else None
    assert (table and table.num_embeddings) == expected


def test_a_seed_of_its_own_leaves_no_trace() -> None:
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    first = torch.rand(1)
    with seeded(7):
        inside = torch.rand(3)
    assert torch.equal(torch.cat([first, torch.rand(1)]), expected)
    with seeded(7):
        assert torch.equal(torch.rand(3), inside)
    with pytest.raises(KeyError), seeded(8):
        raise KeyError
    torch.manual_seed(1)
    assert torch.equal(torch.rand(2), expected)
