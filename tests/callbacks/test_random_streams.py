"""Generators are put back to where they stood."""

import torch
from torch.nn.functional import dropout

from lmkit.callbacks.random_streams import Streams


def test_dropout_is_drawn_again_and_what_follows_is_as_if_it_had_not_been():
    torch.manual_seed(3)
    torch.rand(2)
    before = Streams.now(torch.device("cpu"))
    first = dropout(torch.ones(50), 0.5)
    after = Streams.now(torch.device("cpu"))
    follows = torch.rand(3)
    before.restore()
    assert torch.equal(dropout(torch.ones(50), 0.5), first)
    dropout(torch.ones(9), 0.5)
    after.restore()
    assert torch.equal(torch.rand(3), follows)


def test_it_draws_nothing_itself():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    Streams.now(torch.device("cpu")).restore()
    assert torch.equal(torch.rand(2), expected)
