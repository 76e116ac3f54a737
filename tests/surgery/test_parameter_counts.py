"""Numbers are counted once, whatever shares them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lmkit.surgery.low_rank import LowRank
from lmkit.surgery.parameter_counts import parameter_counts
from lmkit.surgery.selection import Selection
from tests.surgery.adapted import NETWORKS, bert, build


@pytest.mark.parametrize("name", NETWORKS)
def test_counts_are_those_of_a_plain_loop(name: str) -> None:
    network = build(name)
    Selection(layers=1)(network)
    seen = {id(p): p for p in network.parameters()}.values()
    counts = parameter_counts(network)
    assert counts.total == sum(len(p.detach().flatten().tolist()) for p in seen)
    assert counts.trainable == sum(p.numel() for p in seen if p.requires_grad) < counts.total
    assert counts.nonzero == sum(v != 0 for p in seen for v in p.detach().flatten().tolist())
    width = network.get_input_embeddings().embedding_dim
    assert counts.embedding == 99 * width


def test_zeros_are_left_out_and_nothing_else_changes() -> None:
    network = bert()
    before = parameter_counts(network)
    with torch.no_grad():
        network.get_submodule("bert.encoder.layer.0.attention.self.query").weight[:8] = 0
    after = parameter_counts(network)
    assert after == before._replace(nonzero=before.nonzero - 8 * 16)


def test_a_factorized_table_is_one_of_tokens() -> None:
    network = bert()
    before = parameter_counts(network)
    LowRank({"bert.embeddings.word_embeddings": 3})(network)
    after = parameter_counts(network)
    assert after.embedding == (99 + 16) * 3
    assert before.total - after.total == before.embedding - after.embedding


def test_two_tables_count_twice_and_a_shared_one_once() -> None:
    network = nn.Module()
    network.one, network.other = bert(), build("masked")
    alone = parameter_counts(network.one).embedding
    assert parameter_counts(network).embedding == 2 * alone
    network.other.bert.embeddings = network.one.bert.embeddings
    network.other.tie_weights()
    assert parameter_counts(network).embedding == alone


def test_a_module_without_any_has_none() -> None:
    assert parameter_counts(nn.ReLU()) == (0, 0, 0, 0)
